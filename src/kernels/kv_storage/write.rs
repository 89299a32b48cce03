//! Q, K and V of a step's tokens on their way to attention: heads are normalised and rotated, K and V stored.

use std::ops::Range;

use super::element::{Key, Stored, Value};
use super::{COLUMN, Heads, TILE_TOKENS};
use crate::kernels::Compute;
use crate::kernels::elementwise::HeadTransform;
use crate::kernels::prefetch::CACHE_LINE;
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

fn tile_of(slot: u32) -> usize {
    slot as usize / TILE_TOKENS
}

/// What threads write to together.
struct Shared<'a, E> {
    elements: SharedMut<'a, E>,
    tile_len: usize,
    scales: SharedMut<'a, u16>,
    tile_scales: usize,
    num_heads: usize,
}

/// Transforms Q and K of tokens, and stores K and V.
pub(super) fn write<K: Key, V: Value>(
    compute: &Compute,
    writes: &KvWrites,
    (keys, values): (&mut Heads<K>, &mut Heads<V>),
    (transform, qkv): (&HeadTransform<'_>, &mut [f32]),
) {
    let HeadTransform {
        num_heads,
        num_kv_heads,
        head_dim,
        ..
    } = *transform;
    let width = transform.width();
    assert_eq!(qkv.len(), writes.slots.len() * width, "bug: a row a token");
    assert_eq!(
        keys.num_heads, num_kv_heads,
        "bug: storage of another model"
    );
    let isa = compute.isa();
    let queries_len = num_heads / num_kv_heads * head_dim;
    let (keys, values, qkv) = (Shared::new(keys), Shared::new(values), SharedMut::new(qkv));
    let num_items = writes.parts.len() * num_kv_heads;
    let chunk = match writes.slots.len() {
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
                let slot = writes.slots[token];
                let is_new =
                    token == tokens.start || tile_of(slot) != tile_of(writes.slots[token - 1]);
                if is_new {
                    keys.prefetch_tile(tile_of(slot), head);
                }
                values.prefetch_slot(slot, head);
            };
            (tokens.start..tokens.end.min(tokens.start + AHEAD_TOKENS)).for_each(ask);
            for token in tokens.clone() {
                if token + AHEAD_TOKENS < tokens.end {
                    ask(token + AHEAD_TOKENS);
                }
                let of_row = |first: usize, len: usize| {
                    let start = token * width + first;
                    // SAFETY: each token is in one part, and each KV head of it visited once, with the heads
                    // that are its own.
                    unsafe { qkv.part(start..start + len) }
                };
                transform.apply_to_queries(isa, token, of_row(head * queries_len, queries_len));
                let k = of_row((num_heads + head) * head_dim, head_dim);
                transform.apply_to_key(isa, token, k);
                let v = of_row((num_heads + num_kv_heads + head) * head_dim, head_dim);
                let (tile, lane) = (
                    tile_of(writes.slots[token]),
                    writes.slots[token] as usize % TILE_TOKENS,
                );
                // SAFETY: each tile is in one part, and each head of it visited once.
                let (key, value) =
                    unsafe { (keys.tile_mut(tile, head), values.tile_mut(tile, head)) };
                K::write_key(isa, k, lane, key.0, key.1);
                V::write_value(isa, v, lane, value.0, value.1);
            }
        }
    });
}

impl<'a, E: Stored> Shared<'a, E> {
    fn new(heads: &'a mut Heads<E>) -> Self {
        Self {
            elements: SharedMut::new(&mut heads.elements),
            tile_len: heads.tile_len,
            scales: SharedMut::new(&mut heads.scales),
            tile_scales: heads.tile_scales,
            num_heads: heads.num_heads,
        }
    }

    fn index(&self, tile: usize, head: usize) -> usize {
        tile * self.num_heads + head
    }

    /// A tile's elements and scales.
    ///
    /// # Safety
    /// While they are in use, nobody else may take the same.
    #[allow(clippy::mut_from_ref)] // As of SharedMut.
    unsafe fn tile_mut(&self, tile: usize, head: usize) -> (&mut [E], &mut [u16]) {
        let index = self.index(tile, head);
        let part = |len: usize| index * len..(index + 1) * len;
        // SAFETY: as the caller promises.
        unsafe {
            (
                self.elements.part(part(self.tile_len)),
                self.scales.part(part(self.tile_scales)),
            )
        }
    }

    /// Asks for a tile, which a lane of it is written all over.
    fn prefetch_tile(&self, tile: usize, head: usize) {
        let index = self.index(tile, head);
        for line in 0..(self.tile_len * size_of::<E>()).div_ceil(CACHE_LINE) {
            self.elements
                .prefetch(index * self.tile_len + line * (CACHE_LINE / size_of::<E>()));
        }
        self.scales.prefetch(index * self.tile_scales);
    }

    /// Asks for what one slot has in the columns of a tile.
    fn prefetch_slot(&self, slot: u32, head: usize) {
        let first = self.index(tile_of(slot), head) * self.tile_len;
        let place = slot as usize % TILE_TOKENS * COLUMN;
        for column in (0..self.tile_len).step_by(COLUMN * TILE_TOKENS) {
            self.elements.prefetch(first + column + place);
        }
    }
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
