//! A prompt that is given back as the first part of the answer.

use super::output::{Part, ScoredToken};
use super::prompt::Prompt;
use crate::engine::{TokenId, TokenLogprobs};
use crate::text::{TextError, Tokenizer};

/// A prompt to give back, and the log-probabilities of its tokens as they come.
pub struct Echo {
    text: String,
    /// Where the text of each token begins, in characters.
    text_offsets: Vec<usize>,
    /// At least the first token, which nothing can score.
    scored: Vec<ScoredToken>,
}

impl Echo {
    /// The prompt `sent`, which is `tokens` to the model.
    ///
    /// A text comes back as it was sent, and token ids as their text, special tokens included.
    ///
    /// # Errors
    /// The tokenizer does not know a token.
    pub fn new(tokenizer: &Tokenizer, sent: Prompt, tokens: &[TokenId]) -> Result<Self, TextError> {
        let is_text = matches!(sent, Prompt::Text(_));
        // A text has no special token but the BOS before it, which is not part of it.
        let (decoded, mut text_offsets) = tokenizer.decode_aligned(tokens, is_text)?;
        let text = match sent {
            Prompt::Text(text) => text,
            Prompt::Tokens(_) => decoded,
        };
        // A tokenizer that normalises decodes to another text than was sent, perhaps a longer one.
        let num_chars = text.chars().count();
        for offset in &mut text_offsets {
            *offset = num_chars.min(*offset);
        }
        let first = ScoredToken {
            id: tokens[0],
            text_offset: 0,
            logprobs: None,
        };
        Ok(Self {
            text,
            text_offsets,
            scored: vec![first],
        })
    }

    pub fn num_chars(&self) -> usize {
        self.text.chars().count()
    }

    /// Takes the log-probabilities of the next tokens.
    pub fn score(&mut self, next: Vec<TokenLogprobs>) {
        for logprobs in next {
            self.scored.push(ScoredToken {
                id: logprobs.id,
                text_offset: self.text_offsets[self.scored.len()],
                logprobs: Some(logprobs),
            });
        }
    }

    /// The whole prompt.
    pub fn into_part(self) -> Part {
        Part {
            text: self.text,
            scored: self.scored,
            stopped: false,
        }
    }
}
