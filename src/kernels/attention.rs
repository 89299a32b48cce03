//! Attention of a ragged batch over paged K and V: decode and chunked prefill alike.
//!
//! A unit of work is some query tokens of one sequence and one KV head, with all query heads that
//! share it, so that K and V are read once for them. Scores of all visible positions come first, then
//! the softmax, then the weighted sum of V. Positions are taken tile by tile from the tile's first
//! slot on, and those that a query must not see add exact zeros: a result's bits depend neither on
//! how a prompt was cut into chunks nor on the other queries of a unit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::cell::RefCell;
use std::ops::Range;

use super::elementwise::sum;
use super::isa::for_each_isa;
use super::kv_storage::{Head, KvShape, KvStorage, TILE_TOKENS, Tiles, with_heads};
use super::math::exp;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Most rows of a unit, but for models with more query heads to a KV head.
const UNIT_ROWS: usize = 14;

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
    /// Position of each row, ascending in a sequence. (num_tokens)
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

/// Some query tokens of a sequence, which follow one another in it.
#[derive(Clone, Debug)]
struct Unit {
    sequence: usize,
    rows: Range<usize>,
}

/// Scores of some rows with the positions of one tile.
type Scores<const R: usize> = [[f32; TILE_TOKENS]; R];

/// What all kernels can read.
#[cfg(target_arch = "x86_64")]
trait Readable: avx2::Load + avx512::Load {}
#[cfg(target_arch = "x86_64")]
impl<E: avx2::Load + avx512::Load> Readable for E {}
#[cfg(not(target_arch = "x86_64"))]
use super::kv_storage::Element as Readable;

/// Buffers of a thread, kept from step to step.
#[derive(Debug, Default)]
struct Scratch {
    /// Where the context's tiles lie.
    tiles: Vec<u32>,
    /// Queries of the rows that a kernel takes at once. (head_dim, rows)
    queries: Vec<f32>,
    /// Scores, then weights: of the rows that a kernel takes at once, tile by tile.
    scores: Vec<[f32; TILE_TOKENS]>, // (tiles, rows)
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
            let mut first = bounds[0] as usize;
            let positions = &batch.positions[first..bounds[1] as usize];
            for run in positions.chunk_by(|a, b| a + 1 == *b) {
                for some in run.chunks(tokens) {
                    let rows = first..first + some.len();
                    first = rows.end;
                    self.units.push(Unit { sequence, rows });
                }
            }
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
    with_heads!(kv.heads(), heads => {
        attend_heads(compute, shape, (plan, batch), (heads, kv.shape()), (q, q_width), out);
    });
}

