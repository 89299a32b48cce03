//! K and V of one layer, for all blocks of the pool, as f32, 16 bits or codes of 8 bits.
//!
//! 16 slots form a tile. A tile's keys lie transposed, `[head_dim][16 slots]`, so that the scores of
//! 16 positions are sums of whole vectors; its values lie in columns of 16 elements,
//! `[head_dim / 16][16 slots][16]`, so that 16 elements of the result can stay in registers; as bf16
//! `[head_dim / 16][8 pairs of slots][16][2 slots]`, and keys of 16 bits
//! `[head_dim / 2][16 slots][2 dimensions]`, as the instructions take them. Scales of codes lie beside
//! them, `[head_dim / 32][16 slots]`, for keys and values alike, and for keys of 16 bits `[16 slots]`.
//! Each KV head has its tiles to itself.

mod bf16;
mod element;
mod int16;

use super::aligned::Aligned;
use super::shared::SharedMut;
use super::{Compute, Isa};

pub(super) use bf16::Bf16;
pub use element::KvType;
pub(super) use element::{Element, Key, SCALE_GROUP, Stored, Value, scatter};
pub(super) use int16::{CodePair, scale_of, write_query};

/// Slots of a tile; blocks are whole tiles.
pub const TILE_TOKENS: usize = 16;
/// Elements of V that lie together.
pub(super) const COLUMN: usize = 16;

/// What the storage of a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub kv_type: KvType,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Token positions, a multiple of [`TILE_TOKENS`].
    pub num_slots: usize,
}

/// K and V of one layer.
#[derive(Debug)]
pub struct KvStorage {
    shape: KvShape,
    heads: Heads,
}

/// K and V in the type that was chosen, by head. (num_kv_heads)
#[derive(Debug)]
pub(super) enum Heads {
    F32(Vec<Head<f32>>),
    F16(Vec<Head<CodePair, u16>>),
    Bf16(Vec<Head<CodePair, Bf16>>),
    Q8(Vec<Head<i8>>),
}

/// K and V of a head.
#[derive(Debug)]
pub(super) struct Head<K, V = K> {
    pub keys: Tiles<K>,   // (tiles, rows, 16)
    pub values: Tiles<V>, // (tiles, columns, 16, 16)
}

/// K or V of a head.
#[derive(Debug)]
pub(super) struct Tiles<E> {
    elements: Aligned<E>,
    tile_len: usize,
    /// In their bits; empty for types without. (tiles, groups, 16)
    scales: Aligned<u16>,
    tile_scales: usize,
}

/// Does something with the heads, whatever their type.
macro_rules! with_heads {
    ($heads:expr, $name:ident => $body:expr) => {
        match $heads {
            $crate::kernels::kv_storage::Heads::F32($name) => $body,
            $crate::kernels::kv_storage::Heads::F16($name) => $body,
            $crate::kernels::kv_storage::Heads::Bf16($name) => $body,
            $crate::kernels::kv_storage::Heads::Q8($name) => $body,
        }
    };
}
pub(super) use with_heads;

impl KvShape {
    /// Bytes of K and V that one slot takes, padding and scales included.
    pub fn bytes_per_slot(&self) -> usize {
        match self.kv_type {
            KvType::F32 => self.bytes_per_slot_as::<f32, f32>(),
            KvType::F16 => self.bytes_per_slot_as::<CodePair, u16>(),
            KvType::Q8_0 => self.bytes_per_slot_as::<i8, i8>(),
        }
    }

    fn bytes_per_slot_as<K: Key, V: Value>(&self) -> usize {
        let key = K::tile_rows(self.head_dim) * size_of::<K>();
        let value = self.padded_dim() * size_of::<V>();
        let scales = K::num_scales(self.head_dim) + V::num_scales(self.head_dim);
        self.num_kv_heads * (key + value + scales * size_of::<u16>())
    }

    /// V is padded to whole columns.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(COLUMN)
    }
}

