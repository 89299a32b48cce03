//! Attention of a ragged batch over paged K and V: decode and chunked prefill alike.
//!
//! A unit is some query tokens of one sequence, with all query heads that share a KV head, so that K
//! and V are read once for them. Units of sequences that begin with the same blocks form a group, for
//! which these are read once. Scores of all visible positions come first, then the softmax, then the
//! weighted sum of V. Positions are taken tile by tile from the tile's first slot on, and those that a
//! query must not see add exact zeros: a result's bits depend neither on how a prompt was cut into
//! chunks nor on the other queries of a unit or a group.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod plan;
mod portable;
mod queries;

use std::cell::RefCell;
use std::ops::Range;

pub use self::plan::AttentionPlan;
use self::plan::Unit;
use self::queries::Queries;
use super::activations::{Activations, CODE_GROUP, CodePlaces, Needs};
use super::aligned::Aligned;
use super::elementwise::{HeadTransform, sum};
use super::isa::for_each_isa;
use super::kv_storage::{
    Bf16, CodePair, Head, Key, KvShape, KvStorage, SharedBoth, TILE_TOKENS, Tiles, Value, with_kv,
};
use super::math::exp;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Tiles that are asked for ahead of the one that is read, whichever group's they are: the hardware does
/// not foresee where the blocks of a sequence lie.
const AHEAD_TILES: usize = 16;

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

/// Scores of some rows with the positions of one tile.
type Scores<const R: usize> = [[f32; TILE_TOKENS]; R];

/// Tiles, and for each what is asked for while it is read.
type Reads<'a> = (&'a [u32], &'a [*const u8]);

/// The query of row `index` of a unit.
type Query<'f, 'a> = dyn Fn(&Unit, usize) -> &'a [f32] + 'f;

/// Whose tiles are read next.
type Next<'a, K, V> = Option<(Head<'a, K, V>, &'a Unit)>;

/// K of a type that kernels multiply with queries.
trait Keys: Key {
    /// Makes queries (rows) of heads of `head_dim` what `multiply` takes.
    fn set_queries<'a>(
        isa: Isa,
        rows: impl Iterator<Item = &'a [f32]>,
        num_rows_and_head_dim: (usize, usize),
        queries: &mut Queries,
    );

    /// Products of each query with each position of the tiles, to scores (tiles, rows).
    fn multiply(
        isa: Isa,
        keys: Tiles<'_, Self>,
        tiles: Reads<'_>,
        queries: &Queries,
        scores: &mut [[f32; TILE_TOKENS]],
    );
}

/// V of a type that kernels can sum.
trait Values: Value {
    /// Makes weights what `sum_values` takes.
    fn prepare_weights(_weights: &mut [[f32; TILE_TOKENS]]) {}

    /// Adds V, weighted, of the first `len` positions to the sums. (rows, padded head_dim)
    fn sum_values(
        isa: Isa,
        values: Tiles<'_, Self>,
        tiles: Reads<'_>,
        rows_weights_len: (usize, &[[f32; TILE_TOKENS]], usize),
        sums: &mut [f32],
    );
}

