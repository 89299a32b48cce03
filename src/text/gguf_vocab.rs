//! The tokenizer that a GGUF file describes in its metadata (`tokenizer.ggml.*`).
//!
//! `model = "gpt2"` is byte-level BPE, whose word rules hang on `pre`; `model = "llama"` is
//! SentencePiece BPE. Any other model, and any `pre` we do not know, is refused by name.

use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};

use super::TextError;
use super::bpe::BpeParts;
use super::byte_level;
use super::pre_tokenizer::word_rules;
use super::sentencepiece::{SPACE, byte_of_piece, merges_from_scores};
use super::token_table::{TextStyle, TokenEntry, check_num_tokens};
use super::tokenizer::{SpecialIds, TokenizerParts};
use super::utf8::Invalid;

/// The metadata of a GGUF file, as it stands there; the key of each field is
/// `tokenizer.ggml.` + its name unless said otherwise. Nothing in it is trusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// "gpt2" or "llama".
    pub model: String,
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// Empty, or one a token.
    pub scores: Vec<f32>,
    /// Key `token_type`. Empty, or one a token: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// Two tokens with a space between.
    pub merges: Vec<String>,
    /// Key `bos_token_id`; the other ids likewise.
    pub bos_id: Option<u32>,
    pub eos_id: Option<u32>,
    /// Key `unknown_token_id`.
    pub unk_id: Option<u32>,
    /// Key `padding_token_id`.
    pub pad_id: Option<u32>,
    pub add_bos_token: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn new(id: usize, code: i32) -> Result<Self, TextError> {
        Ok(match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return bad(format!("token {id} has type {code}, and types are 1 to 6")),
        })
    }
}

impl GgufVocab {
    pub(super) fn into_parts(self) -> Result<TokenizerParts, TextError> {
        check_num_tokens(self.tokens.len())?;
        let types = self.types()?;
        self.check_special_ids()?;
        match self.model.as_str() {
            "gpt2" => self.byte_level_parts(&types),
            "llama" => self.sentencepiece_parts(&types),
            model => Err(TextError::Unsupported(format!(
                "GGUF tokenizer model '{model}' (tokenizer.ggml.model) is neither 'gpt2' nor \
                 'llama'"
            ))),
        }
    }

    /// The type of each token. A file without types still tells the special tokens by their ids.
    fn types(&self) -> Result<Vec<TokenType>, TextError> {
        if self.token_types.is_empty() {
            let specials = [self.bos_id, self.eos_id, self.unk_id, self.pad_id];
            let mut types = vec![TokenType::Normal; self.tokens.len()];
            for id in specials.into_iter().flatten() {
                if let Some(entry) = types.get_mut(id as usize) {
                    *entry = TokenType::Control;
                }
            }
            return Ok(types);
        }
        if self.token_types.len() != self.tokens.len() {
            return bad(format!(
                "it has {} tokens and {} token types",
                self.tokens.len(),
                self.token_types.len()
            ));
        }
        self.token_types
            .iter()
            .enumerate()
            .map(|(id, &code)| TokenType::new(id, code))
            .collect()
    }

    fn check_special_ids(&self) -> Result<(), TextError> {
        let ids = [
            ("bos_token_id", self.bos_id),
            ("eos_token_id", self.eos_id),
            ("unknown_token_id", self.unk_id),
            ("padding_token_id", self.pad_id),
        ];
        for (key, id) in ids {
            if id.is_some_and(|id| id as usize >= self.tokens.len()) {
                return bad(format!(
                    "{key} is {}, and it has {} tokens",
                    id.unwrap_or_default(),
                    self.tokens.len()
                ));
            }
        }
        Ok(())
    }

    fn byte_level_parts(self, types: &[TokenType]) -> Result<TokenizerParts, TextError> {
        let rules = word_rules(self.pre.as_deref())?;
        let mut sorted = SortedTokens::default();
        for (id, (token, &kind)) in (0..).zip(self.tokens.iter().zip(types)) {
            match kind {
                TokenType::Normal => {
                    sorted.add_normal(id, token, byte_level::decode_token(token))?;
                }
                TokenType::Byte => return bad(format!("token {id} of a byte-level one is a byte")),
                kind => sorted.add_other(id, token.clone(), kind),
            }
        }
        let bpe = BpeParts {
            vocab: sorted.vocab,
            merges: parse_merges(&self.merges)?,
            ignore_merges: rules.ignore_merges,
            splits_words: true,
            ..BpeParts::default()
        };
        Ok(TokenizerParts {
            prefix: bos_prefix(self.add_bos_token, rules.adds_bos, self.bos_id)?,
            special_ids: special_ids(&self),
            bpe,
            added: sorted.added,
            normalizer: rules.normalizer,
            pre_tokenizer: Some(rules.pre_tokenizer),
            entries: sorted.entries,
            style: TextStyle {
                invalid: Invalid::PerSequence,
                strips_first_space: false,
            },
        })
    }