impl KvStorage {
    /// Zeros, which cost no memory until they are written.
    ///
    /// # Panics
    /// If slots are not whole tiles.
    pub fn new(isa: Isa, shape: KvShape) -> Self {
        assert!(
            shape.num_slots.is_multiple_of(TILE_TOKENS),
            "bug: slots are whole tiles"
        );
        let heads = match shape.kv_type {
            KvType::F32 => Heads::F32(zeros(&shape)),
            KvType::F16 if isa == Isa::Avx512Bf16 => Heads::Bf16(zeros(&shape)),
            KvType::F16 => Heads::F16(zeros(&shape)),
            KvType::Q8_0 => Heads::Q8(zeros(&shape)),
        };
        Self { shape, heads }
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    pub(super) fn heads(&self) -> &Heads {
        &self.heads
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
        let head_dim = self.shape.head_dim;
        with_heads!(&mut self.heads, heads => {
            write(compute, (heads, head_dim), slots, rows, (width, column))
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
        with_heads!(&mut self.heads, heads => {
            for head in heads {
                for start in (0..num_tokens).step_by(TILE_TOKENS) {
                    let slots = TILE_TOKENS.min(num_tokens - start);
                    let tile = |slot: usize| (slot + start) / TILE_TOKENS;
                    head.copy(tile(from_slot), tile(to_slot), slots);
                }
            }
        });
    }
}

fn zeros<K: Key, V: Value>(shape: &KvShape) -> Vec<Head<K, V>> {
    let (num_tiles, head_dim) = (shape.num_slots / TILE_TOKENS, shape.head_dim);
    let head = |_| Head {
        keys: Tiles::zeros(num_tiles, K::tile_rows(head_dim), K::num_scales(head_dim)),
        values: Tiles::zeros(num_tiles, shape.padded_dim(), V::num_scales(head_dim)),
    };
    (0..shape.num_kv_heads).map(head).collect()
}

fn write<K: Key, V: Value>(
    compute: &Compute,
    (heads, head_dim): (&mut [Head<K, V>], usize),
    slots: &[u32],
    rows: &[f32],
    (width, column): (usize, usize),
) {
    let (isa, num_heads) = (compute.isa(), heads.len());
    let heads = SharedMut::new(heads);
    // Few tokens are quicker written than shared out.
    let chunk = if slots.len() < 8 { num_heads } else { 1 };
    compute.pool().for_each(num_heads, chunk, |some_heads| {
        // SAFETY: each head is visited once.
        let heads = unsafe { heads.part(some_heads.clone()) };
        for (head, index) in heads.iter_mut().zip(some_heads) {
            for (&slot, row) in slots.iter().zip(rows.chunks_exact(width)) {
                let (tile, lane) = (slot as usize / TILE_TOKENS, slot as usize % TILE_TOKENS);
                let k = &row[column + index * head_dim..][..head_dim];
                let (elements, scales) = head.keys.tile_mut(tile);
                K::write_key(isa, k, lane, elements, scales);
                let v = &row[column + (num_heads + index) * head_dim..][..head_dim];
                let (elements, scales) = head.values.tile_mut(tile);
                V::write_value(isa, v, lane, elements, scales);
            }
        }
    });
}

impl<K: Key, V: Value> Head<K, V> {
    /// Copies the first slots of a tile to another.
    fn copy(&mut self, from: usize, to: usize, slots: usize) {
        // Rows of a key tile, and of scales, hold one of each slot; a column has whole slots, or
        // pairs of them, of which the second is then written anew.
        copy_rows(
            &mut self.keys.elements,
            self.keys.tile_len,
            (from, to),
            (TILE_TOKENS, slots),
        );
        let whole = slots.next_multiple_of(V::SLOTS_TOGETHER);
        let column = (COLUMN * TILE_TOKENS, COLUMN * whole);
        copy_rows(
            &mut self.values.elements,
            self.values.tile_len,
            (from, to),
            column,
        );
        let scales = (TILE_TOKENS, slots);
        let (keys, values) = (&mut self.keys, &mut self.values);
        copy_rows(&mut keys.scales, keys.tile_scales, (from, to), scales);
        copy_rows(&mut values.scales, values.tile_scales, (from, to), scales);
    }
}

impl<E: Stored> Tiles<E> {
    fn zeros(num_tiles: usize, row_len: usize, num_scales: usize) -> Self {
        let (tile_len, tile_scales) = (row_len * TILE_TOKENS, num_scales * TILE_TOKENS);
        Self {
            elements: Aligned::zeros(num_tiles * tile_len),
            tile_len,
            scales: Aligned::zeros(num_tiles * tile_scales),
            tile_scales,
        }
    }

    /// The rows of a tile.
    #[inline(always)]
    pub fn tile(&self, tile: u32) -> &[[E; TILE_TOKENS]] {
        let start = tile as usize * self.tile_len;
        self.elements[start..start + self.tile_len].as_chunks().0
    }

    /// Where a tile begins, to be asked for ahead.
    pub fn address(&self, tile: u32) -> *const u8 {
        self.tile(tile).as_ptr().cast()
    }

    /// The scales of a tile's slots, by group.
    #[inline(always)]
    pub fn scales(&self, tile: u32) -> &[[u16; TILE_TOKENS]] {
        let start = tile as usize * self.tile_scales;
        self.scales[start..start + self.tile_scales].as_chunks().0
    }

    fn tile_mut(&mut self, tile: usize) -> (&mut [E], &mut [u16]) {
        (
            &mut self.elements[tile * self.tile_len..][..self.tile_len],
            &mut self.scales[tile * self.tile_scales..][..self.tile_scales],
        )
    }
}

/// Copies the first `len` of every `stride` elements of a tile.
fn copy_rows<T: Copy>(
    data: &mut [T],
    tile_len: usize,
    (from, to): (usize, usize),
    (stride, len): (usize, usize),
) {
    for offset in (0..tile_len).step_by(stride) {
        let source = from * tile_len + offset;
        data.copy_within(source..source + len, to * tile_len + offset);
    }
}
