//! An A/B run as a section of BENCHMARKS.md, a row of its summary, and a table for the terminal.
//!
//! All of it is computed from the raw records but for the words of whoever ran it, and a part for
//! which there are no words is left out.

use std::fmt::Write as _;

use super::args::Settings;
use super::comparison::{Comparison, ERROR_RATE, MEASURES, Measure, PEAK_RAM, THROUGHPUT, Verdict};
use super::record::{AbRecord, Side};
use super::tables::{BLOCKS, IMPACT, impact_rows, mean, shared_rows};
use super::words;
use crate::bench::benchmarks_md::raw_records_row;
use crate::bench::compare::aligned;
use crate::bench::figures::or_na;
use crate::bench::metrics::Metrics;
use crate::bench::record::{ClientSettings, Record};

/// Figures that the summary table has.
const SUMMED_UP: [&str; 5] = ["ttft_p50", "tpot_p50", THROUGHPUT, ERROR_RATE, PEAK_RAM];

/// An A/B run, ready to be shown.
pub struct AbReport<'a> {
    pub(super) record: &'a AbRecord,
    /// Where the raw records lie, as shown to the reader.
    raw: &'a str,
    pub(super) a: Vec<Metrics>,
    pub(super) b: Vec<Metrics>,
    pub(super) comparisons: Vec<(&'static Measure, Option<Comparison>)>,
}

impl<'a> AbReport<'a> {
    pub fn new(record: &'a AbRecord, raw: &'a str) -> Self {
        let (a, b) = (record.metrics(Side::A), record.metrics(Side::B));
        let compare = |measure| (measure, Comparison::of(measure, &a, &b));
        let comparisons = MEASURES.iter().map(compare).collect();
        Self {
            record,
            raw,
            a,
            b,
            comparisons,
        }
    }

    /// For the terminal.
    pub fn to_text(&self) -> String {
        let mut rows = vec![IMPACT.map(str::to_owned).to_vec()];
        rows.extend(impact_rows(&self.comparisons));
        let mut text = format!("{}\n\n{}\n", self.title(), aligned(&rows));
        for row in self.target_rows() {
            let _ = writeln!(text, "{:<26}{}", row[0], row[1..].join(", "));
        }
        let _ = writeln!(text, "{:<26}{}", "raw records", self.raw);
        text
    }

    /// A section of BENCHMARKS.md.
    pub fn to_markdown(&self) -> String {
        let ab = &self.record.ab;
        let mut text = format!("## {}\n\n", self.title());
        let _ = writeln!(text, "    {}\n", self.first(Side::A).run.command);
        let _ = writeln!(text, "{}\n", self.plan());
        let words = |heading: &str, words: &Option<String>| match words {
            Some(words) => format!("### {heading}\n\n{words}\n\n"),
            None => String::new(),
        };
        text.push_str(&words("Changes applied", &ab.prose.changes));
        text.push_str("### Performance impact\n\n");
        table(&mut text, &IMPACT, &impact_rows(&self.comparisons));
        self.write_configuration(&mut text);
        self.write_tradeoff(&mut text);
        self.write_rollback(&mut text);
        self.write_results(&mut text);
        text.push_str(&words("Next steps", &ab.prose.next));
        text.push_str("### Records\n\n");
        table(&mut text, &BLOCKS, &self.block_rows());
        table(
            &mut text,
            &["run", ""],
            &shared_rows(self.first(Side::A), "pair"),
        );
        format!("{}\n{}\n", text.trim_end(), raw_records_row(self.raw))
    }

    /// One row of the summary table of optimizations.
    pub fn to_summary_row(&self) -> String {
        let ab = &self.record.ab;
        let title = format!(
            "{}: {} ({} → {})",
            ab.number,
            ab.name,
            code(&ab.a),
            code(&ab.b)
        );
        let figures = SUMMED_UP.map(|key| {
            let found = self
                .comparisons
                .iter()
                .find(|(measure, _)| measure.key == key);
            let (measure, comparison) = found.expect("bug: all measures are compared");
            words::in_short(measure, *comparison)
        });
        let mut cells = vec![self.date(), title];
        cells.extend(figures);
        cells.push(format!("`{}`", self.raw));
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |", cells.join(" | "))
    }

    fn title(&self) -> String {
        let ab = &self.record.ab;
        format!("Optimization {}: {} - {}", ab.number, ab.name, self.date())
    }

    /// What was measured, and in which order.
    fn plan(&self) -> String {
        let (ab, client) = (&self.record.ab, &self.first(Side::A).run.client);
        let blocks = self.record.blocks.iter().take(8);
        let order: Vec<String> = blocks.map(|block| format!("{:?}", block.side)).collect();
        let more = if self.record.blocks.len() > 8 {
            " …"
        } else {
            ""
        };
        format!(
            "A, before: {}. B, after: {}. {} blocks of each, in the order {}{more}. {}",
            code(&ab.a),
            code(&ab.b),
            self.a.len(),
            order.join(" "),
            each_block(client),
        )
    }

