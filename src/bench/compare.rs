//! Recorded runs side by side: each figure, its ratio to the first run's, and in what the runs
//! differ. It judges nothing: two single runs do not tell a difference from noise.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::metrics::Metrics;
use super::raw_record::RawRecord as _;
use super::record::Record;
use super::server_stats::ServerStats;
use super::statistics::Summary;
use super::vllm_json::read as vllm_json;

type Figure = fn(&Metrics) -> Option<f64>;

const FIGURES: [(&str, Figure); 18] = [
    ("TTFT p50 (ms)", |m| m.latencies.ttft_ms.map(p50)),
    ("TTFT p95 (ms)", |m| m.latencies.ttft_ms.map(p95)),
    ("TTFT p99 (ms)", |m| m.latencies.ttft_ms.map(p99)),
    ("TPOT p50 (ms)", |m| m.latencies.tpot_ms.map(p50)),
    ("ITL p50 (ms)", |m| m.latencies.itl_ms.map(p50)),
    ("ITL p99 (ms)", |m| m.latencies.itl_ms.map(p99)),
    ("E2E p50 (ms)", |m| m.latencies.e2e_ms.map(p50)),
    ("E2E p95 (ms)", |m| m.latencies.e2e_ms.map(p95)),
    ("E2E p99 (ms)", |m| m.latencies.e2e_ms.map(p99)),
    ("queue p50 (ms)", |m| m.latencies.queue_ms.map(p50)),
    ("prefill p50 (ms)", |m| m.latencies.prefill_ms.map(p50)),
    ("decode p50 (ms)", |m| m.latencies.decode_ms.map(p50)),
    ("requests/s", |m| Some(m.request_throughput_per_s)),
    ("output tokens/s", |m| m.output_throughput_tokens_per_s),
    ("error rate", |m| Some(m.error_rate)),
    ("cached requests", |m| m.cached_request_rate),
    ("mean batch size", |m| m.server.mean_batch_size),
    ("RAM peak (MiB)", |m| {
        m.server
            .memory_peak_bytes
            .map(|bytes| bytes as f64 / f64::from(1 << 20))
    }),
];

fn p50(summary: Summary) -> f64 {
    summary.p50
}

fn p95(summary: Summary) -> f64 {
    summary.p95
}

fn p99(summary: Summary) -> f64 {
    summary.p99
}

/// The comparison of record files, the first being the base.
///
/// # Errors
/// A file that is no record.
pub fn compare_files(files: &[PathBuf]) -> anyhow::Result<String> {
    let runs: Vec<(String, Record)> = files
        .iter()
        .map(|file| {
            let name = file.file_stem().unwrap_or(file.as_os_str());
            Ok((name.to_string_lossy().into_owned(), read(file)?))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(compare(&runs))
}

/// A record of ours, or a result of `vllm bench serve`.
fn read(file: &Path) -> anyhow::Result<Record> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    match serde_json::from_str::<Value>(&text) {
        Ok(document) if vllm_json::is_result(&document) => {
            vllm_json::read(document).with_context(|| file.display().to_string())
        }
        _ => Record::read(file),
    }
}

/// The comparison of named runs, the first being the base.
pub fn compare(runs: &[(String, Record)]) -> String {
    let metrics: Vec<Metrics> = runs.iter().map(|(_, record)| Metrics::of(record)).collect();
    let mut rows = vec![row("", runs.iter().map(|(name, _)| name.clone()))];
    for (name, figure) in FIGURES {
        let values: Vec<Option<f64>> = metrics.iter().map(figure).collect();
        let cells = values
            .iter()
            .enumerate()
            .map(|(i, value)| cell(values[0].filter(|_| i > 0), *value));
        rows.push(row(name, cells));
    }
    let differences = differences(runs);
    if !differences.is_empty() {
        rows.push(vec![String::new()]);
        rows.push(vec!["what differs".to_owned()]);
        rows.extend(differences);
    }
    let mut text = aligned(&rows);
    if !same_prompts(runs) {
        text.push_str(
            "\nThese runs sent different prompts or another load: their figures do not compare.\n",
        );
    }
    text
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    [name.to_owned()].into_iter().chain(cells).collect()
}

/// A value, and its ratio to the base where there is one.
fn cell(base: Option<f64>, value: Option<f64>) -> String {
    match (base, value) {
        (_, None) => "n/a".to_owned(),
        (Some(base), Some(value)) if base != 0.0 => format!("{value:.2} (x{:.2})", value / base),
        (_, Some(value)) => format!("{value:.2}"),
    }
}

/// Everything that a run was made with, as far as it is not the same in all of them.
fn differences(runs: &[(String, Record)]) -> Vec<Vec<String>> {
    let circumstances: Vec<Map<String, Value>> = runs
        .iter()
        .map(|(_, record)| circumstances(record))
        .collect();
    let mut names: Vec<&String> = circumstances.iter().flat_map(Map::keys).collect();
    names.sort();
    names.dedup();
    let values = |name: &str| {
        circumstances
            .iter()
            .map(|of_run| of_run.get(name))
            .collect::<Vec<_>>()
    };
    let differing = names
        .into_iter()
        .filter(|name| values(name).windows(2).any(|pair| pair[0] != pair[1]));
    differing
        .map(|name| row(name, values(name).into_iter().map(plain)))
        .collect()
}

fn circumstances(record: &Record) -> Map<String, Value> {
    let run = &record.run;
    let stats = ServerStats::of(&run.server.stats_before);
    let mut all = match serde_json::to_value(&run.client) {
        Ok(Value::Object(client)) => client,
        other => unreachable!("bug: client settings are an object, not {other:?}"),
    };
    all.extend(stats.settings);
    let commit = run
        .commit
        .as_ref()
        .map(|c| format!("{}{}", c.id, if c.dirty { "+" } else { "" }));
    all.insert("commit".to_owned(), commit.into());
    all.insert("cpu".to_owned(), run.machine.cpu.clone().into());
    all.insert("cores".to_owned(), run.machine.cores.into());
    all.insert("server".to_owned(), run.server.endpoint.clone().into());
    all.insert("model".to_owned(), run.server.model.clone().into());
    all.insert("model_sha256".to_owned(), stats.model.sha256.into());
    all
}

fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "n/a".to_owned(),
        Some(Value::String(text)) => text.chars().take(24).collect(),
        Some(value) => value.to_string(),
    }
}

fn same_prompts(runs: &[(String, Record)]) -> bool {
    let load = |record: &Record| {
        let client = &record.run.client;
        let arrivals = (client.concurrency, client.request_rate_per_s);
        let phases: Vec<_> = record.run.phases.iter().map(|p| p.arrivals).collect();
        (
            client.prompts_sha256.clone(),
            client.max_tokens,
            client.ignore_eos,
            arrivals,
            phases,
        )
    };
    runs.windows(2)
        .all(|pair| load(&pair[0].1) == load(&pair[1].1))
}

/// Columns as wide as their widest cell; the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_a_ratio_where_there_is_a_base_other_than_0() {
        for (base, value, expected) in [
            (None, Some(2.0), "2.00"),
            (Some(4.0), Some(2.0), "2.00 (x0.50)"),
            (Some(0.0), Some(2.0), "2.00"),
            (Some(4.0), None, "n/a"),
        ] {
            assert_eq!(cell(base, value), expected);
        }
    }
}
