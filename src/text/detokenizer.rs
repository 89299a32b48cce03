//! Token ids to text, one at a time, as they are generated.

use std::sync::Arc;

use super::utf8::Utf8Stream;
use super::{TextError, Tokenizer};

/// Decodes the tokens that continue a prompt. Special tokens give no text; a character comes when
/// its last byte does; the work for a token does not grow with the text before it.
///
/// The pieces join to what [`Tokenizer::decode`] gives for all the ids, but for one thing: where
/// that takes away the space before a whole text, this keeps it, since here it is the space
/// between the prompt and its continuation.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    stream: Utf8Stream,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let stream = tokenizer.new_stream();
        Self { tokenizer, stream }
    }

    /// The text that `id` completes; perhaps empty. An unknown id is an error.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut text = String::new();
        let bytes = self.tokenizer.token_bytes(id)?;
        if !self.tokenizer.is_special(id) {
            self.stream.push(bytes, &mut text);
        }
        Ok(text)
    }

    /// What stands for a character that was never completed; empty if there is none.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let mut text = String::new();
        self.stream.finish(&mut text);
        Ok(text)
    }
}