    /// The day on which it began.
    fn date(&self) -> String {
        let started = &self.record.blocks[0].record.run.started;
        started.split('T').next().unwrap_or_default().to_owned()
    }

    pub(super) fn first(&self, side: Side) -> &Record {
        self.record.records(side)[0]
    }

    fn write_configuration(&self, text: &mut String) {
        let (differing, same) = self.setting_rows();
        text.push_str("### Configuration\n\n");
        if differing.is_empty() {
            text.push_str("No setting that the server reports differs.\n\n");
        } else {
            table(text, &["setting", "A, before", "B, after"], &differing);
        }
        if !same.is_empty() {
            let _ = writeln!(text, "The same on both sides: `{}`.\n", same.join(" "));
        }
    }

    fn write_tradeoff(&self, text: &mut String) {
        text.push_str("### Tradeoff analysis\n\n");
        for (name, wanted) in [
            ("Gains", Verdict::Better),
            ("Costs", Verdict::Worse),
            ("No difference shown", Verdict::NoDifferenceShown),
        ] {
            let list = self.in_words(wanted);
            let _ = writeln!(text, "- **{name}**: {list}");
        }
        text.push('\n');
        if let Some(words) = &self.record.ab.prose.tradeoff {
            let _ = writeln!(text, "{words}\n");
        }
    }

    /// The figures of a verdict, with their change.
    fn in_words(&self, wanted: Verdict) -> String {
        let figures: Vec<String> = self
            .comparisons
            .iter()
            .filter_map(|(measure, comparison)| {
                let comparison = comparison.filter(|c| c.verdict == wanted)?;
                Some(match wanted {
                    Verdict::NoDifferenceShown => measure.label.to_owned(),
                    _ => format!("{} {}", measure.label, words::delta(measure, &comparison)),
                })
            })
            .collect();
        match figures.is_empty() {
            true => "none".to_owned(),
            false => figures.join(", "),
        }
    }

    fn write_rollback(&self, text: &mut String) {
        let ab = &self.record.ab;
        let before = &self.first(Side::A).run.environment;
        let mut steps: Vec<String> =
            ab.b.0
                .keys()
                .chain(ab.a.0.keys().filter(|name| !ab.b.0.contains_key(*name)))
                .filter(|name| ab.a.0.get(*name) != ab.b.0.get(*name))
                .map(|name| match before.get(name) {
                    Some(value) => format!("Set `{name}={value}`."),
                    None => format!("Unset `{name}`."),
                })
                .collect();
        let restart = "Restart the server; what it has cached is lost.";
        steps.push(match mean(&self.a, |m| m.server.model_load_time_ms) {
            Some(ms) => {
                format!("{restart} It loads the model in {ms:.0} ms (mean over A's blocks).")
            }
            None => restart.to_owned(),
        });
        text.push_str("### Rollback plan\n\n");
        for (number, step) in steps.iter().enumerate() {
            let _ = writeln!(text, "{}. {step}", number + 1);
        }
        text.push('\n');
    }

    fn write_results(&self, text: &mut String) {
        text.push_str("### Test results\n\n");
        table(
            text,
            &["over all blocks", "A, before", "B, after"],
            &self.result_rows(),
        );
        let failed = |m: &Metrics| m.num_successes < m.num_requests;
        if self.a.iter().chain(&self.b).any(failed) {
            text.push_str(
                "Latencies are those of requests that succeeded; the others have none.\n\n",
            );
        }
        let targets = self.target_rows();
        if !targets.is_empty() {
            table(
                text,
                &["target", "B", "blocks that alone meet it", "outcome"],
                &targets,
            );
        }
    }
}

fn code(settings: &Settings) -> String {
    match settings.0.is_empty() {
        true => settings.to_string(),
        false => format!("`{settings}`"),
    }
}

/// The load of a block, as a sentence.
pub fn each_block(client: &ClientSettings) -> String {
    let load = match (
        &client.workload,
        client.request_rate_per_s,
        client.concurrency,
    ) {
        (Some(workload), ..) => format!("workload {}", workload.name),
        (None, Some(rate), _) => format!("{rate} a second on average"),
        (None, None, clients) => format!("{} at once", or_na(clients)),
    };
    let tokens = client
        .max_tokens
        .map_or_else(String::new, |most| format!(", {most} tokens each at most"));
    let requests = client.requests;
    format!("Each block: {requests} requests, {load}{tokens}.")
}

/// A Markdown table and an empty line. Columns of numbers stand to the right.
pub fn table(text: &mut String, heading: &[&str], rows: &[Vec<String>]) {
    let is_number = |cell: &str| {
        let number = cell.trim_end_matches(" %").trim_end_matches(" points");
        cell == "n/a" || number.parse::<f64>().is_ok()
    };
    let has_numbers = |column: usize| column > 0 && rows.iter().all(|row| is_number(&row[column]));
    let rule: Vec<&str> = (0..heading.len())
        .map(|column| if has_numbers(column) { "---:" } else { "---" })
        .collect();
    let _ = writeln!(text, "| {} |\n|{}|", heading.join(" | "), rule.join("|"));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}
