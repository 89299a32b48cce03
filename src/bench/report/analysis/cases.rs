//! Requests of exactly the same size, sent again and again: how alike are their latencies?

use std::collections::BTreeMap;

use crate::bench::report::loads::Answer;
use crate::bench::statistics::Summary;

/// Fewest runs of a case from which a spread is told.
pub const RUNS_MIN: usize = 5;

/// All requests with the same number of tokens, in and out.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub e2e_ms: Summary,
}

impl Case {
    /// Standard deviation / mean.
    pub fn coefficient_of_variation(&self) -> f64 {
        self.e2e_ms.std / self.e2e_ms.mean
    }

    /// Tokens in and out.
    pub fn name(&self) -> String {
        format!("{} → {}", self.prompt_tokens, self.output_tokens)
    }
}

/// The cases with enough runs, by prompt and then by output length.
pub fn cases(answers: &[Answer]) -> Vec<Case> {
    let mut by_size: BTreeMap<(u64, u64), Vec<f64>> = BTreeMap::new();
    for answer in answers {
        if let (Some(prompt), Some(output)) = (answer.prompt_tokens, answer.output_tokens) {
            by_size
                .entry((prompt, output))
                .or_default()
                .push(answer.e2e_ms);
        }
    }
    by_size
        .into_iter()
        .filter(|(_, latencies)| latencies.len() >= RUNS_MIN)
        .filter_map(|((prompt_tokens, output_tokens), latencies)| {
            Some(Case {
                prompt_tokens,
                output_tokens,
                e2e_ms: Summary::of_ms(&latencies)?,
            })
        })
        .collect()
}
