//! Attention's products in AVX2: 16 positions, or 16 elements of V, are two registers of f32.

use std::arch::x86_64::*;

use super::Scores;
use crate::kernels::kv_storage::{COLUMN, TILE_TOKENS};

type Pair = [__m256; 2];

/// Products of each of `R` queries with each position of the tiles.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores<const R: usize>(
    keys: &[u16],
    tiles: &[u32],
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    let tile_len = queries.len() * TILE_TOKENS;
    for (&tile, scores) in tiles.iter().zip(scores) {
        let keys = &keys[tile as usize * tile_len..][..tile_len];
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for (queries, keys) in queries.iter().zip(keys.as_chunks().0) {
            add_products(&mut sums, load(keys), |r| queries[r]);
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            store(scores, sums);
        }
    }
}

/// Sums of V over the first `len` positions, with the weights of each of `R` rows.
/// (R, padded head_dim)
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_values<const R: usize>(
    values: &[u16],
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    const COLUMN_LEN: usize = COLUMN * TILE_TOKENS;
    let padded_dim = sums.len() / R;
    for column in 0..padded_dim / COLUMN {
        let mut column_sums = [[_mm256_setzero_ps(); 2]; R];
        for (index, (&tile, weights)) in tiles.iter().zip(weights).enumerate() {
            let offset = tile as usize * padded_dim * TILE_TOKENS + column * COLUMN_LEN;
            let values = values[offset..][..COLUMN_LEN].as_chunks::<COLUMN>().0;
            let slots = TILE_TOKENS.min(len - index * TILE_TOKENS);
            for (slot, values) in values.iter().enumerate().take(slots) {
                add_products(&mut column_sums, load(values), |r| weights[r][slot]);
            }
        }
        for (row, column_sums) in column_sums.into_iter().enumerate() {
            let sums = sums[row * padded_dim + column * COLUMN..].first_chunk_mut();
            store(sums.expect("bug: whole columns"), column_sums);
        }
    }
}

/// Adds the products of `values` with a factor of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_products<const R: usize>(sums: &mut [Pair; R], values: Pair, factor: impl Fn(usize) -> f32) {
    for (r, sums) in sums.iter_mut().enumerate() {
        let factor = _mm256_set1_ps(factor(r));
        for (sum, values) in sums.iter_mut().zip(values) {
            *sum = _mm256_fmadd_ps(values, factor, *sum);
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
