//! Whether the engine gets on. A step is the smallest progress that is seen, so a long prompt,
//! computed in chunks, beats all the while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Written by the engine's thread, read by all.
#[derive(Debug)]
pub(super) struct Heartbeat {
    started: Instant,
    /// Milliseconds from `started` to the last progress, or `IDLE` with no work at hand.
    last_beat_ms: AtomicU64,
}

const IDLE: u64 = u64::MAX;

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_beat_ms: AtomicU64::new(IDLE),
        }
    }
}

impl Heartbeat {
    /// There is work, and it gets on.
    pub fn beat(&self) {
        let now_ms = self.started.elapsed().as_millis() as u64;
        self.last_beat_ms.store(now_ms, Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.last_beat_ms.store(IDLE, Ordering::Relaxed);
    }

    /// How long the work at hand has made no progress.
    pub fn silence(&self) -> Duration {
        let last_beat_ms = self.last_beat_ms.load(Ordering::Relaxed);
        if last_beat_ms == IDLE {
            return Duration::ZERO;
        }
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(last_beat_ms))
    }
}
