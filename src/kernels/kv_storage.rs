//! K and V of one layer as f16, for all blocks of the pool.
//!
//! 16 slots form a tile. A tile's keys lie transposed, `[head_dim][16 slots]`, so that the scores of
//! 16 positions are sums of whole vectors; its values lie in columns of 16 elements,
//! `[head_dim / 16][16 slots][16]`, so that 16 elements of the result can stay in registers. Each KV
//! head has its tiles to itself.

use super::Compute;
use super::aligned::Aligned;
use super::isa::for_each_isa;
use super::math::f32_to_f16;
use super::shared::SharedMut;

/// Slots of a tile; blocks are whole tiles.
pub const TILE_TOKENS: usize = 16;
/// Elements of V that lie together.
pub(super) const COLUMN: usize = 16;

/// What the storage of a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Token positions, a multiple of [`TILE_TOKENS`].
    pub num_slots: usize,
}

/// K and V of one layer.
#[derive(Debug)]
pub struct KvStorage {
    shape: KvShape,
    keys: Aligned<u16>,   // (num_kv_heads, tiles, head_dim, 16)
    values: Aligned<u16>, // (num_kv_heads, tiles, columns, 16, 16)
}

impl KvShape {
    /// Elements of K and V that one slot takes, padding included.
    pub fn elements_per_slot(&self) -> usize {
        self.num_kv_heads * (self.head_dim + self.padded_dim())
    }

    /// V is padded to whole columns.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(COLUMN)
    }

    fn key_tile(&self) -> usize {
        self.head_dim * TILE_TOKENS
    }

    fn value_tile(&self) -> usize {
        self.padded_dim() * TILE_TOKENS
    }

    fn num_tiles(&self) -> usize {
        self.num_slots / TILE_TOKENS
    }
}

impl KvStorage {
    /// Zeros, which cost no memory until they are written.
    ///
    /// # Panics
    /// If slots are not whole tiles.
    pub fn new(shape: KvShape) -> Self {
        assert!(
            shape.num_slots.is_multiple_of(TILE_TOKENS),
            "bug: slots are whole tiles"
        );
        let heads_and_tiles = shape.num_kv_heads * shape.num_tiles();
        Self {
            keys: Aligned::zeros(heads_and_tiles * shape.key_tile()),
            values: Aligned::zeros(heads_and_tiles * shape.value_tile()),
            shape,
        }
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Writes K and V of tokens at their slots. `rows` has a row of `width` for each token, in which
    /// K of all heads begins at `column`, followed by V of all heads.
    pub fn write(
        &mut self,
        compute: &Compute,
        slots: &[u32],
        rows: &[f32],
        (width, column): (usize, usize),
    ) {
        let shape = self.shape;
        let (key_len, value_len) = (self.keys.len(), self.values.len());
        let keys = SharedMut::new(&mut self.keys);
        let values = SharedMut::new(&mut self.values);
        let (isa, heads) = (compute.isa(), shape.num_kv_heads);
        // Few tokens are quicker written than shared out.
        let chunk = if slots.len() < 8 { heads } else { 1 };
        compute.pool().for_each(heads, chunk, |some_heads| {
            for head in some_heads {
                let part = |len: usize| head * len / heads..(head + 1) * len / heads;
                // SAFETY: each head is visited once, and heads do not overlap.
                let keys = unsafe { keys.part(part(key_len)) };
                // SAFETY: as above.
                let values = unsafe { values.part(part(value_len)) };
                for (&slot, row) in slots.iter().zip(rows.chunks_exact(width)) {
                    let (tile, lane) = (slot as usize / TILE_TOKENS, slot as usize % TILE_TOKENS);
                    let k = &row[column + head * shape.head_dim..][..shape.head_dim];
                    let v = &row[column + (heads + head) * shape.head_dim..][..shape.head_dim];
                    let key_tile = &mut keys[tile * shape.key_tile()..][..shape.key_tile()];
                    write_key(isa, k, lane, key_tile);
                    let value_tile = &mut values[tile * shape.value_tile()..][..shape.value_tile()];
                    write_value(isa, v, lane, value_tile);
                }
            }
        });
    }

    /// Copies the first `num_tokens` slots of one run of whole tiles to another.
    ///
    /// # Panics
    /// If a run does not begin with a tile, or lies outside.
    pub fn copy(&mut self, from_slot: usize, to_slot: usize, num_tokens: usize) {
        assert!(
            from_slot.is_multiple_of(TILE_TOKENS) && to_slot.is_multiple_of(TILE_TOKENS),
            "bug: a copy inside a tile"
        );
        let shape = self.shape;
        for head in 0..shape.num_kv_heads {
            for start in (0..num_tokens).step_by(TILE_TOKENS) {
                let lanes = TILE_TOKENS.min(num_tokens - start);
                let tile = |slot: usize| head * shape.num_tiles() + (slot + start) / TILE_TOKENS;
                let (from, to) = (tile(from_slot), tile(to_slot));
                // Rows of a key tile hold one element of each slot, those of a column one slot each.
                copy_tile(
                    &mut self.keys,
                    shape.key_tile(),
                    (from, to),
                    (TILE_TOKENS, lanes),
                );
                let column = COLUMN * TILE_TOKENS;
                copy_tile(
                    &mut self.values,
                    shape.value_tile(),
                    (from, to),
                    (column, lanes * COLUMN),
                );
            }
        }
    }

    /// All key tiles of a head. (tiles, head_dim, 16)
    pub(super) fn head_keys(&self, head: usize) -> &[u16] {
        let len = self.shape.num_tiles() * self.shape.key_tile();
        &self.keys[head * len..][..len]
    }

    /// All value tiles of a head. (tiles, columns, 16, 16)
    pub(super) fn head_values(&self, head: usize) -> &[u16] {
        let len = self.shape.num_tiles() * self.shape.value_tile();
        &self.values[head * len..][..len]
    }
}

/// Copies the first `len` of every `stride` elements of a tile.
fn copy_tile(
    data: &mut [u16],
    tile_len: usize,
    (from, to): (usize, usize),
    (stride, len): (usize, usize),
) {
    for offset in (0..tile_len).step_by(stride) {
        let source = from * tile_len + offset;
        data.copy_within(source..source + len, to * tile_len + offset);
    }
}

for_each_isa! {
    fn write_key(k: &[f32], lane: usize, tile: &mut [u16]) {
        for (k, row) in k.chunks(COLUMN).zip(tile.chunks_mut(COLUMN * TILE_TOKENS)) {
            let mut halves = [0; COLUMN];
            for (half, k) in halves.iter_mut().zip(k) {
                *half = f32_to_f16(*k);
            }
            for (half, row) in halves.iter().zip(row.chunks_exact_mut(TILE_TOKENS)) {
                row[lane] = *half;
            }
        }
    }
}

for_each_isa! {
    fn write_value(v: &[f32], lane: usize, tile: &mut [u16]) {
        for (v, column) in v.chunks(COLUMN).zip(tile.chunks_exact_mut(COLUMN * TILE_TOKENS)) {
            for (half, v) in column[lane * COLUMN..][..COLUMN].iter_mut().zip(v) {
                *half = f32_to_f16(*v);
            }
        }
    }
}
