//! Attention of a ragged batch over paged K and V: decode and chunked prefill alike.
//!
//! A unit of work is some query tokens of one sequence and one KV head, with all query heads that
//! share it, so that K and V are read once for them. Scores of all visible positions come first, then
//! the softmax, then the weighted sum of V. Positions are taken tile by tile from the tile's first
//! slot on, and those that a query must not see add exact zeros: a result's bits depend neither on
//! how a prompt was cut into chunks nor on the other queries of a unit.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use std::cell::RefCell;
use std::ops::Range;

use super::elementwise::sum;
use super::isa::for_each_isa;
use super::kv_storage::{KvStorage, TILE_TOKENS};
use super::math::exp;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Rows of a unit, about: a multiple of the kernels' tiles.
const UNIT_ROWS: usize = 12;

/// The parts of a model that attention depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// A token sees itself and the `sliding_window - 1` tokens before it; `None` sees all.
    pub sliding_window: Option<usize>,
    /// Slots of a block, whole tiles.
    pub block_size: usize,
}

/// Which rows belong to which sequence, and where its K and V lie.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// Position of each row; consecutive in a sequence. (num_tokens)
    pub positions: &'a [u32],
    /// First row of each sequence, then num_tokens.
    pub q_start: &'a [u32],
    pub block_tables: &'a [u32],
    /// First entry of each sequence in `block_tables`, then its length.
    pub block_table_start: &'a [u32],
}

/// How a step's attention is cut into units; the same in every layer.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    units: Vec<Unit>,
}

/// Some query tokens of a sequence.
#[derive(Clone, Debug)]
struct Unit {
    sequence: usize,
    rows: Range<usize>,
}

