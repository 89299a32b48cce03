//! The rows of an A/B run's tables.

use std::collections::{BTreeMap, BTreeSet};

use super::comparison::{Comparison, Measure};
use super::criterion::{Criterion, Judgement, Outcome};
use super::record::{Block, Side};
use super::section::AbReport;
use super::words;
use crate::bench::figures::{Figures, NOT_AVAILABLE, milliseconds, or_na, percent, plain};
use crate::bench::metrics::Metrics;
use crate::bench::record::Record;
use crate::bench::server_stats::ServerStats;
use crate::bench::statistics::Summary;

pub const IMPACT: [&str; 7] = [
    "figure",
    "before (A)",
    "after (B)",
    "delta",
    "B/A",
    "95 % interval",
    "verdict",
];

pub const BLOCKS: [&str; 8] = [
    "block",
    "side",
    "pair",
    "TTFT p50 (ms)",
    "TPOT p50 (ms)",
    "output (tokens/s)",
    "failed requests",
    "load average before",
];

/// What the two sides share, from the record of the first block.
const SHARED: [&str; 7] = [
    "commit",
    "program",
    "model",
    "client settings",
    "cache at start",
    "machine",
    "CPU flags",
];

type Row = Vec<String>;

/// What a side shows in a row.
type Cell = fn(&[Metrics]) -> String;

impl AbReport<'_> {
    /// The settings that differ, with their values; and the others, as pairs.
    pub(super) fn setting_rows(&self) -> (Vec<Row>, Vec<String>) {
        let [a, b] = [Side::A, Side::B].map(|side| reported_settings(self.first(side)));
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let (mut differing, mut same) = (Vec::new(), Vec::new());
        for name in names {
            let [a, b] = [&a, &b].map(|side| or_na(side.get(name)));
            if a == b {
                same.push(format!("{name}={a}"));
            } else {
                differing.push(vec![name.clone(), a, b]);
            }
        }
        (differing, same)
    }

    /// Sums and means of a side over all its blocks.
    pub(super) fn result_rows(&self) -> Vec<Row> {
        let rows: [(&str, Cell); 10] = [
            ("successful requests", successes),
            ("failed requests", failures),
            ("time measured", |side| {
                let seconds: f64 = side.iter().map(|m| m.duration_s).sum();
                format!("{seconds:.1} s")
            }),
            ("tokens in, out", |side| {
                let tokens = [|m: &Metrics| m.prompt_tokens, |m: &Metrics| m.output_tokens];
                tokens.map(|of| or_na(sum(side, of))).join(", ")
            }),
            ("prompt tokens from the cache", |side| {
                or_na(mean(side, |m| m.cached_token_rate).map(percent))
            }),
            ("mean batch size", |side| {
                let size = mean(side, |m| m.server.mean_batch_size);
                or_na(size.map(|size| format!("{size:.2} sequences")))
            }),
            ("evicted blocks", |side| {
                or_na(sum(side, |m| m.server.evicted_blocks))
            }),
            ("preemptions", |side| {
                or_na(sum(side, |m| m.server.preemptions))
            }),
            ("model load time, mean", |side| {
                let time = mean(side, |m| m.server.model_load_time_ms);
                or_na(time.map(|ms| format!("{ms:.0} ms")))
            }),
            ("CPU of the client, mean", |side| {
                let share = mean(side, |m| Some(m.client_cpu_share));
                or_na(share.map(|share| format!("{} of one core", percent(share))))
            }),
        ];
        rows.iter()
            .map(|(name, of)| vec![(*name).to_owned(), of(&self.a), of(&self.b)])
            .collect()
    }

    /// Each target with B's value, in how many blocks it is met, and the outcome.
    pub(super) fn target_rows(&self) -> Vec<Row> {
        let targets = &self.record.ab.targets;
        let row = |criterion: &Criterion| {
            let measure = criterion.measure();
            let judgement = criterion.judge(&self.b, targets);
            let value = judgement.value.map(|value| {
                let text = format!("{} {}", words::value(measure, value), measure.unit);
                text.trim_end().to_owned()
            });
            vec![
                criterion.to_string(),
                or_na(value),
                format!("{} of {}", judgement.num_blocks_met, self.b.len()),
                outcome(&judgement),
            ]
        };
        targets.iter().map(row).collect()
    }

    /// Under [`BLOCKS`], in the order of measuring.
    pub(super) fn block_rows(&self) -> Vec<Row> {
        let row = |(position, block): (usize, &Block)| {
            let place = [
                (position + 1).to_string(),
                format!("{:?}", block.side),
                (block.pair + 1).to_string(),
            ];
            place
                .into_iter()
                .chain(block_cells(&block.record))
                .collect()
        };
        self.record.blocks.iter().enumerate().map(row).collect()
    }
}

