//! Where to cut a text so that no two pieces begin alike: a prefix cache then finds something only
//! where a workload means it to.

use std::collections::HashSet;
use std::hash::Hash;

use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

/// Positions in random order such that their openings differ: first all that differ in their first
/// item, then those that differ in their first two, and so on. The text goes on at its beginning.
pub fn distinct_starts<T: Copy + Eq + Hash>(
    text: &[T],
    head_length_max: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..text.len()).collect();
    positions.shuffle(rng);
    let head = |start: usize, length: usize| -> Vec<T> {
        text.iter()
            .cycle()
            .skip(start)
            .take(length)
            .copied()
            .collect()
    };
    let mut starts: Vec<usize> = Vec::new();
    for length in 1..=head_length_max {
        let mut heads: HashSet<Vec<T>> = starts.iter().map(|s| head(*s, length)).collect();
        positions.retain(|&position| {
            let is_new = heads.insert(head(position, length));
            if is_new {
                starts.push(position);
            }
            !is_new
        });
    }
    starts
}

/// Which of the requests repeat an earlier one, a share of them as near to `ratio` as can be: the
/// first has nothing to repeat.
pub fn repeat_plan(requests: usize, ratio: f64, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let wanted = (requests as f64 * ratio).round() as usize;
    let repeats = wanted.min(requests.saturating_sub(1));
    let mut plan: Vec<bool> = (0..requests).map(|i| i > 0 && i <= repeats).collect();
    if let Some(rest) = plan.get_mut(1..) {
        rest.shuffle(rng);
    }
    plan
}
