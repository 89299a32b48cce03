//! One generation as the endpoints see it: engine events in, pieces of the answer out.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, stream};

use super::choices::Choice;
use super::echo::Echo;
use super::engine_events::EngineEvents;
use super::error::ApiError;
use super::options::Options;
use super::outcome::{Outcome, Record, Texts};
use super::output::{Output, Part};
use super::piece::{Piece, Summary, Whole};
use super::prompt::Prompt;
use super::request_id::RequestId;
use super::sender::Sender;
use super::state::AppState;
use super::timings::Progress;
use crate::engine::{Event, FinishReason, Request, TokenId, TokenLogprobs};
use crate::text::TextError;

/// A prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    pub request_id: RequestId,
    pub endpoint: &'static str,
    pub arrived: Instant,
    pub sender: Sender,
    pub prompt: Vec<TokenId>,
    /// The field that held the prompt, to be named if it is too long.
    pub prompt_field: &'a str,
    pub options: &'a Options,
    /// Wanted for each token, with this many alternatives.
    pub logprobs: Option<usize>,
    /// The prompt as it was sent, if it is to be given back before the output.
    pub echo: Option<Prompt>,
}

/// What moves a generation on.
enum Step {
    Token {
        at: Instant,
        id: TokenId,
        logprobs: Option<TokenLogprobs>,
    },
    End(FinishReason),
}

/// A generation that runs. Dropping it cancels it.
pub struct Generation {
    events: EngineEvents,
    echo: Option<Echo>,
    /// The first step, while others wait for it or the echo that precedes it is passed on.
    first_step: Option<Step>,
    output: Output,
    stop_token_ids: Vec<TokenId>,
    record: Record,
    ended: bool,
}

