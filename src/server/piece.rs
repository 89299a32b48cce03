//! What a generation yields: pieces of the answer, and how it went.

use super::output::{Part, ScoredToken};
use super::timings::Timings;
use crate::engine::{FinishReason, TokenId};

/// What one token adds to the answer; the last piece also tells how it went. An echoed prompt is
/// the first piece, by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// `None` for an echoed prompt, and if the generation ended without one more token.
    pub token: Option<TokenId>,
    /// Empty while a character or a stop string may still be incomplete, and for a stop token.
    pub text: String,
    /// The tokens whose text this is, if log-probabilities are wanted.
    pub scored: Vec<ScoredToken>,
    pub end: Option<Summary>,
}

/// How a generation went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Which of the choices for its prompt.
    pub choice: usize,
    pub finish_reason: FinishReason,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    /// The whole prompt came from the cache, but for its last token.
    pub cached: bool,
    /// Tokens generated up to the end, a stop token included.
    pub generated_tokens: usize,
    pub timings: Timings,
}

/// All pieces in one.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    pub text: String,
    /// Those that were generated.
    pub tokens: Vec<TokenId>,
    pub scored: Vec<ScoredToken>,
    pub summary: Summary,
}

impl Piece {
    pub fn new(token: Option<TokenId>, part: Part) -> Self {
        Self {
            token,
            text: part.text,
            scored: part.scored,
            end: None,
        }
    }
}
