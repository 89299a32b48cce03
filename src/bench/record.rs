//! What was observed, unjudged: one record a request, and the circumstances of the run.
//!
//! Times are milliseconds since the run began, rounded to a microsecond when they are taken, so
//! that every figure can be derived again from the file. The file is one JSON object: `run` and
//! `metrics` for readers, and `requests` with one request a line.
//!
//! A run has one phase or several, each a load of its own on the same server; [`Record::of_phase`]
//! gives one of them as a record, so that every figure of a run is one of a phase too.

mod phase;
mod request;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::phase::Phase;
use self::request::is_zero;
pub use self::request::{
    Failure, FailureReason, RequestRecord, ServerTimings, Usage, judge_missing_usage,
};
use super::benchmarks_md::Table;
use super::cache_state::CacheState;
use super::goodput::Slo;
use super::layouts::Layout;
use super::machine::{Commit, Machine};
use super::metrics::{Metrics, histograms_us};
use super::raw_record::{RawRecord, Rendering};
use super::search::SearchSettings;
use super::section::RunSection;
use super::validity;
use super::workload::definition::Expected;
use super::workload::plain::WordRange;

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
    /// From the first due time to the last end; of several phases, the sum of theirs.
    pub duration_ms: f64,
    /// CPU time of the load generator while it measured.
    pub client_cpu_ms: u64,
    /// The parts of the run, in order. Empty in records from before there were several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
}

/// What was sent, and how. `None`: it has no such thing, or each phase its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientSettings {
    /// The named workload; the flags of a plain one are the fields below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadSource>,
    pub requests: usize,
    /// Clients of a closed loop; `None` for an open loop.
    pub concurrency: Option<usize>,
    /// Mean arrivals of an open loop; `None` for a closed one.
    pub request_rate_per_s: Option<f64>,
    pub warmup: usize,
    pub max_tokens: Option<usize>,
    pub prompt_words: Option<WordRange>,
    pub repeat_ratio: Option<f64>,
    pub seed: u64,
    pub ignore_eos: bool,
    pub request_timeout_s: f64,
    /// What the server's prefix cache was said to hold at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_state: Option<CacheState>,
    /// Which requests count as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<Slo>,
    /// How late an open loop may send at p99 before its run is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_send_delay_ms: Option<f64>,
    /// Where the rates were searched and not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchSettings>,
    /// SHA-256 of the measured prompts in order.
    pub prompts_sha256: String,
}

/// Where a named workload comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSource {
    pub name: String,
    /// SHA-256 of its definition's text.
    pub sha256: String,
    pub scale: Scale,
    #[serde(default)]
    pub layout: Layout,
    /// Prompts that were made shorter to fit into the model's window.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub num_cut_to_window: usize,
    /// What the whole of it must add up to; `None` where only a part was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
}

/// How much of a workload was sent; 1 is all of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Of the number of requests.
    pub requests: f64,
    /// Of the lengths of prompts and answers.
    pub lengths: f64,
    /// Of the rates at which requests are due.
    pub rates: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            requests: 1.0,
            lengths: 1.0,
            rates: 1.0,
        }
    }
}

/// `ServerRecord::endpoint` of a server that was started for the run.
pub const OWN_SERVER: &str = "own";

