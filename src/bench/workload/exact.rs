//! Cuts prompts of an exact number of tokens out of a text.
//!
//! A piece of the text's token ids, decoded and encoded again, is not always the same ids: a cut
//! through a word may be encoded another way. Such a piece is passed over, and the next one taken.

use anyhow::{bail, ensure};
use rand_chacha::ChaCha8Rng;

use super::CORPUS;
use super::openings::distinct_starts;
use super::tokenizer::PromptTokenizer;

/// Longest opening, in tokens, that sets two prompts apart.
const HEAD_TOKENS_MAX: usize = 4;

/// A prompt, or the beginning of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Without those that the model begins each prompt with.
    pub ids: Vec<u32>,
    pub text: String,
}

pub struct Cutter<'a> {
    tokenizer: &'a PromptTokenizer<'a>,
    /// Those that the model begins each prompt with.
    special: Vec<u32>,
    /// The text's, again and again, so that a piece may begin anywhere.
    ids: Vec<u32>,
    /// Where pieces may still begin.
    starts: std::vec::IntoIter<usize>,
}

impl<'a> Cutter<'a> {
    /// For pieces of at most `longest` tokens.
    ///
    /// # Errors
    /// The tokenizer does not answer.
    pub async fn new(
        tokenizer: &'a PromptTokenizer<'a>,
        longest: usize,
        rng: &mut ChaCha8Rng,
    ) -> anyhow::Result<Self> {
        let once = tokenizer.encode(CORPUS).await?;
        ensure!(!once.is_empty(), "the tokenizer finds no token in a text");
        // A model's own begin tokens are all that two texts without a common word share.
        let other = tokenizer.encode("?").await?;
        let same = once.iter().zip(&other).take_while(|(a, b)| a == b);
        let special = once[..same.count()].to_vec();
        let length = once.len() - special.len();
        let copies = longest.div_ceil(length) + 1;
        let whole = vec![CORPUS.trim(); copies].join("\n\n");
        let mut ids = tokenizer.encode(&whole).await?;
        ids.drain(..special.len());
        let starts = distinct_starts(&ids[..length.min(ids.len())], HEAD_TOKENS_MAX, rng);
        Ok(Self {
            tokenizer,
            special,
            ids,
            starts: starts.into_iter(),
        })
    }

    /// Tokens that the model begins each prompt with.
    pub fn num_special(&self) -> usize {
        self.special.len()
    }

    /// Prompts that begin with `head`, each with the one before, of these whole lengths as the
    /// server counts them.
    ///
    /// # Errors
    /// A length leaves no room for a token, or the text has no such pieces any more.
    pub async fn nested(&mut self, head: &Cut, lengths: &[usize]) -> anyhow::Result<Vec<Cut>> {
        let least = self.special.len() + head.ids.len();
        let longest = lengths.last().copied().unwrap_or_default();
        if let Some(short) = lengths.iter().find(|length| **length <= least) {
            bail!("a prompt of {short} tokens is too short: it begins with {least} tokens already");
        }
        while let Some(start) = self.starts.next() {
            if start + longest - least > self.ids.len() {
                continue;
            }
            if let Some(cuts) = self.try_at(start, head, lengths).await? {
                return Ok(cuts);
            }
        }
        bail!(
            "the text gives no more prompts of {longest} tokens that begin differently: ask for fewer requests \
             (--scale)"
        )
    }

    async fn try_at(
        &self,
        start: usize,
        head: &Cut,
        lengths: &[usize],
    ) -> anyhow::Result<Option<Vec<Cut>>> {
        let before = self.special.len() + head.ids.len();
        let mut cuts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let piece = &self.ids[start..start + length - before];
            let ids = [&head.ids, piece].concat();
            let text = self.tokenizer.decode(&ids).await?;
            let again = self.tokenizer.encode(&text).await?;
            if again != [&self.special[..], &ids].concat() {
                return Ok(None);
            }
            cuts.push(Cut { ids, text });
        }
        Ok(Some(cuts))
    }
}
