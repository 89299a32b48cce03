//! Q, K and V of a step's tokens on their way to attention: heads are normalised and rotated, K and V stored.

use std::ops::Range;

use super::element::{Key, Value};
use super::shared::{SharedBoth, tile_of};
use crate::kernels::Compute;
use crate::kernels::elementwise::HeadTransform;
use crate::kernels::shared::SharedMut;

/// Tokens of a part, but for those that complete a tile. Fewer are quicker written than shared out.
const PART_TOKENS: usize = 8;
/// Tokens whose places are asked for before they are written: in decode each lies in lines of its own, which
/// the last step's other layers have driven out of the caches.
const AHEAD_TOKENS: usize = 2;

/// Where the tokens of a step are written, cut into parts; the same in every layer.
#[derive(Debug, Default)]
pub struct KvWrites {
    slots: Vec<u32>,
    /// Tokens that one thread writes: no tile is in two of them.
    parts: Vec<Range<usize>>,
    /// Each run's tile, to see that there is one run of each.
    tiles: Vec<u32>,
}

impl KvWrites {
    /// Plans to write tokens at their slots.
    ///
    /// # Panics
    /// If tokens of a tile do not follow one another: two threads would write it.
    pub fn set(&mut self, slots: &[u32]) {
        slots.clone_into(&mut self.slots);
        self.parts.clear();
        self.tiles.clear();
        let mut end = 0;
        for run in slots.chunk_by(|a, b| tile_of(*a) == tile_of(*b)) {
            self.tiles.push(tile_of(run[0]) as u32);
            let start = end;
            end += run.len();
            match self.parts.last_mut() {
                Some(part) if part.len() < PART_TOKENS => part.end = end,
                _ => self.parts.push(start..end),
            }
        }
        self.tiles.sort_unstable();
        let is_new = self.tiles.is_sorted_by(|a, b| a < b);
        assert!(is_new, "bug: tokens of a tile lie apart");
    }
}

/// Transforms Q and K of tokens, and stores K and V.
pub(super) fn write<K: Key, V: Value>(
    compute: &Compute,
    writes: &KvWrites,
    both: &SharedBoth<'_, K, V>,
    (transform, qkv): (&HeadTransform<'_>, &SharedMut<'_, f32>),
) {
    let (slots, num_kv_heads) = (&writes.slots, transform.num_kv_heads);
    assert_eq!(
        qkv.len(),
        slots.len() * transform.width(),
        "bug: a row a token"
    );
    let isa = compute.isa();
    let num_items = writes.parts.len() * num_kv_heads;
    let chunk = match slots.len() {
        ..PART_TOKENS => num_items,
        _ => 1,
    };
    compute.pool().for_each(num_items, chunk, |items| {
        for item in items {
            let (tokens, head) = (
                writes.parts[item / num_kv_heads].clone(),
                item % num_kv_heads,
            );
            let ask = |token: usize| {
                let slot = slots[token];
                let is_first = token == tokens.start || tile_of(slot) != tile_of(slots[token - 1]);
                both.prefetch(slot, head, is_first);
            };
            (tokens.start..tokens.end.min(tokens.start + AHEAD_TOKENS)).for_each(ask);
            for token in tokens.clone() {
                if token + AHEAD_TOKENS < tokens.end {
                    ask(token + AHEAD_TOKENS);
                }
                // SAFETY: each token is in one part, each tile too, and each KV head of it visited once, with the
                // query heads that are its own.
                unsafe { both.write(isa, (transform, qkv), (token, slots[token]), head) };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_runs_of_a_tile_and_cover_all_tokens() {
        let mut writes = KvWrites::default();
        let runs = [160..163, 32..48, 48..50, 7..8, 96..112, 112..113];
        let slots: Vec<u32> = runs.into_iter().flatten().collect();
        writes.set(&slots);
        assert_eq!(writes.parts, [0..19, 19..38, 38..39]);
        writes.set(&[]);
        assert!(writes.parts.is_empty());
        let of_decode: Vec<u32> = (0..20).map(|sequence| sequence * 64 + 5).collect();
        writes.set(&of_decode);
        assert_eq!(writes.parts, [0..8, 8..16, 16..20]);
    }

    #[test]
    #[should_panic(expected = "lie apart")]
    fn a_tile_has_one_run() {
        KvWrites::default().set(&[3, 16, 4]);
    }
}
