//! What was observed, unjudged: one record a request, and the circumstances of the run.
//!
//! Times are milliseconds since the run began, rounded to a microsecond when they are taken, so
//! that every figure can be derived again from the file. The file is one JSON object: `run` and
//! `metrics` for readers, and `requests` with one request a line.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::{Commit, Machine};
use super::metrics::Metrics;
use super::workload::WordRange;

/// Version of the file format; raised when a reader of old files would misread new ones.
pub const FORMAT_VERSION: u32 = 1;

/// One run: everything that the report is derived from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub run: Run,
    pub requests: Vec<RequestRecord>,
}

/// The circumstances of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub format_version: u32,
    /// Program and version.
    pub tool: String,
    /// UTC, RFC 3339, to the second.
    pub started: String,
    pub command: String,
    /// Server settings that came through the environment; empty for a server that already ran.
    pub environment: BTreeMap<String, String>,
    pub commit: Option<Commit>,
    pub machine: Machine,
    pub client: ClientSettings,
    pub server: ServerRecord,
    /// From the first due time to the last end.
    pub duration_ms: f64,
    /// CPU time of the load generator while it measured.
    pub client_cpu_ms: u64,
}

/// What was sent, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientSettings {
    pub requests: usize,
    /// Clients of a closed loop; `None` for an open loop.
    pub concurrency: Option<usize>,
    /// Mean arrivals of an open loop; `None` for a closed one.
    pub request_rate_per_s: Option<f64>,
    pub warmup: usize,
    pub max_tokens: usize,
    pub prompt_words: WordRange,
    pub repeat_ratio: f64,
    pub seed: u64,
    pub ignore_eos: bool,
    pub request_timeout_s: f64,
    /// SHA-256 of the measured prompts in order.
    pub prompts_sha256: String,
}

/// `ServerRecord::endpoint` of a server that was started for the run.
pub const OWN_SERVER: &str = "own";

/// What is known of the measured server. `Value::Null` where it does not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// The address asked for, or "own" for a server started for this run.
    pub endpoint: String,
    /// The path that was posted to.
    pub api: String,
    pub model: Option<String>,
    /// Its `/stats` before the measured requests, and after them.
    pub stats_before: Value,
    pub stats_after: Value,
    pub samples: Vec<ServerSample>,
}

/// The server at one moment of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerSample {
    pub at_ms: f64,
    /// Resident memory of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_running_requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_waiting_requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_used_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_used_bytes: Option<u64>,
}

/// One request as the client saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub index: usize,
    /// Which prompt; equal for equal texts.
    pub prompt: usize,
    pub repeat: bool,
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

    /// By the server's usage, else by events; `None` if neither is known.
    pub fn output_tokens(&self) -> Option<u64> {
        let by_usage = self.usage.map(|usage| usage.completion_tokens);
        by_usage.or(self.first_token_ms.map(|_| self.num_events() as u64))
    }
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

/// Turns instants into milliseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub fn ms(&self, at: Instant) -> f64 {
        round_to_us(at.saturating_duration_since(self.start).as_secs_f64() * 1e3)
    }
}

/// Rounds milliseconds to three decimals.
pub fn round_to_us(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

impl Record {
    /// The file's text: `metrics` are written for its readers and never read back.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let head = serde_json::json!({ "run": self.run, "metrics": Metrics::of(self) });
        let head = serde_json::to_string_pretty(&head)?;
        let head = head
            .strip_suffix("\n}")
            .expect("bug: a pretty object ends so");
        let lines: Vec<String> = self
            .requests
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        Ok(format!(
            "{head},\n  \"requests\": [\n{}\n  ]\n}}\n",
            lines.join(",\n")
        ))
    }

    /// Reads a record file.
    ///
    /// # Errors
    /// The file cannot be read, is not a record, or has a newer format.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a bench record", path.display()))?;
        anyhow::ensure!(
            record.run.format_version <= FORMAT_VERSION,
            "{} has format {}; this program reads up to {FORMAT_VERSION}",
            path.display(),
            record.run.format_version
        );
        Ok(record)
    }
}