/// Buffers of a thread, kept from step to step.
#[derive(Debug, Default)]
struct Scratch {
    /// Where the tiles of the units' contexts lie, unit by unit.
    tiles: Vec<u32>,
    /// Their addresses in the order in which they are read, K and then V, and after them those of the
    /// next group's first tiles.
    reads: Vec<*const u8>,
    /// Those of the rows that a kernel takes at once.
    queries: Queries,
    /// Scores, then weights: piece after piece, each of the rows that a kernel takes at once, tile by
    /// tile. (pieces, tiles, rows, 16)
    scores: Aligned<f32>,
    /// Those of all rows of a group with the tiles that they share. (shared tiles, rows, 16)
    shared_scores: Aligned<f32>,
    /// What makes the weights of a row sum to 1. (rows of a group)
    factors: Vec<f32>,
    /// (rows of a group, padded head_dim)
    sums: Aligned<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl AttentionShape {
    fn heads_per_kv_head(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Attention of all rows, of which `qkv` has Q, K and V; the results are (num_tokens, num_heads * head_dim), in
/// the forms of `needs`. If codes alone are needed, they are made while the results are at hand, which the
/// values of `out` then are not. Where the plan, which is of this batch, includes writes, heads are transformed
/// and K and V stored first; else that was done ([`KvStorage::write`]).
///
/// # Panics
/// If a table or a slot leads outside the storage, or sizes do not fit.
pub fn attend(
    compute: &Compute,
    shape: &AttentionShape,
    (plan, batch): (&AttentionPlan, &AttentionBatch<'_>),
    (kv, transform): (&mut KvStorage, &HeadTransform<'_>),
    qkv: &mut [f32],
    (out, needs): (&mut Activations, Needs),
) {
    assert_eq!(
        (out.num_rows(), out.row_len()),
        (batch.positions.len(), shape.num_heads * shape.head_dim),
        "bug: room for the results"
    );
    assert_eq!(
        (
            transform.num_heads,
            transform.num_kv_heads,
            transform.head_dim
        ),
        (shape.num_heads, shape.num_kv_heads, shape.head_dim),
        "bug: heads of another model"
    );
    let kv_shape = *kv.shape();
    kv_shape.check(transform);
    assert_eq!(
        qkv.len(),
        batch.positions.len() * transform.width(),
        "bug: a row a token"
    );
    assert!(
        shape.block_size.is_multiple_of(TILE_TOKENS),
        "bug: blocks are whole tiles"
    );
    let of_kv_head = shape.heads_per_kv_head() * shape.head_dim;
    let are_whole_groups =
        of_kv_head.is_multiple_of(CODE_GROUP) && kv_shape.padded_dim() == shape.head_dim;
    let codes = match are_whole_groups {
        true => out.places_of_codes(needs),
        false => None,
    };
    let results = match codes {
        Some(places) => Results::Codes(places),
        None => Results::Values(SharedMut::new(out.values_mut())),
    };
    let qkv = SharedMut::new(qkv);
    with_kv!(kv.kv_mut(), both => {
        let both = (&both.share(), &kv_shape);
        attend_heads(compute, shape, (plan, batch), both, (transform, &qkv), &results);
    });
    if let Results::Values(_) = results {
        out.quantize(compute, needs);
    }
}

/// Where threads put results.
enum Results<'a> {
    Values(SharedMut<'a, f32>),
    Codes(CodePlaces<'a>),
}

/// Attention over K and V of one type.
fn attend_heads<K: Keys, V: Values>(
    compute: &Compute,
    shape: &AttentionShape,
    (plan, batch): (&AttentionPlan, &AttentionBatch<'_>),
    (both, kv_shape): (&SharedBoth<'_, K, V>, &KvShape),
    (transform, qkv): (&HeadTransform<'_>, &SharedMut<'_, f32>),
    results: &Results<'_>,
) {
    let out_width = shape.num_heads * shape.head_dim;
    let heads_per_kv_head = shape.heads_per_kv_head();
    let isa = compute.isa();
    let width = transform.width();
    // SAFETY: a unit's own tiles are written by its own item alone, before it reads them, and no other unit
    // reads them, as `include_writes` has seen to.
    let head = |kv_head: usize| unsafe { both.head(kv_head) };
    let write = |units: &[Unit], kv_head: usize| {
        for row in units.iter().flat_map(|unit| unit.rows.clone()) {
            let token = (row, plan.slots[row]);
            // SAFETY: each unit is in one item of a head; nobody else uses what it writes, as above.
            unsafe { both.write(isa, (transform, qkv), token, kv_head) };
        }
    };
    let ask = |units: &[Unit], kv_head: usize| {
        for row in units.iter().map(|unit| unit.rows.start) {
            both.prefetch_row((transform, qkv), row, kv_head);
            both.prefetch(plan.slots[row], kv_head, true);
        }
    };
    compute
        .pool()
        .for_each(plan.groups.len() * shape.num_kv_heads, 1, |items| {
            for item in items {
                let group = &plan.groups[item / shape.num_kv_heads];
                let kv_head = item % shape.num_kv_heads;
                let first_head = kv_head * heads_per_kv_head;
                // The place of row `index` of a unit: its token, and the first element of its head.
                let place = |unit: &Unit, index: usize| {
                    let head = first_head + index % heads_per_kv_head;
                    let row = unit.rows.start + index / heads_per_kv_head;
                    (row, head * shape.head_dim)
                };
                let query = |unit: &Unit, index: usize| {
                    let (row, start) = place(unit, index);
                    let start = row * width + start;
                    // SAFETY: who writes queries is this item, which has done so.
                    unsafe { qkv.read(start..start + shape.head_dim) }
                };
                let units = &plan.units[group.units.clone()];
                // A thread most likely takes the next item too.
                let next = plan.groups.get((item + 1) / shape.num_kv_heads);
                let next_head = (item + 1) % shape.num_kv_heads;
                if plan.writes() {
                    write(units, kv_head);
                    if let Some(group) = next {
                        ask(&plan.units[group.units.clone()], next_head);
                    }
                }
                let kv = (head(kv_head), kv_shape);
                SCRATCH.with_borrow_mut(|scratch| {
                    let parts = (units, group.shared_tiles);
                    let next = next.map(|group| (head(next_head), &plan.units[group.units.start]));
                    attend_group(isa, kv, (shape, batch), parts, (&query, next), scratch);
                    let mut sums = scratch.sums.chunks_exact_mut(kv_shape.padded_dim());
                    for (sums, factor) in (&mut sums).zip(&scratch.factors) {
                        sums.iter_mut().for_each(|sum| *sum *= factor);
                    }
                    let mut rest = &*scratch.sums;
                    for unit in units {
                        let rows = unit.rows.len() * heads_per_kv_head;
                        let sums = split_off(&mut rest, rows * kv_shape.padded_dim());
                        match results {
                            Results::Codes(places) => {
                                let groups = shape.head_dim * first_head / CODE_GROUP
                                    ..shape.head_dim * (first_head + heads_per_kv_head)
                                        / CODE_GROUP;
                                // SAFETY: each unit is visited once; its rows and heads are its own.
                                unsafe { places.set(isa, sums, unit.rows.clone(), groups) };
                            }
                            Results::Values(out) => {
                                let sums = sums.chunks_exact(kv_shape.padded_dim());
                                for (index, sums) in sums.enumerate() {
                                    let (row, start) = place(unit, index);
                                    let start = row * out_width + start;
                                    // SAFETY: as above.
                                    let out = unsafe { out.part(start..start + shape.head_dim) };
                                    out.copy_from_slice(&sums[..shape.head_dim]);
                                }
                            }
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
    fn new(shape: &AttentionShape, batch: &AttentionBatch<'_>, unit: &Unit) -> Self {
        let first_query = batch.positions[unit.rows.start] as usize;
        let sliding_window = shape.sliding_window.unwrap_or(usize::MAX);
        let first_seen = (first_query + 1).saturating_sub(sliding_window);
        let start = first_seen / TILE_TOKENS * TILE_TOKENS;
        Self {
            start,
            len: batch.len_of(unit) - start,
            first_query,
            sliding_window,
            heads_per_kv_head: shape.heads_per_kv_head(),
        }
    }

    fn num_tiles(&self) -> usize {
        self.len.div_ceil(TILE_TOKENS)
    }

    /// The physical tiles of the context of `unit`.
    fn tiles<'a>(
        &self,
        shape: &AttentionShape,
        batch: &AttentionBatch<'a>,
        unit: &Unit,
    ) -> impl Iterator<Item = u32> + Clone + use<'a> {
        let table = batch.table_of(unit.sequence);
        let tiles_of_block = shape.block_size / TILE_TOKENS;
        let first = self.start / TILE_TOKENS;
        (first..first + self.num_tiles()).map(move |tile| {
            table[tile / tiles_of_block] * tiles_of_block as u32 + (tile % tiles_of_block) as u32
        })
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

/// Rows that a kernel takes at once.
fn rows_at_once(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 | Isa::AvxVnni => 4,
        Isa::Avx512Vnni | Isa::Avx512Bf16 => UNIT_ROWS,
    }
}

/// Attention of a group. Leaves the results in `scratch`: sums that `factors` must still multiply.
fn attend_group<'a, K: Keys, V: Values>(
    isa: Isa,
    (head, kv_shape): (Head<'_, K, V>, &KvShape),
    (shape, batch): (&AttentionShape, &AttentionBatch<'_>),
    (units, shared_tiles): (&[Unit], usize),
    (query, next): (&Query<'_, 'a>, Next<'_, K, V>),
    scratch: &mut Scratch,
) {
    let Scratch {
        tiles,
        reads,
        queries,
        scores,
        shared_scores,
        factors,
        sums,
    } = scratch;
    let rows_of = |unit: &Unit| unit.rows.len() * shape.heads_per_kv_head();
    let contexts = || {
        units
            .iter()
            .map(|unit| (unit, Context::new(shape, batch, unit)))
    };
    tiles.clear();
    for (unit, context) in contexts() {
        tiles.extend(context.tiles(shape, batch, unit));
    }
    let own_tiles = || {
        let mut rest = &**tiles;
        contexts().flat_map(move |(_, context)| {
            &split_off(&mut rest, context.num_tiles())[shared_tiles..]
        })
    };
    let read_tiles = || tiles[..shared_tiles].iter().chain(own_tiles());
    reads.clear();
    reads.extend(read_tiles().map(|tile| head.keys.address(*tile)));
    reads.extend(read_tiles().map(|tile| head.values.address(*tile)));
    if let Some((head, unit)) = next {
        let next = Context::new(shape, batch, unit).tiles(shape, batch, unit);
        let keys = next.clone().map(|tile| head.keys.address(tile));
        let values = next.map(|tile| head.values.address(tile));
        reads.extend(keys.chain(values).take(AHEAD_TILES));
    }
    let last = reads.last().copied().unwrap_or_default();
    reads.resize(reads.len() + AHEAD_TILES, last);
    let mut ahead = &reads[AHEAD_TILES..];
    let num_rows = units.iter().map(rows_of).sum();
    if shared_tiles > 0 {
        let rows = units
            .iter()
            .flat_map(|unit| (0..rows_of(unit)).map(move |index| query(unit, index)));
        K::set_queries(isa, rows, (num_rows, shape.head_dim), queries);
        shared_scores.resize(shared_tiles * num_rows * TILE_TOKENS);
        let tiles = (&tiles[..shared_tiles], split_off(&mut ahead, shared_tiles));
        let scores = shared_scores.as_chunks_mut().0;
        K::multiply(isa, head.keys, tiles, queries, scores);
    }
    let num_scores = contexts().map(|(unit, context)| context.num_tiles() * rows_of(unit));
    let num_scores = num_scores.sum::<usize>();
    scores.resize(num_scores * TILE_TOKENS);

    let scale = (shape.head_dim as f32).powf(-0.5);
    factors.clear();
    let shared_scores = shared_scores.as_chunks_mut().0;
    let (mut rest_tiles, mut rest_scores) = (&**tiles, scores.as_chunks_mut::<TILE_TOKENS>().0);
    for (unit, context) in contexts() {
        let own_tiles = &split_off(&mut rest_tiles, context.num_tiles())[shared_tiles..];
        let own_tiles = (own_tiles, split_off(&mut ahead, own_tiles.len()));
        for rows in pieces(isa, rows_of(unit)) {
            let (len, first_row) = (rows.len(), factors.len());
            let num_scores = context.num_tiles() * len;
            let (scores, others) = rest_scores.split_at_mut(num_scores);
            rest_scores = others;
            let (shared, own) = scores.split_at_mut(shared_tiles * len);
            let all = shared_scores.chunks_exact(num_rows);
            for (scores, all) in shared.chunks_exact_mut(len).zip(all) {
                scores.copy_from_slice(&all[first_row..first_row + len]);
            }
            let queries_of_rows = rows.clone().map(|index| query(unit, index));
            K::set_queries(isa, queries_of_rows, (len, shape.head_dim), queries);
            K::multiply(isa, head.keys, own_tiles, queries, own);
            let visible = rows.map(|index| context.visible(index));
            softmax(isa, scores, visible, scale, factors);
            V::prepare_weights(scores);
            let shared = scores[..shared_tiles * len].chunks_exact(len);
            for (weights, all) in shared.zip(shared_scores.chunks_exact_mut(num_rows)) {
                all[first_row..first_row + len].copy_from_slice(weights);
            }
        }
    }

    sums.resize(num_rows * kv_shape.padded_dim());
    sums.fill(0.0);
    let shared_len = shared_tiles * TILE_TOKENS;
    if shared_tiles > 0 {
        let weights = (num_rows, &*shared_scores, shared_len);
        let tiles = (&tiles[..shared_tiles], split_off(&mut ahead, shared_tiles));
        V::sum_values(isa, head.values, tiles, weights, sums);
    }
    let (mut rest_tiles, mut rest_scores, mut rest_sums) =
        (&**tiles, scores.as_chunks().0, &mut **sums);
    for (unit, context) in contexts() {
        let own_tiles = &split_off(&mut rest_tiles, context.num_tiles())[shared_tiles..];
        let own_tiles = (own_tiles, split_off(&mut ahead, own_tiles.len()));
        for rows in pieces(isa, rows_of(unit)) {
            let len = rows.len();
            let weights = split_off(&mut rest_scores, context.num_tiles() * len);
            let (sums, others) = rest_sums.split_at_mut(len * kv_shape.padded_dim());
            rest_sums = others;
            let own = &weights[shared_tiles * len..];
            let weights = (len, own, context.len - shared_len);
            V::sum_values(isa, head.values, own_tiles, weights, sums);
        }
    }
}

/// Rows of a unit, as many as a kernel takes at once.
fn pieces(isa: Isa, num_rows: usize) -> impl Iterator<Item = Range<usize>> {
    let most = rows_at_once(isa);
    let firsts = (0..num_rows).step_by(most);
    firsts.map(move |first| first..num_rows.min(first + most))
}

/// Takes the first `len` elements.
fn split_off<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
    rest.split_off(..len).expect("bug: enough elements")
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
        $kernel::scores::<_, $row>($keys, $tiles, $queries.values(), $scores.as_chunks_mut().0)
    };
    (@call $row:literal, $kernel:ident, scores_of_codes, ($keys:ident, $tiles:ident, $queries:ident, $scores:ident)) => {
        $kernel::scores_of_codes::<$row>($keys, $tiles, $queries.codes(), $scores.as_chunks_mut().0)
    };
    (@call $row:literal, avx512_bf16, sum_values, ($values:ident, $tiles:ident, $weights:ident, $len:ident, $sums:ident)) => {
        avx512_bf16::sum_values::<$row>($values, $tiles, $weights.as_chunks().0, $len, $sums)
    };
    (@call $row:literal, $kernel:ident, sum_values, ($values:ident, $tiles:ident, $weights:ident, $len:ident, $sums:ident)) => {
        $kernel::sum_values::<_, $row>($values, $tiles, $weights.as_chunks().0, $len, $sums)
    };
}

/// Calls the version of a function for an instruction set and a number of rows.
macro_rules! with_kernel {
    ($isa:expr, $rows:expr, $name:ident, ($of:ident, $tiles:ident, $($rest:ident),*)) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Compute holds only an instruction set that the machine has.
            Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe {
                with_rows!($rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], avx512::$name,
                    ($of, $tiles, $($rest),*));
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 | Isa::AvxVnni => unsafe {
                let $tiles = $tiles.0;
                with_rows!($rows, [1 2 3 4], avx2::$name, ($of, $tiles, $($rest),*));
            },
            _ => {
                let $tiles = $tiles.0;
                with_rows!($rows, [1 2 3 4], portable::$name, ($of, $tiles, $($rest),*));
            }
        }
    };
}

macro_rules! multiply_keys {
    ($($key:ty: $set:ident, $kernel:ident;)*) => {
        $(impl Keys for $key {
            fn set_queries<'a>(
                isa: Isa,
                rows: impl Iterator<Item = &'a [f32]>,
                num_rows_and_head_dim: (usize, usize),
                queries: &mut Queries,
            ) {
                queries.$set(isa, rows, num_rows_and_head_dim);
            }

            fn multiply(
                isa: Isa,
                keys: Tiles<'_, Self>,
                tiles: Reads<'_>,
                queries: &Queries,
                scores: &mut [[f32; TILE_TOKENS]],
            ) {
                let rows = queries.num_rows();
                with_kernel!(isa, rows, $kernel, (keys, tiles, queries, scores));
            }
        })*
    };
}
multiply_keys! {
    f32: set_values, scores;
    i8: set_values, scores;
    CodePair: set_codes, scores_of_codes;
}

macro_rules! sum_elements {
    ($($element:ty)*) => {
        $(impl Values for $element {
            fn sum_values(
                isa: Isa,
                values: Tiles<'_, Self>,
                tiles: Reads<'_>,
                (rows, weights, len): (usize, &[[f32; TILE_TOKENS]], usize),
                sums: &mut [f32],
            ) {
                with_kernel!(isa, rows, sum_values, (values, tiles, weights, len, sums));
            }
        })*
    };
}
sum_elements!(f32 u16 i8);

impl Values for Bf16 {
    #[cfg(target_arch = "x86_64")]
    fn prepare_weights(weights: &mut [[f32; TILE_TOKENS]]) {
        // SAFETY: V is in bf16 only where the instruction set has it.
        unsafe { avx512_bf16::pair_weights(weights) };
    }

    fn sum_values(
        isa: Isa,
        values: Tiles<'_, Self>,
        tiles: Reads<'_>,
        (rows, weights, len): (usize, &[[f32; TILE_TOKENS]], usize),
        sums: &mut [f32],
    ) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Compute holds only an instruction set that the machine has.
            Isa::Avx512Bf16 => unsafe {
                with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], avx512_bf16::sum_values,
                    (values, tiles, weights, len, sums));
            },
            _ => panic!("bug: V in bf16 for {isa}"),
        }
    }
}

/// Turns the scores (tiles, rows) into weights, 0 outside what each row sees; adds what makes a row's
/// weights sum to 1 to `factors`.
fn softmax(
    isa: Isa,
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
    let mut sums = [[0.0; TILE_TOKENS]; UNIT_ROWS];
    let sums = &mut sums[..rows];
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { avx512::exponentials(scores, scale, sums) },
        _ => exponentials(isa, scores, scale, sums),
    }
    factors.extend(sums.iter().map(|sums| 1.0 / sum(sums, |x| x)));
}

for_each_isa! {
    /// Turns the scores (tiles, rows) into `e^(scale * (score - the row's largest))`, and adds these to
    /// the sums of each row. Tile by tile for all rows: those of one row alone would wait for its sums.
    fn exponentials(
        scores: &mut [[f32; TILE_TOKENS]],
        scale: f32,
        sums: &mut [[f32; TILE_TOKENS]],
    ) {
        let rows = sums.len();
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
        for tiles in scores.chunks_exact_mut(rows) {
            for ((sums, largest), tile) in sums.iter_mut().zip(row_largest).zip(tiles) {
                for (sum, score) in sums.iter_mut().zip(tile) {
                    *score = exp((*score - largest) * scale);
                    *sum += *score;
                }
            }
        }
    }
}
