//! The plain version of attention's products, which is also the reference of the others.

use super::Scores;
use super::queries::QueryCodes;
use crate::kernels::kv_storage::{
    COLUMN, CodePair, Element, SCALE_GROUP, TILE_TOKENS, Tiles, scale_of,
};
use crate::kernels::math::f16_to_f32;

/// Products of each query with each position of the tiles.
pub(super) fn scores<E: Element, const R: usize>(
    keys: Tiles<'_, E>,
    tiles: &[u32],
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    for (&tile, scores) in tiles.iter().zip(scores) {
        let rows = keys.tile(tile);
        *scores = [[0.0; TILE_TOKENS]; R];
        if E::IS_SCALED {
            let groups = queries.chunks(SCALE_GROUP).zip(rows.chunks(SCALE_GROUP));
            for ((queries, rows), scales) in groups.zip(keys.scales(tile)) {
                let mut products = [[0.0; TILE_TOKENS]; R];
                multiply_rows(rows, queries, &mut products);
                let scales = scales.map(f16_to_f32);
                for (scores, products) in scores.iter_mut().zip(products) {
                    for ((score, product), scale) in scores.iter_mut().zip(products).zip(scales) {
                        *score += product * scale;
                    }
                }
            }
        } else {
            multiply_rows(rows, queries, scores);
        }
    }
}

/// Adds the products of queries with the elements in rows of a tile.
fn multiply_rows<E: Element, const R: usize>(
    rows: &[[E; TILE_TOKENS]],
    queries: &[[f32; R]],
    scores: &mut Scores<R>,
) {
    for (queries, keys) in queries.iter().zip(rows) {
        let keys = keys.map(E::to_f32);
        for (query, scores) in queries.iter().zip(&mut *scores) {
            for (score, key) in scores.iter_mut().zip(keys) {
                *score += query * key;
            }
        }
    }
}

/// As [`scores`], of codes: their sums are whole numbers, without rounding.
pub(super) fn scores_of_codes<const R: usize>(
    keys: Tiles<'_, CodePair>,
    tiles: &[u32],
    (queries, query_scales): QueryCodes<'_, R>,
    scores: &mut [Scores<R>],
) {
    for (&tile, scores) in tiles.iter().zip(scores) {
        let mut sums = [[0i32; TILE_TOKENS]; R];
        for (queries, keys) in queries.iter().zip(keys.tile(tile)) {
            for (query, sums) in queries.iter().zip(&mut sums) {
                let [first, second] = query.0.map(i32::from);
                for (sum, key) in sums.iter_mut().zip(keys) {
                    let product = first * i32::from(key.0[0]) + second * i32::from(key.0[1]);
                    *sum = sum.wrapping_add(product);
                }
            }
        }
        let key_scales = keys.scales(tile)[0].map(scale_of);
        for ((scores, sums), query_scale) in scores.iter_mut().zip(sums).zip(query_scales) {
            for ((score, sum), key_scale) in scores.iter_mut().zip(sums).zip(key_scales) {
                *score = sum as f32 * key_scale * query_scale;
            }
        }
    }
}

/// Adds V of the first `len` positions, weighted, to the sums. (R, padded head_dim)
pub(super) fn sum_values<E: Element, const R: usize>(
    values: Tiles<'_, E>,
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    let padded_dim = sums.len() / R;
    for position in 0..len {
        let (tile, slot) = (position / TILE_TOKENS, position % TILE_TOKENS);
        let columns = values.tile(tiles[tile]).chunks_exact(TILE_TOKENS);
        for (column, slots) in columns.enumerate() {
            let scale = match E::IS_SCALED {
                true => {
                    let scales = values.scales(tiles[tile]);
                    f16_to_f32(scales[column * COLUMN / SCALE_GROUP][slot])
                }
                false => 1.0,
            };
            for (row, weights) in weights[tile].iter().enumerate() {
                let weight = weights[slot] * scale;
                let sums = &mut sums[row * padded_dim + column * COLUMN..][..COLUMN];
                for (sum, value) in sums.iter_mut().zip(slots[slot]) {
                    *sum += weight * value.to_f32();
                }
            }
        }
    }
}
