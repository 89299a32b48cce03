//! Attention's products in AVX-512: 16 positions, or 16 elements of V, are one register of f32.
//!
//! Each result is one chain of multiply-adds, so a unit with few rows takes several tiles or columns
//! at once: the multiplier needs that many chains to stay busy. All rows of a unit share what is read.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::queries::QueryCodes;
use super::{Reads, Scores, UNIT_ROWS};
use crate::kernels::kv_storage::{COLUMN, CodePair, Element, SCALE_GROUP, TILE_TOKENS, Tiles};
use crate::kernels::math::avx512::{exp2, store};
use crate::kernels::prefetch::prefetch;

/// Elements that AVX-512 turns into f32.
pub(super) trait Load: Element {
    /// # Safety
    /// The machine must have AVX-512.
    unsafe fn load(elements: &[Self; 16]) -> __m512;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(elements: &[f32; 16]) -> __m512 {
        // SAFETY: 16 f32 are there; the load may be unaligned.
        unsafe { _mm512_loadu_ps(elements.as_ptr()) }
    }
}

impl Load for u16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(elements: &[u16; 16]) -> __m512 {
        // SAFETY: 16 halves are there; the load may be unaligned.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(elements.as_ptr().cast()) })
    }
}

impl Load for i8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(elements: &[i8; 16]) -> __m512 {
        // SAFETY: 16 bytes are there; the load may be unaligned.
        let codes = unsafe { _mm_loadu_si128(elements.as_ptr().cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    }
}

/// Products of each of `R` queries with each position of the tiles.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn scores<E: Load, const R: usize>(
    keys: Tiles<'_, E>,
    tiles: Reads<'_>,
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    let (pairs, rest) = in_pairs(tiles, scores);
    for (tiles, scores) in pairs {
        multiply_tiles(keys, tiles, queries, scores);
    }
    for (tile, scores) in rest {
        multiply_tiles(keys, tile, queries, scores);
    }
}

/// As [`scores`], of codes: their sums are whole numbers, without rounding.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scores_of_codes<const R: usize>(
    keys: Tiles<'_, CodePair>,
    tiles: Reads<'_>,
    queries: QueryCodes<'_, R>,
    scores: &mut [Scores<R>],
) {
    let (pairs, rest) = in_pairs(tiles, scores);
    for (tiles, scores) in pairs {
        multiply_codes(keys, tiles, queries, scores);
    }
    for (tile, scores) in rest {
        multiply_codes(keys, tile, queries, scores);
    }
}

/// `T` tiles, and for each what is asked for while it is read.
type SomeTiles<'a, const T: usize> = (&'a [u32; T], &'a [*const u8; T]);
/// Tiles and the places of their scores.
type Work<'a, const R: usize, const T: usize> = (SomeTiles<'a, T>, &'a mut [Scores<R>; T]);

/// All tiles: two at a time where there are few rows, then those that are left.
#[inline(always)]
fn in_pairs<'a, const R: usize>(
    (tiles, ahead): Reads<'a>,
    scores: &'a mut [Scores<R>],
) -> (
    impl Iterator<Item = Work<'a, R, 2>>,
    impl Iterator<Item = Work<'a, R, 1>>,
) {
    let num_paired = match R {
        ..=6 => tiles.len() / 2 * 2,
        _ => 0,
    };
    let (paired, tiles) = tiles.split_at(num_paired);
    let (paired_ahead, ahead) = ahead.split_at(num_paired);
    let (paired_scores, scores) = scores.split_at_mut(num_paired);
    let pairs = paired.as_chunks().0.iter().zip(paired_ahead.as_chunks().0);
    let rest = tiles.as_chunks().0.iter().zip(ahead.as_chunks().0);
    (
        pairs.zip(paired_scores.as_chunks_mut().0),
        rest.zip(scores.as_chunks_mut().0),
    )
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_codes<const R: usize, const T: usize>(
    keys: Tiles<'_, CodePair>,
    (tiles, ahead): SomeTiles<'_, T>,
    (queries, query_scales): QueryCodes<'_, R>,
    scores: &mut [Scores<R>; T],
) {
    let rows = tiles.map(|tile| &keys.tile(tile)[..queries.len()]);
    let mut sums = [[_mm512_setzero_si512(); T]; R];
    for (index, queries) in queries.iter().enumerate() {
        prefetch_rows::<CodePair, T>(*ahead, index);
        let keys: [__m512i; T] = std::array::from_fn(|t| {
            // SAFETY: 16 pairs are there; the load may be unaligned.
            unsafe { _mm512_loadu_si512(rows[t][index].as_ptr().cast()) }
        });
        for r in 0..R {
            let query = _mm512_set1_epi32(queries[r].bits());
            for t in 0..T {
                sums[r][t] = _mm512_dpwssd_epi32(sums[r][t], keys[t], query);
            }
        }
    }
    for t in 0..T {
        let key_scales = keys.scales(tiles[t])[0].as_ptr();
        // SAFETY: 16 scales are there; the load may be unaligned.
        let upper = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(key_scales.cast()) });
        let key_scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper));
        for r in 0..R {
            let score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][t]), key_scales);
            let score = _mm512_mul_ps(score, _mm512_set1_ps(query_scales[r]));
            store(&mut scores[t][r], score);
        }
    }
}

