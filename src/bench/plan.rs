//! A run before it is made: which prompts are sent in which phase, and when.

use sha2::{Digest as _, Sha256};

use super::cache_state::CacheState;
use super::load::Arrivals;
use super::record::WorkloadSource;
use super::workload::Prompt;

/// Everything that a run sends, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The named workload, if it is one.
    pub source: Option<WorkloadSource>,
    /// Sent before the phases, and never measured.
    pub warmup: Vec<Prompt>,
    pub phases: Vec<PhasePlan>,
    pub cache_state: CacheState,
}

/// A load of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct PhasePlan {
    pub name: String,
    pub arrivals: Arrivals,
    /// Of its due times.
    pub seed: u64,
    pub prompts: Vec<Prompt>,
}

impl Plan {
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.phases.iter().flat_map(|phase| &phase.prompts)
    }

    /// SHA-256 of the measured prompts in order: equal hashes mean that two runs sent the same.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for prompt in self.prompts() {
            hasher.update(prompt.text.as_bytes());
            hasher.update([0]);
        }
        let digest = hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same in all phases, or none.
    pub fn common<T: PartialEq>(&self, of: impl Fn(&PhasePlan) -> Option<T>) -> Option<T> {
        let first = of(self.phases.first()?)?;
        self.phases
            .iter()
            .all(|phase| of(phase).as_ref() == Some(&first))
            .then_some(first)
    }
}
