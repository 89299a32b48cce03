//! Turns a record into tables: text for the terminal, Markdown for BENCHMARKS.md. Every figure
//! comes from the record; one that the server does not give is shown as n/a, never as 0.

use std::fmt::Write as _;

use super::benchmarks_md::raw_records_row;
use super::figures::{Figures, NOT_AVAILABLE, mib, milliseconds, or_na, percent};
use super::metrics::{Latencies, Metrics};
use super::record::{OWN_SERVER, Record};
use super::search;
use super::statistics::Summary;

const COLUMNS: [&str; 7] = ["mean", "std", "p50", "p95", "p99", "max", "samples"];

/// One run, ready to be shown.
pub struct RunSection<'a> {
    record: &'a Record,
    metrics: Metrics,
    /// Where the raw records lie, as shown to the reader.
    raw: &'a str,
}

impl<'a> RunSection<'a> {
    pub fn new(record: &'a Record, raw: &'a str) -> Self {
        Self {
            record,
            metrics: Metrics::of(record),
            raw,
        }
    }

    /// For the terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n\n", self.title());
        if let Some(layout) = self.layout() {
            let _ = writeln!(text, "{layout}");
        }
        for (name, latencies) in self.latencies() {
            let _ = write!(text, "{:<26}", heading(name.as_deref()));
            for column in COLUMNS {
                let _ = write!(text, "{column:>10}");
            }
            for (name, summary) in latency_rows(&latencies) {
                let _ = write!(text, "\n{name:<26}");
                for cell in latency_cells(summary) {
                    let _ = write!(text, "{cell:>10}");
                }
            }
            text.push_str("\n\n");
        }
        let figures = self.figures();
        for (name, value) in figures.results().into_iter().chain(figures.circumstances()) {
            let _ = writeln!(text, "{name:<26}{value}");
        }
        let _ = writeln!(text, "{:<26}{}", "raw records", self.raw);
        text
    }

    /// A dated section of BENCHMARKS.md.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("## {}: {}\n\n", self.date(), self.title());
        let _ = writeln!(text, "    {}\n", self.record.run.command);
        if let Some(layout) = self.layout() {
            // Indented, it stands as it is, and its headings are none of this file's.
            for line in layout.trim_end().lines() {
                let _ = writeln!(text, "{}{line}", if line.is_empty() { "" } else { "    " });
            }
            text.push('\n');
        }
        for (name, latencies) in self.latencies() {
            let heading = heading(name.as_deref());
            let _ = writeln!(text, "| {heading} | {} |", COLUMNS.join(" | "));
            let _ = writeln!(text, "|---|{}", "---:|".repeat(COLUMNS.len()));
            for (name, summary) in latency_rows(&latencies) {
                let _ = writeln!(text, "| {name} | {} |", latency_cells(summary).join(" | "));
            }
            text.push('\n');
        }
        let figures = self.figures();
        let tables = [
            ("result", figures.results()),
            ("run", figures.circumstances()),
        ];
        for (number, (heading, rows)) in tables.into_iter().enumerate() {
            let gap = if number > 0 { "\n" } else { "" };
            let _ = writeln!(text, "{gap}| {heading} | |\n|---|---|");
            for (name, value) in rows {
                let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
            }
        }
        let _ = writeln!(text, "{}", raw_records_row(self.raw));
        text
    }

    /// As people know results of this kind, where the workload has such a layout.
    fn layout(&self) -> Option<String> {
        let client = &self.record.run.client;
        match client.search {
            Some(settings) => Some(search::render(self.record, settings)),
            None => client.workload.as_ref()?.layout.render(self.record),
        }
    }

    /// Of each phase, named where there are several.
    fn latencies(&self) -> Vec<(Option<String>, Latencies)> {
        let phases = &self.record.run.phases;
        if phases.len() < 2 {
            return vec![(None, self.metrics.latencies.clone())];
        }
        let of_phase = |index| Metrics::of(&self.record.of_phase(index)).latencies;
        phases
            .iter()
            .enumerate()
            .map(|(index, phase)| (Some(phase.name.clone()), of_phase(index)))
            .collect()
    }

    fn figures(&self) -> Figures<'_> {
        Figures {
            record: self.record,
            metrics: &self.metrics,
        }
    }

    /// One row of the summary table of BENCHMARKS.md, see [`super::benchmarks_md`].
    pub fn to_summary_row(&self) -> String {
        let metrics = &self.metrics;
        let p50 = |summary: &Option<Summary>| or_na(summary.map(|s| milliseconds(s.p50)));
        let cells = [
            self.date(),
            self.settings_in_short(),
            self.load_in_short(),
            p50(&metrics.latencies.ttft_ms),
            p50(&metrics.latencies.tpot_ms),
            or_na(
                metrics
                    .output_throughput_tokens_per_s
                    .map(|x| format!("{x:.1}")),
            ),
            percent(metrics.error_rate),
            or_na(
                metrics
                    .server
                    .memory_peak_bytes
                    .map(|bytes| mib(bytes as f64)),
            ),
            format!("`{}`", self.raw),
        ];
        format!("| {} |", cells.join(" | ").replace('\n', " "))
    }

    fn date(&self) -> String {
        self.record
            .run
            .started
            .replace('T', " ")
            .replace('Z', " UTC")
    }

    fn title(&self) -> String {
        let model = self
            .record
            .run
            .server
            .model
            .as_deref()
            .unwrap_or("unnamed model");
        format!(
            "{model}, {}, {}",
            self.settings_in_short(),
            self.load_in_short()
        )
    }

    fn settings_in_short(&self) -> String {
        let run = &self.record.run;
        if run.server.endpoint != OWN_SERVER {
            return run.server.endpoint.clone();
        }
        let pairs: Vec<String> = run
            .environment
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        if pairs.is_empty() {
            "default settings".to_owned()
        } else {
            pairs.join(" ")
        }
    }

    fn load_in_short(&self) -> String {
        let client = &self.record.run.client;
        if let Some(workload) = &client.workload {
            return format!("workload {}, {} requests", workload.name, client.requests);
        }
        if client.search.is_some() {
            return format!("search for a rate, {} requests", client.requests);
        }
        let load = match (client.request_rate_per_s, client.concurrency) {
            (Some(rate), _) => format!("{rate} a second"),
            (None, Some(1)) => "1 client".to_owned(),
            (None, concurrency) => format!("{} clients", or_na(concurrency)),
        };
        format!("{} requests, {load}", client.requests)
    }
}

fn heading(phase: Option<&str>) -> String {
    match phase {
        Some(name) => format!("{name} (ms)"),
        None => "latency (ms)".to_owned(),
    }
}

fn latency_rows(latencies: &Latencies) -> [(&'static str, Option<Summary>); 9] {
    [
        ("TTFT", latencies.ttft_ms),
        ("TPOT", latencies.tpot_ms),
        ("ITL", latencies.itl_ms),
        ("E2E", latencies.e2e_ms),
        ("service", latencies.service_ms),
        ("queue (server)", latencies.queue_ms),
        ("prefill (server)", latencies.prefill_ms),
        ("decode (server)", latencies.decode_ms),
        ("send delay (client)", latencies.send_delay_ms),
    ]
}

fn latency_cells(summary: Option<Summary>) -> Vec<String> {
    let Some(s) = summary else {
        return vec![NOT_AVAILABLE.to_owned(); COLUMNS.len()];
    };
    let times = [s.mean, s.std, s.p50, s.p95, s.p99, s.max];
    times
        .into_iter()
        .map(milliseconds)
        .chain([s.count.to_string()])
        .collect()
}
