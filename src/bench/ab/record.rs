//! The raw records of an A/B run: what was asked for, and one [`Record`] a block. Everything that
//! its section of BENCHMARKS.md shows follows from this file.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::Settings;
use super::criterion::Criterion;
use super::section::AbReport;
use crate::bench::benchmarks_md::Table;
use crate::bench::metrics::Metrics;
use crate::bench::raw_record::{RawRecord, Rendering};
use crate::bench::record::{FORMAT_VERSION, Record, blocks_to_json};
use crate::bench::turns::ensure_valid;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbRecord {
    pub ab: Ab,
    /// In the order in which they were measured.
    pub blocks: Vec<Block>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ab {
    pub format_version: u32,
    /// The optimization's number in BENCHMARKS.md.
    pub number: usize,
    pub name: String,
    pub a: Settings,
    pub b: Settings,
    pub targets: Vec<Criterion>,
    pub prose: Prose,
}

/// The words of whoever ran it; they do not follow from what was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prose {
    pub changes: Option<String>,
    pub tradeoff: Option<String>,
    pub next: Option<String>,
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    A,
    B,
}

/// A server's life: started, warmed up, measured, stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Counted from 0; the two blocks of a pair sent the same prompts.
    pub pair: usize,
    pub side: Side,
    pub record: Record,
}

impl AbRecord {
    /// The records of a side, by pair.
    pub fn records(&self, side: Side) -> Vec<&Record> {
        let of_side = |block: &&Block| block.side == side;
        self.blocks
            .iter()
            .filter(of_side)
            .map(|block| &block.record)
            .collect()
    }

    /// The figures of a side, by pair.
    pub fn metrics(&self, side: Side) -> Vec<Metrics> {
        self.records(side).into_iter().map(Metrics::of).collect()
    }
}

impl RawRecord for AbRecord {
    const COMMAND: &'static str = "bench ab";

    /// One request a line, as in the record of a single run.
    fn to_json(&self) -> anyhow::Result<String> {
        let blocks = self.blocks.iter().map(|block| {
            let tags = [("pair", json!(block.pair)), ("side", json!(block.side))];
            (tags, &block.record)
        });
        blocks_to_json("ab", &self.ab, blocks)
    }

    fn ensure_whole(&self) -> anyhow::Result<()> {
        let version = self.ab.format_version;
        ensure!(
            version <= FORMAT_VERSION,
            "it has format {version}; this program reads up to {FORMAT_VERSION}"
        );
        let pairs = |side| {
            let of_side = self.blocks.iter().filter(move |block| block.side == side);
            of_side.map(|block| block.pair)
        };
        ensure!(
            !self.blocks.is_empty()
                && pairs(Side::A).eq(0..self.blocks.len() / 2)
                && pairs(Side::A).eq(pairs(Side::B)),
            "it does not have one block of A and one of B in each pair",
        );
        Ok(())
    }

    fn render(&self, raw: &str) -> Rendering {
        let report = AbReport::new(self, raw);
        Rendering {
            text: report.to_text(),
            row: Some((Table::Optimizations, report.to_summary_row())),
            section: report.to_markdown(),
        }
    }

    fn judge(&self, raw: &str) -> anyhow::Result<()> {
        for side in [Side::A, Side::B] {
            let successes: usize = self.metrics(side).iter().map(|m| m.num_successes).sum();
            ensure!(
                successes > 0,
                "no request succeeded on side {side:?}; the failures are in {raw}"
            );
        }
        ensure_valid(self.blocks.iter().map(|block| &block.record), raw)
    }
}
