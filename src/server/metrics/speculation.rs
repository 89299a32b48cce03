//! What became of drafts, under vLLM's names. Only there when drafts are on.

use prometheus::proto::{MetricFamily, MetricType};

use super::families;
use crate::engine::SpeculationStats;

const DRAFTS: (&str, &str) = (
    "vllm:spec_decode_num_drafts_total",
    "Drafts that were verified.",
);
const DRAFT_TOKENS: (&str, &str) = (
    "vllm:spec_decode_num_draft_tokens_total",
    "Tokens of the drafts.",
);
const ACCEPTED: (&str, &str) = (
    "vllm:spec_decode_num_accepted_tokens_total",
    "Draft tokens that were the next token.",
);
const ACCEPTED_PER_POSITION: (&str, &str) = (
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    "Draft tokens that were the next token, by their place in the draft.",
);

/// Names and descriptions.
pub const NAMES: [(&str, &str); 4] = [DRAFTS, DRAFT_TOKENS, ACCEPTED, ACCEPTED_PER_POSITION];

pub fn collect(stats: &SpeculationStats) -> Vec<MetricFamily> {
    let counter = |(name, help): (&str, &str), value: u64| {
        families::number(name, help, MetricType::COUNTER, value as f64)
    };
    let (name, help) = ACCEPTED_PER_POSITION;
    let per_position = &stats.num_accepted_tokens_per_position;
    vec![
        counter(DRAFTS, stats.num_drafts),
        counter(DRAFT_TOKENS, stats.num_draft_tokens),
        counter(ACCEPTED, stats.num_accepted_tokens),
        families::counts_by(name, help, "position", per_position),
    ]
}
