//! The tokenizer of one model, built from its tokenizer.json or from GGUF metadata.
//!
//! Both sources become the same checked parts. Text is encoded in two ways that share one
//! vocabulary: a completion's prompt, in which a text that looks like a special token stays text,
//! and a rendered chat, in which the template's special tokens are tokens.

#[cfg(test)]
pub(super) mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, TokenizerImpl};

use super::bpe::{BpeParts, SharedBpe};
use super::token_table::{TextStyle, TokenEntry, TokenTable};
use super::utf8::Utf8Stream;
use super::{GgufVocab, SpecialTokens, TextError, tokenizer_json};

type Encoder = TokenizerImpl<
    SharedBpe,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Text to token ids and back. Shared by all requests in an `Arc`.
pub struct Tokenizer {
    text_encoder: Encoder,
    chat_encoder: Encoder,
    table: TokenTable,
    /// What a completion's prompt begins with: BOS or nothing.
    prefix: Vec<u32>,
    special_ids: SpecialIds,
}

/// What a tokenizer is built from, whichever file it came from.
#[derive(Debug)]
pub(super) struct TokenizerParts {
    pub(super) bpe: BpeParts,
    /// Tokens that are found as a whole, or not at all.
    pub(super) added: Vec<(u32, AddedToken)>,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) entries: Vec<TokenEntry>,
    pub(super) style: TextStyle,
    pub(super) prefix: Vec<u32>,
    pub(super) special_ids: SpecialIds,
}

/// The ids of the special tokens that have a role.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special_ids", &self.special_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From a `tokenizer.json`; `tokenizer_config.json` and `config.json` beside it say more.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        Self::from_parts(tokenizer_json::read_parts(path)?)
    }

    /// From the metadata of a GGUF file.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self, TextError> {
        Self::from_parts(vocab.into_parts()?)
    }

    fn from_parts(parts: TokenizerParts) -> Result<Self, TextError> {
        let mut added_ids = HashMap::new();
        for (id, token) in &parts.added {
            if let Some(other) = added_ids.insert(token.content.clone(), *id) {
                return Err(TextError::BadVocabulary(format!(
                    "special tokens {other} and {id} are both {:?}",
                    token.content
                )));
            }
        }
        let mut text_encoder = Encoder::new(SharedBpe::new(parts.bpe, added_ids)?);
        let added = parts.added.into_iter().map(|(_, token)| token);
        text_encoder
            .with_pre_tokenizer(parts.pre_tokenizer)
            .with_normalizer(parts.normalizer)
            .and_then(|encoder| encoder.add_tokens(added))
            .map_err(|error| TextError::BadVocabulary(error.to_string()))?;
        let chat_encoder = text_encoder.clone();
        // The crate's word for it: "encode special tokens" as the text that they look like.
        text_encoder.set_encode_special_tokens(true);
        Ok(Self {
            text_encoder,
            chat_encoder,
            table: TokenTable::new(&parts.entries, parts.style)?,
            prefix: parts.prefix,
            special_ids: parts.special_ids,
        })
    }

    /// The ids of a completion's prompt, with BOS before them if the model wants it. What looks
    /// like a special token (`<|im_end|>`) is ordinary text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.prefix.clone();
        ids.extend(encode(&self.text_encoder, text)?);
        Ok(ids)
    }

    /// The ids of a rendered chat template: special tokens are recognised, and nothing is added to
    /// what the template wrote.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>, TextError> {
        encode(&self.chat_encoder, rendered)
    }

    /// The text of `ids` taken as a whole text; an unknown id is an error.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        Ok(self.decode_aligned(ids, skip_special)?.0)
    }

    /// Like [`Self::decode`]; also where the text of each id begins, in characters. Ids that share
    /// a character begin where it does.
    pub fn decode_aligned(
        &self,
        ids: &[u32],
        skip_special: bool,
    ) -> Result<(String, Vec<usize>), TextError> {
        let mut stream = self.new_stream();
        let mut text = String::new();
        let mut starts = Vec::with_capacity(ids.len());
        let (mut num_chars, mut num_counted_bytes) = (0, 0);
        for &id in ids {
            num_chars += text[num_counted_bytes..].chars().count();
            num_counted_bytes = text.len();
            starts.push(num_chars);
            let bytes = self.table.bytes(id)?;
            if !(skip_special && self.is_special(id)) {
                stream.push(bytes, &mut text);
            }
        }
        stream.finish(&mut text);
        if self.table.style.strips_first_space && text.starts_with(' ') {
            text.remove(0);
            for start in &mut starts {
                *start = start.saturating_sub(1);
            }
        }
        Ok((text, starts))
    }

    /// All token ids are below this. A model may pad its vocabulary with ids that have no text;
    /// they count.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.special_ids.bos
    }

    pub fn eos_id(&self) -> Option<u32> {
        self.special_ids.eos
    }

    /// The id of a token by its spelling in the vocabulary, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.chat_encoder.token_to_id(token)
    }

    /// The text that a token stands for, alone; a part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        let bytes = self.table.bytes(id).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The bytes that a token stands for; an unknown id is an error.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], TextError> {
        self.table.bytes(id)
    }

    /// Whether decoding skips the token.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// The special tokens with a role, as a chat template wants them.
    pub fn special_tokens(&self) -> SpecialTokens {
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id));
        SpecialTokens {
            bos_token: text(self.special_ids.bos),
            eos_token: text(self.special_ids.eos),
            unk_token: text(self.special_ids.unk),
            pad_token: text(self.special_ids.pad),
        }
    }

    pub(super) fn new_stream(&self) -> Utf8Stream {
        Utf8Stream::new(self.table.style.invalid)
    }
}

fn encode(encoder: &Encoder, text: &str) -> Result<Vec<u32>, TextError> {
    let encoding = encoder.encode_fast(text, false);
    let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}
