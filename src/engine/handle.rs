//! The engine's front door, for many threads at once: submit, stats, health.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::forecast::{Forecast, Load, Queued, Work};
use super::heartbeat::Heartbeat;
use super::request::{Awaited, EngineError, Event, Request};
use super::sequence::Sequence;
use super::speculation::Drafter;
use super::stats::EngineStats;

/// Stalls of this many times `Limits::stall_timeout` are for good.
const STALLS_UNTIL_FAILED: u32 = 4;

/// The longest wait that a refused client is told.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Sends requests to the engine's thread, which ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(super) inbox: mpsc::Sender<Sequence>,
    pub(super) shared: Arc<Shared>,
}

/// What the engine accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence, prompt and output, in tokens.
    pub max_model_len: usize,
    pub vocab_size: usize,
    pub max_batch_size: usize,
    pub queue_max_size: usize,
    /// Longest time for one request, waiting and generating.
    pub request_timeout: Duration,
    /// A step that takes longer counts as stuck.
    pub stall_timeout: Duration,
}

/// Whether the engine takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// There is work, and for this long no step has ended.
    Stalled(Duration),
    /// It has ended, and why.
    Failed(String),
}

/// What handles and worker both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    /// Whether sequences need a drafter.
    drafts: bool,
    /// Requests sent and not yet admitted: the inbox and the waiting queue.
    pub num_queued: AtomicUsize,
    /// Some request has a timeline.
    pub keeps_timelines: AtomicBool,
    num_submitted: AtomicU64,
    num_rejected: AtomicU64,
    num_hopeless: AtomicU64,
    pub stats: Mutex<EngineStats>,
    /// Locked while a request is sent, so that whoever holds it finds all of them in here or in the
    /// inbox, and none on the way.
    load: Mutex<Load>,
    pub heartbeat: Heartbeat,
    /// Why the engine has ended, once it has.
    failure: watch::Sender<Option<String>>,
}

impl Shared {
    pub fn new(limits: Limits, drafts: bool, stats: EngineStats, load: Load) -> Self {
        Self {
            limits,
            drafts,
            num_queued: AtomicUsize::new(0),
            keeps_timelines: AtomicBool::new(false),
            num_submitted: AtomicU64::new(0),
            num_rejected: AtomicU64::new(0),
            num_hopeless: AtomicU64::new(0),
            stats: Mutex::new(stats),
            load: Mutex::new(load),
            heartbeat: Heartbeat::default(),
            failure: watch::Sender::new(None),
        }
    }

    /// How long until a full queue has moved on by one request, at the rate of late.
    fn retry_after(&self) -> Duration {
        let interval_ms = self.lock_stats().queue.completion_interval_ms;
        retry_after(Duration::from_secs_f64(interval_ms / 1e3))
    }

    /// The snapshot is plain numbers: one that a panic left behind is still whole.
    pub fn lock_stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plain numbers, too.
    pub fn lock_load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the engine for all who look, whether its thread notices or not. The first reason stays.
    pub fn declare_failed(&self, reason: &str) {
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            is_first
        });
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }
}

impl EngineHandle {
    /// Queues a request. Its events come through the receiver; dropping that cancels it.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `DeadlineUnmet` when it is too long for the request's
    /// time limits, `TooLong` when prompt and output can never fit, `Unavailable` when the engine has
    /// ended.
    pub fn submit(&self, request: Request) -> Result<UnboundedReceiver<Event>, EngineError> {
        let limits = &self.shared.limits;
        let (prompt_tokens, max_tokens) = (request.prompt.len(), request.max_tokens);
        assert!(
            prompt_tokens > 0 && (max_tokens > 0 || request.prompt_logprobs.is_some()),
            "bug: the server checks for empty requests"
        );
        if prompt_tokens.saturating_add(max_tokens) > limits.max_model_len {
            return Err(EngineError::TooLong {
                prompt_tokens,
                max_tokens,
                max_model_len: limits.max_model_len,
            });
        }
        if let Some(reason) = self.shared.failure() {
            return Err(EngineError::Unavailable(reason));
        }
        let timeout = request.timeout.unwrap_or(limits.request_timeout);
        let queued = Queued {
            priority: request.priority,
            client: request.client,
            work: Work {
                prefill_tokens: prompt_tokens,
                max_tokens,
                generated_tokens: 0,
            },
        };

        let mut load = self.shared.lock_load();
        self.check_time_limits(&request, timeout, load.forecast(&queued))?;
        self.enter_queue()?;
        if request.timeline.is_some() {
            self.shared.keeps_timelines.store(true, Ordering::Relaxed);
        }
        let (events, receiver) = unbounded_channel();
        let deadline = request.arrived + timeout;
        let mut sequence = Sequence::new(request, deadline, events);
        if self.shared.drafts {
            sequence.drafter = Some(Drafter::new(&sequence.tokens));
        }
        self.inbox.send(sequence).map_err(|_| {
            self.shared.num_queued.fetch_sub(1, Ordering::Relaxed);
            let reason = self.shared.failure();
            EngineError::Unavailable(reason.unwrap_or_else(|| "it is stopping".to_owned()))
        })?;
        load.waiting.push(queued);
        self.shared.num_submitted.fetch_add(1, Ordering::Relaxed);
        Ok(receiver)
    }

