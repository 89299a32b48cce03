//! A part of a run: one load on the server, with the server's own account of that time.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bench::load::Arrivals;

/// Times are milliseconds since the run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub arrivals: Arrivals,
    /// Just before its first request was due.
    pub start_ms: f64,
    /// Just after its last request ended.
    pub end_ms: f64,
    /// From its first due time to its last end.
    pub duration_ms: f64,
    /// CPU time of the load generator.
    pub client_cpu_ms: u64,
    /// The server's `/stats` before its first request, and after its last.
    pub stats_before: Value,
    pub stats_after: Value,
}

impl Phase {
    /// Whether a moment lies in it.
    pub fn holds(&self, at_ms: f64) -> bool {
        (self.start_ms..=self.end_ms).contains(&at_ms)
    }
}