/// Rows under [`IMPACT`].
pub fn impact_rows(comparisons: &[(&'static Measure, Option<Comparison>)]) -> Vec<Row> {
    let row = |(measure, comparison): &(&'static Measure, Option<Comparison>)| {
        let mut row = vec![words::label(measure)];
        match comparison {
            None => row.extend([NOT_AVAILABLE; 6].map(str::to_owned)),
            Some(comparison) => {
                row.push(words::value(measure, comparison.before));
                row.push(words::value(measure, comparison.after));
                row.push(words::delta(measure, comparison));
                row.extend(words::change(measure, comparison));
                row.push(words::verdict(comparison.verdict).to_owned());
            }
        }
        row
    };
    comparisons.iter().map(row).collect()
}

/// What a block shows, under the last of [`BLOCKS`].
pub fn block_cells(record: &Record) -> [String; 5] {
    let metrics = Metrics::of(record);
    let p50 = |summary: Option<Summary>| or_na(summary.map(|summary| milliseconds(summary.p50)));
    let throughput = metrics.output_throughput_tokens_per_s;
    [
        p50(metrics.latencies.ttft_ms),
        p50(metrics.latencies.tpot_ms),
        or_na(throughput.map(|x| format!("{x:.1}"))),
        (metrics.num_requests - metrics.num_successes).to_string(),
        format!("{:.2}", record.run.machine.load_average_1m),
    ]
}

/// What all blocks share, from the record of the first one; see [`SHARED`]. Blocks that sent the
/// same prompts make up a `turn`.
pub fn shared_rows(record: &Record, turn: &str) -> Vec<Row> {
    let figures = Figures {
        record,
        metrics: &Metrics::of(record),
    };
    let is_shared = |(name, _): &(&str, String)| SHARED.contains(name);
    figures
        .circumstances()
        .into_iter()
        .filter(is_shared)
        .map(|(name, value)| match name {
            "client settings" => {
                vec![
                    name.to_owned(),
                    format!("{value} ({turn} 1; each next {turn} takes the next seed)"),
                ]
            }
            _ => vec![name.to_owned(), value],
        })
        .collect()
}

/// Without those of this run alone.
fn reported_settings(record: &Record) -> BTreeMap<String, String> {
    let stats = ServerStats::of(&record.run.server.stats_before);
    let settings = stats.settings.into_iter();
    settings
        .filter(|(name, _)| !["host", "port"].contains(&name.as_str()))
        .map(|(name, value)| (name, plain(&value)))
        .collect()
}

fn successes(side: &[Metrics]) -> String {
    let successes: usize = side.iter().map(|m| m.num_successes).sum();
    let requests: usize = side.iter().map(|m| m.num_requests).sum();
    format!("{successes} of {requests}")
}

/// By reason.
fn failures(side: &[Metrics]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (reason, count) in side.iter().flat_map(|m| &m.failures) {
        *counts.entry(reason).or_default() += count;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(reason, n)| format!("{n} {reason}"))
        .collect();
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.join(", "),
    }
}

/// `None` where a block lacks the figure.
fn sum(side: &[Metrics], of: impl Fn(&Metrics) -> Option<u64>) -> Option<u64> {
    side.iter().map(of).sum()
}

/// `None` where a block lacks the figure.
pub fn mean(side: &[Metrics], of: impl Fn(&Metrics) -> Option<f64>) -> Option<f64> {
    let total: Option<f64> = side.iter().map(of).sum();
    total.map(|total| total / side.len() as f64)
}

fn outcome(judgement: &Judgement) -> String {
    match &judgement.outcome {
        Outcome::Met => "met".to_owned(),
        Outcome::NotMet(None) => "NOT MET".to_owned(),
        Outcome::NotMet(Some(reason)) => format!("NOT MET: {reason}"),
    }
}
