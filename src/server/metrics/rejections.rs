//! Requests that were turned away.

use prometheus::{IntCounter, Registry};

use super::registered::counters;
use crate::engine::EngineError;

pub struct Rejections {
    pub unauthorized: IntCounter,
    pub too_many_connections: IntCounter,
    queue_full: IntCounter,
    deadline_unmet: IntCounter,
    too_long: IntCounter,
    unavailable: IntCounter,
}

impl Rejections {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let by_reason = counters(
            registry,
            "vllm:admission_rejections_total",
            "Requests that were turned away, by reason.",
            "reason",
        )?;
        Ok(Self {
            unauthorized: by_reason.with_label_values(&["unauthorized"]),
            too_many_connections: by_reason.with_label_values(&["too_many_connections"]),
            queue_full: by_reason.with_label_values(&["queue_full"]),
            deadline_unmet: by_reason.with_label_values(&["deadline_unmet"]),
            too_long: by_reason.with_label_values(&["too_long"]),
            unavailable: by_reason.with_label_values(&["unavailable"]),
        })
    }

    pub fn count(&self, error: &EngineError) {
        match error {
            EngineError::Overloaded { .. } => self.queue_full.inc(),
            EngineError::DeadlineUnmet { .. } => self.deadline_unmet.inc(),
            EngineError::TooLong { .. } => self.too_long.inc(),
            _ => self.unavailable.inc(),
        }
    }
}
