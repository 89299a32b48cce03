//! The plain version of attention's products, which is also the reference of the others.

use crate::kernels::kv_storage::{COLUMN, TILE_TOKENS};
use crate::kernels::math::f16_to_f32;

/// Products of one query with each position of the tiles.
pub(super) fn scores(keys: &[u16], tiles: &[u32], query: &[f32], scores: &mut [f32]) {
    let tile_len = query.len() * TILE_TOKENS;
    for (&tile, scores) in tiles.iter().zip(scores.as_chunks_mut::<TILE_TOKENS>().0) {
        let keys = &keys[tile as usize * tile_len..][..tile_len];
        let mut sums = [0.0; TILE_TOKENS];
        for (q, keys) in query.iter().zip(keys.as_chunks::<TILE_TOKENS>().0) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += q * f16_to_f32(*key);
            }
        }
        *scores = sums;
    }
}

/// The sum of V, weighted, over as many positions as there are weights.
pub(super) fn sum_values(values: &[u16], tiles: &[u32], weights: &[f32], sums: &mut [f32]) {
    const COLUMN_LEN: usize = COLUMN * TILE_TOKENS;
    let tile_len = sums.len() * TILE_TOKENS;
    for (column, sums) in sums.as_chunks_mut::<COLUMN>().0.iter_mut().enumerate() {
        *sums = [0.0; COLUMN];
        for (&tile, weights) in tiles.iter().zip(weights.chunks(TILE_TOKENS)) {
            let values = &values[tile as usize * tile_len + column * COLUMN_LEN..][..COLUMN_LEN];
            for (weight, values) in weights.iter().zip(values.as_chunks::<COLUMN>().0) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += weight * f16_to_f32(*value);
                }
            }
        }
    }
}
