//! Log-probabilities of tokens, from the model's logits as they are: before penalties,
//! temperature and filters, as OpenAI and vLLM report them.

use super::request::TokenId;

/// One token of prompt or output, and the most likely ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub id: TokenId,
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The most likely tokens, best first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

impl TokenLogprobs {
    /// Scores token `id` by the logits of the position before it. (vocab_size)
    pub(super) fn score(logits: &[f32], id: TokenId, num_top: usize) -> Self {
        let log_total = log_sum_exp(logits);
        let top = best(logits, num_top)
            .into_iter()
            .map(|(id, logit)| (id, logit - log_total))
            .collect();
        Self {
            id,
            logprob: logits[id as usize] - log_total,
            top,
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f64, because a vocabulary's worth of small terms would be lost in f32.
    let total: f64 = logits
        .iter()
        .map(|&logit| f64::from((logit - max).exp()))
        .sum();
    max + total.ln() as f32
}

/// The `count` highest logits, best first, equal ones in the order of ids. One pass: each logit
/// is compared with the worst of the best so far.
fn best(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|&(_, worst)| logit <= worst) {
            continue;
        }
        let place = best.partition_point(|&(_, better)| better >= logit);
        best.insert(place, (id, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [0.5f32.ln() + 3.0, 0.25f32.ln() + 3.0, 0.25f32.ln() + 3.0];
        let scored = TokenLogprobs::score(&logits, 1, 2);
        assert!((scored.logprob - 0.25f32.ln()).abs() < 1e-6);
        let ids: Vec<_> = scored.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [0, 1]);
        assert!((scored.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert!(TokenLogprobs::score(&logits, 1, 0).top.is_empty());
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_full_sort(
            logits in prop::collection::vec((-9..9i32).prop_map(|l| l as f32), 0..200),
            count in 0..30usize,
        ) {
            let mut sorted: Vec<_> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a: &(u32, f32), b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(best(&logits, count), sorted);
        }
    }
}
