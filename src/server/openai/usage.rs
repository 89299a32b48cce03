//! The tokens that a response is charged for.

use serde::Serialize;

use crate::server::generation::Summary;

/// Sums over all choices of a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct PromptTokensDetails {
    /// Those that came from the prefix cache.
    cached_tokens: usize,
}

impl Usage {
    pub fn of(summaries: &[Summary]) -> Self {
        let sum = |part: fn(&Summary) -> usize| summaries.iter().map(part).sum();
        let prompt_tokens = sum(|summary| summary.prompt_tokens);
        let completion_tokens = sum(|summary| summary.generated_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: sum(|summary| summary.cached_tokens),
            },
        }
    }
}
