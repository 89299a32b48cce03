//! The engine's thread: receive, schedule, forward, sample, publish.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::batch;
use super::forecast::{Load, Mean, Queued, StepCost};
use super::generation::{Generated, Outcome, generate, score_prompt};
use super::handle::{EngineHandle, Limits, Shared};
use super::request::{EngineError, Event, FinishReason};
use super::sampler::Sampler;
use super::scheduler::{Scheduler, StepPlan};
use super::sequence::Sequence;
use super::speculation::{AGREEMENT_MAX, DraftLimits};
use super::stats::{BatchStats, EngineStats, KvStats, QueueStats, SpeculationStats, ratio};
use super::timeline;
use crate::config::EngineConfig;
use crate::kv_cache::{BLOCK_SIZE, BlockTable, KvCache};
use crate::runner::{RaggedBatch, Runner};

/// The size of the KV cache that the runner was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCapacity {
    pub num_blocks: usize,
    pub bytes_per_token: u64,
}

impl KvCapacity {
    pub fn num_tokens(&self) -> usize {
        self.num_blocks * BLOCK_SIZE
    }
}

/// Starts the engine's thread.
///
/// # Errors
/// Names the setting when the limits do not fit together: the pool must hold one sequence of
/// `max_model_len`, and a step one token of each sequence.
pub fn start(
    runner: Box<dyn Runner>,
    kv: KvCapacity,
    max_model_len: usize,
    config: &EngineConfig,
) -> anyhow::Result<EngineHandle> {
    let max_batch_size = if config.enable_batching {
        config.max_batch_size
    } else {
        1
    };
    check(config, max_batch_size, max_model_len, kv.num_tokens())?;

    let limits = Limits {
        max_model_len,
        vocab_size: runner.vocab_size(),
        max_batch_size,
        queue_max_size: config.queue_max_size,
        request_timeout: config.request_timeout,
        stall_timeout: config.stall_timeout,
    };
    let drafts = DraftLimits::of(&config.speculation);
    let mut worker_stats = initial_stats(limits, config, kv);
    worker_stats.speculative = drafts.map(SpeculationStats::new);
    let load = Load {
        max_batch_tokens: config.max_batch_tokens,
        num_places: max_batch_size,
        ..Load::default()
    };
    let shared = Shared::new(limits, drafts.is_some(), worker_stats.clone(), load);
    let shared = Arc::new(shared);
    let (inbox, receiver) = mpsc::channel();
    let worker = Worker {
        inbox: receiver,
        shared: Arc::clone(&shared),
        max_wait_time: config.max_wait_time,
        scheduler: Scheduler::new(
            max_batch_size,
            config.max_batch_tokens,
            config.enable_prefix_caching,
            drafts,
        ),
        kv: KvCache::new(kv.num_blocks),
        runner,
        sampler: Sampler::default(),
        plan: StepPlan::default(),
        batch: RaggedBatch::default(),
        stats: worker_stats,
        round_start: Instant::now(),
        last_completion: None,
        cost: StepCost::default(),
        output_tokens: Mean::default(),
        computed_share: Mean::default(),
        num_failures_in_a_row: 0,
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(|| worker.run_to_the_end())
        .context("cannot start the engine's thread")?;
    Ok(EngineHandle { inbox, shared })
}

fn check(
    config: &EngineConfig,
    max_batch_size: usize,
    max_model_len: usize,
    pool_tokens: usize,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        max_batch_size > 0,
        "MAX_BATCH_SIZE is 0; it must be at least 1"
    );
    anyhow::ensure!(
        config.queue_max_size > 0,
        "QUEUE_MAX_SIZE is 0; it must be at least 1"
    );
    anyhow::ensure!(
        !config.stall_timeout.is_zero(),
        "STALL_TIMEOUT is 0; a step takes longer"
    );
    anyhow::ensure!(
        config.max_batch_tokens >= max_batch_size,
        "MAX_BATCH_TOKENS {} is below MAX_BATCH_SIZE {max_batch_size}: a step must have room for \
         one token of each sequence; raise the one or lower the other",
        config.max_batch_tokens,
    );
    anyhow::ensure!(
        max_model_len >= 2,
        "MAX_MODEL_LEN {max_model_len} leaves no room for a prompt token and an output token"
    );
    anyhow::ensure!(
        max_model_len <= pool_tokens,
        "a sequence of MAX_MODEL_LEN {max_model_len} tokens does not fit in the KV cache of \
         {pool_tokens} tokens; raise KV_CACHE_SIZE or lower MAX_MODEL_LEN"
    );
    if let Some(drafts) = DraftLimits::of(&config.speculation) {
        anyhow::ensure!(
            (1..=AGREEMENT_MAX).contains(&drafts.draft_tokens),
            "SPECULATIVE_TOKENS is {}; it must lie between 1 and {AGREEMENT_MAX}, or SPECULATIVE be off",
            drafts.draft_tokens
        );
        anyhow::ensure!(
            drafts.step_tokens >= 2,
            "SPECULATIVE_STEP_TOKENS {} leaves no room for a token and its draft; it must be at \
             least 2, or SPECULATIVE be off",
            drafts.step_tokens
        );
    }
    Ok(())
}

