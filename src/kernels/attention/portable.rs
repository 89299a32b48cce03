//! The plain version of attention's products, which is also the reference of the others.

use super::Scores;
use crate::kernels::kv_storage::{COLUMN, TILE_TOKENS};
use crate::kernels::math::f16_to_f32;

/// Products of each query with each position of the tiles.
pub(super) fn scores<const R: usize>(
    keys: &[u16],
    tiles: &[u32],
    queries: &[[f32; R]], // (head_dim)
    scores: &mut [Scores<R>],
) {
    let tile_len = queries.len() * TILE_TOKENS;
    for (&tile, scores) in tiles.iter().zip(scores) {
        let keys = &keys[tile as usize * tile_len..][..tile_len];
        *scores = [[0.0; TILE_TOKENS]; R];
        for (queries, keys) in queries.iter().zip(keys.as_chunks::<TILE_TOKENS>().0) {
            let keys = keys.map(f16_to_f32);
            for (query, scores) in queries.iter().zip(&mut *scores) {
                for (score, key) in scores.iter_mut().zip(keys) {
                    *score += query * key;
                }
            }
        }
    }
}

/// The sums of V over the first `len` positions, weighted. (R, padded head_dim)
pub(super) fn sum_values<const R: usize>(
    values: &[u16],
    tiles: &[u32],
    weights: &[Scores<R>],
    len: usize,
    sums: &mut [f32],
) {
    const COLUMN_LEN: usize = COLUMN * TILE_TOKENS;
    let padded_dim = sums.len() / R;
    sums.fill(0.0);
    for position in 0..len {
        let (tile, slot) = (position / TILE_TOKENS, position % TILE_TOKENS);
        let values = &values[tiles[tile] as usize * padded_dim * TILE_TOKENS..];
        for column in 0..padded_dim / COLUMN {
            let values = &values[column * COLUMN_LEN + slot * COLUMN..][..COLUMN];
            for (row, weights) in weights[tile].iter().enumerate() {
                let sums = &mut sums[row * padded_dim + column * COLUMN..][..COLUMN];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += weights[slot] * f16_to_f32(*value);
                }
            }
        }
    }
}