    fn sentencepiece_parts(self, types: &[TokenType]) -> Result<TokenizerParts, TextError> {
        if self.scores.len() != self.tokens.len() {
            return bad(format!(
                "it has {} tokens and {} scores",
                self.tokens.len(),
                self.scores.len()
            ));
        }
        let mut sorted = SortedTokens::default();
        let mut pieces = Vec::new();
        let mut unk_token = None;
        for (id, (token, &kind)) in (0..).zip(self.tokens.iter().zip(types)) {
            match kind {
                TokenType::Normal => {
                    sorted.add_normal(id, token, with_spaces(token).into_bytes())?;
                    pieces.push((token.as_str(), id, self.scores[id as usize]));
                }
                TokenType::Byte => {
                    let byte = byte_of_piece(token);
                    let Some(byte) = byte else {
                        return bad(format!(
                            "byte token {id} is {token:?} and not like '<0x0A>'"
                        ));
                    };
                    sorted.add_normal(id, token, vec![byte])?;
                }
                TokenType::Unknown => {
                    sorted.add_to_vocab(id, token)?;
                    sorted.add_other(id, token.clone(), kind);
                    unk_token = Some(token.clone());
                }
                TokenType::UserDefined => sorted.add_other(id, with_spaces(token), kind),
                kind => sorted.add_other(id, token.clone(), kind),
            }
        }
        let adds_space = self.add_space_prefix.unwrap_or(true);
        let merges = merges_from_scores(&pieces, &sorted.vocab)?;
        Ok(TokenizerParts {
            prefix: bos_prefix(self.add_bos_token, true, self.bos_id)?,
            special_ids: special_ids(&self),
            bpe: BpeParts {
                vocab: sorted.vocab,
                merges,
                unk_token,
                fuse_unk: true,
                byte_fallback: true,
                ..BpeParts::default()
            },
            added: sorted.added,
            normalizer: Some(spaces_to_pieces(adds_space)),
            pre_tokenizer: None,
            entries: sorted.entries,
            style: TextStyle {
                invalid: Invalid::PerByte,
                strips_first_space: adds_space,
            },
        })
    }
}

/// The tokens of a file, sorted by what they are for.
#[derive(Default)]
struct SortedTokens {
    vocab: Vocab,
    added: Vec<(u32, AddedToken)>,
    entries: Vec<TokenEntry>,
}

impl SortedTokens {
    fn add_normal(&mut self, id: u32, token: &str, bytes: Vec<u8>) -> Result<(), TextError> {
        self.entries.push(TokenEntry {
            bytes,
            special: false,
        });
        self.add_to_vocab(id, token)
    }

    fn add_to_vocab(&mut self, id: u32, token: &str) -> Result<(), TextError> {
        match self.vocab.insert(token.to_string(), id) {
            Some(other) => bad(format!("tokens {other} and {id} are both {token:?}")),
            None => Ok(()),
        }
    }

    /// A token that text is never encoded to by merging: found as a whole, or not at all.
    fn add_other(&mut self, id: u32, content: String, kind: TokenType) {
        if kind == TokenType::Unused {
            return self.entries.push(TokenEntry::default());
        }
        let special = kind != TokenType::UserDefined;
        self.entries.push(TokenEntry {
            bytes: content.clone().into_bytes(),
            special,
        });
        if !content.is_empty() {
            self.added
                .push((id, AddedToken::from(content, special).normalized(false)));
        }
    }
}

fn with_spaces(piece: &str) -> String {
    piece.replace(SPACE, " ")
}

/// Spaces become `▁`, and one is put before the text if the model wants it.
fn spaces_to_pieces(adds_space: bool) -> NormalizerWrapper {
    let replace = Replace::new(" ", SPACE).expect("bug: a plain space does not compile");
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if adds_space {
        steps.push(Prepend::new(SPACE.to_string()).into());
    }
    steps.push(replace.into());
    Sequence::new(steps).into()
}

fn parse_merges(lines: &[String]) -> Result<Merges, TextError> {
    let parse = |(index, line): (usize, &String)| match line.split_once(' ') {
        Some((left, right)) => Ok((left.to_string(), right.to_string())),
        None => bad(format!("merge {index} is {line:?} and not two tokens")),
    };
    lines.iter().enumerate().map(parse).collect()
}

/// What each prompt begins with: BOS where the file, or else the family, wants it.
fn bos_prefix(
    wanted: Option<bool>,
    family_wants: bool,
    bos_id: Option<u32>,
) -> Result<Vec<u32>, TextError> {
    match (wanted, bos_id) {
        (Some(true), None) => bad("add_bos_token is true and there is no bos_token_id".to_string()),
        (wanted, bos_id) => Ok(bos_id
            .filter(|_| wanted.unwrap_or(family_wants))
            .into_iter()
            .collect()),
    }
}

fn special_ids(vocab: &GgufVocab) -> SpecialIds {
    SpecialIds {
        bos: vocab.bos_id,
        eos: vocab.eos_id,
        unk: vocab.unk_id,
        pad: vocab.pad_id,
    }
}

fn bad<T>(what: String) -> Result<T, TextError> {
    Err(TextError::BadVocabulary(what))
}
