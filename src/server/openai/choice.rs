//! One entry of `choices`: of a completion, of a chat, and of a chunk of a streamed chat.

use serde::Serialize;

use super::answer::Form;
use super::calls::Call;
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
    /// Only of a chat with tools.
    pub calls: &'a [Call],
    /// Those that were generated.
    pub tokens: &'a [TokenId],
    pub scored: &'a [ScoredToken],
    pub finish_reason: Option<FinishReason>,
    /// There is a call in it, or was one in an earlier piece.
    pub has_calls: bool,
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
    /// `null` if there are calls and nothing else.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "<[Call]>::is_empty")]
    tool_calls: &'a [Call],
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
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Call]>::is_empty")]
    tool_calls: &'a [Call],
}

impl<'a> Content<'a> {
    /// The text of a chat.
    fn spoken(&self) -> Option<&'a str> {
        Some(self.text).filter(|text| self.calls.is_empty() || !text.is_empty())
    }

    /// Why a chat ended.
    fn chat_finish_reason(&self) -> Option<&'static str> {
        self.finish_reason.map(|reason| match reason {
            FinishReason::Stop if self.has_calls => "tool_calls",
            reason => finish_reason_name(reason),
        })
    }
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
                content: content.spoken(),
                refusal: None,
                tool_calls: content.calls,
            },
            logprobs: form.logprobs.then(logprobs),
            finish_reason: content.chat_finish_reason(),
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
                content: content.spoken(),
                tool_calls: content.calls,
            },
            logprobs: form.logprobs.then(logprobs),
            finish_reason: content.chat_finish_reason(),
        }
    }
}
