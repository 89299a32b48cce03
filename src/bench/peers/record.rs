//! The raw records of a run of several servers: what was asked for, and one [`Record`] a block.
//! Everything that its section of BENCHMARKS.md shows follows from this file.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::section::PeersReport;
use super::server::Peer;
use crate::bench::ab::args::Settings;
use crate::bench::benchmarks_md::Table;
use crate::bench::metrics::Metrics;
use crate::bench::raw_record::{RawRecord, Rendering};
use crate::bench::record::{FORMAT_VERSION, Record, blocks_to_json};
use crate::bench::turns::ensure_valid;

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
}

impl Asked {
    /// What a server is called; 0 is ours.
    pub fn name_of(&self, server: usize) -> &str {
        match server {
            0 => env!("CARGO_PKG_NAME"),
            peer => &self.servers[peer - 1].name,
        }
    }
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
}

impl RawRecord for PeersRecord {
    const COMMAND: &'static str = "bench peers";

    /// One request a line, as in the record of a single run.
    fn to_json(&self) -> anyhow::Result<String> {
        let blocks = self.blocks.iter().map(|block| {
            let tags = [
                ("round", json!(block.round)),
                ("server", json!(block.server)),
            ];
            (tags, &block.record)
        });
        blocks_to_json("peers", &self.peers, blocks)
    }

    fn ensure_whole(&self) -> anyhow::Result<()> {
        let version = self.peers.format_version;
        ensure!(
            version <= FORMAT_VERSION,
            "it has format {version}; this program reads up to {FORMAT_VERSION}"
        );
        let num_servers = self.peers.servers.len() + 1;
        let rounds = |server| {
            let of_server = self.blocks.iter().filter(move |b| b.server == server);
            of_server.map(|block| block.round)
        };
        ensure!(
            !self.blocks.is_empty()
                && self.blocks.len().is_multiple_of(num_servers)
                && (0..num_servers).all(|s| rounds(s).eq(0..self.blocks.len() / num_servers)),
            "it does not have one block of each server in each round",
        );
        Ok(())
    }

    fn render(&self, raw: &str) -> Rendering {
        let report = PeersReport::new(self, raw);
        Rendering {
            text: report.to_text(),
            row: Some((Table::Peers, report.to_summary_rows())),
            section: report.to_markdown(),
        }
    }

    fn judge(&self, raw: &str) -> anyhow::Result<()> {
        // A server that served nothing has no figures to compare.
        for server in 0..=self.peers.servers.len() {
            let successes: usize = self.metrics(server).iter().map(|m| m.num_successes).sum();
            let name = self.peers.name_of(server);
            ensure!(
                successes > 0,
                "no request succeeded on {name}; the failures are in {raw}"
            );
        }
        ensure_valid(self.blocks.iter().map(|block| &block.record), raw)
    }
}