impl Generation {
    /// Hands a job to the engine.
    ///
    /// # Errors
    /// The job does not fit into the window, or the engine refuses it.
    pub fn start(state: &Arc<AppState>, job: Job, choice: Choice) -> Result<Self, ApiError> {
        let Job {
            prompt, options, ..
        } = job;
        let prompt_tokens = prompt.len();
        let cap = state.served.http.max_output_tokens;
        let max_tokens =
            options
                .max_tokens
                .resolve(prompt_tokens, job.prompt_field, &state.limits, cap)?;
        let tokenizer = &state.served.tokenizer;
        let echo = job
            .echo
            .map(|sent| Echo::new(tokenizer, sent, &prompt))
            .transpose()
            .map_err(of_text)?;
        let mut stop_token_ids = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_token_ids.extend_from_slice(&state.served.eos_token_ids);
        }
        let log_prompts = state.served.observe.log_prompts;
        let texts = log_prompts
            .then(|| tokenizer.decode(&prompt, false))
            .transpose()
            .map_err(of_text)?
            .map(|prompt| Texts {
                prompt,
                answer: String::new(),
            });
        let progress = Progress::new(job.arrived, prompt_tokens, max_tokens);
        let traces = &state.traces;
        let trace = traces.begin(&job.request_id, job.endpoint, choice.index, &progress);
        let request = Request {
            prompt,
            max_tokens,
            stop_token_ids: stop_token_ids.clone(),
            sampling: options.sampling.for_choice(choice.index),
            logprobs: job.logprobs,
            prompt_logprobs: echo.as_ref().and(job.logprobs),
            arrived: job.arrived,
            timeline: trace.as_ref().map(|trace| trace.timeline()),
            timeout: options.timeout,
            first_token_within: job.sender.first_token_within,
            priority: options.priority,
            client: job.sender.client,
        };
        Ok(Self {
            events: EngineEvents::of(state, request)?,
            first_step: None,
            output: Output::new(
                tokenizer.clone(),
                options.stop.clone(),
                echo.as_ref().map_or(0, Echo::num_chars),
            ),
            echo,
            stop_token_ids,
            record: Record::open(
                state.clone(),
                job.request_id,
                job.endpoint,
                choice,
                progress,
                texts,
                trace,
            ),
            ended: false,
        })
    }

    pub fn prompt_tokens(&self) -> usize {
        self.record.progress.prompt_tokens
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
            Ok(piece) => {
                self.ended = piece.end.is_some();
                if piece.token.is_some() || self.ended {
                    self.record.answered(&piece.text);
                }
                if let Some(summary) = &piece.end {
                    let outcome = Outcome::Finished(summary.finish_reason);
                    self.record.close(outcome, None);
                }
            }
            Err(error) => self.fail(error),
        }
        piece.map(Some)
    }

    /// Waits until there is something to tell: the whole prompt is computed then, and in the cache.
    ///
    /// # Errors
    /// The engine could not get that far; nothing follows.
    pub async fn computed(&mut self) -> Result<(), ApiError> {
        match self.next_step().await {
            Ok(step) => {
                self.first_step = Some(step);
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.ended = true;
        self.record.close(Outcome::of_error(error), Some(error));
    }

    /// All pieces as a stream, for merging several generations.
    pub fn into_pieces(self) -> impl Stream<Item = Result<Piece, ApiError>> + Send {
        stream::try_unfold(self, async |mut generation| {
            Ok(generation.next().await?.map(|piece| (piece, generation)))
        })
    }

    /// The whole answer, once it is complete.
    ///
    /// # Errors
    /// The engine could not finish.
    pub async fn collect(mut self) -> Result<Whole, ApiError> {
        let mut text = String::new();
        let mut tokens = Vec::new();
        let mut scored = Vec::new();
        while let Some(piece) = self.next().await? {
            text += &piece.text;
            tokens.extend(piece.token);
            scored.extend(piece.scored);
            if let Some(summary) = piece.end {
                return Ok(Whole {
                    text,
                    tokens,
                    scored,
                    summary,
                });
            }
        }
        unreachable!("bug: a generation without a last piece")
    }

    async fn advance(&mut self) -> Result<Piece, ApiError> {
        let step = match self.first_step.take() {
            Some(step) => step,
            None => self.next_step().await?,
        };
        // The prompt waits for the first step: its log-probabilities are complete then, and a
        // failure before it has a status code of its own.
        if let Some(echo) = self.echo.take() {
            self.first_step = Some(step);
            return Ok(Piece::new(None, echo.into_part()));
        }
        match step {
            Step::Token { at, id, logprobs } => self.take_token(at, id, logprobs).await,
            Step::End(reason) => self.finish(Piece::default(), None, reason),
        }
    }

    /// The next token or the end. Notes the admission and the scores of the prompt, turns a
    /// failure into an error.
    async fn next_step(&mut self) -> Result<Step, ApiError> {
        loop {
            match self.events.next().await? {
                Event::Admitted { at, cached_tokens } => {
                    self.record.admitted(at, cached_tokens);
                }
                Event::Prompt(scored) => {
                    let echo = self.echo.as_mut();
                    echo.expect("bug: a scored prompt that is not echoed")
                        .score(scored);
                }
                Event::Token { at, id, logprobs } => {
                    let logprobs = logprobs.map(|logprobs| *logprobs);
                    return Ok(Step::Token { at, id, logprobs });
                }
                Event::Finished(reason) => return Ok(Step::End(reason)),
                Event::Failed(error) => return Err(ApiError::Failed(error)),
            }
        }
    }

    async fn take_token(
        &mut self,
        at: Instant,
        id: TokenId,
        logprobs: Option<TokenLogprobs>,
    ) -> Result<Piece, ApiError> {
        self.record.token(at);
        let progress = &self.record.progress;
        let is_last = progress.generated_tokens == progress.max_tokens;
        let (piece, stop_token) = if self.stop_token_ids.contains(&id) {
            (Piece::new(Some(id), Part::default()), logprobs)
        } else {
            let part = self.output.push(id, logprobs).map_err(of_text)?;
            let stopped = part.stopped;
            let piece = Piece::new(Some(id), part);
            if stopped {
                return Ok(self.stop(piece));
            }
            if !is_last {
                return Ok(piece);
            }
            (piece, None)
        };
        // The engine says at once why it ended; the last token and that reason make one piece, so
        // that a stream has one event a token.
        match self.next_step().await? {
            Step::End(reason) => self.finish(piece, stop_token, reason),
            Step::Token { .. } => {
                let message = "bug: the engine sent a token after the last";
                Err(ApiError::Internal(message.to_owned()))
            }
        }
    }

    /// The engine ended: what the output held back is part of it after all.
    fn finish(
        &mut self,
        mut piece: Piece,
        stop_token: Option<TokenLogprobs>,
        reason: FinishReason,
    ) -> Result<Piece, ApiError> {
        let rest = self.output.finish(stop_token).map_err(of_text)?;
        piece.text += &rest.text;
        piece.scored.extend(rest.scored);
        if rest.stopped {
            return Ok(self.stop(piece));
        }
        Ok(self.end(piece, reason))
    }

    /// A stop string is complete: the engine need not go on.
    fn stop(&mut self, piece: Piece) -> Piece {
        self.events.close();
        self.end(piece, FinishReason::Stop)
    }

    fn end(&mut self, piece: Piece, finish_reason: FinishReason) -> Piece {
        let progress = &self.record.progress;
        let summary = Summary {
            choice: self.record.choice.index,
            finish_reason,
            prompt_tokens: progress.prompt_tokens,
            cached_tokens: progress.cached_tokens,
            cached: progress.is_cached(),
            generated_tokens: progress.generated_tokens,
            timings: progress.timings(Instant::now()),
        };
        Piece {
            end: Some(summary),
            ..piece
        }
    }
}

fn of_text(error: TextError) -> ApiError {
    ApiError::Internal(format!("cannot turn tokens into text: {error}"))
}