/// Asks for row `index` of tiles of `E`.
#[inline(always)]
fn prefetch_rows<E, const T: usize>(tiles: [*const u8; T], index: usize) {
    for tile in tiles {
        prefetch(tile.wrapping_add(index * size_of::<[E; TILE_TOKENS]>()));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn multiply_tiles<E: Load, const R: usize, const T: usize>(
    keys: Tiles<'_, E>,
    (tiles, ahead): SomeTiles<'_, T>,
    queries: &[[f32; R]],
    scores: &mut [Scores<R>; T],
) {
    let rows = tiles.map(|tile| &keys.tile(tile)[..queries.len()]);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    if E::IS_SCALED {
        for (group, queries) in queries.chunks(SCALE_GROUP).enumerate() {
            let rows = rows.map(|rows| &rows[group * SCALE_GROUP..][..queries.len()]);
            let first = (rows, group * SCALE_GROUP);
            let products = multiply_rows(first, ahead, queries, [[_mm512_setzero_ps(); T]; R]);
            // SAFETY: this function's features.
            let scales = tiles.map(|tile| unsafe { u16::load(&keys.scales(tile)[group]) });
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = _mm512_fmadd_ps(products[r][t], scales[t], sums[r][t]);
                }
            }
        }
    } else {
        sums = multiply_rows((rows, 0), ahead, queries, sums);
    }
    for r in 0..R {
        for t in 0..T {
            store(&mut scores[t][r], sums[r][t]);
        }
    }
}

/// Adds the products of queries with the elements in rows of `T` tiles, of which the first is row
/// `first` of its tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn multiply_rows<E: Load, const R: usize, const T: usize>(
    (rows, first): ([&[[E; TILE_TOKENS]]; T], usize),
    ahead: &[*const u8; T],
    queries: &[[f32; R]],
    mut sums: [[__m512; T]; R],
) -> [[__m512; T]; R] {
    for (d, queries) in queries.iter().enumerate() {
        prefetch_rows::<E, T>(*ahead, first + d);
        // SAFETY: this function's features.
        let keys: [__m512; T] = std::array::from_fn(|t| unsafe { E::load(&rows[t][d]) });
        for r in 0..R {
            let query = _mm512_set1_ps(queries[r]);
            for t in 0..T {
                sums[r][t] = _mm512_fmadd_ps(keys[t], query, sums[r][t]);
            }
        }
    }
    sums
}

/// Turns the scores (tiles, rows) into `e^(scale * (score - the row's largest))`, and adds these to the
/// sums of each row.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn exponentials(
    scores: &mut [[f32; TILE_TOKENS]],
    scale: f32,
    sums: &mut [[f32; TILE_TOKENS]],
) {
    let rows = sums.len();
    let mut largest = [_mm512_set1_ps(f32::NEG_INFINITY); UNIT_ROWS];
    for tiles in scores.chunks_exact(rows) {
        for (largest, tile) in largest.iter_mut().zip(tiles) {
            // SAFETY: this function's features.
            *largest = _mm512_max_ps(unsafe { f32::load(tile) }, *largest);
        }
    }
    let factor = _mm512_set1_ps(scale * LOG2_E);
    for largest in &mut largest {
        *largest = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(*largest)), factor);
    }
    for tiles in scores.chunks_exact_mut(rows) {
        for ((sums, largest), tile) in sums.iter_mut().zip(&largest).zip(tiles) {
            // SAFETY: this function's features.
            let (score, sum) = unsafe { (f32::load(tile), f32::load(sums)) };
            let weight = exp2(_mm512_fmsub_ps(score, factor, *largest));
            store(tile, weight);
            store(sums, _mm512_add_ps(sum, weight));
        }
    }
}

