//! The answers of `/v1/completions` and `/v1/chat/completions`, whole and in chunks.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::stream_mode::StreamMode;
use super::usage::Usage;
use crate::server::error::ApiError;
use crate::server::generation::{Generation, Piece, Summary};
use crate::server::outcome::finish_reason_name;
use crate::server::request_id::RequestId;
use crate::server::state::AppState;
use crate::server::streaming::{self, Events, Format};
use crate::server::timings::Timings;

/// Which of the two endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Completion,
    Chat,
}

/// Answers with one choice a generation.
///
/// # Errors
/// A generation failed before there was anything to send.
pub async fn respond(
    state: &Arc<AppState>,
    shape: Shape,
    mode: StreamMode,
    generations: Vec<Generation>,
    request_id: RequestId,
) -> Result<Response, ApiError> {
    let head = Head::new(state, shape, mode, &request_id);
    match mode {
        StreamMode::Whole => head.whole(generations).await,
        StreamMode::Stream { include_usage } => {
            let chunks = Chunks {
                begun: vec![false; generations.len()],
                summaries: Vec::with_capacity(generations.len()),
                head,
                include_usage,
            };
            streaming::respond(generations, chunks, request_id).await
        }
    }
}

/// What stands in every object of one response.
struct Head {
    shape: Shape,
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

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

const ASSISTANT: &str = "assistant";

impl Head {
    fn new(state: &AppState, shape: Shape, mode: StreamMode, id: &RequestId) -> Self {
        let (prefix, object) = match (shape, mode) {
            (Shape::Completion, _) => ("cmpl", "text_completion"),
            (Shape::Chat, StreamMode::Whole) => ("chatcmpl", "chat.completion"),
            (Shape::Chat, StreamMode::Stream { .. }) => ("chatcmpl", "chat.completion.chunk"),
        };
        Self {
            shape,
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
        let texts = try_join_all(generations.into_iter().map(Generation::collect)).await?;
        let (texts, summaries): (Vec<String>, Vec<Summary>) = texts.into_iter().unzip();
        let choices = texts.iter().zip(&summaries).enumerate();
        let usage = Some(Some(Usage::of(&summaries)));
        let timings = only_timings(&summaries);
        let response = match self.shape {
            Shape::Completion => {
                let choices: Vec<_> = choices
                    .map(|(index, (text, summary))| CompletionChoice {
                        index,
                        text,
                        logprobs: None,
                        finish_reason: Some(finish_reason_name(summary.finish_reason)),
                    })
                    .collect();
                Json(Envelope {
                    timings,
                    ..self.envelope(&choices, usage)
                })
                .into_response()
            }
            Shape::Chat => {
                let choices: Vec<_> = choices
                    .map(|(index, (content, summary))| ChatChoice {
                        index,
                        message: Message {
                            role: ASSISTANT,
                            content,
                            refusal: None,
                        },
                        logprobs: None,
                        finish_reason: finish_reason_name(summary.finish_reason),
                    })
                    .collect();
                Json(Envelope {
                    timings,
                    ..self.envelope(&choices, usage)
                })
                .into_response()
            }
        };
        Ok(response)
    }
}

/// Writes one chunk a token: the gaps between chunks are the gaps between tokens.
struct Chunks {
    head: Head,
    include_usage: bool,
    /// Which choices have had a chunk: the first one of a chat tells the role.
    begun: Vec<bool>,
    summaries: Vec<Summary>,
}

impl Format for Chunks {
    fn piece(&mut self, events: &mut Events, index: usize, piece: &Piece) {
        let finish_reason = piece
            .end
            .map(|summary| finish_reason_name(summary.finish_reason));
        self.summaries.extend(piece.end);
        let is_first = !std::mem::replace(&mut self.begun[index], true);
        let usage = self.include_usage.then_some(None);
        let text = &piece.text;
        match self.head.shape {
            Shape::Completion => {
                let choice = CompletionChoice {
                    index,
                    text,
                    logprobs: None,
                    finish_reason,
                };
                events.push(&self.head.envelope(&[choice], usage));
            }
            Shape::Chat => {
                let role = is_first.then_some(ASSISTANT);
                let delta = Delta {
                    role,
                    content: text,
                };
                let choice = ChatChunkChoice {
                    index,
                    delta,
                    logprobs: None,
                    finish_reason,
                };
                events.push(&self.head.envelope(&[choice], usage));
            }
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.include_usage {
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
