//! Log-probabilities as OpenAI writes them: one form for completions, another for chats.

use serde::ser::{Serialize, SerializeMap, Serializer};

use serde_json::Value;

use crate::engine::{TokenId, TokenLogprobs};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::openapi::schema::integer;
use crate::server::output::ScoredToken;
use crate::text::Tokenizer;

/// Most alternatives to one token that a request may ask for.
const MAX_TOP: usize = 20;

/// Stands for all that is less likely, because JSON has no infinity; vLLM's number too.
const LEAST_LOGPROB: f32 = -9999.0;

/// Takes a field that says how many alternatives to report.
///
/// # Errors
/// It is something else than a number from 0 to 20.
pub fn take_number(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let expected = format!("a whole number from 0 to {MAX_TOP}");
    fields.take(name, &expected, |number: &usize| *number <= MAX_TOP)
}

/// What [`take_number`] takes.
pub fn number_schema() -> Value {
    integer(0, MAX_TOP)
}

/// `logprobs` of a completion's choice: four lists with one entry a token.
#[derive(Debug, serde::Serialize)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    /// In characters.
    text_offset: Vec<usize>,
}

/// Tokens and their log-probabilities, best first, the token itself always among them.
#[derive(Debug)]
struct Alternatives(Vec<(String, f32)>);

/// `logprobs` of a chat's choice.
#[derive(Debug, serde::Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, serde::Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, serde::Serialize)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl CompletionLogprobs {
    pub fn new(tokenizer: &Tokenizer, scored: &[ScoredToken]) -> Self {
        let logprobs = || scored.iter().map(|token| token.logprobs.as_ref());
        Self {
            tokens: scored
                .iter()
                .map(|token| token_text(tokenizer, token.id))
                .collect(),
            token_logprobs: logprobs()
                .map(|one| one.map(|one| one.logprob.max(LEAST_LOGPROB)))
                .collect(),
            top_logprobs: logprobs()
                .map(|one| one.map(|one| Alternatives::new(tokenizer, one)))
                .collect(),
            text_offset: scored.iter().map(|token| token.text_offset).collect(),
        }
    }
}

impl Alternatives {
    fn new(tokenizer: &Tokenizer, logprobs: &TokenLogprobs) -> Self {
        let itself = (logprobs.id, logprobs.logprob);
        let mut entries: Vec<(String, f32)> = Vec::with_capacity(logprobs.top.len() + 1);
        for (id, logprob) in logprobs.top.iter().copied().chain([itself]) {
            let text = token_text(tokenizer, id);
            // Different tokens may have one text, but an object has a key once: the best stays.
            if entries.iter().all(|(other, _)| *other != text) {
                entries.push((text, logprob.max(LEAST_LOGPROB)));
            }
        }
        Self(entries)
    }
}

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

impl ChatLogprobs {
    pub fn new(tokenizer: &Tokenizer, scored: &[ScoredToken]) -> Self {
        let alternative = |(id, logprob): (TokenId, f32)| Alternative {
            token: token_text(tokenizer, id),
            logprob: logprob.max(LEAST_LOGPROB),
            bytes: token_bytes(tokenizer, id).to_vec(),
        };
        let logprobs = scored.iter().filter_map(|token| token.logprobs.as_ref());
        Self {
            content: logprobs
                .map(|one| ChatToken {
                    token: alternative((one.id, one.logprob)),
                    top_logprobs: one.top.iter().copied().map(alternative).collect(),
                })
                .collect(),
            refusal: None,
        }
    }
}

/// The text of a token; one that is no text by itself is written as OpenAI does: `bytes:\xe2\x80`.
fn token_text(tokenizer: &Tokenizer, id: TokenId) -> String {
    let bytes = token_bytes(tokenizer, id);
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", bytes.escape_ascii()),
    }
}

/// Empty for an id that only pads the vocabulary.
fn token_bytes(tokenizer: &Tokenizer, id: TokenId) -> &[u8] {
    tokenizer.token_bytes(id).unwrap_or_default()
}
