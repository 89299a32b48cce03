//! A run of several servers as a section of BENCHMARKS.md, rows of its summary, and tables for the
//! terminal. All of it is computed from the raw records.

use std::fmt::Write as _;

use super::record::{Block, PeersRecord};
use crate::bench::ab::comparison::{Comparison, MEASURES, Measure, THROUGHPUT, TOTAL_THROUGHPUT};
use crate::bench::ab::section::{each_block, table};
use crate::bench::ab::tables::{block_cells, impact_rows, shared_rows};
use crate::bench::ab::words;
use crate::bench::benchmarks_md::raw_records_row;
use crate::bench::compare::aligned;
use crate::bench::figures::{NOT_AVAILABLE, or_na};
use crate::bench::metrics::Metrics;

const IMPACT: [&str; 7] = [
    "figure",
    "theirs",
    "ours",
    "delta",
    "ours / theirs",
    "95 % interval",
    "verdict on ours",
];

const BLOCKS: [&str; 8] = [
    "block",
    "server",
    "round",
    "TTFT p50 (ms)",
    "TPOT p50 (ms)",
    "output (tokens/s)",
    "failed requests",
    "load average before",
];

/// Figures that the summary table has.
const SUMMED_UP: [&str; 4] = [THROUGHPUT, "total_throughput", "ttft_p95", "tpot_p50"];

/// A run of several servers, ready to be shown.
pub struct PeersReport<'a> {
    record: &'a PeersRecord,
    /// Where the raw records lie, as shown to the reader.
    raw: &'a str,
    /// For each peer, its figures beside ours.
    comparisons: Vec<Comparisons>,
}

type Comparisons = Vec<(&'static Measure, Option<Comparison>)>;

impl<'a> PeersReport<'a> {
    pub fn new(record: &'a PeersRecord, raw: &'a str) -> Self {
        let ours = record.metrics(0);
        let comparisons = (1..=record.peers.servers.len())
            .map(|server| compare(&record.metrics(server), &ours))
            .collect();
        Self {
            record,
            raw,
            comparisons,
        }
    }

    /// The peers' names with what is to be said of each.
    fn peers(&self) -> impl Iterator<Item = (&str, &Comparisons)> {
        let names = self.record.peers.servers.iter().map(|peer| &*peer.name);
        names.zip(&self.comparisons)
    }

    /// For the terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title());
        for (name, comparisons) in self.peers() {
            let mut rows = vec![IMPACT.map(str::to_owned).to_vec()];
            rows.extend(impact_rows(comparisons));
            let _ = write!(text, "\nbeside {name}\n{}", aligned(&rows));
        }
        let _ = writeln!(text, "\n{:<26}{}", "raw records", self.raw);
        text
    }

    /// A section of BENCHMARKS.md.
    pub fn to_markdown(&self) -> String {
        let first = self.record.records(0)[0];
        let mut text = format!("## {}\n\n", self.title());
        let _ = writeln!(text, "    {}\n", first.run.command);
        let _ = writeln!(text, "{}\n", self.plan());
        table(
            &mut text,
            &["server", "model", "started as"],
            &self.servers(),
        );
        for (name, comparisons) in self.peers() {
            let _ = writeln!(text, "### Beside {name}\n");
            table(&mut text, &IMPACT, &impact_rows(comparisons));
        }
        text.push_str("### Records\n\n");
        table(&mut text, &BLOCKS, &self.block_rows());
        table(&mut text, &["run", ""], &shared_rows(first, "round"));
        format!("{}\n{}\n", text.trim_end(), raw_records_row(self.raw))
    }

    /// A row of the summary table for each peer.
    pub fn to_summary_rows(&self) -> String {
        let rows: Vec<String> = self
            .peers()
            .map(|(name, comparisons)| {
                let mut cells = vec![
                    self.date(),
                    self.model(0),
                    self.record.peers.name.clone(),
                    name.to_owned(),
                ];
                cells.extend(SUMMED_UP.map(|key| in_short(comparisons, key)));
                cells.push(format!("`{}`", self.raw));
                let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
                format!("| {} |", cells.join(" | "))
            })
            .collect();
        rows.join("\n")
    }

    fn title(&self) -> String {
        let names: Vec<&str> = self.peers().map(|(name, _)| name).collect();
        format!(
            "Beside {}: {}, {} - {}",
            names.join(" and "),
            self.model(0),
            self.record.peers.name,
            self.date()
        )
    }

    /// The day on which it began.
    fn date(&self) -> String {
        let started = &self.record.blocks[0].record.run.started;
        started.split('T').next().unwrap_or_default().to_owned()
    }

    fn model(&self, server: usize) -> String {
        or_na(self.record.records(server)[0].run.server.model.clone())
    }

    /// What was measured, and in which order.
    fn plan(&self) -> String {
        let client = &self.record.records(0)[0].run.client;
        let num_servers = self.record.peers.servers.len() + 1;
        let order: Vec<&str> = self.record.blocks[..2 * num_servers]
            .iter()
            .map(|block| self.record.peers.name_of(block.server))
            .collect();
        format!(
            "One server at a time, {} blocks of each, in the order {}, and so on. {}",
            self.record.blocks.len() / num_servers,
            order.join(", "),
            each_block(client),
        )
    }

    fn servers(&self) -> Vec<Vec<String>> {
        let asked = &self.record.peers;
        let own = match asked.own.0.is_empty() {
            true => "`candlepower serve`".to_owned(),
            false => format!("`{} candlepower serve`", asked.own),
        };
        let commands = asked.servers.iter().map(|peer| match peer.endpoint() {
            Some(_) => format!("{}, as it ran", peer.server),
            None => format!("`{}`", peer.server),
        });
        [own]
            .into_iter()
            .chain(commands)
            .enumerate()
            .map(|(server, started)| {
                let name = asked.name_of(server).to_owned();
                vec![name, self.model(server), started]
            })
            .collect()
    }

    /// Under [`BLOCKS`], in the order of measuring.
    fn block_rows(&self) -> Vec<Vec<String>> {
        let row = |(position, block): (usize, &Block)| {
            let place = [
                (position + 1).to_string(),
                self.record.peers.name_of(block.server).to_owned(),
                (block.round + 1).to_string(),
            ];
            let cells = block_cells(&block.record);
            place.into_iter().chain(cells).collect()
        };
        self.record.blocks.iter().enumerate().map(row).collect()
    }
}

fn compare(theirs: &[Metrics], ours: &[Metrics]) -> Comparisons {
    let measures = MEASURES.iter().chain([&TOTAL_THROUGHPUT]);
    measures
        .map(|measure| (measure, Comparison::of(measure, theirs, ours)))
        .collect()
}

/// A cell of the summary table: both values, and ours as a multiple of theirs.
fn in_short(comparisons: &Comparisons, key: &str) -> String {
    let found = comparisons.iter().find(|(measure, _)| measure.key == key);
    let (measure, comparison) = found.expect("bug: all measures are compared");
    let Some(comparison) = comparison else {
        return NOT_AVAILABLE.to_owned();
    };
    let [ratio, interval] = words::change(measure, comparison);
    format!(
        "{} → {}, × {ratio} ({interval})",
        words::value(measure, comparison.before),
        words::value(measure, comparison.after),
    )
}
