//! The raw record of a storm: what it was, both sides' counts, and what did not agree.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::ledger::Balance;
use super::memory::Memory;
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
