//! The raw records of a run of several servers: what was asked for, and one [`Record`] a block.
//! Everything that its section of BENCHMARKS.md shows follows from this file.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::server::Peer;
use crate::bench::ab::args::Settings;
use crate::bench::metrics::Metrics;
use crate::bench::record::{FORMAT_VERSION, Record, blocks_to_json};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeersRecord {
    pub peers: Asked,
    /// In the order of measuring.
    pub blocks: Vec<Block>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub format_version: u32,
    /// Of the load.
    pub name: String,
    /// Settings of our server.
    pub own: Settings,
    pub servers: Vec<Peer>,
    /// Seed of the bootstrap.
    pub bootstrap_seed: u64,
}

/// A server's turn: started if it has a command, warmed up, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Counted from 0; all blocks of a round sent the same prompts.
    pub round: usize,
    /// 0 is our server; the peers follow in their order.
    pub server: usize,
    pub record: Record,
}

impl PeersRecord {
    /// The records of a server, by round.
    pub fn records(&self, server: usize) -> Vec<&Record> {
        let of_server = |block: &&Block| block.server == server;
        let blocks = self.blocks.iter().filter(of_server);
        blocks.map(|block| &block.record).collect()
    }

    /// The figures of a server, by round.
    pub fn metrics(&self, server: usize) -> Vec<Metrics> {
        self.records(server).into_iter().map(Metrics::of).collect()
    }

    /// The file's text, one request a line as in the record of a single run.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let blocks = self.blocks.iter().map(|block| {
            let tags = [
                ("round", json!(block.round)),
                ("server", json!(block.server)),
            ];
            (tags, &block.record)
        });
        blocks_to_json("peers", &self.peers, blocks)
    }

    /// Reads what [`Self::to_json`] has written.
    ///
    /// # Errors
    /// The file cannot be read, has a newer format, or lacks a block of a round.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a record of bench peers", path.display()))?;
        let version = record.peers.format_version;
        anyhow::ensure!(
            version <= FORMAT_VERSION,
            "{} has format {version}; this program reads up to {FORMAT_VERSION}",
            path.display()
        );
        let num_servers = record.peers.servers.len() + 1;
        let rounds = |server| {
            let of_server = record.blocks.iter().filter(move |b| b.server == server);
            of_server.map(|block| block.round)
        };
        anyhow::ensure!(
            !record.blocks.is_empty()
                && record.blocks.len().is_multiple_of(num_servers)
                && (0..num_servers).all(|s| rounds(s).eq(0..record.blocks.len() / num_servers)),
            "{} does not have one block of each server in each round",
            path.display()
        );
        Ok(record)
    }
}