/// Buffers of a thread, kept from step to step.
#[derive(Debug, Default)]
struct Scratch {
    /// Where the context's tiles lie.
    tiles: Vec<u32>,
    /// Scores, then weights. (rows of a unit, positions of the tiles)
    scores: Vec<f32>,
    /// What makes the weights of a row sum to 1. (rows of a unit)
    factors: Vec<f32>,
    /// (rows of a unit, padded head_dim)
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl AttentionPlan {
    /// Cuts a step into units, those with the most positions first.
    pub fn set(&mut self, shape: &AttentionShape, batch: &AttentionBatch<'_>) {
        let tokens = (UNIT_ROWS / shape.heads_per_kv_head()).max(1);
        self.units.clear();
        for (sequence, bounds) in batch.q_start.windows(2).enumerate() {
            let (start, end) = (bounds[0] as usize, bounds[1] as usize);
            let units = (start..end).step_by(tokens).map(|first| Unit {
                sequence,
                rows: first..end.min(first + tokens),
            });
            self.units.extend(units);
        }
        self.units.sort_unstable_by_key(|unit| {
            (
                std::cmp::Reverse(batch.positions[unit.rows.end - 1]),
                unit.rows.start,
            )
        });
    }
}

impl AttentionShape {
    fn heads_per_kv_head(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Attention of all rows: `q` has rows of `q_width` that begin with the query heads; the result is
/// (num_tokens, num_heads * head_dim).
///
/// # Panics
/// If a table leads outside the storage, or sizes do not fit.
pub fn attend(
    compute: &Compute,
    shape: &AttentionShape,
    (plan, batch): (&AttentionPlan, &AttentionBatch<'_>),
    kv: &KvStorage,
    (q, q_width): (&[f32], usize),
    out: &mut [f32],
) {
    let num_tokens = batch.positions.len();
    let out_width = shape.num_heads * shape.head_dim;
    assert_eq!(
        out.len(),
        num_tokens * out_width,
        "bug: room for the results"
    );
    assert_eq!(
        kv.shape().head_dim,
        shape.head_dim,
        "bug: storage of another model"
    );
    assert!(
        shape.block_size.is_multiple_of(TILE_TOKENS),
        "bug: blocks are whole tiles"
    );
    let heads_per_kv_head = shape.heads_per_kv_head();
    let isa = compute.isa();
    let out = SharedMut::new(out);
    compute
        .pool()
        .for_each(plan.units.len() * shape.num_kv_heads, 1, |items| {
            for item in items {
                let unit = &plan.units[item / shape.num_kv_heads];
                let kv_head = item % shape.num_kv_heads;
                let first_head = kv_head * heads_per_kv_head;
                SCRATCH.with_borrow_mut(|scratch| {
                    let context = Context::new(shape, batch, unit, &mut scratch.tiles);
                    let query = |index: usize| {
                        let row = unit.rows.start + index / heads_per_kv_head;
                        let head = first_head + index % heads_per_kv_head;
                        &q[row * q_width + head * shape.head_dim..][..shape.head_dim]
                    };
                    let num_rows = unit.rows.len() * heads_per_kv_head;
                    attend_unit(isa, kv, kv_head, &context, (num_rows, &query), scratch);
                    let sums = scratch.sums.chunks_exact(kv.shape().padded_dim());
                    for (index, (sums, factor)) in sums.zip(&scratch.factors).enumerate() {
                        let row = unit.rows.start + index / heads_per_kv_head;
                        let head = first_head + index % heads_per_kv_head;
                        let start = row * out_width + head * shape.head_dim;
                        // SAFETY: each unit is visited once; its rows and heads are its own.
                        let out = unsafe { out.part(start..start + shape.head_dim) };
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = sum * factor;
                        }
                    }
                });
            }
        });
}

/// The positions that a unit's queries see.
struct Context {
    /// First position of the first tile.
    start: usize,
    /// Positions from there to the last visible one.
    len: usize,
    first_query: usize,
    sliding_window: usize,
    heads_per_kv_head: usize,
}

impl Context {
    /// Also lists the physical tiles of the context.
    fn new(
        shape: &AttentionShape,
        batch: &AttentionBatch<'_>,
        unit: &Unit,
        tiles: &mut Vec<u32>,
    ) -> Self {
        let first_query = batch.positions[unit.rows.start] as usize;
        let end = first_query + unit.rows.len();
        let sliding_window = shape.sliding_window.unwrap_or(usize::MAX);
        let first_seen = (first_query + 1).saturating_sub(sliding_window);
        let start = first_seen / TILE_TOKENS * TILE_TOKENS;
        let table = &batch.block_tables[batch.block_table_start[unit.sequence] as usize..];
        let tiles_of_block = shape.block_size / TILE_TOKENS;
        tiles.clear();
        tiles.extend((start..end).step_by(TILE_TOKENS).map(|position| {
            let tile = position / TILE_TOKENS;
            table[tile / tiles_of_block] * tiles_of_block as u32 + (tile % tiles_of_block) as u32
        }));
        Self {
            start,
            len: end - start,
            first_query,
            sliding_window,
            heads_per_kv_head: shape.heads_per_kv_head(),
        }
    }

    /// What row `index` of the unit sees, relative to `start`.
    fn visible(&self, index: usize) -> Range<usize> {
        let query = self.first_query + index / self.heads_per_kv_head;
        let first = (query + 1)
            .saturating_sub(self.sliding_window)
            .max(self.start);
        first - self.start..query + 1 - self.start
    }
}

/// Leaves the results in `scratch`: sums that `factors` must still multiply.
fn attend_unit<'a>(
    isa: Isa,
    kv: &KvStorage,
    kv_head: usize,
    context: &Context,
    (num_rows, query): (usize, &dyn Fn(usize) -> &'a [f32]),
    scratch: &mut Scratch,
) {
    let shape = kv.shape();
    let Scratch {
        tiles,
        scores,
        factors,
        sums,
    } = scratch;
    let stride = tiles.len() * TILE_TOKENS;
    scores.resize(scores.len().max(num_rows * stride), 0.0);
    sums.resize(sums.len().max(num_rows * shape.padded_dim()), 0.0);
    let keys = kv.head_keys(kv_head);
    let values = kv.head_values(kv_head);
    for_each_tile(num_rows, |first, rows| {
        let scores = &mut scores[first * stride..(first + rows) * stride];
        add_scores(isa, keys, tiles, (rows, &|row| query(first + row)), scores);
    });
    let scale = (shape.head_dim as f32).powf(-0.5);
    factors.clear();
    for (row, scores) in scores.chunks_exact_mut(stride).take(num_rows).enumerate() {
        factors.push(softmax(isa, scores, context.visible(row), scale));
    }
    for_each_tile(num_rows, |first, rows| {
        let weights = &scores[first * stride..(first + rows) * stride];
        let sums = &mut sums[first * shape.padded_dim()..(first + rows) * shape.padded_dim()];
        sum_values(isa, values, tiles, (rows, weights, context.len), sums);
    });
}

/// Splits rows into tiles of at most 4.
fn for_each_tile(num_rows: usize, mut f: impl FnMut(usize, usize)) {
    let mut row = 0;
    while row < num_rows {
        let tile_rows = (num_rows - row).min(4);
        f(row, tile_rows);
        row += tile_rows;
    }
}

/// Products of each query with each position of the tiles. (rows, positions)
fn add_scores<'a>(
    isa: Isa,
    keys: &[u16],
    tiles: &[u32],
    (rows, query): (usize, &dyn Fn(usize) -> &'a [f32]),
    scores: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx2 => unsafe {
            match rows {
                1 => avx2::scores::<1>(keys, tiles, std::array::from_fn(query), scores),
                3 => avx2::scores::<3>(keys, tiles, std::array::from_fn(query), scores),
                2 => avx2::scores::<2>(keys, tiles, std::array::from_fn(query), scores),
                _ => avx2::scores::<4>(keys, tiles, std::array::from_fn(query), scores),
            }
        },
        _ => {
            for (row, scores) in scores.chunks_exact_mut(scores.len() / rows).enumerate() {
                portable::scores(keys, tiles, query(row), scores);
            }
        }
    }
}

/// Sums of V, weighted, over the first `len` positions. (rows, padded head_dim)
fn sum_values(
    isa: Isa,
    values: &[u16],
    tiles: &[u32],
    (rows, weights, len): (usize, &[f32], usize),
    sums: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx2 => unsafe {
            match rows {
                1 => avx2::sum_values::<1>(values, tiles, weights, len, sums),
                3 => avx2::sum_values::<3>(values, tiles, weights, len, sums),
                2 => avx2::sum_values::<2>(values, tiles, weights, len, sums),
                _ => avx2::sum_values::<4>(values, tiles, weights, len, sums),
            }
        },
        _ => {
            let stride = weights.len() / rows;
            let rows = weights
                .chunks_exact(stride)
                .zip(sums.chunks_exact_mut(sums.len() / rows));
            for (weights, sums) in rows {
                portable::sum_values(values, tiles, &weights[..len], sums);
            }
        }
    }
}

for_each_isa! {
    /// Turns scores into weights, 0 outside `visible`; returns what makes their sum 1.
    fn softmax(scores: &mut [f32], visible: Range<usize>, scale: f32) -> f32 {
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..].fill(f32::NEG_INFINITY);
        let tiles = scores.as_chunks_mut::<TILE_TOKENS>().0;
        let mut largest = [f32::NEG_INFINITY; TILE_TOKENS];
        for tile in &*tiles {
            for (largest, score) in largest.iter_mut().zip(tile) {
                *largest = if *score > *largest { *score } else { *largest };
            }
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0.0; TILE_TOKENS];
        for tile in tiles {
            for (sum, score) in sums.iter_mut().zip(tile) {
                *score = exp((*score - largest) * scale);
                *sum += *score;
            }
        }
        1.0 / sum(&sums, |x| x)
    }
}