/// Adds V of the first `len` positions, with the weights of each of `R` rows, to the sums.
/// (R, padded head_dim)
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn sum_values<E: Load, const R: usize>(
    values: Tiles<'_, E>,
    tiles: Reads<'_>,
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    let columns = sums.len() / R / COLUMN;
    let mut column = 0;
    while column < columns {
        let rest = columns - column;
        column += match R {
            ..=3 if rest >= 4 => sum_columns::<E, R, 4>(values, tiles, weights, len, column, sums),
            _ if rest >= 2 => sum_columns::<E, R, 2>(values, tiles, weights, len, column, sums),
            _ => sum_columns::<E, R, 1>(values, tiles, weights, len, column, sums),
        };
    }
}

/// `C` columns of a tile of V.
type Columns<E, const C: usize> = [[[E; COLUMN]; TILE_TOKENS]; C];

#[inline(always)]
fn columns_of<E: Load, const C: usize>(
    values: Tiles<'_, E>,
    tile: u32,
    column: usize,
) -> &Columns<E, C> {
    let columns = values.tile(tile).as_chunks::<TILE_TOKENS>().0;
    columns[column..].first_chunk().expect("bug: C columns")
}

/// Adds to the sums of `C` columns from `column` on, and says how many that were.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_columns<E: Load, const R: usize, const C: usize>(
    values: Tiles<'_, E>,
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
            let sums = sums[at..].first_chunk();
            // SAFETY: this function's features.
            *column_sums = unsafe { f32::load(sums.expect("bug: whole columns")) };
        }
    }
    let tiles = tiles.0.iter().zip(tiles.1);
    for (index, ((&tile, &ahead), weights)) in tiles.zip(weights).enumerate() {
        let columns = columns_of(values, tile, column);
        let ahead = std::array::from_fn(|c| {
            ahead.wrapping_add((column + c) * size_of::<[[E; COLUMN]; TILE_TOKENS]>())
        });
        let slots = TILE_TOKENS.min(len - index * TILE_TOKENS);
        if E::IS_SCALED {
            let scales = values.scales(tile);
            // SAFETY: this function's features.
            let scales: [__m512; C] = std::array::from_fn(|c| unsafe {
                u16::load(&scales[(column + c) * COLUMN / SCALE_GROUP])
            });
            let mut scaled = [[[0.0; TILE_TOKENS]; C]; R];
            for r in 0..R {
                // SAFETY: this function's features.
                let weights = unsafe { f32::load(&weights[r]) };
                for c in 0..C {
                    store(&mut scaled[r][c], _mm512_mul_ps(weights, scales[c]));
                }
            }
            add_slots(
                (columns, ahead),
                slots,
                |r, c, slot| scaled[r][c][slot],
                &mut column_sums,
            );
        } else {
            add_slots(
                (columns, ahead),
                slots,
                |r, _, slot| weights[r][slot],
                &mut column_sums,
            );
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

/// Adds the products of a tile's first slots, in `C` columns, with the weight of each row and column.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_slots<E: Load, const R: usize, const C: usize>(
    (columns, ahead): (&Columns<E, C>, [*const u8; C]),
    slots: usize,
    weight: impl Fn(usize, usize, usize) -> f32,
    sums: &mut [[__m512; C]; R],
) {
    #[expect(clippy::needless_range_loop, reason = "a slot lies in every column")]
    for slot in 0..slots {
        prefetch_rows::<E, C>(ahead, slot);
        // SAFETY: this function's features.
        let values: [__m512; C] = std::array::from_fn(|c| unsafe { E::load(&columns[c][slot]) });
        for (r, sums) in sums.iter_mut().enumerate() {
            for (c, (sum, values)) in sums.iter_mut().zip(values).enumerate() {
                let weight = _mm512_set1_ps(weight(r, c, slot));
                *sum = _mm512_fmadd_ps(values, weight, *sum);
            }
        }
    }
}