/// Attention over K and V of one type.
fn attend_heads<E: Readable>(
    compute: &Compute,
    shape: &AttentionShape,
    (plan, batch): (&AttentionPlan, &AttentionBatch<'_>),
    (heads, kv_shape): (&[Head<E>], &KvShape),
    (q, q_width): (&[f32], usize),
    out: &mut [f32],
) {
    let out_width = shape.num_heads * shape.head_dim;
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
                    let kv = (&heads[kv_head], kv_shape);
                    attend_unit(isa, kv, &context, (num_rows, &query), scratch);
                    let sums = scratch.sums.chunks_exact(kv_shape.padded_dim());
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
fn attend_unit<'a, E: Readable>(
    isa: Isa,
    kv: (&Head<E>, &KvShape),
    context: &Context,
    (num_rows, query): (usize, &dyn Fn(usize) -> &'a [f32]),
    scratch: &mut Scratch,
) {
    let sums_len = num_rows * kv.1.padded_dim();
    scratch.factors.clear();
    scratch.sums.resize(scratch.sums.len().max(sums_len), 0.0);
    let most = match isa {
        Isa::Portable | Isa::Avx2 | Isa::AvxVnni => 4,
        Isa::Avx512Vnni | Isa::Avx512Bf16 => UNIT_ROWS,
    };
    for first in (0..num_rows).step_by(most) {
        let rows = first..num_rows.min(first + most);
        attend_rows(isa, kv, context, (rows, query), scratch);
    }
}

/// Attention of as many rows as a kernel takes at once.
fn attend_rows<'a, E: Readable>(
    isa: Isa,
    (head, shape): (&Head<E>, &KvShape),
    context: &Context,
    (rows, query): (Range<usize>, &dyn Fn(usize) -> &'a [f32]),
    scratch: &mut Scratch,
) {
    let Scratch {
        tiles,
        queries,
        scores,
        factors,
        sums,
    } = scratch;
    let len = rows.len();
    queries.clear();
    queries.resize(len * shape.head_dim, 0.0);
    for (r, row) in rows.clone().enumerate() {
        for (query, queries) in query(row).iter().zip(queries.chunks_exact_mut(len)) {
            queries[r] = *query;
        }
    }
    let num_scores = len * tiles.len();
    scores.resize(scores.len().max(num_scores), [0.0; TILE_TOKENS]);
    let scores = &mut scores[..num_scores];
    multiply_keys(isa, &head.keys, tiles, (len, queries), scores);
    let scale = (shape.head_dim as f32).powf(-0.5);
    let visible = rows.clone().map(|row| context.visible(row));
    softmax(isa, scores, visible, scale, factors);
    let sums = &mut sums[rows.start * shape.padded_dim()..rows.end * shape.padded_dim()];
    sum_values(isa, &head.values, tiles, (len, scores, context.len), sums);
}

/// Calls a kernel's version for a number of rows that is a constant to it.
macro_rules! with_rows {
    ($rows:expr, [$($row:literal)*], $kernel:ident :: $name:ident, $args:tt) => {
        match $rows {
            $($row => with_rows!(@call $row, $kernel, $name, $args),)*
            rows => panic!("bug: {rows} rows at once"),
        }
    };
    (@call $row:literal, $kernel:ident, scores, ($keys:ident, $tiles:ident, $queries:ident, $scores:ident)) => {
        $kernel::scores::<_, $row>($keys, $tiles, $queries.as_chunks().0, $scores.as_chunks_mut().0)
    };
    (@call $row:literal, $kernel:ident, sum_values, ($values:ident, $tiles:ident, $weights:ident, $len:ident, $sums:ident)) => {
        $kernel::sum_values::<_, $row>($values, $tiles, $weights.as_chunks().0, $len, $sums)
    };
}

/// Products of each query with each position of the tiles: queries (head_dim, rows), scores
/// (tiles, rows).
fn multiply_keys<E: Readable>(
    isa: Isa,
    keys: &Tiles<E>,
    tiles: &[u32],
    (rows, queries): (usize, &[f32]),
    scores: &mut [[f32; TILE_TOKENS]],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe {
            with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], avx512::scores,
                (keys, tiles, queries, scores));
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe {
            with_rows!(rows, [1 2 3 4], avx2::scores, (keys, tiles, queries, scores));
        },
        _ => with_rows!(rows, [1 2 3 4], portable::scores, (keys, tiles, queries, scores)),
    }
}

/// Sums of V, weighted, over the first `len` positions. (rows, padded head_dim)
fn sum_values<E: Readable>(
    isa: Isa,
    values: &Tiles<E>,
    tiles: &[u32],
    (rows, weights, len): (usize, &[[f32; TILE_TOKENS]], usize),
    sums: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe {
            with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], avx512::sum_values,
                (values, tiles, weights, len, sums));
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe {
            with_rows!(rows, [1 2 3 4], avx2::sum_values, (values, tiles, weights, len, sums));
        },
        _ => with_rows!(rows, [1 2 3 4], portable::sum_values, (values, tiles, weights, len, sums)),
    }
}

for_each_isa! {
    /// Turns the scores (tiles, rows) into weights, 0 outside what each row sees; adds what makes a
    /// row's weights sum to 1 to `factors`. Tile by tile for all rows: those of one row alone would
    /// wait for its sums.
    fn softmax(
        scores: &mut [[f32; TILE_TOKENS]],
        visible: impl ExactSizeIterator<Item = Range<usize>>,
        scale: f32,
        factors: &mut Vec<f32>,
    ) {
        let rows = visible.len();
        let len = scores.len() / rows * TILE_TOKENS;
        for (row, visible) in visible.enumerate() {
            for hidden in (0..visible.start).chain(visible.end..len) {
                scores[hidden / TILE_TOKENS * rows + row][hidden % TILE_TOKENS] = f32::NEG_INFINITY;
            }
        }
        let mut row_largest = [f32::NEG_INFINITY; UNIT_ROWS];
        for (row, row_largest) in row_largest.iter_mut().enumerate().take(rows) {
            let mut largest = [f32::NEG_INFINITY; TILE_TOKENS];
            for tile in scores.iter().skip(row).step_by(rows) {
                largest = std::array::from_fn(|slot| match tile[slot] > largest[slot] {
                    true => tile[slot],
                    false => largest[slot],
                });
            }
            *row_largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        }
        let mut sums = [[0.0; TILE_TOKENS]; UNIT_ROWS];
        for tiles in scores.chunks_exact_mut(rows) {
            for ((sums, largest), tile) in sums.iter_mut().zip(row_largest).zip(tiles) {
                for (sum, score) in sums.iter_mut().zip(tile) {
                    *score = exp((*score - largest) * scale);
                    *sum += *score;
                }
            }
        }
        for sums in &sums[..rows] {
            factors.push(1.0 / sum(sums, |x| x));
        }
    }
}
