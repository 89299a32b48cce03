//! One request as the client saw it, and why one does not count.

use serde::{Deserialize, Serialize};

use crate::bench::server_log::Logged;

/// One request as the client saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub index: usize,
    /// Which prompt; equal for equal texts.
    pub prompt: usize,
    pub repeat: bool,
    /// Which of the run's phases, counted from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub phase: usize,
    /// The workload's own name for requests of this kind: a use case, a class of lengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Tokens of the prompt as the workload asks for them; `usage` tells how many it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_prompt_tokens: Option<usize>,
    /// Tokens with which an earlier request of the run began too; of a repeat, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_prompt_tokens: Option<usize>,
    /// Most tokens to generate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Sent as `x-request-id`.
    pub request_id: String,
    /// When the request should have been sent: for a closed loop, when its client became free.
    pub due_ms: f64,
    pub sent_ms: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    /// Last event with a token or the finish reason; for a failure, when it was noticed.
    pub end_ms: f64,
    /// Between consecutive events with text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps_ms: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The whole prompt came from the cache, where the server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<ServerTimings>,
    /// What the log of our own server says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logged: Option<Logged>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// HTTP status; none if no answer came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl RequestRecord {
    pub fn is_success(&self) -> bool {
        self.failure.is_none()
    }

    /// Events that carried text.
    pub fn num_events(&self) -> usize {
        self.first_token_ms.map_or(0, |_| self.gaps_ms.len() + 1)
    }

    /// First event with text - due time.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.first_token_ms.map(|first| first - self.due_ms)
    }

    /// Last event - due time.
    pub fn e2e_ms(&self) -> f64 {
        self.end_ms - self.due_ms
    }

    /// Time for each token after the first; none for a single token.
    pub fn tpot_ms(&self) -> Option<f64> {
        let first = self.first_token_ms?;
        let tokens_after_first = self.output_tokens()?.checked_sub(1).filter(|n| *n > 0)?;
        Some((self.end_ms - first) / tokens_after_first as f64)
    }

    /// When each event with text came, the first included.
    pub fn token_times_ms(&self) -> impl Iterator<Item = f64> {
        let first = self.first_token_ms;
        let gaps = [0.0].iter().chain(&self.gaps_ms);
        gaps.scan(first, |at, gap| {
            *at = at.map(|ms| ms + gap);
            *at
        })
    }

    /// By the server's usage, else by events; `None` if neither is known.
    pub fn output_tokens(&self) -> Option<u64> {
        let by_usage = self.usage.map(|usage| usage.completion_tokens);
        by_usage.or(self.first_token_ms.map(|_| self.num_events() as u64))
    }
}

pub(super) fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Token counts as the server gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Prompt tokens that were not computed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
}

/// Where the server says the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerTimings {
    pub queue_ms: f64,
    pub prefill_ms: f64,
    pub decode_ms: f64,
}

/// Why a request does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: FailureReason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// No connection, or it broke before the answer began.
    Connection,
    /// A status other than 200.
    Status,
    /// The answer is neither the JSON nor the event stream that it should be.
    Malformed,
    /// The stream carried an error event.
    ErrorEvent,
    /// The stream ended before its finish reason or its `[DONE]`.
    CutStream,
    /// The stream has no usage although other answers of this server have.
    MissingUsage,
    /// No end within the client's time limit.
    Timeout,
}

impl Failure {
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// A few words to count failures by.
    pub fn label(&self, status: Option<u16>) -> String {
        match self.reason {
            FailureReason::Status => format!("HTTP {}", status.unwrap_or_default()),
            FailureReason::Connection => "connection".to_owned(),
            FailureReason::Malformed => "malformed answer".to_owned(),
            FailureReason::ErrorEvent => "error event".to_owned(),
            FailureReason::CutStream => "stream cut short".to_owned(),
            FailureReason::MissingUsage => "no usage".to_owned(),
            FailureReason::Timeout => "client timeout".to_owned(),
        }
    }
}

/// A server that gives usage gives it always: an answer without it was cut, or the server erred.
/// Where no answer has any, tokens are counted by events and nothing is judged.
pub fn judge_missing_usage(records: &mut [RequestRecord]) {
    if records.iter().all(|record| record.usage.is_none()) {
        return;
    }
    for record in records
        .iter_mut()
        .filter(|r| r.is_success() && r.usage.is_none())
    {
        let message = "the answer ended without usage";
        record.failure = Some(Failure::new(FailureReason::MissingUsage, message));
    }
}
