//! What the engine has done and is doing, with units: a snapshot that the worker publishes after
//! each step.

use serde::Serialize;

use super::histogram::StepHistograms;
use super::speculation::DraftLimits;
use crate::config::KvType;

/// Counts are since start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EngineStats {
    pub queue: QueueStats,
    pub batch: BatchStats,
    pub requests: RequestStats,
    pub kv_cache: KvStats,
    pub prefix: PrefixStats,
    pub evictions: EvictionStats,
    /// Running sequences that gave up their blocks and were recomputed.
    pub num_preemptions: u64,
    #[serde(skip)]
    pub step_histograms: StepHistograms,
    /// `None` when drafts are off.
    pub speculative: Option<SpeculationStats>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QueueStats {
    pub num_waiting_requests: usize,
    pub max_waiting_requests: usize,
    /// Refused because the queue was full.
    pub num_rejected_requests: u64,
    /// Refused because the queue was too long for their time limit.
    pub num_hopeless_requests: u64,
    /// How long a request that came now would wait for its first step; `null` before anything
    /// was measured.
    pub predicted_wait_ms: Option<f64>,
    /// Mean time between two completed requests of late; 0 before the second one.
    pub completion_interval_ms: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchStats {
    pub num_running_requests: usize,
    pub max_batch_size: usize,
    pub max_batch_tokens: usize,
    pub num_steps: u64,
    /// Sum of the number of sequences over all steps.
    pub num_step_sequences: u64,
    pub mean_batch_size: f64,
    /// Prompt tokens computed, recomputed ones after a preemption included.
    pub num_prefill_tokens: u64,
    pub num_generated_tokens: u64,
    /// Steps that broke; their requests failed, and the engine began afresh.
    pub num_failed_steps: u64,
    /// Of rounds with work in them: taking requests, steps, publishing.
    pub busy_time_ms: f64,
    /// The part of `busy_time_ms` from planning a step to its last token.
    pub step_time_ms: f64,
    /// The part of `step_time_ms` spent in the runner.
    pub forward_time_ms: f64,
}

/// How admitted requests ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestStats {
    pub num_submitted: u64,
    pub num_finished_stop: u64,
    pub num_finished_length: u64,
    /// The client left, or the server had its stop string.
    pub num_cancelled: u64,
    pub num_timed_out: u64,
    pub num_failed: u64,
    /// Those of `num_failed` for which the model computed numbers that are none.
    pub num_corrupted: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KvStats {
    pub block_size_tokens: usize,
    pub total_blocks: usize,
    pub used_blocks: usize,
    /// Reusable blocks that nobody holds.
    pub cached_blocks: usize,
    pub free_blocks: usize,
    /// Blocks that were in use when nothing ran, the last time that nothing did; 0 unless somebody
    /// forgot to give them back.
    pub leaked_blocks: usize,
    pub capacity_tokens: usize,
    pub cache_type: KvType,
    /// Tokens of running sequences in the cache; a shared one counts for each.
    pub used_tokens: usize,
    pub bytes_per_token: u64,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// used_blocks / total_blocks.
    pub usage_ratio: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PrefixStats {
    pub query_tokens: u64,
    pub hit_tokens: u64,
    pub hit_ratio: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvictionStats {
    pub num_evicted_blocks: u64,
    pub eviction_time_ms: f64,
}

/// What became of drafts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SpeculationStats {
    pub num_drafts: u64,
    pub num_draft_tokens: u64,
    /// Draft tokens that were the next token: steps saved.
    pub num_accepted_tokens: u64,
    /// num_accepted_tokens / num_draft_tokens.
    pub accept_ratio: f64,
    /// Accepted tokens by their place in the draft. (SPECULATIVE_TOKENS)
    pub num_accepted_tokens_per_position: Vec<u64>,
}

impl SpeculationStats {
    pub(super) fn new(limits: DraftLimits) -> Self {
        Self {
            num_accepted_tokens_per_position: vec![0; limits.draft_tokens],
            ..Self::default()
        }
    }

    pub(super) fn count(&mut self, num_drafted: usize, num_accepted: usize) {
        self.num_drafts += 1;
        self.num_draft_tokens += num_drafted as u64;
        self.num_accepted_tokens += num_accepted as u64;
        self.accept_ratio = ratio(
            self.num_accepted_tokens as f64,
            self.num_draft_tokens as f64,
        );
        for count in &mut self.num_accepted_tokens_per_position[..num_accepted] {
            *count += 1;
        }
    }
}

pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}
