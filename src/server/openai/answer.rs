//! The answers of `/v1/completions` and `/v1/chat/completions`, whole and in chunks.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::calls::{CallReader, Heard};
use super::choice::{ChatChoice, ChatChunkChoice, CompletionChoice, Content};
use super::stream_mode::{StreamMode, StreamUsage};
use super::usage::Usage;
use crate::engine::TokenId;
use crate::server::error::ApiError;
use crate::server::generation::Generation;
use crate::server::piece::{Piece, Summary, Whole};
use crate::server::request_id::RequestId;
use crate::server::state::AppState;
use crate::server::streaming::{self, Events, Format};
use crate::server::timings::Timings;
use crate::text::Tokenizer;

/// Which of the two endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Completion,
    Chat,
}

/// How an answer looks.
#[derive(Clone, Debug)]
pub struct Form {
    pub shape: Shape,
    pub mode: StreamMode,
    pub logprobs: bool,
    /// The prompt of each choice, if a completion is to tell token ids. Not OpenAI's, but vLLM's.
    pub prompt_token_ids: Option<Vec<Vec<TokenId>>>,
    /// What each choice begins to be read with, if it is of a chat with tools.
    pub calls: Option<CallReader>,
}

/// Answers with one choice a generation.
///
/// # Errors
/// A generation failed before there was anything to send.
pub async fn respond(
    state: &Arc<AppState>,
    form: Form,
    generations: Vec<Generation>,
    request_id: RequestId,
) -> Result<Response, ApiError> {
    let mode = form.mode;
    let head = Head::new(state, form, &request_id);
    match mode {
        StreamMode::Whole => head.whole(generations).await,
        StreamMode::Stream(usage) => {
            let sent = |generation: &Generation| Sent {
                prompt_tokens: generation.prompt_tokens(),
                calls: head.form.calls.clone(),
                ..Sent::default()
            };
            let chunks = Chunks {
                sent: generations.iter().map(sent).collect(),
                summaries: Vec::with_capacity(generations.len()),
                head,
                usage,
            };
            streaming::respond(generations, chunks, request_id).await
        }
    }
}

/// What stands in every object of one response.
struct Head {
    form: Form,
    tokenizer: Arc<Tokenizer>,
    id: String,
    object: &'static str,
    created_unix_s: u64,
    model: String,
    system_fingerprint: String,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    /// Left out, or `null`, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// Not OpenAI's: where the time went, if the response is one generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

impl Head {
    fn new(state: &AppState, form: Form, id: &RequestId) -> Self {
        let (prefix, object) = match (form.shape, form.mode) {
            (Shape::Completion, _) => ("cmpl", "text_completion"),
            (Shape::Chat, StreamMode::Whole) => ("chatcmpl", "chat.completion"),
            (Shape::Chat, StreamMode::Stream(_)) => ("chatcmpl", "chat.completion.chunk"),
        };
        Self {
            form,
            tokenizer: state.served.tokenizer.clone(),
            id: format!("{prefix}-{id}"),
            object,
            created_unix_s: jiff::Timestamp::now().as_second().cast_unsigned(),
            model: state.served.model.name.clone(),
            system_fingerprint: state.fingerprint.clone(),
        }
    }

