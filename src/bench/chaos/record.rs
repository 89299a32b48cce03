//! The raw record of a storm: what it was, both sides' counts, and what did not agree.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::ledger::Balance;
use super::section::ChaosSection;
use crate::bench::drill::Circumstances;
use crate::bench::raw_record::{RawRecord, Rendering};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChaosRecord {
    pub chaos: Plan,
    pub about: Circumstances,
    pub balance: Balance,
    pub replacement: ReplacementTimes,
    pub memory: Memory,
    /// All that is wrong, the balance's faults included; empty for a storm that left nothing.
    pub faults: Vec<String>,
}

/// What the storm was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub duration_s: f64,
    pub overload: f64,
    pub seed: u64,
    /// Whole requests that the server carried in the calm before.
    pub capacity_per_s: f64,
    pub arrivals_per_s: f64,
    /// Requests that came at once, every few seconds, beside the arrivals.
    pub burst: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplacementTimes {
    /// From the command to a loaded model that has the port.
    pub start_up_ms: f64,
    /// From SIGTERM to the old server's exit.
    pub drain_ms: f64,
}

/// Resident memory of the servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The first server, after a calm load.
    pub before_bytes: u64,
    /// The last server, when all was quiet again.
    pub after_bytes: u64,
    pub samples: Vec<MemorySample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    pub at_s: f64,
    pub pid: u32,
    pub bytes: u64,
}

/// More growth than this is a leak.
const MAX_GROWTH: f64 = 0.05;

impl Memory {
    pub fn growth(&self) -> f64 {
        self.after_bytes as f64 / self.before_bytes.max(1) as f64 - 1.0
    }

    pub fn fault(&self) -> Option<String> {
        (self.growth() > MAX_GROWTH).then(|| {
            format!(
                "memory did not come back: {} bytes after the calm, {} at the end",
                self.before_bytes, self.after_bytes
            )
        })
    }

    pub fn peak_bytes(&self) -> u64 {
        let samples = self.samples.iter().map(|sample| sample.bytes);
        samples.chain([self.after_bytes]).max().unwrap_or(0)
    }
}

impl RawRecord for ChaosRecord {
    const COMMAND: &'static str = "bench chaos";

    fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    fn render(&self, raw: &str) -> Rendering {
        let section = ChaosSection::new(self, raw);
        Rendering {
            text: section.to_text(),
            row: None,
            section: section.to_markdown(),
        }
    }

    fn judge(&self, raw: &str) -> anyhow::Result<()> {
        ensure!(
            self.faults.is_empty(),
            "the books do not balance; the servers' logs are beside {raw}:\n{}",
            self.faults.join("\n")
        );
        Ok(())
    }
}