    /// Refuses what those ahead would make too late. A request that would be late alone is tried:
    /// coming back later would not help it.
    fn check_time_limits(
        &self,
        request: &Request,
        timeout: Duration,
        forecast: Option<Forecast>,
    ) -> Result<(), EngineError> {
        let Some(forecast) = forecast.filter(|forecast| forecast.is_contended) else {
            return Ok(());
        };
        let spent = request.arrived.elapsed();
        let limits = [
            (
                Awaited::FirstToken,
                forecast.first_token,
                request.first_token_within,
            ),
            (Awaited::End, forecast.end, Some(timeout)),
        ];
        for (awaited, left, limit) in limits {
            let predicted = spent.saturating_add(left);
            if let Some(limit) = limit.filter(|limit| predicted > *limit) {
                self.shared.num_hopeless.fetch_add(1, Ordering::Relaxed);
                return Err(EngineError::DeadlineUnmet {
                    awaited,
                    predicted,
                    limit,
                    retry_after: retry_after(predicted - limit),
                });
            }
        }
        Ok(())
    }

    fn enter_queue(&self) -> Result<(), EngineError> {
        let queue = &self.shared.num_queued;
        let has_room = |queued| (queued < self.shared.limits.queue_max_size).then_some(queued + 1);
        queue
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room)
            .map(|_| ())
            .map_err(|queued_requests| {
                self.shared.num_rejected.fetch_add(1, Ordering::Relaxed);
                EngineError::Overloaded {
                    queued_requests,
                    retry_after: self.shared.retry_after(),
                }
            })
    }

    /// The figures after the last step; queue counts are of now.
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.shared.lock_stats().clone();
        let queue = &mut stats.queue;
        queue.num_waiting_requests = self.shared.num_queued.load(Ordering::Relaxed);
        queue.num_rejected_requests = self.shared.num_rejected.load(Ordering::Relaxed);
        queue.num_hopeless_requests = self.shared.num_hopeless.load(Ordering::Relaxed);
        let forecast = self.shared.lock_load().forecast(&Queued::default());
        queue.predicted_wait_ms = forecast.map(|forecast| forecast.wait.as_secs_f64() * 1e3);
        stats.requests.num_submitted = self.shared.num_submitted.load(Ordering::Relaxed);
        stats
    }

    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    pub fn health(&self) -> Health {
        if let Some(reason) = self.shared.failure() {
            return Health::Failed(reason);
        }
        let silence = self.shared.heartbeat.silence();
        match silence > self.limits().stall_timeout {
            true => Health::Stalled(silence),
            false => Health::Ready,
        }
    }

    /// Ends the engine: what is there fails, nothing more is taken.
    pub fn stop(&self, reason: &str) {
        self.shared.declare_failed(reason);
    }

    /// Gives up an engine whose step does not end. For somebody to call now and then who is not
    /// that engine.
    pub fn give_up_if_stuck(&self) {
        let silence = self.shared.heartbeat.silence();
        if silence > self.limits().stall_timeout * STALLS_UNTIL_FAILED {
            let reason = format!("a step has not ended for {} s", silence.as_secs());
            self.shared.declare_failed(&reason);
        }
    }

    /// Waits until the engine has failed, and says why. Never returns while it is well.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        let reason = failed.expect("bug: the handle holds the sender");
        reason.clone().unwrap_or_default()
    }
}

/// A wait that a client can be told.
fn retry_after(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), LONGEST_RETRY)
}
