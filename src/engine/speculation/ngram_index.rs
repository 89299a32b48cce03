//! Where the last tokens of a sequence stood before, and what followed them there.
//!
//! As a compressor finds its matches: a table gives the latest place of each n-gram, and a chain
//! leads from each place to the one before. A token costs one insertion; a lookup looks at a
//! bounded number of places. Nothing is ever searched from the start.

use std::collections::HashMap;

use crate::engine::TokenId;

/// Tokens that a place must share with the end of the sequence.
const NGRAM: usize = 2;
/// Places that a lookup looks at, the latest first.
const PLACES_MAX: usize = 16;
/// Agreement is counted up to this many tokens: more makes no place better, and no draft longer.
pub const AGREEMENT_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct NgramIndex {
    /// The position behind the latest n-gram with these tokens.
    latest: HashMap<[TokenId; NGRAM], u32>,
    /// For the n-gram that ends at each position, from NGRAM on: the position behind the one before
    /// it with the same tokens, or 0.
    earlier: Vec<u32>,
}

/// A place like the end of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the token behind it.
    pub position: usize,
    /// Tokens before it that are also the last ones of the sequence.
    pub agreeing_tokens: usize,
}

impl NgramIndex {
    /// Enters what is new of `tokens`, which only ever grow. An n-gram enters when a token follows
    /// it, so that the end of the sequence never finds itself.
    pub fn update(&mut self, tokens: &[TokenId]) {
        for end in NGRAM + self.earlier.len()..tokens.len() {
            let before = self.latest.insert(ngram_before(tokens, end), end as u32);
            self.earlier.push(before.unwrap_or(0));
        }
    }

    /// The place that agrees longest with the end of `tokens`, the latest one of several.
    /// [`update`](Self::update) has seen these tokens.
    pub fn find(&self, tokens: &[TokenId]) -> Option<Place> {
        let end = tokens.len();
        if end <= NGRAM {
            return None;
        }
        let mut next = *self.latest.get(&ngram_before(tokens, end))? as usize;
        let mut best: Option<Place> = None;
        for _ in 0..PLACES_MAX {
            let place = Place {
                position: next,
                agreeing_tokens: common_past(&tokens[..next], tokens),
            };
            if best.is_none_or(|best| place.agreeing_tokens > best.agreeing_tokens) {
                best = Some(place);
            }
            next = self.earlier[next - NGRAM] as usize;
            if next == 0 || place.agreeing_tokens == AGREEMENT_MAX {
                break;
            }
        }
        best
    }
}

fn ngram_before(tokens: &[TokenId], end: usize) -> [TokenId; NGRAM] {
    tokens[end - NGRAM..end]
        .try_into()
        .expect("bug: a slice of another length")
}

/// How many last tokens are the same, up to `AGREEMENT_MAX`.
fn common_past(a: &[TokenId], b: &[TokenId]) -> usize {
    let pairs = a.iter().rev().zip(b.iter().rev());
    pairs
        .take(AGREEMENT_MAX)
        .take_while(|(a, b)| a == b)
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(tokens: &[TokenId]) -> Option<(usize, usize)> {
        let mut index = NgramIndex::default();
        index.update(tokens);
        let place = index.find(tokens)?;
        Some((place.position, place.agreeing_tokens))
    }

    #[test]
    fn the_longest_past_wins_and_then_the_latest_place() {
        assert_eq!(find(&[1, 2, 3, 4, 1, 2]), Some((2, 2)));
        assert_eq!(find(&[1, 2, 3, 1, 2, 4, 1, 2]), Some((5, 2)));
        assert_eq!(find(&[9, 1, 2, 3, 1, 2, 4, 9, 1, 2]), Some((3, 3)));
        assert_eq!(find(&[1, 1, 1]), Some((2, 2)));
        for tokens in [&[][..], &[1], &[1, 1], &[1, 2, 3]] {
            assert_eq!(find(tokens), None, "{tokens:?}");
        }
    }

    /// By looking at every position.
    fn naive_find(tokens: &[TokenId]) -> Option<Place> {
        (NGRAM..tokens.len())
            .map(|position| Place {
                position,
                agreeing_tokens: common_past(&tokens[..position], tokens),
            })
            .filter(|place| place.agreeing_tokens >= NGRAM)
            .max_by_key(|place| (place.agreeing_tokens, place.position))
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_full_search_finds(
            tokens in prop::collection::vec(0..6u32, 0..60),
            cuts in prop::collection::vec(0..60usize, 0..5),
        ) {
            let mut index = NgramIndex::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tokens.len())).collect();
            cuts.sort_unstable();
            for cut in cuts {
                index.update(&tokens[..cut]);
            }
            index.update(&tokens);
            let places = tokens.windows(NGRAM).filter(|ngram| tokens.ends_with(ngram)).count();
            prop_assume!(places <= PLACES_MAX);
            prop_assert_eq!(index.find(&tokens), naive_find(&tokens));
        }
    }
}
