//! The engine's front door, for many threads at once: submit, stats, health.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::request::{EngineError, Event, Request};
use super::sequence::Sequence;
use super::stats::EngineStats;

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
}

/// Whether the engine takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// It has ended, and why.
    Failed(String),
}

/// What handles and worker both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    /// Requests sent and not yet admitted: the inbox and the waiting queue.
    pub num_queued: AtomicUsize,
    /// Some request has a timeline.
    pub keeps_timelines: AtomicBool,
    num_submitted: AtomicU64,
    num_rejected: AtomicU64,
    pub stats: Mutex<EngineStats>,
    pub health: watch::Sender<Health>,
}

impl Shared {
    pub fn new(limits: Limits, stats: EngineStats) -> Self {
        Self {
            limits,
            num_queued: AtomicUsize::new(0),
            keeps_timelines: AtomicBool::new(false),
            num_submitted: AtomicU64::new(0),
            num_rejected: AtomicU64::new(0),
            stats: Mutex::new(stats),
            health: watch::Sender::new(Health::Ready),
        }
    }

    /// How long until a full queue has moved on by one request, at the rate of late.
    fn retry_after(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(60);
        let interval_ms = self.lock_stats().queue.completion_interval_ms;
        Duration::from_secs_f64(interval_ms / 1e3).clamp(Duration::from_secs(1), LONGEST)
    }

    /// The snapshot is plain numbers: one that a panic left behind is still whole.
    pub fn lock_stats(&self) -> std::sync::MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineHandle {
    /// Queues a request. Its events come through the receiver; dropping that cancels it.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `TooLong` when prompt and output can never fit,
    /// `Unavailable` when the engine has ended.
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
        if let Health::Failed(reason) = self.health() {
            return Err(EngineError::Unavailable(reason));
        }
        self.enter_queue()?;
        if request.timeline.is_some() {
            self.shared.keeps_timelines.store(true, Ordering::Relaxed);
        }

        let (events, receiver) = unbounded_channel();
        let deadline = request.arrived + limits.request_timeout;
        let sequence = Sequence::new(request, deadline, events);
        self.inbox.send(sequence).map_err(|_| {
            let reason = match self.health() {
                Health::Failed(reason) => reason,
                Health::Ready => "it is stopping".to_owned(),
            };
            EngineError::Unavailable(reason)
        })?;
        self.shared.num_submitted.fetch_add(1, Ordering::Relaxed);
        Ok(receiver)
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
        stats.queue.num_waiting_requests = self.shared.num_queued.load(Ordering::Relaxed);
        stats.queue.num_rejected_requests = self.shared.num_rejected.load(Ordering::Relaxed);
        stats.requests.num_submitted = self.shared.num_submitted.load(Ordering::Relaxed);
        stats
    }

    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    pub fn health(&self) -> Health {
        self.shared.health.borrow().clone()
    }

    /// Waits until the engine has failed, and says why. Never returns while it is well.
    pub async fn failed(&self) -> String {
        let mut health = self.shared.health.subscribe();
        loop {
            if let Health::Failed(reason) = &*health.borrow_and_update() {
                return reason.clone();
            }
            health
                .changed()
                .await
                .expect("bug: the handle holds the sender");
        }
    }
}