fn initial_stats(limits: Limits, config: &EngineConfig, kv: KvCapacity) -> EngineStats {
    EngineStats {
        queue: QueueStats {
            max_waiting_requests: limits.queue_max_size,
            ..QueueStats::default()
        },
        batch: BatchStats {
            max_batch_size: limits.max_batch_size,
            max_batch_tokens: config.max_batch_tokens,
            ..BatchStats::default()
        },
        kv_cache: KvStats {
            block_size_tokens: BLOCK_SIZE,
            total_blocks: kv.num_blocks,
            free_blocks: kv.num_blocks,
            capacity_tokens: kv.num_tokens(),
            cache_type: config.kv_cache_type,
            bytes_per_token: kv.bytes_per_token,
            total_bytes: kv.bytes_per_token * kv.num_tokens() as u64,
            ..KvStats::default()
        },
        ..EngineStats::default()
    }
}

/// All mutable state of generation. One thread owns it; others only send to its inbox.
struct Worker {
    inbox: Receiver<Sequence>,
    shared: Arc<Shared>,
    max_wait_time: Duration,
    scheduler: Scheduler,
    kv: KvCache,
    runner: Box<dyn Runner>,
    sampler: Sampler,
    plan: StepPlan,
    batch: RaggedBatch,
    stats: EngineStats,
    /// When the engine found work, or ended a round of it.
    round_start: Instant,
    last_completion: Option<Instant>,
    cost: StepCost,
    output_tokens: Mean,
    computed_share: Mean,
    num_failures_in_a_row: u32,
}

/// This many broken steps, and not one that works, end the engine: its trouble will not pass.
const MAX_FAILURES_IN_A_ROW: u32 = 3;

impl Worker {
    /// A panic between two steps is a bug; nobody may wait for a thread that is gone.
    fn run_to_the_end(self) {
        let shared = Arc::clone(&self.shared);
        let run = catch_unwind(AssertUnwindSafe(|| {
            self.run();
            Ok(())
        }));
        if let Err(reason) = flatten(run) {
            shared.declare_failed(&reason);
        }
    }

    fn run(mut self) {
        while self.receive() {
            self.end_cancelled_and_expired();
            if !self.scheduler.is_idle() {
                let step = catch_unwind(AssertUnwindSafe(|| self.step()));
                match flatten(step) {
                    Ok(()) => self.num_failures_in_a_row = 0,
                    Err(reason) => self.recover(&reason),
                }
                self.shared.heartbeat.beat();
            }
            // What publishing takes counts in the next round.
            let round_end = Instant::now();
            let round = round_end - std::mem::replace(&mut self.round_start, round_end);
            self.stats.batch.busy_time_ms += milliseconds(round);
            self.publish_stats();
            self.publish_load();
            if self.num_failures_in_a_row == MAX_FAILURES_IN_A_ROW {
                let reason = "one step after the other fails, see the log".to_owned();
                return self.fail(reason);
            }
            if let Some(reason) = self.shared.failure() {
                return self.fail(reason);
            }
        }
    }

