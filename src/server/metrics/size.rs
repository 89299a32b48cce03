//! How much requests ask for and get.

use prometheus::{Histogram, Registry};

use super::buckets;
use super::registered::histogram;
use crate::server::timings::Progress;

pub struct SizeHistograms {
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    max_tokens: Histogram,
    pub num_choices: Histogram,
    pub longest_choice: Histogram,
    prefill_computed_tokens: Histogram,
}

impl SizeHistograms {
    pub fn new(registry: &Registry, max_model_len: usize) -> prometheus::Result<Self> {
        let buckets = buckets::one_two_five(max_model_len);
        let tokens = |name, help| histogram(registry, name, help, &buckets);
        Ok(Self {
            prompt_tokens: tokens("vllm:request_prompt_tokens", "Prompt tokens of a request.")?,
            generation_tokens: tokens(
                "vllm:request_generation_tokens",
                "Tokens generated for a request.",
            )?,
            max_tokens: tokens(
                "vllm:request_params_max_tokens",
                "The max_tokens of a request.",
            )?,
            num_choices: histogram(
                registry,
                "vllm:request_params_n",
                "Answers to each prompt of a request.",
                &[1.0, 2.0, 5.0, 10.0, 20.0],
            )?,
            longest_choice: tokens(
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest answer of a request.",
            )?,
            prefill_computed_tokens: tokens(
                "vllm:request_prefill_kv_computed_tokens",
                "Prompt tokens of a request that were not in the prefix cache.",
            )?,
        })
    }

    pub fn observe(&self, progress: &Progress) {
        let computed = progress.prompt_tokens - progress.cached_tokens;
        self.prompt_tokens.observe(progress.prompt_tokens as f64);
        self.generation_tokens
            .observe(progress.generated_tokens as f64);
        self.max_tokens.observe(progress.max_tokens as f64);
        self.prefill_computed_tokens.observe(computed as f64);
    }
}
