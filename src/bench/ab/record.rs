//! The raw records of an A/B run: what was asked for, and one [`Record`] a block. Everything that
//! its section of BENCHMARKS.md shows follows from this file.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::Settings;
use super::criterion::Criterion;
use crate::bench::metrics::Metrics;
use crate::bench::record::{FORMAT_VERSION, Record, blocks_to_json};

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
    /// Seed of the bootstrap.
    pub bootstrap_seed: u64,
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

    /// The file's text, one request a line as in the record of a single run.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let blocks = self.blocks.iter().map(|block| {
            let tags = [("pair", json!(block.pair)), ("side", json!(block.side))];
            (tags, &block.record)
        });
        blocks_to_json("ab", &self.ab, blocks)
    }

    /// Reads what [`Self::to_json`] has written.
    ///
    /// # Errors
    /// The file cannot be read, has a newer format, or lacks a block of a pair.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a record of bench ab", path.display()))?;
        let version = record.ab.format_version;
        anyhow::ensure!(
            version <= FORMAT_VERSION,
            "{} has format {version}; this program reads up to {FORMAT_VERSION}",
            path.display()
        );
        let pairs = |side| {
            let of_side = record.blocks.iter().filter(move |block| block.side == side);
            of_side.map(|block| block.pair)
        };
        anyhow::ensure!(
            !record.blocks.is_empty()
                && pairs(Side::A).eq(0..record.blocks.len() / 2)
                && pairs(Side::A).eq(pairs(Side::B)),
            "{} does not have one block of A and one of B in each pair",
            path.display()
        );
        Ok(record)
    }
}