    /// Takes what has arrived; waits for it when there is nothing else to do. `false` when no
    /// more can come and all is done.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            self.last_completion = None;
            self.shared.heartbeat.rest();
            let Ok(first) = self.inbox.recv() else {
                return false;
            };
            self.scheduler.enqueue(first);
            self.wait_for_company();
            self.round_start = Instant::now();
            self.shared.heartbeat.beat();
        }
        // Without senders, what still runs has lost its clients and ends now.
        self.inbox
            .try_iter()
            .for_each(|sequence| self.scheduler.enqueue(sequence));
        true
    }

    /// An idle engine may wait for a fuller first batch.
    fn wait_for_company(&mut self) {
        let until = Instant::now() + self.max_wait_time;
        while self.scheduler.waiting.len() < self.shared.limits.max_batch_size {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.inbox.recv_timeout(left) {
                Ok(sequence) => self.scheduler.enqueue(sequence),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn end_cancelled_and_expired(&mut self) {
        let now = Instant::now();
        let early_end = |sequence: &Sequence| {
            if sequence.is_cancelled() {
                Some(Outcome::Cancelled)
            } else {
                sequence.is_expired(now).then_some(Outcome::TimedOut)
            }
        };
        let mut ended = Vec::new();
        let mut index = 0;
        while let Some(sequence) = self.scheduler.waiting.get(index) {
            match early_end(sequence) {
                Some(outcome) => {
                    let sequence = self.scheduler.waiting.remove(index);
                    ended.extend(sequence.map(|sequence| (sequence, outcome)));
                }
                None => index += 1,
            }
        }
        for index in (0..self.scheduler.running.len()).rev() {
            if let Some(outcome) = early_end(&self.scheduler.running[index]) {
                ended.push((self.scheduler.running.remove(index), outcome));
            }
        }
        self.end(ended);
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        self.scheduler.schedule(&mut self.kv, &mut self.plan);
        assert!(
            !self.plan.chunks.is_empty(),
            "bug: sequences wait and none can run"
        );
        self.note_admissions(start);
        batch::fill(&mut self.batch, &self.plan, &self.scheduler.running);
        let forward_start = Instant::now();
        let logits = self.runner.forward(&self.batch)?;
        let forward_end = Instant::now();
        if self.shared.keeps_timelines.load(Ordering::Relaxed) {
            let max_batch_size = self.shared.limits.max_batch_size;
            let limits = (max_batch_size, self.stats.batch.max_batch_tokens);
            timeline::note_step(&self.scheduler, &self.plan, limits, (start, forward_end));
        }

        let mut row = 0;
        let mut num_generated = 0;
        let mut num_decode_tokens = 0;
        let mut outcomes = Vec::new();
        for chunk in &self.plan.chunks {
            let sequence = &mut self.scheduler.running[chunk.sequence];
            let num_drafted = sequence.draft.len();
            let computed = sequence.table.num_tokens();
            if chunk.num_tokens == 1 && computed >= sequence.num_prompt_tokens {
                num_decode_tokens += 1;
            }
            num_decode_tokens += num_drafted;
            let num_scored = sequence.scored_positions(chunk.num_tokens).len();
            let scored = score_prompt(sequence, chunk.num_tokens, logits, row);
            row += num_scored;
            let generated = match scored {
                Err(error) => Generated::ended(Outcome::Corrupted(error)),
                Ok(()) if !chunk.is_last => Generated::default(),
                Ok(()) if sequence.max_tokens == 0 => {
                    Generated::ended(Outcome::Finished(FinishReason::Length))
                }
                Ok(()) => generate(sequence, &mut self.sampler, logits, row, forward_end),
            };
            row += usize::from(chunk.is_last) + num_drafted;
            num_generated += generated.num_tokens;
            if num_drafted > 0 {
                sequence.draft.clear();
                if let Some(counts) = &mut self.stats.speculative {
                    counts.count(num_drafted, generated.num_accepted);
                }
            }
            // What a draft got wrong lies behind the verified tokens, where the next step writes.
            let verified = computed + chunk.num_tokens + generated.num_accepted;
            let tokens = &sequence.tokens[computed..verified];
            self.kv.commit(&mut sequence.table, tokens);
            let outcome = generated.outcome;
            outcomes.extend(outcome.map(|outcome| (chunk.sequence, outcome)));
        }
        self.count_step(
            num_generated,
            num_decode_tokens,
            forward_end - forward_start,
        );
        let step_time = start.elapsed();
        self.stats.batch.step_time_ms += milliseconds(step_time);
        let num_tokens = self.batch.num_tokens();
        self.cost.note(num_tokens, step_time);
        let num_sequences = self.plan.chunks.len();
        let histograms = &mut self.stats.step_histograms;
        histograms.observe(step_time, num_sequences, num_tokens);
        let running = &mut self.scheduler.running;
        let ended = outcomes
            .into_iter()
            .rev()
            .map(|(index, outcome)| (running.remove(index), outcome))
            .collect();
        self.end(ended);
        Ok(())
    }

    /// Frees and counts what has ended, and only then tells the clients: who sees its end finds
    /// its memory free.
    fn end(&mut self, mut ended: Vec<(Sequence, Outcome)>) {
        if ended.is_empty() {
            return;
        }
        for (sequence, outcome) in &mut ended {
            if let Outcome::Failed(_) | Outcome::Corrupted(_) = outcome {
                self.kv.forget(&sequence.table);
            }
            self.kv.release(&mut sequence.table);
            self.scheduler.dismiss(sequence);
            if let Outcome::Finished(_) = outcome {
                let output_tokens = sequence.num_output_tokens() as f64;
                self.output_tokens.note(output_tokens);
            }
            if sequence.admitted.is_none() {
                self.shared.num_queued.fetch_sub(1, Ordering::Relaxed);
            }
            self.count(outcome);
        }
        self.publish_stats();
        for (sequence, outcome) in ended {
            match outcome {
                Outcome::Finished(reason) => sequence.send(Event::Finished(reason)),
                Outcome::Cancelled => {}
                Outcome::TimedOut => {
                    sequence.send(Event::Failed(sequence.timeout(Instant::now())));
                }
                Outcome::Failed(reason) => {
                    sequence.send(Event::Failed(EngineError::StepFailed(reason)));
                }
                Outcome::Corrupted(error) => {
                    let reason = error.to_string();
                    sequence.send(Event::Failed(EngineError::StepFailed(reason)));
                }
            }
        }
    }

    fn note_admissions(&mut self, now: Instant) {
        let running = &mut self.scheduler.running;
        let first_new = running.len() - self.plan.num_admitted;
        for sequence in &mut running[first_new..] {
            // One that comes back from a preemption was admitted before.
            if sequence.admitted.is_none() {
                sequence.admitted = Some(now);
                let cached_tokens = sequence.table.num_tokens();
                self.kv
                    .count_prefix_query(sequence.num_prompt_tokens, cached_tokens);
                let cached_share = ratio(cached_tokens as f64, sequence.num_prompt_tokens as f64);
                self.computed_share.note(1.0 - cached_share);
                self.shared.num_queued.fetch_sub(1, Ordering::Relaxed);
                sequence.send(Event::Admitted {
                    at: now,
                    cached_tokens,
                });
            }
        }
    }

    fn count_step(
        &mut self,
        num_generated: usize,
        num_decode_tokens: usize,
        forward_time: Duration,
    ) {
        let batch = &mut self.stats.batch;
        batch.num_steps += 1;
        batch.num_step_sequences += self.plan.chunks.len() as u64;
        batch.num_generated_tokens += num_generated as u64;
        batch.num_prefill_tokens += (self.batch.num_tokens() - num_decode_tokens) as u64;
        batch.forward_time_ms += milliseconds(forward_time);
        self.stats.num_preemptions += self.plan.num_preempted as u64;
    }

    fn count(&mut self, outcome: &Outcome) {
        let requests = &mut self.stats.requests;
        *match outcome {
            Outcome::Finished(FinishReason::Stop) => &mut requests.num_finished_stop,
            Outcome::Finished(FinishReason::Length) => &mut requests.num_finished_length,
            Outcome::Cancelled => &mut requests.num_cancelled,
            Outcome::TimedOut => &mut requests.num_timed_out,
            Outcome::Failed(_) | Outcome::Corrupted(_) => &mut requests.num_failed,
        } += 1;
        if let Outcome::Corrupted(_) = outcome {
            requests.num_corrupted += 1;
        }
        if let Outcome::Finished(_) = outcome {
            self.note_completion(Instant::now());
        }
    }

    /// Keeps the mean time between completions while the engine is busy, for Retry-After.
    fn note_completion(&mut self, now: Instant) {
        const WEIGHT: f64 = 0.1;
        if let Some(last) = self.last_completion.replace(now) {
            let interval = milliseconds(now - last);
            let mean = &mut self.stats.queue.completion_interval_ms;
            let weight = if *mean == 0.0 { 1.0 } else { WEIGHT };
            *mean += (interval - *mean) * weight;
        }
    }

    fn publish_stats(&mut self) {
        let cache = self.kv.stats();
        let stats = &mut self.stats;
        let running = &self.scheduler.running;
        stats.batch.num_running_requests = running.len();
        stats.batch.mean_batch_size = ratio(
            stats.batch.num_step_sequences as f64,
            stats.batch.num_steps as f64,
        );
        let kv = &mut stats.kv_cache;
        kv.used_blocks = cache.used_blocks;
        kv.cached_blocks = cache.cached_blocks;
        kv.free_blocks = cache.free_blocks;
        if running.is_empty() {
            kv.leaked_blocks = cache.used_blocks;
        }
        kv.used_tokens = running.iter().map(|s| s.table.num_tokens()).sum();
        kv.used_bytes = (cache.used_blocks * BLOCK_SIZE) as u64 * kv.bytes_per_token;
        kv.usage_ratio = ratio(cache.used_blocks as f64, cache.total_blocks as f64);
        stats.prefix.query_tokens = cache.prefix_query_tokens;
        stats.prefix.hit_tokens = cache.prefix_hit_tokens;
        stats.prefix.hit_ratio = ratio(
            cache.prefix_hit_tokens as f64,
            cache.prefix_query_tokens as f64,
        );
        stats.evictions.num_evicted_blocks = cache.evicted_blocks;
        stats.evictions.eviction_time_ms = milliseconds(cache.eviction_time);
        self.shared.lock_stats().clone_from(stats);
    }

    /// Tells the door what is at work. Who sends meanwhile waits for the lock, so nobody is missed.
    fn publish_load(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut load = shared.lock_load();
        self.inbox
            .try_iter()
            .for_each(|sequence| self.scheduler.enqueue(sequence));
        load.cost = self.cost;
        load.output_tokens = self.output_tokens;
        load.computed_share = self.computed_share;
        load.num_places = match self.plan.lacks_blocks {
            true => self.scheduler.running.len(),
            false => shared.limits.max_batch_size,
        };
        load.running.clear();
        load.running
            .extend(self.scheduler.running.iter().map(Sequence::work));
        load.waiting.clear();
        load.waiting
            .extend(self.scheduler.waiting.iter().map(|sequence| Queued {
                priority: sequence.priority,
                client: sequence.client,
                work: sequence.work(),
            }));
    }

    /// A step broke. Its sequences fail; the cache, which it may have left half written, is emptied,
    /// and what else was running is computed again.
    fn recover(&mut self, reason: &str) {
        self.num_failures_in_a_row += 1;
        self.stats.batch.num_failed_steps += 1;
        let mut in_step = vec![false; self.scheduler.running.len()];
        for chunk in &self.plan.chunks {
            if let Some(mark) = in_step.get_mut(chunk.sequence) {
                *mark = true;
            }
        }
        self.kv.reset();
        let mut failed = Vec::new();
        for (mut sequence, failed_here) in self.scheduler.running.drain(..).zip(in_step).rev() {
            sequence.table = BlockTable::default();
            sequence.draft.clear();
            match failed_here {
                true => failed.push((sequence, Outcome::Failed(reason.to_owned()))),
                false => self.scheduler.waiting.push_front(sequence),
            }
        }
        tracing::error!(
            reason,
            failed_requests = failed.len(),
            "a step failed; the engine begins afresh"
        );
        self.end(failed);
    }

    /// The engine ends: all that is here fails, nothing more is taken, readiness turns red.
    fn fail(mut self, reason: String) {
        tracing::error!(reason, "the engine ends");
        let running = std::mem::take(&mut self.scheduler.running);
        let waiting = std::mem::take(&mut self.scheduler.waiting);
        let left: Vec<_> = running
            .into_iter()
            .chain(waiting)
            .chain(self.inbox.try_iter())
            .collect();
        self.stats.requests.num_failed += left.len() as u64;
        self.shared.lock_stats().clone_from(&self.stats);
        for sequence in left {
            sequence.send(Event::Failed(EngineError::Unavailable(reason.clone())));
        }
        // After the events: whoever waits for this finds its own end told.
        self.shared.declare_failed(&reason);
    }
}

/// An error or a panic of a step, as text.
fn flatten(step: Result<anyhow::Result<()>, Box<dyn Any + Send>>) -> Result<(), String> {
    match step {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => Err(panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic without a message".to_owned())),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
