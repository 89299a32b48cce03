//! Attention's products in AVX-512: 16 positions, or 16 elements of V, are one register of f32.
//!
//! Each result is one chain of multiply-adds, so a unit with few rows takes several tiles or columns
//! at once: the multiplier needs that many chains to stay busy. All rows of a unit share what is read.

use std::arch::x86_64::*;

use super::Scores;
use crate::kernels::kv_storage::{COLUMN, TILE_TOKENS};

/// Products of each of `R` queries with each position of the tiles.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn scores<const R: usize>(
    keys: &[u16],
    tiles: &[u32],
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    let pairs = match R {
        ..=6 => tiles.len() / 2,
        _ => 0,
    };
    let (pairs_of_tiles, _) = tiles[..2 * pairs].as_chunks::<2>();
    let (pairs_of_scores, _) = scores[..2 * pairs].as_chunks_mut::<2>();
    for (tiles, scores) in pairs_of_tiles.iter().zip(pairs_of_scores) {
        multiply_tiles(keys, tiles, queries, scores);
    }
    for (tile, scores) in tiles.iter().zip(scores).skip(2 * pairs) {
        multiply_tiles(keys, &[*tile], queries, std::array::from_mut(scores));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn multiply_tiles<const R: usize, const T: usize>(
    keys: &[u16],
    tiles: &[u32; T],
    queries: &[[f32; R]],
    scores: &mut [Scores<R>; T],
) {
    let tile_len = queries.len() * TILE_TOKENS;
    let tiles = tiles.map(|tile| &keys[tile as usize * tile_len..][..tile_len]);
    let tiles: [&[[u16; TILE_TOKENS]]; T] = tiles.map(|keys| &keys.as_chunks().0[..queries.len()]);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for (d, queries) in queries.iter().enumerate() {
        let keys: [__m512; T] = std::array::from_fn(|t| load(&tiles[t][d]));
        for r in 0..R {
            let query = _mm512_set1_ps(queries[r]);
            for t in 0..T {
                sums[r][t] = _mm512_fmadd_ps(keys[t], query, sums[r][t]);
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            store(&mut scores[t][r], sums[r][t]);
        }
    }
}

/// Sums of V over the first `len` positions, with the weights of each of `R` rows.
/// (R, padded head_dim)
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn sum_values<const R: usize>(
    values: &[u16],
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    let columns = sums.len() / R / COLUMN;
    let mut column = 0;
    while column < columns {
        let rest = columns - column;
        column += match R {
            ..=3 if rest >= 4 => sum_columns::<R, 4>(values, tiles, weights, len, column, sums),
            ..=6 if rest >= 2 => sum_columns::<R, 2>(values, tiles, weights, len, column, sums),
            _ => sum_columns::<R, 1>(values, tiles, weights, len, column, sums),
        };
    }
}

/// Sums `C` columns from `column` on, and says how many that were.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_columns<const R: usize, const C: usize>(
    values: &[u16],
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    column: usize,
    sums: &mut [f32],
) -> usize {
    const COLUMN_LEN: usize = COLUMN * TILE_TOKENS;
    let padded_dim = sums.len() / R;
    let mut column_sums = [[_mm512_setzero_ps(); C]; R];
    for (index, (&tile, weights)) in tiles.iter().zip(weights).enumerate() {
        let offset = tile as usize * padded_dim * TILE_TOKENS + column * COLUMN_LEN;
        let values = values[offset..][..C * COLUMN_LEN].as_chunks::<COLUMN>().0;
        let values: &[[[u16; COLUMN]; TILE_TOKENS]] = values.as_chunks().0;
        let values: &[[[u16; COLUMN]; TILE_TOKENS]; C] =
            values.first_chunk().expect("bug: C columns");
        for slot in 0..TILE_TOKENS.min(len - index * TILE_TOKENS) {
            let values: [__m512; C] = std::array::from_fn(|c| load(&values[c][slot]));
            for r in 0..R {
                let weight = _mm512_set1_ps(weights[r][slot]);
                for c in 0..C {
                    column_sums[r][c] = _mm512_fmadd_ps(values[c], weight, column_sums[r][c]);
                }
            }
        }
    }
    for (row, column_sums) in column_sums.iter().enumerate() {
        for (c, column_sums) in column_sums.iter().enumerate() {
            let at = row * padded_dim + (column + c) * COLUMN;
            let sums = sums[at..].first_chunk_mut();
            store(sums.expect("bug: whole columns"), *column_sums);
        }
    }
    C
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn load(halves: &[u16; 16]) -> __m512 {
    // SAFETY: 16 halves are there; the load may be unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn store(results: &mut [f32; 16], sums: __m512) {
    // SAFETY: 16 f32 are there; the store may be unaligned.
    unsafe { _mm512_storeu_ps(results.as_mut_ptr(), sums) }
}
