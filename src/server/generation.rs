//! One generation as the endpoints see it: engine events in, pieces of text out.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, stream};
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::options::Options;
use super::outcome::{Outcome, Record};
use super::request_id::RequestId;
use super::state::AppState;
use super::timings::{Progress, Timings};
use crate::engine::{EngineError, Event, FinishReason, Request, TokenId};
use crate::text::{Detokenizer, StopMatcher, StopOutcome, TextError};

/// A prompt and what to do with it.
#[derive(Debug)]
pub struct Job<'a> {
    pub request_id: RequestId,
    pub endpoint: &'static str,
    pub arrived: Instant,
    pub prompt: Vec<TokenId>,
    /// The field that held the prompt, to be named if it is too long.
    pub prompt_field: &'a str,
    pub options: &'a Options,
}

/// What one token adds to the text; the last piece also tells how it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// `None` if the generation ended without one more token.
    pub token: Option<TokenId>,
    /// Empty while a character or a stop string may still be incomplete, and for a stop token.
    pub text: String,
    pub end: Option<Summary>,
}

/// How a generation went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub finish_reason: FinishReason,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    /// The whole prompt came from the cache, but for its last token.
    pub cached: bool,
    /// Tokens generated up to the end, a stop token included.
    pub generated_tokens: usize,
    pub timings: Timings,
}

/// What moves a generation on.
enum Step {
    Token { at: Instant, id: TokenId },
    End(FinishReason),
}

/// A generation that runs. Dropping it cancels it: its receiver goes with it.
pub struct Generation {
    events: UnboundedReceiver<Event>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    stop_token_ids: Vec<TokenId>,
    record: Record,
    ended: bool,
}

impl Generation {
    /// Hands a job to the engine.
    ///
    /// # Errors
    /// The job does not fit into the window, or the engine refuses it.
    pub fn start(state: &Arc<AppState>, job: Job) -> Result<Self, ApiError> {
        let Job {
            prompt, options, ..
        } = job;
        let prompt_tokens = prompt.len();
        let max_tokens =
            options
                .max_tokens
                .resolve(prompt_tokens, job.prompt_field, &state.limits)?;
        let mut stop_token_ids = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_token_ids.extend_from_slice(&state.served.eos_token_ids);
        }
        let request = Request {
            prompt,
            max_tokens,
            stop_token_ids: stop_token_ids.clone(),
            sampling: options.sampling.clone(),
            logprobs: None,
            prompt_logprobs: None,
            arrived: job.arrived,
        };
        let events = state.served.engine.submit(request).map_err(|error| {
            state.metrics.count_rejection(&error);
            ApiError::Refused(error)
        })?;
        Ok(Self {
            events,
            detokenizer: Detokenizer::new(state.served.tokenizer.clone()),
            stop: StopMatcher::new(options.stop.clone()),
            stop_token_ids,
            record: Record::open(
                state.clone(),
                job.request_id,
                job.endpoint,
                Progress::new(job.arrived, prompt_tokens, max_tokens),
            ),
            ended: false,
        })
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// The engine could not finish; nothing follows.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        if self.ended {
            return Ok(None);
        }
        let piece = self.advance().await;
        match &piece {
            Ok(piece) => self.ended = piece.end.is_some(),
            Err(error) => {
                self.ended = true;
                self.record.close(Outcome::of_error(error), Some(error));
            }
        }
        piece.map(Some)
    }

    /// All pieces as a stream, for merging several generations.
    pub fn into_pieces(self) -> impl Stream<Item = Result<Piece, ApiError>> + Send {
        stream::try_unfold(self, async |mut generation| {
            Ok(generation.next().await?.map(|piece| (piece, generation)))
        })
    }

    /// The whole text, once it is complete.
    ///
    /// # Errors
    /// The engine could not finish.
    pub async fn collect(mut self) -> Result<(String, Summary), ApiError> {
        let mut text = String::new();
        while let Some(piece) = self.next().await? {
            text += &piece.text;
            if let Some(summary) = piece.end {
                return Ok((text, summary));
            }
        }
        unreachable!("bug: a generation without a last piece")
    }

    async fn advance(&mut self) -> Result<Piece, ApiError> {
        match self.next_step().await? {
            Step::Token { at, id } => self.take_token(at, id).await,
            Step::End(reason) => self.finish(None, String::new(), reason),
        }
    }

    /// The next token or the end. Notes the admission, turns a failure into an error.
    async fn next_step(&mut self) -> Result<Step, ApiError> {
        loop {
            match self.events.recv().await {
                Some(Event::Admitted { at, cached_tokens }) => {
                    self.record.admitted(at, cached_tokens);
                }
                Some(Event::Prompt(_)) => {}
                Some(Event::Token { at, id, .. }) => return Ok(Step::Token { at, id }),
                Some(Event::Finished(reason)) => return Ok(Step::End(reason)),
                Some(Event::Failed(error)) => return Err(ApiError::Failed(error)),
                None => {
                    let reason = "it stopped before the end of this request".to_owned();
                    return Err(ApiError::Failed(EngineError::Unavailable(reason)));
                }
            }
        }
    }

    async fn take_token(&mut self, at: Instant, id: TokenId) -> Result<Piece, ApiError> {
        self.record.token(at);
        let is_stop_token = self.stop_token_ids.contains(&id);
        let mut text = String::new();
        if !is_stop_token {
            let more = self.detokenizer.push(id).map_err(of_text)?;
            match self.stop.push(&more) {
                StopOutcome::Text(more) => text = more,
                StopOutcome::Stopped(last) => return Ok(self.end(Some(id), last)),
            }
        }
        if !is_stop_token && self.record.progress.generated_tokens < self.record.progress.max_tokens
        {
            return Ok(Piece {
                token: Some(id),
                text,
                end: None,
            });
        }
        // The engine says at once why it ended; the last token and that reason make one piece, so
        // that a stream has one event a token.
        match self.next_step().await? {
            Step::End(reason) => self.finish(Some(id), text, reason),
            Step::Token { .. } => {
                let message = "bug: the engine sent a token after the last";
                Err(ApiError::Internal(message.to_owned()))
            }
        }
    }

    /// The engine ended: what the detokenizer and the stop matcher held back is text after all.
    fn finish(
        &mut self,
        token: Option<TokenId>,
        mut text: String,
        reason: FinishReason,
    ) -> Result<Piece, ApiError> {
        let rest = self.detokenizer.finish().map_err(of_text)?;
        match self.stop.push(&rest) {
            StopOutcome::Text(more) => text += &more,
            StopOutcome::Stopped(last) => return Ok(self.end(token, text + &last)),
        }
        text += &self.stop.finish();
        Ok(self.last_piece(token, text, reason))
    }

    /// A stop string is complete: the engine need not go on.
    fn end(&mut self, token: Option<TokenId>, text: String) -> Piece {
        self.events.close();
        self.last_piece(token, text, FinishReason::Stop)
    }

    fn last_piece(
        &mut self,
        token: Option<TokenId>,
        text: String,
        finish_reason: FinishReason,
    ) -> Piece {
        self.record.close(Outcome::Finished(finish_reason), None);
        let progress = &self.record.progress;
        let summary = Summary {
            finish_reason,
            prompt_tokens: progress.prompt_tokens,
            cached_tokens: progress.cached_tokens,
            cached: progress.is_cached(),
            generated_tokens: progress.generated_tokens,
            timings: progress.timings(Instant::now()),
        };
        Piece {
            token,
            text,
            end: Some(summary),
        }
    }
}

fn of_text(error: TextError) -> ApiError {
    ApiError::Internal(format!("cannot turn tokens into text: {error}"))
}
