//! The logits of one position: the largest, a draw among all, and what filters keep.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::NotFinite;
use crate::engine::request::{SamplingParams, TokenId};

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Probability relative to the most likely token, before normalisation.
    pub weight: f32,
    pub id: TokenId,
}

/// Logits that are looked at together.
pub(super) const BLOCK: usize = 256;
/// Sums and maxima of their own, so that the compiler makes them vectors.
const LANES: usize = 16;

/// The logits of a position, and what one look at them tells.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    /// Of each block of logits.
    maxima: &'a [f32],
    max: f32,
    /// From a difference of logits to a power of two.
    scale: f32,
}

impl<'a> Row<'a> {
    pub fn look(
        logits: &'a [f32],
        temperature: f32,
        maxima: &'a mut Vec<f32>,
    ) -> Result<Self, NotFinite> {
        maxima.clear();
        let mut any_nan = false;
        for block in logits.chunks(BLOCK) {
            let (max, has_nan) = look_at(block);
            maxima.push(max);
            any_nan |= has_nan;
        }
        let max = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() || any_nan {
            return Err(NotFinite);
        }
        Ok(Self {
            logits,
            maxima,
            max,
            scale: std::f32::consts::LOG2_E / temperature,
        })
    }

    pub fn first_maximum(&self) -> TokenId {
        let block = self.maxima.iter().position(|max| *max == self.max);
        let first = block.expect("bug: the maximum is not among them") * BLOCK;
        let offset = self.logits[first..].iter().position(|it| *it == self.max);
        (first + offset.expect("bug: the maximum is not in its block")) as TokenId
    }

    /// Relative to the most likely token.
    fn weight(&self, logit: f32) -> f32 {
        power_of_two((logit - self.max) * self.scale)
    }

    /// Sums of the weights in each block, and of all.
    fn sum_weights(&self, sums: &mut Vec<f32>) -> f64 {
        sums.clear();
        sums.extend(self.logits.chunks(BLOCK).map(|block| {
            let mut lanes = [0.0; LANES];
            let (vectors, rest) = block.as_chunks::<LANES>();
            for vector in vectors {
                for (sum, logit) in lanes.iter_mut().zip(vector) {
                    *sum += self.weight(*logit);
                }
            }
            lanes[0] += rest.iter().map(|logit| self.weight(*logit)).sum::<f32>();
            lanes.into_iter().sum::<f32>()
        }));
        sums.iter().map(|sum| f64::from(*sum)).sum()
    }

    /// Draws from all tokens.
    pub fn draw(&self, sums: &mut Vec<f32>, rng: &mut ChaCha8Rng) -> TokenId {
        let mut left = rng.random::<f64>() * self.sum_weights(sums);
        let mut last = 0;
        for (index, (sum, block)) in sums.iter().zip(self.logits.chunks(BLOCK)).enumerate() {
            if left >= f64::from(*sum) {
                left -= f64::from(*sum);
                continue;
            }
            for (id, logit) in (index * BLOCK..).zip(block) {
                let weight = f64::from(self.weight(*logit));
                if weight > 0.0 {
                    last = id;
                    if left < weight {
                        return id as TokenId;
                    }
                    left -= weight;
                }
            }
            // The sum was rounded otherwise: its block's last token takes what is left.
            return last as TokenId;
        }
        // Rounding can leave a rest behind the last block.
        self.first_maximum()
    }

    /// Leaves what min_p, top_k and top_p keep, in no order.
    pub fn keep_candidates(
        &self,
        params: &SamplingParams,
        candidates: &mut Vec<Candidate>,
        of_blocks: &mut Vec<f32>,
    ) {
        let mut least = f32::NEG_INFINITY;
        if params.min_p > 0.0 {
            // A little below, since a weight is rounded; the weights decide.
            least = self.max + (params.min_p.log2() - 1e-3) / self.scale;
        }
        if params.top_k > 0 && params.top_k <= self.maxima.len() {
            // As many tokens as this maximum and those above it are at least as likely.
            of_blocks.clear();
            of_blocks.extend_from_slice(self.maxima);
            let by_size = |a: &f32, b: &f32| b.total_cmp(a);
            let (_, nth, _) = of_blocks.select_nth_unstable_by(params.top_k - 1, by_size);
            least = least.max(*nth);
        }
        if params.top_k > 0 || params.min_p > 0.0 {
            self.gather(least, params.min_p, candidates);
            if params.top_k > 0 && params.top_k < candidates.len() {
                candidates.select_nth_unstable_by(params.top_k - 1, more_likely);
                candidates.truncate(params.top_k);
            }
            if params.top_p < 1.0 {
                let total = total(candidates);
                keep_top_p(total * f64::from(params.top_p), candidates);
            }
            return;
        }
        if params.top_p == 1.0 {
            return self.gather(f32::NEG_INFINITY, 0.0, candidates);
        }
        let wanted = self.sum_weights(of_blocks) * f64::from(params.top_p);
        // In powers of two: the most likely tokens mostly are enough.
        for weight in [-4.0, -8.0, -12.0, -16.0, f32::NEG_INFINITY] {
            self.gather(self.max + weight / self.scale, 0.0, candidates);
            if total(candidates) >= wanted {
                break;
            }
        }
        keep_top_p(wanted, candidates);
    }

