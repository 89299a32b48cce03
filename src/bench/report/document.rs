//! A report before it has a form: what is said, shown and tabled, in order.

use std::fmt::Write as _;
use std::path::Path;

use super::figures::{Exhibit, Missing, Source, Table, draw_all};
use super::loads::Load;
use super::reading::{self, Finding};
use super::words::{number, percent, time};
use crate::bench::figures::Figures;

pub struct Document {
    pub title: String,
    /// What was measured, a row a load.
    pub loads: Table,
    pub findings: Vec<Finding>,
    pub exhibits: Vec<Exhibit>,
    pub missing: Vec<Missing>,
    /// Every load in full: its name, results and circumstances.
    pub details: Vec<(String, Table)>,
}

impl Document {
    pub fn of(loads: &[Load], objectives_ms: &[f64]) -> Self {
        let source = Source {
            loads,
            objectives_ms,
        };
        let (exhibits, missing) = draw_all(source);
        Self {
            title: title(loads),
            loads: table_of(loads),
            findings: reading::read(source),
            exhibits,
            missing,
            details: loads.iter().map(details).collect(),
        }
    }

    /// For the terminal.
    pub fn to_text(&self, folder: &Path) -> String {
        let mut text = format!("{}\n", self.title);
        for Finding { topic, claim, .. } in &self.findings {
            let _ = write!(text, "\n{topic}: {claim}\n");
        }
        for Missing { title, needs } in &self.missing {
            let _ = write!(text, "\nNot drawn: {title}. It takes {needs}.\n");
        }
        let _ = write!(
            text,
            "\nwritten to {}: report.html, report.md, figures/\n",
            folder.display()
        );
        text
    }
}

fn title(loads: &[Load]) -> String {
    let mut models: Vec<&str> = Vec::new();
    for model in loads
        .iter()
        .filter_map(|load| load.record.run.server.model.as_deref())
    {
        if !models.contains(&model) {
            models.push(model);
        }
    }
    match models.is_empty() {
        true => "Benchmark report".to_owned(),
        false => format!("Benchmark report: {}", models.join(", ")),
    }
}

fn table_of(loads: &[Load]) -> Table {
    let mut table = Table::new([
        "load",
        "run",
        "requests",
        "error rate",
        "in flight, most",
        "latency P50",
        "P95",
        "P99",
        "TTFT P50",
        "output (tokens/s)",
        "requests/s",
    ]);
    for load in loads {
        let metrics = &load.metrics;
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "n/a".to_owned());
        let e2e = metrics.latencies.e2e_ms;
        table.row([
            load.name.clone(),
            load.file.clone(),
            metrics.num_requests.to_string(),
            percent(metrics.error_rate),
            load.peak_in_flight().to_string(),
            or_none(e2e.map(|ms| time(ms.p50))),
            or_none(e2e.map(|ms| time(ms.p95))),
            or_none(e2e.map(|ms| time(ms.p99))),
            or_none(metrics.latencies.ttft_ms.map(|ms| time(ms.p50))),
            or_none(metrics.output_throughput_tokens_per_s.map(number)),
            number(metrics.request_throughput_per_s),
        ]);
    }
    table
}

fn details(load: &Load) -> (String, Table) {
    let run = &load.record.run;
    let figures = Figures {
        record: &load.record,
        metrics: &load.metrics,
    };
    let mut table = Table::new(["", ""]);
    let own = [
        ("command", run.command.clone()),
        ("started", run.started.clone()),
    ];
    for (name, value) in own
        .into_iter()
        .chain(figures.results())
        .chain(figures.circumstances())
    {
        table.row([name.to_owned(), value]);
    }
    (format!("{} ({})", load.name, load.file), table)
}
