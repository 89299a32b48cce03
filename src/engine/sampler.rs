//! From one row of logits to the next token.
//!
//! Order: bias, penalties, temperature, min_p, top_k, top_p, draw. The vocabulary is looked at once, as
//! blocks of logits whose maxima then say where the likely tokens are; it is never sorted as a whole.
//! Only a total over all tokens, for top_p or for a draw among all, takes a second look.

mod row;

use std::collections::HashMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::row::{Candidate, Row, draw};
use super::request::{SamplingParams, TokenId};

/// Temperatures below this are greedy: dividing by them would overflow.
const GREEDY_BELOW: f32 = 1e-5;

/// What sampling remembers of one sequence. The random stream lives here, so that neither the
/// batch nor a preemption changes the draws.
#[derive(Debug)]
pub(super) struct SamplerState {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// How often each token of prompt and output stands in the output; empty without penalties.
    output_counts: HashMap<TokenId, u32>,
}

impl SamplerState {
    pub fn new(params: SamplingParams, prompt: &[TokenId]) -> Self {
        let seed = params.seed.unwrap_or_else(rand::random);
        let mut state = Self {
            params,
            rng: ChaCha8Rng::seed_from_u64(seed),
            output_counts: HashMap::new(),
        };
        if state.has_penalties() {
            state.output_counts = prompt.iter().map(|&id| (id, 0)).collect();
        }
        state
    }

    fn has_penalties(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    fn edits_logits(&self) -> bool {
        self.has_penalties() || !self.params.logit_bias.is_empty()
    }

    fn edit(&self, logits: &mut [f32]) {
        let p = &self.params;
        for &(id, bias) in &p.logit_bias {
            logits[id as usize] += bias;
        }
        for (&id, &count) in &self.output_counts {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 {
                *logit / p.repetition_penalty
            } else {
                *logit * p.repetition_penalty
            };
            if count > 0 {
                *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
            }
        }
    }
}

/// The row had no finite maximum: the model's numbers are broken for this sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub(super) struct NotFinite;

/// Samples for all sequences; holds only scratch memory.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    logits: Vec<f32>,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    /// Of each block.
    maxima: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Maxima to select from, or sums of weights.
    of_blocks: Vec<f32>,
}

