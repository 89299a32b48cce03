//! The tokens that a response is charged for.

use serde::Serialize;

use crate::server::piece::Summary;

/// Sums over all choices of a response. A prompt counts once, however many choices it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    /// Left out while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct PromptTokensDetails {
    /// Those that came from the prefix cache.
    cached_tokens: usize,
}

impl Usage {
    pub fn of(summaries: &[Summary]) -> Self {
        let firsts = || summaries.iter().filter(|summary| summary.choice == 0);
        let prompt_tokens = firsts().map(|summary| summary.prompt_tokens).sum();
        let generated = summaries.iter().map(|summary| summary.generated_tokens);
        let completion_tokens = generated.sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: firsts().map(|summary| summary.cached_tokens).sum(),
            }),
        }
    }

    /// Of one choice so far.
    pub fn so_far(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
        }
    }
}
