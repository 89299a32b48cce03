//! `GET /debug/requests`: what happened to the last requests, if the server is set to remember.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use super::outcome::Outcome;
use super::request_id::RequestId;
use super::state::AppState;
use super::timings::{Progress, milliseconds};
use crate::engine::{Entry, Happening, Timeline, WaitCause};

pub const PATH: &str = "/debug/requests";

/// The last generations, running ones included.
pub struct Traces {
    capacity: usize,
    recent: Mutex<VecDeque<Arc<Trace>>>,
}

/// One generation as it is remembered.
pub struct Trace {
    request_id: RequestId,
    endpoint: &'static str,
    choice: usize,
    progress: Progress,
    timeline: Arc<Timeline>,
    end: OnceLock<End>,
}

struct End {
    at: Instant,
    outcome: Outcome,
    generated_tokens: usize,
}

impl Traces {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            recent: Mutex::new(VecDeque::with_capacity(capacity)),
        }
    }

    /// Begins to follow a generation; `None` if nothing is to be remembered.
    pub fn begin(
        &self,
        request_id: &RequestId,
        endpoint: &'static str,
        choice: usize,
        progress: &Progress,
    ) -> Option<Arc<Trace>> {
        if self.capacity == 0 {
            return None;
        }
        let trace = Arc::new(Trace {
            request_id: request_id.clone(),
            endpoint,
            choice,
            progress: progress.clone(),
            timeline: Arc::default(),
            end: OnceLock::new(),
        });
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.truncate(self.capacity - 1);
        recent.push_front(trace.clone());
        Some(trace)
    }
}

impl Trace {
    /// For the engine to write into.
    pub fn timeline(&self) -> Arc<Timeline> {
        self.timeline.clone()
    }

    pub fn end(&self, outcome: Outcome, generated_tokens: usize) {
        let end = End {
            at: Instant::now(),
            outcome,
            generated_tokens,
        };
        // Told once: the record closes once.
        let _ = self.end.set(end);
    }

    fn to_json(&self, now: Instant) -> Value {
        let entries = self.timeline.entries();
        let arrived = self.progress.arrived;
        let after = |at: Instant| milliseconds(at.saturating_duration_since(arrived));
        let mut timeline = vec![json!({"at_ms": 0.0, "event": "queued"})];
        timeline.extend(entries.iter().map(|entry| {
            let mut event = json!({"at_ms": after(entry.at)});
            if let (Value::Object(event), Value::Object(what)) = (&mut event, json!(entry.what)) {
                event.extend(what);
            }
            event
        }));
        let end = self.end.get();
        if let Some(end) = end {
            let outcome = end.outcome.name();
            timeline.push(json!({
                "at_ms": after(end.at), "event": "ended", "outcome": outcome,
                "generated_tokens": end.generated_tokens,
            }));
        }
        json!({
            "request_id": self.request_id.as_str(),
            "endpoint": self.endpoint,
            "choice": self.choice,
            "prompt_tokens": self.progress.prompt_tokens,
            "max_tokens": self.progress.max_tokens,
            "state": end.map_or("running", |end| end.outcome.name()),
            "age_ms": milliseconds(now.saturating_duration_since(arrived)),
            "longest_stall": longest_stall(arrived, &entries, end.map_or(now, |end| end.at)),
            "timeline": timeline,
        })
    }
}

/// The longest time in which a request got nowhere, and why.
#[derive(Debug, PartialEq, Serialize)]
struct Stall {
    duration_ms: f64,
    cause: &'static str,
}

fn longest_stall(arrived: Instant, entries: &[Entry], now: Instant) -> Option<Stall> {
    let mut stalls: Vec<(Duration, &'static str)> = Vec::new();
    // The step that ran when it came.
    const FIRST_CAUSE: &str = "arrived_in_a_step";
    let mut waits = Some((arrived, Duration::ZERO, FIRST_CAUSE));
    for entry in entries {
        match &entry.what {
            Happening::Waited {
                duration, cause, ..
            } => {
                if let Some((_, longest, main_cause)) = &mut waits
                    && *duration > *longest
                {
                    (*longest, *main_cause) = (*duration, cause.name());
                }
            }
            Happening::Admitted { .. } => {
                stalls.extend(
                    waits.take().map(|(since, _, cause)| {
                        (entry.at.saturating_duration_since(since), cause)
                    }),
                );
            }
            Happening::Preempted => {
                waits = Some((entry.at, Duration::ZERO, WaitCause::KvCacheFull.name()));
            }
            Happening::Prefill { step, .. } => stalls.push((step.duration, "own_prefill")),
            Happening::Decode { slowest_step, .. } => {
                let cause = match slowest_step.num_prefill_tokens {
                    0 => "decode_step",
                    _ => "prefill_of_others",
                };
                stalls.push((slowest_step.duration, cause));
            }
        }
    }
    stalls.extend(waits.map(|(since, _, cause)| (now.saturating_duration_since(since), cause)));
    let longest = stalls.into_iter().max_by_key(|(duration, _)| *duration);
    longest.map(|(duration, cause)| Stall {
        duration_ms: milliseconds(duration),
        cause,
    })
}

/// The handler: the last generations, the newest first.
pub async fn requests(State(state): State<Arc<AppState>>) -> Json<Value> {
    let recent = &state.traces.recent;
    let traces: Vec<_> = {
        let recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().cloned().collect()
    };
    let now = Instant::now();
    let requests: Vec<_> = traces.iter().map(|trace| trace.to_json(now)).collect();
    Json(json!({ "requests": requests }))
}