    /// The tokens with a logit and a weight of at least so much.
    fn gather(&self, least: f32, least_weight: f32, candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (index, max) in self.maxima.iter().enumerate() {
            if *max < least {
                continue;
            }
            let first = index * BLOCK;
            let block = &self.logits[first..self.logits.len().min(first + BLOCK)];
            for (id, &logit) in (first..).zip(block) {
                let weight = if logit < least {
                    0.0
                } else {
                    self.weight(logit)
                };
                if weight > 0.0 && weight >= least_weight {
                    let id = id as TokenId;
                    candidates.push(Candidate { weight, id });
                }
            }
        }
    }
}

/// The largest of a block's logits, and whether one is NaN.
fn look_at(block: &[f32]) -> (f32, bool) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut nans = [false; LANES];
    let (vectors, rest) = block.as_chunks::<LANES>();
    for vector in vectors {
        for ((max, nan), &logit) in maxima.iter_mut().zip(&mut nans).zip(vector) {
            *max = if logit > *max { logit } else { *max };
            *nan |= logit.is_nan();
        }
    }
    let all = maxima.into_iter().chain(rest.iter().copied());
    let has_nan = nans.contains(&true) || rest.iter().any(|logit| logit.is_nan());
    (all.fold(f32::NEG_INFINITY, f32::max), has_nan)
}

/// `2^x` for `x` of at most 0: at most 1 part in 10^6 off, and 0 below -126.
fn power_of_two(x: f32) -> f32 {
    /// Added to a small f32, rounds it to a whole number, which the low bits then hold.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    /// `ln(2)^n / n!`, from the last to the first.
    const SERIES: [f32; 6] = [
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
    ];
    let rounded = x + ROUND;
    let fraction = x - (rounded - ROUND);
    let series = SERIES
        .into_iter()
        .fold(0.0, |sum, term| (sum + term) * fraction);
    let whole = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < -126.0 {
        0.0
    } else {
        (series + 1.0) * whole
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// Keeps the fewest most likely candidates whose weights reach `wanted`, at least one.
fn keep_top_p(wanted: f64, candidates: &mut Vec<Candidate>) {
    const FIRST_RUN: usize = 64;
    let mut reached = 0.0;
    let mut sorted = 0;
    let mut run = FIRST_RUN;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let run_len = run.min(rest.len());
        if run_len < rest.len() {
            rest.select_nth_unstable_by(run_len, more_likely);
        }
        rest[..run_len].sort_unstable_by(more_likely);
        for (offset, candidate) in rest[..run_len].iter().enumerate() {
            reached += f64::from(candidate.weight);
            if reached >= wanted {
                candidates.truncate(sorted + offset + 1);
                return;
            }
        }
        sorted += run_len;
        run *= 4;
    }
}

/// Descending by weight; equal weights in the order of ids, so that the outcome is one.
pub(super) fn more_likely(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Draws one of the candidates.
pub(super) fn draw(candidates: &[Candidate], rng: &mut ChaCha8Rng) -> TokenId {
    let mut left = rng.random::<f64>() * total(candidates);
    for candidate in candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return candidate.id;
        }
    }
    // Rounding can leave a rest behind the last candidate.
    candidates
        .last()
        .expect("bug: the most likely token was dropped")
        .id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_close_to_the_exact_ones() {
        for i in 0..1_270_000 {
            let x = i as f32 * -1e-4;
            let exact = f64::from(x).exp2();
            let error = (f64::from(power_of_two(x)) - exact).abs() / exact;
            assert!(
                error < 1e-6 || (x < -126.0 && power_of_two(x) == 0.0),
                "2^{x}: {error:e}"
            );
        }
        assert_eq!(power_of_two(0.0), 1.0);
        assert_eq!(power_of_two(f32::NEG_INFINITY), 0.0);
    }
}
