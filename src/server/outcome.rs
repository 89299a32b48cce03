//! The end of a generation, told exactly once: one line in the log, one count in the metrics.

use std::sync::Arc;
use std::time::Instant;

use super::choices::Choice;
use super::debug::Trace;
use super::error::ApiError;
use super::request_id::RequestId;
use super::state::AppState;
use super::timings::{Progress, milliseconds};
use crate::engine::{EngineError, FinishReason};

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished(FinishReason),
    /// The client left.
    Abort,
    Timeout,
    Error,
}

impl Outcome {
    pub const ALL: [Self; 5] = [
        Self::Finished(FinishReason::Stop),
        Self::Finished(FinishReason::Length),
        Self::Abort,
        Self::Timeout,
        Self::Error,
    ];

    pub fn of_error(error: &ApiError) -> Self {
        match error {
            ApiError::Failed(EngineError::Timeout { .. }) => Self::Timeout,
            _ => Self::Error,
        }
    }

    /// The name in metrics and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished(reason) => finish_reason_name(reason),
            Self::Abort => "abort",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// The name in every response.
pub fn finish_reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Follows a generation from the moment that the engine took it. Dropped before it was closed, it
/// closes with [`Outcome::Abort`].
pub struct Record {
    state: Arc<AppState>,
    request_id: RequestId,
    endpoint: &'static str,
    pub choice: Choice,
    pub progress: Progress,
    texts: Option<Texts>,
    trace: Option<Arc<Trace>>,
    closed: bool,
}

/// What went in and came out, if the log is to show it.
#[derive(Debug)]
pub struct Texts {
    pub prompt: String,
    pub answer: String,
}

impl Record {
    pub fn open(
        state: Arc<AppState>,
        request_id: RequestId,
        endpoint: &'static str,
        choice: Choice,
        progress: Progress,
        texts: Option<Texts>,
        trace: Option<Arc<Trace>>,
    ) -> Self {
        Self {
            state,
            request_id,
            endpoint,
            choice,
            progress,
            texts,
            trace,
            closed: false,
        }
    }

    /// More of the answer's text.
    pub fn answered(&mut self, text: &str) {
        if let Some(texts) = &mut self.texts {
            texts.answer += text;
        }
    }

    pub fn admitted(&mut self, at: Instant, cached_tokens: usize) {
        self.progress.admitted = Some(at);
        self.progress.cached_tokens = cached_tokens;
    }

    pub fn token(&mut self, at: Instant) {
        let progress = &mut self.progress;
        match progress.last_token {
            None => {
                progress.first_token = Some(at);
                let ttft = at.saturating_duration_since(progress.arrived);
                self.state.metrics.observe_first_token(progress, ttft);
            }
            Some(last) => {
                let gap = at.saturating_duration_since(last);
                self.state.metrics.observe_next_token(gap);
            }
        }
        progress.last_token = Some(at);
        progress.generated_tokens += 1;
    }

    /// Tells the end, and the error if it was one; only the first call counts.
    pub fn close(&mut self, outcome: Outcome, error: Option<&ApiError>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let progress = &self.progress;
        let timings = progress.timings(Instant::now());
        self.state.metrics.observe_end(outcome, progress, &timings);
        if let Some(trace) = &self.trace {
            trace.end(outcome, progress.generated_tokens);
        }
        if let Outcome::Finished(_) = outcome {
            self.choice.finished(progress.generated_tokens);
        }
        tracing::info!(
            request_id = self.request_id.as_str(),
            endpoint = self.endpoint,
            choice = self.choice.index,
            outcome = outcome.name(),
            prompt_tokens = progress.prompt_tokens,
            cached_tokens = progress.cached_tokens,
            generated_tokens = progress.generated_tokens,
            queue_ms = milliseconds(timings.queue),
            prefill_ms = milliseconds(timings.prefill),
            decode_ms = milliseconds(timings.decode),
            total_ms = milliseconds(timings.total),
            error = error.map(tracing::field::display),
            prompt = self.texts.as_ref().map(|texts| &*texts.prompt),
            answer = self.texts.as_ref().map(|texts| &*texts.answer),
            "generation ended"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.close(Outcome::Abort, None);
    }
}
