//! K and V of one layer, for all blocks of the pool, as f32, 16 bits or codes of 8 bits.
//!
//! 16 slots form a tile. A tile's keys lie transposed, `[head_dim][16 slots]`, so that the scores of
//! 16 positions are sums of whole vectors; its values lie in columns of 16 elements,
//! `[head_dim / 16][16 slots][16]`, so that 16 elements of the result can stay in registers; as bf16
//! `[head_dim / 16][8 pairs of slots][16][2 slots]`, and keys of 16 bits
//! `[head_dim / 2][16 slots][2 dimensions]`, as the instructions take them. Scales of codes lie beside
//! them, `[head_dim / 32][16 slots]`, for keys and values alike, and for keys of 16 bits `[16 slots]`.
//! What the KV heads have of a tile lies side by side.

mod bf16;
mod element;
mod int16;
mod shared;
mod write;

use super::aligned::Aligned;
use super::elementwise::HeadTransform;
use super::shared::SharedMut;
use super::{Compute, Isa};

pub(super) use bf16::Bf16;
pub use element::KvType;
use element::Stored;
pub(super) use element::{Element, Key, SCALE_GROUP, Value, scatter};
pub(super) use int16::{CodePair, scale_of, write_query};
pub(super) use shared::{Head, SharedBoth, Tiles};
pub use write::KvWrites;

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
    kv: Kv,
}

/// K and V in the type that was chosen.
#[derive(Debug)]
pub(super) enum Kv {
    F32(Both<f32>),
    F16(Both<CodePair, u16>),
    Bf16(Both<CodePair, Bf16>),
    Q8(Both<i8>),
}

#[derive(Debug)]
pub(super) struct Both<K, V = K> {
    keys: Heads<K>,   // rows of a tile of a head: (rows, 16)
    values: Heads<V>, // (columns, 16, 16)
}

/// K or V of all heads.
#[derive(Debug)]
struct Heads<E> {
    num_heads: usize,
    elements: Aligned<E>, // (tiles, heads, tile_len)
    tile_len: usize,
    /// In their bits; empty for types without.
    scales: Aligned<u16>, // (tiles, heads, groups, 16)
    tile_scales: usize,
}

/// Does something with K and V, whatever their type.
macro_rules! with_kv {
    ($kv:expr, $name:ident => $body:expr) => {
        match $kv {
            $crate::kernels::kv_storage::Kv::F32($name) => $body,
            $crate::kernels::kv_storage::Kv::F16($name) => $body,
            $crate::kernels::kv_storage::Kv::Bf16($name) => $body,
            $crate::kernels::kv_storage::Kv::Q8($name) => $body,
        }
    };
}
pub(super) use with_kv;

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

    /// # Panics
    /// If heads are those of another model.
    pub(super) fn check(&self, transform: &HeadTransform<'_>) {
        assert_eq!(
            (transform.num_kv_heads, transform.head_dim),
            (self.num_kv_heads, self.head_dim),
            "bug: storage of another model"
        );
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
        let kv = match shape.kv_type {
            KvType::F32 => Kv::F32(Both::zeros(&shape)),
            KvType::F16 if isa == Isa::Avx512Bf16 => Kv::Bf16(Both::zeros(&shape)),
            KvType::F16 => Kv::F16(Both::zeros(&shape)),
            KvType::Q8_0 => Kv::Q8(Both::zeros(&shape)),
        };
        Self { shape, kv }
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    pub(super) fn kv_mut(&mut self) -> &mut Kv {
        &mut self.kv
    }

    /// Transforms Q and K of tokens in place, and writes K and V to their slots. Each token has a row of
    /// [`HeadTransform::width`] in `qkv`.
    ///
    /// # Panics
    /// If sizes do not fit, or a slot lies outside.
    pub fn write(
        &mut self,
        compute: &Compute,
        writes: &KvWrites,
        transform: &HeadTransform<'_>,
        qkv: &mut [f32],
    ) {
        self.shape.check(transform);
        let qkv = SharedMut::new(qkv);
        with_kv!(&mut self.kv, kv => write::write(compute, writes, &kv.share(), (transform, &qkv)));
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
        with_kv!(&mut self.kv, kv => {
            for start in (0..num_tokens).step_by(TILE_TOKENS) {
                let slots = TILE_TOKENS.min(num_tokens - start);
                let tile = |slot: usize| (slot + start) / TILE_TOKENS;
                kv.copy(tile(from_slot), tile(to_slot), slots);
            }
        });
    }
}

impl<K: Key, V: Value> Both<K, V> {
    fn zeros(shape: &KvShape) -> Self {
        let head_dim = shape.head_dim;
        Self {
            keys: Heads::zeros(shape, K::tile_rows(head_dim), K::num_scales(head_dim)),
            values: Heads::zeros(shape, shape.padded_dim(), V::num_scales(head_dim)),
        }
    }

    /// Copies the first slots of a tile to another.
    fn copy(&mut self, from: usize, to: usize, slots: usize) {
        // Rows of a key tile, and of scales, hold one of each slot; a column has whole slots, or
        // pairs of them, of which the second is then written anew.
        let (rows, scales) = ((TILE_TOKENS, slots), (TILE_TOKENS, slots));
        let whole = slots.next_multiple_of(V::SLOTS_TOGETHER);
        let columns = (COLUMN * TILE_TOKENS, COLUMN * whole);
        self.keys.copy((from, to), rows, scales);
        self.values.copy((from, to), columns, scales);
    }
}

impl<E: Stored> Heads<E> {
    fn zeros(shape: &KvShape, row_len: usize, num_scales: usize) -> Self {
        let num_heads = shape.num_kv_heads;
        let num_tiles = shape.num_slots / TILE_TOKENS * num_heads;
        let (tile_len, tile_scales) = (row_len * TILE_TOKENS, num_scales * TILE_TOKENS);
        Self {
            num_heads,
            elements: Aligned::zeros(num_tiles * tile_len),
            tile_len,
            scales: Aligned::zeros(num_tiles * tile_scales),
            tile_scales,
        }
    }

    /// Copies the first `len` of every `stride` elements, and scales, of what all heads have of a tile.
    fn copy(&mut self, tiles: (usize, usize), elements: (usize, usize), scales: (usize, usize)) {
        let (tile_len, tile_scales) = (
            self.num_heads * self.tile_len,
            self.num_heads * self.tile_scales,
        );
        copy_rows(&mut self.elements, tile_len, tiles, elements);
        copy_rows(&mut self.scales, tile_scales, tiles, scales);
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
