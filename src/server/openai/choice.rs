//! One entry of `choices`: of a completion, of a chat, and of a chunk of a streamed chat.

use serde::Serialize;

use super::answer::Form;
use super::logprobs::{ChatLogprobs, CompletionLogprobs};
use crate::engine::{FinishReason, TokenId};
use crate::server::outcome::finish_reason_name;
use crate::server::output::ScoredToken;
use crate::text::Tokenizer;

/// A whole answer or a piece of one, as a choice tells it.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    pub index: usize,
    pub text: &'a str,
    /// Those that were generated.
    pub tokens: &'a [TokenId],
    pub scored: &'a [ScoredToken],
    pub finish_reason: Option<FinishReason>,
    /// Nothing was told of this choice before.
    pub is_first: bool,
}

#[derive(Serialize)]
pub struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
}

#[derive(Serialize)]
pub struct ChatChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
pub struct ChatChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    /// Only the first chunk of a chat tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

const ASSISTANT: &str = "assistant";

impl<'a> CompletionChoice<'a> {
    pub fn new(tokenizer: &Tokenizer, form: &'a Form, content: Content<'a>) -> Self {
        let logprobs = || CompletionLogprobs::new(tokenizer, content.scored);
        let prompts = form.prompt_token_ids.as_ref();
        Self {
            index: content.index,
            text: content.text,
            logprobs: form.logprobs.then(logprobs),
            finish_reason: content.finish_reason.map(finish_reason_name),
            prompt_token_ids: prompts
                .filter(|_| content.is_first)
                .map(|prompts| prompts[content.index].as_slice()),
            token_ids: prompts.map(|_| content.tokens),
        }
    }
}

impl<'a> ChatChoice<'a> {
    pub fn new(tokenizer: &Tokenizer, form: &Form, content: Content<'a>) -> Self {
        let logprobs = || ChatLogprobs::new(tokenizer, content.scored);
        Self {
            index: content.index,
            message: Message {
                role: ASSISTANT,
                content: content.text,
                refusal: None,
            },
            logprobs: form.logprobs.then(logprobs),
            finish_reason: content.finish_reason.map(finish_reason_name),
        }
    }
}

impl<'a> ChatChunkChoice<'a> {
    pub fn new(tokenizer: &Tokenizer, form: &Form, content: Content<'a>) -> Self {
        let logprobs = || ChatLogprobs::new(tokenizer, content.scored);
        Self {
            index: content.index,
            delta: Delta {
                role: content.is_first.then_some(ASSISTANT),
                content: content.text,
            },
            logprobs: form.logprobs.then(logprobs),
            finish_reason: content.finish_reason.map(finish_reason_name),
        }
    }
}