impl Sampler {
    /// Chooses the next token of a sequence from its logits (vocab_size).
    pub fn sample(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
    ) -> Result<TokenId, NotFinite> {
        if !state.edits_logits() {
            return choose(logits, state, &mut self.scratch);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        state.edit(&mut self.logits);
        let id = choose(&self.logits, state, &mut self.scratch)?;
        if state.has_penalties() {
            *state.output_counts.entry(id).or_insert(0) += 1;
        }
        Ok(id)
    }
}

fn choose(
    logits: &[f32],
    state: &mut SamplerState,
    scratch: &mut Scratch,
) -> Result<TokenId, NotFinite> {
    let params = &state.params;
    let row = Row::look(logits, params.temperature, &mut scratch.maxima)?;
    let Scratch {
        candidates,
        of_blocks,
        ..
    } = scratch;
    if params.temperature < GREEDY_BELOW {
        Ok(row.first_maximum())
    } else if params.top_k == 0 && params.top_p == 1.0 && params.min_p == 0.0 {
        Ok(row.draw(of_blocks, &mut state.rng))
    } else {
        row.keep_candidates(params, candidates, of_blocks);
        Ok(draw(candidates, &mut state.rng))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::row::{BLOCK, more_likely};
    use super::*;

    fn sample_with(params: SamplingParams, prompt: &[TokenId], logits: &[f32]) -> TokenId {
        let mut state = SamplerState::new(params, prompt);
        Sampler::default()
            .sample(logits, &mut state)
            .expect("finite logits")
    }

    fn sampled(temperature: f32) -> SamplingParams {
        SamplingParams {
            temperature,
            seed: Some(7),
            ..SamplingParams::default()
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equal_maxima() {
        assert_eq!(
            sample_with(SamplingParams::default(), &[], &[0.0, 3.0, 3.0, -1.0]),
            1
        );
    }

    #[test]
    fn broken_logits_are_refused_and_excluded_tokens_are_not() {
        let mut state = SamplerState::new(sampled(1.0), &[]);
        let mut sampler = Sampler::default();
        for broken in [
            vec![f32::NAN, 1.0],
            vec![f32::NEG_INFINITY; 2],
            vec![f32::INFINITY, 0.0],
        ] {
            assert_eq!(
                sampler.sample(&broken, &mut state),
                Err(NotFinite),
                "{broken:?}"
            );
        }
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 0.0], &mut state), Ok(1));
    }

    #[test]
    fn a_bias_bans_and_forces_tokens() {
        let biased = |logit_bias: Vec<(TokenId, f32)>| SamplingParams {
            logit_bias,
            ..SamplingParams::default()
        };
        let logits = [3.0, 2.0, 1.0];
        assert_eq!(sample_with(biased(vec![(0, -100.0)]), &[], &logits), 1);
        assert_eq!(sample_with(biased(vec![(2, 100.0)]), &[], &logits), 2);
        assert_eq!(sample_with(biased(vec![(2, 1.5)]), &[], &logits), 0);
        let banned = SamplingParams {
            logit_bias: vec![(0, -100.0)],
            ..sampled(1.0)
        };
        let mut state = SamplerState::new(banned, &[]);
        let mut sampler = Sampler::default();
        assert!((0..100).all(|_| sampler.sample(&logits, &mut state) != Ok(0)));
    }

    #[test]
    fn penalties_push_tokens_of_prompt_and_output_down() {
        let repetition = SamplingParams {
            repetition_penalty: 2.0,
            ..SamplingParams::default()
        };
        assert_eq!(sample_with(repetition, &[0], &[1.5, 1.0]), 1);
        let presence = SamplingParams {
            presence_penalty: 1.0,
            ..SamplingParams::default()
        };
        assert_eq!(
            sample_with(presence.clone(), &[0], &[1.5, 1.0]),
            0,
            "the prompt is spared"
        );

        let mut state = SamplerState::new(presence, &[]);
        let mut sampler = Sampler::default();
        let ids: Vec<_> = (0..3)
            .map(|_| sampler.sample(&[1.5, 1.0], &mut state))
            .collect();
        assert_eq!(ids, [Ok(0), Ok(1), Ok(0)]);

        let frequency = SamplingParams {
            frequency_penalty: 0.4,
            ..SamplingParams::default()
        };
        let mut state = SamplerState::new(frequency, &[]);
        let ids: Vec<_> = (0..4)
            .map(|_| sampler.sample(&[1.5, 1.0], &mut state))
            .collect();
        assert_eq!(ids, [Ok(0), Ok(0), Ok(1), Ok(0)]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.7f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let mut state = SamplerState::new(sampled(1.0), &[]);
        let mut sampler = Sampler::default();
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, &mut state).expect("finite") as usize] += 1;
        }
        // Six standard deviations of a binomial count are below 0.02 * 20000.
        for (count, share) in counts.into_iter().zip([0.7, 0.2, 0.1]) {
            assert!(
                (f64::from(count) / 20_000.0 - share).abs() < 0.02,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let draw = || {
            let mut state = SamplerState::new(sampled(0.9), &[]);
            let mut sampler = Sampler::default();
            (0..20)
                .map(|_| sampler.sample(&logits, &mut state))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    /// Filters by a full sort, as the definitions read.
    fn naive_kept(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut all: Vec<Candidate> = (0..)
            .zip(logits)
            .map(|(id, l)| Candidate {
                weight: ((l - max) * (1.0 / params.temperature)).exp(),
                id,
            })
            .filter(|c| c.weight >= params.min_p && c.weight > 0.0)
            .collect();
        all.sort_by(more_likely);
        if params.top_k > 0 {
            all.truncate(params.top_k);
        }
        let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
        let mut reached = 0.0;
        let mut kept = Vec::new();
        for candidate in all {
            kept.push(candidate.id);
            reached += f64::from(candidate.weight);
            if params.top_p < 1.0 && reached >= total * f64::from(params.top_p) * (1.0 + 1e-9) {
                break;
            }
        }
        kept.sort_unstable();
        kept
    }

    proptest! {
        #[test]
        fn filters_keep_what_a_full_sort_keeps(
            // Whole numbers make many equal weights, whose order must not matter.
            logits in prop::collection::vec((-8..8i32).prop_map(|l| l as f32), 1..700),
            top_k in 0..300usize,
            top_p in prop_oneof![Just(1.0f32), 0.01..0.99f32],
            min_p in prop_oneof![Just(0.0f32), 0.0..0.5f32],
        ) {
            let params = SamplingParams { temperature: 1.3, top_k, top_p, min_p, ..sampled(1.3) };
            let mut maxima = Vec::new();
            let row = Row::look(&logits, params.temperature, &mut maxima).expect("finite");
            let (mut candidates, mut of_blocks) = (Vec::new(), Vec::new());
            row.keep_candidates(&params, &mut candidates, &mut of_blocks);
            let mut kept: Vec<_> = candidates.iter().map(|c| c.id).collect();
            kept.sort_unstable();
            let naive = naive_kept(&logits, &params);
            // Sums in another order may differ by one candidate at the border of top_p.
            prop_assert!(kept.len().abs_diff(naive.len()) <= 1, "{kept:?} {naive:?}");
            let common = kept.iter().filter(|id| naive.contains(id)).count();
            prop_assert_eq!(common, kept.len().min(naive.len()));
        }
    }

    #[test]
    fn draws_among_all_tokens_are_as_likely_as_the_tokens() {
        const DRAWS: usize = 100_000;
        // Over several blocks, one of them incomplete; the rest is far less likely.
        let mut logits = vec![-40.0; 2 * BLOCK + 30];
        let shares = [
            (3, 0.5f32),
            (BLOCK, 0.25),
            (BLOCK + 17, 0.125),
            (2 * BLOCK + 29, 0.125),
        ];
        for (id, share) in shares {
            logits[id] = share.ln();
        }
        let mut state = SamplerState::new(sampled(1.0), &[]);
        let mut sampler = Sampler::default();
        let mut counts = vec![0; logits.len()];
        for _ in 0..DRAWS {
            let id = sampler.sample(&logits, &mut state).expect("finite");
            counts[id as usize] += 1;
        }
        for (id, share) in shares {
            let expected = DRAWS as f32 * share;
            // Five standard deviations.
            let tolerance = 5.0 * (expected * (1.0 - share)).sqrt();
            assert!(
                (counts[id] as f32 - expected).abs() < tolerance,
                "{id}: {}",
                counts[id]
            );
        }
    }
}
