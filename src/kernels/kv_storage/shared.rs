//! K and V of a layer while threads write some tiles of them and read others.

use std::ops::Range;

use super::element::{Key, Stored, Value};
use super::{Both, COLUMN, Heads, TILE_TOKENS};
use crate::kernels::Isa;
use crate::kernels::elementwise::HeadTransform;
use crate::kernels::prefetch::CACHE_LINE;
use crate::kernels::shared::SharedMut;

/// K and V of all heads.
pub(in crate::kernels) struct SharedBoth<'a, K, V> {
    keys: SharedHeads<'a, K>,
    values: SharedHeads<'a, V>,
}

struct SharedHeads<'a, E> {
    num_heads: usize,
    elements: SharedMut<'a, E>, // (tiles, heads, tile_len)
    tile_len: usize,
    scales: SharedMut<'a, u16>, // (tiles, heads, tile_scales)
    tile_scales: usize,
}

/// K and V of one head, to be read.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Head<'a, K, V> {
    pub keys: Tiles<'a, K>,
    pub values: Tiles<'a, V>,
}

/// K or V of one head. Who has it has promised that nobody writes the tiles that are read.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Tiles<'a, E> {
    heads: &'a SharedHeads<'a, E>,
    head: usize,
}

impl<K: Key, V: Value> Both<K, V> {
    pub(in crate::kernels) fn share(&mut self) -> SharedBoth<'_, K, V> {
        SharedBoth {
            keys: SharedHeads::new(&mut self.keys),
            values: SharedHeads::new(&mut self.values),
        }
    }
}

impl<K: Key, V: Value> SharedBoth<'_, K, V> {
    /// # Safety
    /// While the result is in use, nobody may write tiles of this head that are read from it.
    pub unsafe fn head(&self, head: usize) -> Head<'_, K, V> {
        Head {
            keys: self.keys.tiles(head),
            values: self.values.tiles(head),
        }
    }

    /// Asks for a head's places of a slot, all over the tile for K, which lies transposed there.
    pub fn prefetch(&self, slot: u32, head: usize, is_first_of_tile: bool) {
        if is_first_of_tile {
            self.keys.prefetch_tile(tile_of(slot), head);
        }
        self.values.prefetch_slot(slot, head);
    }

    /// Asks for what a token's row has of a head.
    pub fn prefetch_row(
        &self,
        (transform, qkv): (&HeadTransform<'_>, &SharedMut<'_, f32>),
        token: usize,
        head: usize,
    ) {
        for part in parts_of(transform, token, head) {
            for at in part.step_by(CACHE_LINE / size_of::<f32>()) {
                qkv.prefetch(at);
            }
        }
    }

    /// Transforms, in place, a token's key of a head and the queries that go with it, and stores its K and V in
    /// `slot`. `qkv` has rows as [`HeadTransform::width`] says.
    ///
    /// # Safety
    /// Nobody else may use the slot's tile of this head meanwhile, nor these parts of the token's row.
    pub unsafe fn write(
        &self,
        isa: Isa,
        (transform, qkv): (&HeadTransform<'_>, &SharedMut<'_, f32>),
        (token, slot): (usize, u32),
        head: usize,
    ) {
        // SAFETY: as the caller promises.
        let [queries, k, v] =
            parts_of(transform, token, head).map(|part| unsafe { qkv.part(part) });
        transform.apply_to_queries(isa, token, queries);
        transform.apply_to_key(isa, token, k);
        let (tile, lane) = (tile_of(slot), slot as usize % TILE_TOKENS);
        // SAFETY: as the caller promises.
        let (key, value) = unsafe {
            (
                self.keys.tile_mut(tile, head),
                self.values.tile_mut(tile, head),
            )
        };
        K::write_key(isa, k, lane, key.0, key.1);
        V::write_value(isa, v, lane, value.0, value.1);
    }
}

/// Where a token has a KV head's queries, its K and its V.
fn parts_of(transform: &HeadTransform<'_>, token: usize, head: usize) -> [Range<usize>; 3] {
    let HeadTransform {
        num_heads,
        num_kv_heads,
        head_dim,
        ..
    } = *transform;
    let queries = num_heads / num_kv_heads;
    [
        (head * queries, queries),
        (num_heads + head, 1),
        (num_heads + num_kv_heads + head, 1),
    ]
    .map(|(first, heads)| {
        let start = token * transform.width() + first * head_dim;
        start..start + heads * head_dim
    })
}

pub(super) fn tile_of(slot: u32) -> usize {
    slot as usize / TILE_TOKENS
}

impl<'a, E: Stored> SharedHeads<'a, E> {
    fn new(heads: &'a mut Heads<E>) -> Self {
        Self {
            num_heads: heads.num_heads,
            elements: SharedMut::new(&mut heads.elements),
            tile_len: heads.tile_len,
            scales: SharedMut::new(&mut heads.scales),
            tile_scales: heads.tile_scales,
        }
    }

    fn tiles(&self, head: usize) -> Tiles<'_, E> {
        Tiles { heads: self, head }
    }

    #[inline(always)]
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

    fn prefetch_tile(&self, tile: usize, head: usize) {
        let index = self.index(tile, head);
        for line in 0..(self.tile_len * size_of::<E>()).div_ceil(CACHE_LINE) {
            self.elements
                .prefetch(index * self.tile_len + line * (CACHE_LINE / size_of::<E>()));
        }
        self.scales.prefetch(index * self.tile_scales);
    }

    fn prefetch_slot(&self, slot: u32, head: usize) {
        let first = self.index(tile_of(slot), head) * self.tile_len;
        let place = slot as usize % TILE_TOKENS * COLUMN;
        for column in (0..self.tile_len).step_by(COLUMN * TILE_TOKENS) {
            self.elements.prefetch(first + column + place);
        }
    }
}

impl<'a, E: Stored> Tiles<'a, E> {
    /// The rows of a tile.
    #[inline(always)]
    pub fn tile(self, tile: u32) -> &'a [[E; TILE_TOKENS]] {
        let (start, len) = self.elements_of(tile);
        // SAFETY: nobody writes it, as promised.
        let elements = unsafe { self.heads.elements.read(start..start + len) };
        elements.as_chunks().0
    }

    /// Where a tile begins, to be asked for ahead.
    pub fn address(self, tile: u32) -> *const u8 {
        self.heads.elements.address(self.elements_of(tile).0)
    }

    /// The scales of a tile's slots, by group.
    #[inline(always)]
    pub fn scales(self, tile: u32) -> &'a [[u16; TILE_TOKENS]] {
        let len = self.heads.tile_scales;
        let start = self.heads.index(tile as usize, self.head) * len;
        // SAFETY: as above.
        let scales = unsafe { self.heads.scales.read(start..start + len) };
        scales.as_chunks().0
    }

    /// The first element and their number.
    #[inline(always)]
    fn elements_of(self, tile: u32) -> (usize, usize) {
        let len = self.heads.tile_len;
        (self.heads.index(tile as usize, self.head) * len, len)
    }
}
