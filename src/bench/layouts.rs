//! How the result of a named workload is printed: the layout that people of its kind know.

mod cache;
mod classes;
mod demo;
mod latency;
mod serving;
pub mod sweep;

use serde::{Deserialize, Serialize};

use super::record::Record;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The tables that every run has.
    #[default]
    Plain,
    /// A report in Markdown: each phase in words, and what all of them say.
    Demo,
    /// As `vllm bench serve` prints it.
    Serving,
    /// Combinations of prompt and output length: mean, spread, and the line through them.
    Latency,
    /// Percentiles by use case, and queue against generation time.
    UseCases,
    /// Percentiles by class of sequence length, and how they scale.
    SequenceLength,
    /// What each kind of sharing took from the cache.
    Cache,
    /// One row a phase.
    Sweep,
}

impl Layout {
    /// The run in this layout; nothing of the plain one.
    pub fn render(self, record: &Record) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Demo => Some(demo::render(record)),
            Self::Serving => Some(serving::render(record)),
            Self::Latency => Some(latency::render(record)),
            Self::UseCases => Some(classes::use_cases(record)),
            Self::SequenceLength => Some(classes::sequence_lengths(record)),
            Self::Cache => Some(cache::render(record)),
            Self::Sweep => Some(sweep::render(record)),
        }
    }
}

/// As `vllm bench serve` prints a run of any load.
pub fn serving_block(record: &Record) -> String {
    serving::block(record)
}
