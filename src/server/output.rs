//! From generated tokens to what is passed on: text up to a stop string, and each token's
//! log-probability together with the text that it is part of.
//!
//! Text may be held back because a character or a stop string is incomplete. A token's
//! log-probability waits until its text is passed on, so that no token shows of a stop string.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::{TokenId, TokenLogprobs};
use crate::text::{Detokenizer, StopMatcher, StopOutcome, TextError, Tokenizer};

/// A token of the answer, its log-probability, and where its text begins.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    pub id: TokenId,
    /// Characters of the answer's text before the token's own; an echoed prompt counts.
    pub text_offset: usize,
    /// `None` for the first token of a prompt: nothing comes before it.
    pub logprobs: Option<TokenLogprobs>,
}

/// What can be passed on at once.
#[derive(Debug, Default)]
pub struct Part {
    pub text: String,
    pub scored: Vec<ScoredToken>,
    /// A stop string is complete: this part is the last.
    pub stopped: bool,
}

/// The output of one generation.
pub struct Output {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    waiting: VecDeque<ScoredToken>,
    /// Characters of the answer that the detokenizer has given, and those that were passed on.
    num_decoded_chars: usize,
    num_passed_chars: usize,
}

impl Output {
    /// An output that begins `num_echoed_chars` into the answer.
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Vec<String>, num_echoed_chars: usize) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer.clone()),
            tokenizer,
            stop: StopMatcher::new(stop),
            waiting: VecDeque::new(),
            num_decoded_chars: num_echoed_chars,
            num_passed_chars: num_echoed_chars,
        }
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// The tokenizer does not know it.
    pub fn push(
        &mut self,
        id: TokenId,
        logprobs: Option<TokenLogprobs>,
    ) -> Result<Part, TextError> {
        self.enqueue(logprobs);
        let text = self.detokenizer.push(id)?;
        Ok(self.pass(&text))
    }

    /// The generation ended, perhaps with a stop token, whose text is not shown: what was held back
    /// is passed on after all.
    ///
    /// # Errors
    /// None that `push` would not have given.
    pub fn finish(&mut self, stop_token: Option<TokenLogprobs>) -> Result<Part, TextError> {
        let rest = self.detokenizer.finish()?;
        let mut part = self.pass(&rest);
        if !part.stopped {
            part.text += &self.stop.finish();
            self.enqueue(stop_token);
            part.scored.extend(self.waiting.drain(..));
        }
        Ok(part)
    }

    /// The text of the token begins where the text so far ends.
    fn enqueue(&mut self, logprobs: Option<TokenLogprobs>) {
        self.waiting.extend(logprobs.map(|logprobs| ScoredToken {
            id: logprobs.id,
            text_offset: self.num_decoded_chars,
            logprobs: Some(logprobs),
        }));
    }

    /// Runs decoded text through the stop strings.
    fn pass(&mut self, decoded: &str) -> Part {
        self.num_decoded_chars += decoded.chars().count();
        let (text, stopped) = match self.stop.push(decoded) {
            StopOutcome::Text(text) => (text, false),
            StopOutcome::Stopped(text) => (text, true),
        };
        self.num_passed_chars += text.chars().count();
        let mut scored = Vec::new();
        while let Some(token) = self.waiting.front()
            && self.is_passed(token)
        {
            scored.extend(self.waiting.pop_front());
        }
        Part {
            text,
            scored,
            stopped,
        }
    }

    /// Whether some of the token's text was passed on, or all before it if it has none.
    fn is_passed(&self, token: &ScoredToken) -> bool {
        token.text_offset < self.num_passed_chars
            || (token.text_offset == self.num_passed_chars && !self.has_text(token.id))
    }

    fn has_text(&self, id: TokenId) -> bool {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        !bytes.is_empty() && !self.tokenizer.is_special(id)
    }
}
