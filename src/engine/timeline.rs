//! What happened to a request, step by step, for whoever asks why it took so long.
//!
//! Kept only for requests that ask for it. Without any, a step costs one look at a flag.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::scheduler::{Scheduler, StepPlan};

/// Most entries of one request; a long decode is one.
const MAX_ENTRIES: usize = 1024;

/// Written by the engine, read by whoever holds it too, at any time.
#[derive(Debug, Default)]
pub struct Timeline(Mutex<Vec<Entry>>);

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When it began.
    pub at: Instant,
    pub what: Happening,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// Steps went by without it.
    Waited {
        num_steps: usize,
        cause: WaitCause,
        #[serde(rename = "duration_ms", serialize_with = "as_milliseconds")]
        duration: Duration,
    },
    /// It is in the batch.
    Admitted {
        /// Tokens whose K and V were there already.
        cached_tokens: usize,
    },
    /// A part of the prompt was computed, or of a preempted sequence again.
    Prefill { num_tokens: usize, step: Step },
    /// It generated in one step after the other.
    Decode {
        num_steps: usize,
        min_sequences: usize,
        max_sequences: usize,
        /// From the first of these steps to the end of the last.
        #[serde(rename = "duration_ms", serialize_with = "as_milliseconds")]
        duration: Duration,
        slowest_step: Step,
    },
    /// Its blocks were given to others; what was computed is computed again.
    Preempted,
}

/// A step that a request was part of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    #[serde(rename = "duration_ms", serialize_with = "as_milliseconds")]
    pub duration: Duration,
    pub num_sequences: usize,
    /// Of all sequences in the step: what makes a step long.
    pub num_prefill_tokens: usize,
}

/// Why a step did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCause {
    /// There are MAX_BATCH_SIZE sequences in it.
    BatchFull,
    /// It has MAX_BATCH_TOKENS tokens.
    StepFull,
    /// The KV cache has too few free blocks.
    KvCacheFull,
}

impl WaitCause {
    pub fn name(self) -> &'static str {
        match self {
            Self::BatchFull => "batch_full",
            Self::StepFull => "step_full",
            Self::KvCacheFull => "kv_cache_full",
        }
    }
}

impl Serialize for WaitCause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Timeline {
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, at: Instant, what: Happening) {
        push(&mut self.lock(), at, what);
    }

    fn waited(&self, at: Instant, time: Duration, cause: WaitCause, was_running: bool) {
        let mut entries = self.lock();
        let last = entries.last_mut().map(|entry| &mut entry.what);
        let waits_already = matches!(last, None | Some(Happening::Waited { .. }));
        if let Some(Happening::Waited {
            num_steps,
            cause: last_cause,
            duration,
        }) = last
            && *last_cause == cause
        {
            *num_steps += 1;
            *duration += time;
            return;
        }
        if was_running && !waits_already {
            push(&mut entries, at, Happening::Preempted);
        }
        let waited = Happening::Waited {
            num_steps: 1,
            cause,
            duration: time,
        };
        push(&mut entries, at, waited);
    }

    fn decoded(&self, at: Instant, step: Step) {
        let mut entries = self.lock();
        if let Some(entry) = entries.last_mut()
            && let Happening::Decode {
                num_steps,
                min_sequences,
                max_sequences,
                duration,
                slowest_step,
            } = &mut entry.what
        {
            *num_steps += 1;
            *min_sequences = step.num_sequences.min(*min_sequences);
            *max_sequences = step.num_sequences.max(*max_sequences);
            *duration = at.saturating_duration_since(entry.at) + step.duration;
            if step.duration > slowest_step.duration {
                *slowest_step = step;
            }
            return;
        }
        let decode = Happening::Decode {
            num_steps: 1,
            min_sequences: step.num_sequences,
            max_sequences: step.num_sequences,
            duration: step.duration,
            slowest_step: step,
        };
        push(&mut entries, at, decode);
    }
}

fn push(entries: &mut Vec<Entry>, at: Instant, what: Happening) {
    if entries.len() < MAX_ENTRIES {
        entries.push(Entry { at, what });
    }
}

/// Notes in all timelines what a step from `start` to `end` did, before its chunks are committed.
pub(super) fn note_step(
    scheduler: &Scheduler,
    plan: &StepPlan,
    (max_batch_size, max_batch_tokens): (usize, usize),
    (start, end): (Instant, Instant),
) {
    let Scheduler {
        running, waiting, ..
    } = scheduler;
    // Only the newest token is not computed yet.
    let is_decode = |sequence: usize| {
        let sequence = &running[sequence];
        sequence.num_output_tokens() > 0 && sequence.num_pending_tokens() == 1
    };
    let num_tokens: usize = plan.chunks.iter().map(|chunk| chunk.num_tokens).sum();
    let prefills = plan
        .chunks
        .iter()
        .filter(|chunk| !is_decode(chunk.sequence));
    let step = Step {
        duration: end.saturating_duration_since(start),
        num_sequences: plan.chunks.len(),
        num_prefill_tokens: prefills.map(|chunk| chunk.num_tokens).sum(),
    };
    for sequence in &running[running.len() - plan.num_admitted..] {
        if let Some(timeline) = &sequence.timeline {
            let cached_tokens = sequence.table.num_tokens();
            timeline.push(start, Happening::Admitted { cached_tokens });
        }
    }
    for chunk in &plan.chunks {
        let Some(timeline) = &running[chunk.sequence].timeline else {
            continue;
        };
        match is_decode(chunk.sequence) {
            true => timeline.decoded(start, step),
            false => {
                let num_tokens = chunk.num_tokens;
                timeline.push(start, Happening::Prefill { num_tokens, step });
            }
        }
    }
    let cause = if running.len() >= max_batch_size {
        WaitCause::BatchFull
    } else if num_tokens >= max_batch_tokens {
        WaitCause::StepFull
    } else {
        WaitCause::KvCacheFull
    };
    for sequence in waiting {
        if let Some(timeline) = &sequence.timeline {
            let was_running = sequence.admitted.is_some();
            timeline.waited(start, step.duration, cause, was_running);
        }
    }
}

fn as_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1e3)
}