    fn envelope<'a, C>(
        &'a self,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object: self.object,
            created: self.created_unix_s,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            usage,
            timings: None,
        }
    }

    async fn whole(&self, generations: Vec<Generation>) -> Result<Response, ApiError> {
        let wholes = try_join_all(generations.into_iter().map(Generation::collect)).await?;
        let summaries: Vec<Summary> = wholes.iter().map(|whole| whole.summary).collect();
        let heard: Vec<Option<Heard>> = wholes.iter().map(|whole| self.hear(whole)).collect();
        let contents = wholes.iter().zip(&heard).enumerate();
        let contents = contents.map(|(index, (whole, heard))| {
            let (text, calls) = match heard {
                Some(heard) => (&heard.text, &heard.calls[..]),
                None => (&whole.text, &[][..]),
            };
            Content {
                index,
                text,
                calls,
                tokens: &whole.tokens,
                scored: &whole.scored,
                finish_reason: Some(whole.summary.finish_reason),
                has_calls: !calls.is_empty(),
                is_first: true,
            }
        });
        let (tokenizer, form) = (&self.tokenizer, &self.form);
        Ok(match form.shape {
            Shape::Completion => {
                let choices = contents.map(|part| CompletionChoice::new(tokenizer, form, part));
                self.whole_response(&choices.collect::<Vec<_>>(), &summaries)
            }
            Shape::Chat => {
                let choices = contents.map(|part| ChatChoice::new(tokenizer, form, part));
                self.whole_response(&choices.collect::<Vec<_>>(), &summaries)
            }
        })
    }

    /// The text and the calls of a whole choice, if it may have calls.
    fn hear(&self, whole: &Whole) -> Option<Heard> {
        let mut heard = self.form.calls.clone()?.read(&whole.text, true);
        for call in &mut heard.calls {
            call.index = None;
        }
        Some(heard)
    }

    fn whole_response(&self, choices: &[impl Serialize], summaries: &[Summary]) -> Response {
        let usage = Some(Some(Usage::of(summaries)));
        let response = Json(Envelope {
            timings: only_timings(summaries),
            ..self.envelope(choices, usage)
        });
        response.into_response()
    }
}

/// Writes one chunk a token, and one an echoed prompt: the gaps between chunks are the gaps between tokens.
struct Chunks {
    head: Head,
    usage: StreamUsage,
    /// By choice.
    sent: Vec<Sent>,
    summaries: Vec<Summary>,
}

/// What a choice has had so far.
#[derive(Default)]
struct Sent {
    /// A chunk.
    begun: bool,
    prompt_tokens: usize,
    tokens: usize,
    calls: Option<CallReader>,
}

impl Format for Chunks {
    fn piece(&mut self, events: &mut Events, index: usize, piece: &Piece) {
        self.summaries.extend(piece.end);
        let sent = &mut self.sent[index];
        sent.tokens += piece.token.as_slice().len();
        let heard = sent
            .calls
            .as_mut()
            .map(|reader| reader.read(&piece.text, piece.end.is_some()));
        let (text, calls) = match &heard {
            Some(heard) => (&heard.text, &heard.calls[..]),
            None => (&piece.text, &[][..]),
        };
        let content = Content {
            index,
            text,
            calls,
            tokens: piece.token.as_slice(),
            scored: &piece.scored,
            finish_reason: piece.end.map(|summary| summary.finish_reason),
            has_calls: sent.calls.as_ref().is_some_and(CallReader::has_calls),
            is_first: !std::mem::replace(&mut sent.begun, true),
        };
        let usage = match self.usage {
            StreamUsage::No => None,
            StreamUsage::Last => Some(None),
            StreamUsage::Continuous => Some(Some(Usage::so_far(sent.prompt_tokens, sent.tokens))),
        };
        let (tokenizer, form) = (&self.head.tokenizer, &self.head.form);
        match form.shape {
            Shape::Completion => {
                let choice = CompletionChoice::new(tokenizer, form, content);
                events.push(&self.head.envelope(&[choice], usage));
            }
            Shape::Chat => {
                let choice = ChatChunkChoice::new(tokenizer, form, content);
                events.push(&self.head.envelope(&[choice], usage));
            }
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.usage != StreamUsage::No {
            let usage = Some(Some(Usage::of(&self.summaries)));
            let timings = only_timings(&self.summaries);
            let no_choices: [CompletionChoice; 0] = [];
            events.push(&Envelope {
                timings,
                ..self.head.envelope(&no_choices, usage)
            });
        }
    }
}

fn only_timings(summaries: &[Summary]) -> Option<Timings> {
    match summaries {
        [one] => Some(one.timings),
        _ => None,
    }
}
