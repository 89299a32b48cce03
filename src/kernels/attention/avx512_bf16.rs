//! The weighted sum of V in AVX-512 BF16: `vdpbf16ps` multiplies what two positions have with their
//! weights and adds both, so that a sum takes half as many instructions as in f32.

use std::arch::x86_64::*;

use super::{Reads, Scores};
use crate::kernels::kv_storage::{Bf16, COLUMN, TILE_TOKENS, Tiles};
use crate::kernels::prefetch::prefetch;

/// Turns weights into pairs of bf16, in the first half of their places: what [`sum_values`] takes.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn pair_weights(weights: &mut [[f32; TILE_TOKENS]]) {
    for weights in weights {
        let start = weights.as_mut_ptr();
        // SAFETY: 16 f32 are there; loads and stores may be unaligned.
        unsafe {
            let pairs = _mm512_cvtneps_pbh(_mm512_loadu_ps(start));
            _mm256_storeu_si256(
                start.cast(),
                std::mem::transmute::<__m256bh, __m256i>(pairs),
            );
        }
    }
}

/// Adds V of the first `len` positions, with the weights of each of `R` rows in pairs, to the sums.
/// (R, padded head_dim)
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn sum_values<const R: usize>(
    values: Tiles<'_, Bf16>,
    tiles: Reads<'_>,
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    let columns = sums.len() / R / COLUMN;
    let mut column = 0;
    // As many chains of sums as keep the multiplier busy, and fit the registers.
    while column < columns {
        let rest = columns - column;
        column += match R {
            ..=6 if rest >= 4 => sum_columns::<R, 4>(values, tiles, weights, len, column, sums),
            _ if rest >= 2 => sum_columns::<R, 2>(values, tiles, weights, len, column, sums),
            _ => sum_columns::<R, 1>(values, tiles, weights, len, column, sums),
        };
    }
}

/// A column of a tile of V: pairs of slots, of which elements alternate.
type Column = [[[Bf16; COLUMN]; 2]; TILE_TOKENS / 2];

/// Adds to the sums of `C` columns from `column` on, and says how many that were.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn sum_columns<const R: usize, const C: usize>(
    values: Tiles<'_, Bf16>,
    tiles: Reads<'_>,
    weights: &[Scores<R>],
    len: usize,
    column: usize,
    sums: &mut [f32],
) -> usize {
    let padded_dim = sums.len() / R;
    let mut column_sums = [[_mm512_setzero_ps(); C]; R];
    for (row, column_sums) in column_sums.iter_mut().enumerate() {
        for (c, column_sums) in column_sums.iter_mut().enumerate() {
            let at = row * padded_dim + (column + c) * COLUMN;
            let sums = &sums[at..at + COLUMN];
            // SAFETY: 16 f32 are there; the load may be unaligned.
            *column_sums = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
        }
    }
    let tiles = tiles.0.iter().zip(tiles.1);
    for (index, ((&tile, &ahead), weights)) in tiles.zip(weights).enumerate() {
        let columns = columns_of::<C>(values, tile, column);
        let ahead = ahead.cast::<Column>().wrapping_add(column);
        let slots = TILE_TOKENS.min(len - index * TILE_TOKENS);
        // The second slot of the last pair may be nobody's yet; it is zeros then.
        for pair in 0..slots.div_ceil(2) {
            for c in 0..C {
                let pairs = ahead.wrapping_add(c).cast::<[[Bf16; COLUMN]; 2]>();
                prefetch(pairs.wrapping_add(pair));
            }
            add_pair(columns, pair, weights, &mut column_sums);
        }
    }
    for (row, column_sums) in column_sums.iter().enumerate() {
        for (c, column_sums) in column_sums.iter().enumerate() {
            let at = row * padded_dim + (column + c) * COLUMN;
            let sums = &mut sums[at..at + COLUMN];
            // SAFETY: 16 f32 are there; the store may be unaligned.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *column_sums) };
        }
    }
    C
}

#[inline(always)]
fn columns_of<const C: usize>(values: Tiles<'_, Bf16>, tile: u32, column: usize) -> &[Column; C] {
    let pairs = values.tile(tile).as_chunks::<2>().0;
    let columns = pairs.as_chunks::<{ TILE_TOKENS / 2 }>().0;
    columns[column..].first_chunk().expect("bug: C columns")
}

/// Adds the products of a pair of slots, in `C` columns, with the weights of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn add_pair<const R: usize, const C: usize>(
    columns: &[Column; C],
    pair: usize,
    weights: &Scores<R>,
    sums: &mut [[__m512; C]; R],
) {
    let mut values = [_mm512_setzero_si512(); C];
    for c in 0..C {
        let elements = columns[c][pair].as_ptr();
        // SAFETY: 32 elements are there; the load may be unaligned.
        values[c] = unsafe { _mm512_loadu_si512(elements.cast()) };
    }
    for r in 0..R {
        let weights = _mm512_set1_epi32(weights[r][pair].to_bits().cast_signed());
        for c in 0..C {
            sums[r][c] = _mm512_dpbf16_ps(sums[r][c], bf16(values[c]), bf16(weights));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bits are values of both.
    unsafe { std::mem::transmute(bits) }
}
