//! Attention's products in AVX2: 16 positions, or 16 elements of V, are two registers of f32.

use std::arch::x86_64::*;

use crate::kernels::kv_storage::{COLUMN, TILE_TOKENS};

type Pair = [__m256; 2];

/// Products of each of `R` queries with each position of the tiles. (R, positions)
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores<const R: usize>(
    keys: &[u16],
    tiles: &[u32],
    queries: [&[f32]; R],
    scores: &mut [f32],
) {
    let head_dim = queries[0].len();
    let queries = queries.map(|query| &query[..head_dim]);
    let stride = scores.len() / R;
    for (index, &tile) in tiles.iter().enumerate() {
        let keys = &keys[tile as usize * head_dim * TILE_TOKENS..][..head_dim * TILE_TOKENS];
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let keys = &keys.as_chunks().0[..head_dim];
        for (d, keys) in keys.iter().enumerate() {
            // SAFETY: each query has head_dim elements, and d is less.
            unsafe { add_products(&mut sums, load(keys), queries, d) };
        }
        for (row, sums) in sums.iter().enumerate() {
            let scores = &mut scores[row * stride + index * TILE_TOKENS..];
            store(
                scores
                    .first_chunk_mut()
                    .expect("bug: whole tiles of scores"),
                *sums,
            );
        }
    }
}

/// Sums of V over the first `len` positions, with the weights of each of `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_values<const R: usize>(
    values: &[u16],
    tiles: &[u32],
    weights: &[f32],
    len: usize,
    sums: &mut [f32],
) {
    const COLUMN_LEN: usize = COLUMN * TILE_TOKENS;
    let (stride, padded_dim) = (weights.len() / R, sums.len() / R);
    let weights: [&[f32]; R] = std::array::from_fn(|row| &weights[row * stride..][..len]);
    for column in 0..padded_dim / COLUMN {
        let mut column_sums = [[_mm256_setzero_ps(); 2]; R];
        for (index, &tile) in tiles.iter().enumerate() {
            let offset = tile as usize * padded_dim * TILE_TOKENS + column * COLUMN_LEN;
            let values = &values[offset..][..COLUMN_LEN];
            let first = index * TILE_TOKENS;
            let positions = first..len.min(first + TILE_TOKENS);
            for (position, values) in positions.zip(values.as_chunks().0) {
                // SAFETY: each row has len weights, and position is less.
                unsafe { add_products(&mut column_sums, load(values), weights, position) };
            }
        }
        for (row, column_sums) in column_sums.iter().enumerate() {
            let sums = &mut sums[row * padded_dim + column * COLUMN..];
            store(
                sums.first_chunk_mut().expect("bug: whole columns"),
                *column_sums,
            );
        }
    }
}

/// Adds the products of `values` with factor `index` of each row.
///
/// # Safety
/// Each row has more than `index` factors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const R: usize>(
    sums: &mut [Pair; R],
    values: Pair,
    factors: [&[f32]; R],
    index: usize,
) {
    for r in 0..R {
        // SAFETY: as the caller promises.
        let factor = _mm256_broadcast_ss(unsafe { factors[r].get_unchecked(index) });
        for half in 0..2 {
            sums[r][half] = _mm256_fmadd_ps(values[half], factor, sums[r][half]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(halves: &[u16; 16]) -> Pair {
    // SAFETY: 16 halves are there; the loads may be unaligned.
    unsafe {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().add(8).cast())),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(results: &mut [f32; 16], sums: Pair) {
    // SAFETY: 16 f32 are there; the stores may be unaligned.
    unsafe {
        _mm256_storeu_ps(results.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(results.as_mut_ptr().add(8), sums[1]);
    }
}
