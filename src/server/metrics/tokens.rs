//! Tokens of prompts and answers.

use prometheus::{IntCounter, Registry};

use super::registered::{counter, counters};
use crate::server::timings::Progress;

pub struct TokenCounters {
    prompt: IntCounter,
    computed: IntCounter,
    cache_hit: IntCounter,
    cached: IntCounter,
    recomputed: IntCounter,
    pub generated: IntCounter,
}

impl TokenCounters {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let by_source = counters(
            registry,
            "vllm:prompt_tokens_by_source_total",
            "Those of prompt_tokens that were computed, and those that were not.",
            "source",
        )?;
        Ok(Self {
            computed: by_source.with_label_values(&["local_compute"]),
            cache_hit: by_source.with_label_values(&["local_cache_hit"]),
            recomputed: counter(
                registry,
                "vllm:prompt_tokens_recomputed_total",
                "Tokens that were in the prefix cache and computed again: the last of a whole prompt.",
            )?,
            prompt: counter(
                registry,
                "vllm:prompt_tokens_total",
                "Prompt tokens of requests that reached their first token.",
            )?,
            cached: counter(
                registry,
                "vllm:prompt_tokens_cached_total",
                "Those of prompt_tokens that came from the prefix cache.",
            )?,
            generated: counter(
                registry,
                "vllm:generation_tokens_total",
                "Tokens generated and handed to a response.",
            )?,
        })
    }

    pub fn observe_prompt(&self, progress: &Progress) {
        let (prompt, cached) = (progress.prompt_tokens, progress.cached_tokens);
        self.prompt.inc_by(prompt as u64);
        self.cached.inc_by(cached as u64);
        self.cache_hit.inc_by(cached as u64);
        self.computed.inc_by((prompt - cached) as u64);
        self.recomputed.inc_by(u64::from(progress.is_cached()));
    }
}
