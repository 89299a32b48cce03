//! The byte-pair encoder: a checked vocabulary and merges, shared by the two ways to encode.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer, Merges, Vocab};
use tokenizers::{Model, Token};

use super::TextError;

/// The longest word, as the pre-tokenizer cuts them, that is encoded. Its regular expressions give
/// up silently after a million steps back, and leave the rest of the text as one word; no run of
/// one kind of character below this limit takes them there.
const MAX_WORD_BYTES: usize = 256 * 1024;

/// Words that each encoding thread remembers, at some 200 bytes a word.
const CACHED_WORDS: usize = 4096;

/// What a [`SharedBpe`] is made of.
#[derive(Debug, Default)]
pub(super) struct BpeParts {
    /// Ordinary tokens: those that text is encoded to, so no control tokens.
    pub(super) vocab: Vocab,
    /// Pairs of tokens, most urgent first.
    pub(super) merges: Merges,
    /// Stands for characters that no token covers.
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    /// Characters without a token become tokens such as `<0xE2>`, one a byte.
    pub(super) byte_fallback: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Words are what the pre-tokenizer's regular expressions cut, not whole texts.
    pub(super) splits_words: bool,
}

/// A byte-pair encoder that clones share, with the ids of tokens outside of its vocabulary.
#[derive(Clone, Debug)]
pub(super) struct SharedBpe(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bpe: BPE,
    /// Control and user-defined tokens, by content.
    added: HashMap<String, u32>,
    splits_words: bool,
}

impl SharedBpe {
    /// Refuses merges that the vocabulary does not cover.
    pub(super) fn new(parts: BpeParts, added: HashMap<String, u32>) -> Result<Self, TextError> {
        check_merges(&parts.vocab, &parts.merges)?;
        let mut builder = BPE::builder()
            .vocab_and_merges(parts.vocab, parts.merges)
            .cache_capacity(CACHED_WORDS)
            .fuse_unk(parts.fuse_unk)
            .byte_fallback(parts.byte_fallback)
            .ignore_merges(parts.ignore_merges);
        if let Some(unk_token) = parts.unk_token {
            builder = builder.unk_token(unk_token);
        }
        let bpe = builder
            .build()
            .map_err(|error| TextError::BadVocabulary(error.to_string()))?;
        Ok(Self(Arc::new(Inner {
            bpe,
            added,
            splits_words: parts.splits_words,
        })))
    }
}

impl Model for SharedBpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        if self.0.splits_words && word.len() > MAX_WORD_BYTES {
            return Err(format!(
                "it has a run of {} bytes that is one word to the tokenizer; \
                 {MAX_WORD_BYTES} is the most, break it up",
                word.len()
            )
            .into());
        }
        self.0.bpe.tokenize(word)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0
            .added
            .get(token)
            .copied()
            .or_else(|| self.0.bpe.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.bpe.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.bpe.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.bpe.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.bpe.save(folder, prefix)
    }

    fn get_trainer(&self) -> BpeTrainer {
        self.0.bpe.get_trainer()
    }
}

/// The builder of the crate indexes out of bounds on a merge longer than every token.
fn check_merges(vocab: &Vocab, merges: &Merges) -> Result<(), TextError> {
    let mut merged = String::new();
    for (index, (left, right)) in merges.iter().enumerate() {
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        for token in [left, right, &merged] {
            if !vocab.contains_key(token.as_str()) {
                return Err(TextError::BadVocabulary(format!(
                    "merge {index} ({left:?} + {right:?}) needs {token:?}, \
                     which is no ordinary token"
                )));
            }
        }
    }
    Ok(())
}