/// What is known of the measured server. `Value::Null` where it does not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// The address asked for, the command of another server started for this run, or "own" for
    /// this program's own.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Since the server's start: steps, and the sum of the sequences in them. The batch size
    /// between two samples is the ratio of their differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_steps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_step_sequences: Option<u64>,
    /// Memory in use on the server's accelerator, where it has one and tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_bytes: Option<u64>,
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
    /// One phase as a record of its own: its requests, samples, statistics and arrivals. A record
    /// without phases is its own only one.
    pub fn of_phase(&self, index: usize) -> Self {
        let mut record = self.clone();
        let Some(phase) = self.run.phases.get(index) else {
            return record;
        };
        record.requests.retain(|request| request.phase == index);
        let run = &mut record.run;
        run.phases = vec![phase.clone()];
        run.duration_ms = phase.duration_ms;
        run.client_cpu_ms = phase.client_cpu_ms;
        run.client.requests = record.requests.len();
        run.client.concurrency = phase.arrivals.concurrency();
        run.client.request_rate_per_s = phase.arrivals.request_rate_per_s();
        run.server.stats_before = phase.stats_before.clone();
        run.server.stats_after = phase.stats_after.clone();
        run.server
            .samples
            .retain(|sample| phase.holds(sample.at_ms));
        record
    }

    /// The classes of its requests, in the order of their first request.
    pub fn classes(&self) -> Vec<&str> {
        let mut classes: Vec<&str> = Vec::new();
        for class in self.requests.iter().filter_map(|r| r.class.as_deref()) {
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        classes
    }

    /// The same run with the requests of one class alone. Its latencies are those of the class; its
    /// throughput is the class's part of the whole.
    pub fn of_class(&self, class: &str) -> Self {
        let mut record = self.clone();
        record
            .requests
            .retain(|request| request.class.as_deref() == Some(class));
        record
    }

    /// A run in which nothing succeeded has no result to keep.
    fn ensure_some_success(&self, raw: &str) -> anyhow::Result<()> {
        let failure = self
            .requests
            .iter()
            .find_map(|r| Some((r.status, r.failure.as_ref()?)));
        let Some((status, failure)) = failure else {
            return Ok(());
        };
        ensure!(
            self.requests.iter().any(RequestRecord::is_success),
            "no request succeeded; the first failed with: {}: {} (all are in {raw})",
            failure.label(status),
            failure.message
        );
        Ok(())
    }
}

impl RawRecord for Record {
    const COMMAND: &'static str = "bench";

    /// `metrics` are written for the file's readers and never read back.
    fn to_json(&self) -> anyhow::Result<String> {
        let head = serde_json::json!({
            "run": self.run,
            "metrics": Metrics::of(self),
            "histograms": histograms_us(self)?,
        });
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

    fn ensure_whole(&self) -> anyhow::Result<()> {
        let version = self.run.format_version;
        ensure!(
            version <= FORMAT_VERSION,
            "it has format {version}; this program reads up to {FORMAT_VERSION}"
        );
        Ok(())
    }

    fn render(&self, raw: &str) -> Rendering {
        let section = RunSection::new(self, raw);
        Rendering {
            text: section.to_text(),
            row: Some((Table::Runs, section.to_summary_row())),
            section: section.to_markdown(),
        }
    }

    fn judge(&self, raw: &str) -> anyhow::Result<()> {
        self.ensure_some_success(raw)?;
        let faults = validity::faults(self);
        ensure!(
            faults.is_empty(),
            "the run is void, and BENCHMARKS.md does not get it (its records are in {raw}): {}",
            faults.join("; ")
        );
        Ok(())
    }
}

/// The text of a file of several records: `head` under the name of its `kind`, and the blocks, each
/// with its tags and its record, one request a line.
///
/// # Errors
/// A value that JSON cannot hold.
pub fn blocks_to_json<'a>(
    kind: &str,
    head: &impl Serialize,
    blocks: impl Iterator<Item = ([(&'static str, Value); 2], &'a Record)>,
) -> anyhow::Result<String> {
    let head = serde_json::to_string_pretty(head)?;
    let blocks: Vec<String> = blocks
        .map(|([first, second], record)| {
            let tags = [first, second].map(|(name, value)| format!("\"{name}\": {value}"));
            let record = record.to_json()?;
            Ok(format!(
                "{{{}, \"record\": {}}}",
                tags.join(", "),
                record.trim_end()
            ))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(format!(
        "{{\n\"{kind}\": {head},\n\"blocks\": [\n{}\n]\n}}\n",
        blocks.join(",\n")
    ))
}
