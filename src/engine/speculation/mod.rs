//! Speculative decoding: drafts of a sequence's next tokens, from what it has said before.
//!
//! A step computes the draft's tokens behind the last one, each with logits of its own. The first
//! row gives the next token as ever; while that is the one drafted, the following row is valid too
//! and gives one more. So the tokens are those of a run without drafts, drawn from the same random
//! stream, and only the number of steps differs.

mod ngram_index;

pub(super) use self::ngram_index::AGREEMENT_MAX;
use self::ngram_index::NgramIndex;
use super::request::TokenId;
use crate::config::{SpeculationConfig, Speculative};

/// How many tokens the drafts of a step may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DraftLimits {
    /// Of one sequence.
    pub draft_tokens: usize,
    /// Tokens of the whole step, planned and drafted, beyond which nothing is drafted.
    pub step_tokens: usize,
}

impl DraftLimits {
    /// `None` when drafts are off.
    pub fn of(config: &SpeculationConfig) -> Option<Self> {
        match config.speculative {
            Speculative::Off => None,
            Speculative::Ngram => Some(Self {
                draft_tokens: config.speculative_tokens,
                step_tokens: config.speculative_step_tokens,
            }),
        }
    }
}

/// Drafts for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    index: NgramIndex,
}

impl Drafter {
    pub fn new(prompt: &[TokenId]) -> Self {
        let mut index = NgramIndex::default();
        index.update(prompt);
        Self { index }
    }

    /// Writes up to `max_tokens` tokens that may follow `tokens` into `draft`: what followed the
    /// place that agrees longest with their end, as many tokens as agree. So a chance match costs
    /// little, and a text that is copied is soon drafted at full length.
    pub fn propose(&mut self, tokens: &[TokenId], max_tokens: usize, draft: &mut Vec<TokenId>) {
        draft.clear();
        self.index.update(tokens);
        if let Some(found) = self.index.find(tokens) {
            // Where the place is near, the draft goes on with itself: a loop is drafted as a loop.
            let period = tokens.len() - found.position;
            let len = max_tokens.min(found.agreeing_tokens);
            draft.extend((0..len).map(|offset| tokens[found.position + offset % period]));
        }
    }
}
