//! Attention's products in AVX2: 16 positions, or 16 elements of V, are two registers of f32.

use std::arch::x86_64::*;

use super::Scores;
use super::queries::QueryCodes;
use crate::kernels::kv_storage::{COLUMN, CodePair, Element, SCALE_GROUP, TILE_TOKENS, Tiles};

type Pair = [__m256; 2];

/// Elements that AVX2 turns into f32.
pub(super) trait Load: Element {
    /// # Safety
    /// The machine must have AVX2, FMA and F16C.
    unsafe fn load(elements: &[Self; 16]) -> Pair;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(elements: &[f32; 16]) -> Pair {
        let start = elements.as_ptr();
        // SAFETY: 16 f32 are there; the loads may be unaligned.
        unsafe { [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))] }
    }
}

impl Load for u16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(elements: &[u16; 16]) -> Pair {
        let start = elements.as_ptr();
        // SAFETY: 16 halves are there; the loads may be unaligned.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(start.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(start.add(8).cast())),
            ]
        }
    }
}

impl Load for i8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(elements: &[i8; 16]) -> Pair {
        // SAFETY: 16 bytes are there; the load may be unaligned.
        let codes = unsafe { _mm_loadu_si128(elements.as_ptr().cast()) };
        [codes, _mm_srli_si128::<8>(codes)]
            .map(|codes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)))
    }
}

/// Products of each of `R` queries with each position of the tiles.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores<E: Load, const R: usize>(
    keys: Tiles<'_, E>,
    tiles: &[u32],
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    for (&tile, scores) in tiles.iter().zip(scores) {
        let rows = keys.tile(tile);
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        if E::IS_SCALED {
            let groups = queries.chunks(SCALE_GROUP).zip(rows.chunks(SCALE_GROUP));
            for ((queries, rows), scales) in groups.zip(keys.scales(tile)) {
                let mut products = [[_mm256_setzero_ps(); 2]; R];
                multiply_rows(rows, queries, &mut products);
                // SAFETY: this function's features.
                let scales = unsafe { u16::load(scales) };
                for r in 0..R {
                    for half in 0..2 {
                        let sum = &mut sums[r][half];
                        *sum = _mm256_fmadd_ps(products[r][half], scales[half], *sum);
                    }
                }
            }
        } else {
            multiply_rows(rows, queries, &mut sums);
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            store(scores, sums);
        }
    }
}

/// Adds the products of queries with the elements in rows of a tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_rows<E: Load, const R: usize>(
    rows: &[[E; TILE_TOKENS]],
    queries: &[[f32; R]],
    sums: &mut [Pair; R],
) {
    for (queries, keys) in queries.iter().zip(rows) {
        // SAFETY: this function's features.
        let keys = unsafe { E::load(keys) };
        add_products(sums, keys, |r| queries[r]);
    }
}

/// As [`scores`], of codes: their sums are whole numbers, without rounding.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores_of_codes<const R: usize>(
    keys: Tiles<'_, CodePair>,
    tiles: &[u32],
    (queries, query_scales): QueryCodes<'_, R>,
    scores: &mut [Scores<R>],
) {
    for (&tile, scores) in tiles.iter().zip(scores) {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for (queries, keys) in queries.iter().zip(keys.tile(tile)) {
            let start = keys.as_ptr();
            // SAFETY: 16 pairs are there; the loads may be unaligned.
            let keys = [0, 8].map(|at| unsafe { _mm256_loadu_si256(start.add(at).cast()) });
            for (query, sums) in queries.iter().zip(&mut sums) {
                let query = _mm256_set1_epi32(query.bits());
                for half in 0..2 {
                    let products = _mm256_madd_epi16(keys[half], query);
                    sums[half] = _mm256_add_epi32(sums[half], products);
                }
            }
        }
        let start = keys.scales(tile)[0].as_ptr();
        let key_scales = [0, 8].map(|at| {
            // SAFETY: 16 scales are there; the loads may be unaligned.
            let upper = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(start.add(at).cast()) });
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))
        });
        for ((scores, sums), query_scale) in scores.iter_mut().zip(sums).zip(query_scales) {
            let query_scale = _mm256_set1_ps(*query_scale);
            let of_half = |half: usize| {
                let sums = _mm256_cvtepi32_ps(sums[half]);
                _mm256_mul_ps(_mm256_mul_ps(sums, key_scales[half]), query_scale)
            };
            store(scores, [of_half(0), of_half(1)]);
        }
    }
}

/// Adds V of the first `len` positions, with the weights of each of `R` rows, to the sums.
/// (R, padded head_dim)
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_values<E: Load, const R: usize>(
    values: Tiles<'_, E>,
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    let padded_dim = sums.len() / R;
    for column in 0..padded_dim / COLUMN {
        let mut column_sums = [[_mm256_setzero_ps(); 2]; R];
        for (row, column_sums) in column_sums.iter_mut().enumerate() {
            let sums = sums[row * padded_dim + column * COLUMN..].first_chunk();
            // SAFETY: this function's features.
            *column_sums = unsafe { f32::load(sums.expect("bug: whole columns")) };
        }
        for (index, (&tile, weights)) in tiles.iter().zip(weights).enumerate() {
            let values_of_slots = &values.tile(tile)[column * TILE_TOKENS..];
            let slots = TILE_TOKENS.min(len - index * TILE_TOKENS);
            let mut scaled;
            let mut weights = weights;
            if E::IS_SCALED {
                scaled = *weights;
                let scales = &values.scales(tile)[column * COLUMN / SCALE_GROUP];
                // SAFETY: this function's features.
                let scales = unsafe { u16::load(scales) };
                for weights in &mut scaled {
                    // SAFETY: as above.
                    let [low, high] = unsafe { f32::load(weights) };
                    let scaled = [
                        _mm256_mul_ps(low, scales[0]),
                        _mm256_mul_ps(high, scales[1]),
                    ];
                    store(weights, scaled);
                }
                weights = &scaled;
            }
            for (slot, values) in values_of_slots.iter().enumerate().take(slots) {
                // SAFETY: as above.
                let values = unsafe { E::load(values) };
                add_products(&mut column_sums, values, |r| weights[r][slot]);
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
fn store(results: &mut [f32; 16], sums: Pair) {
    // SAFETY: 16 f32 are there; the stores may be unaligned.
    unsafe {
        _mm256_storeu_ps(results.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(results.as_mut_ptr().add(8), sums[1]);
    }
}
