//! `y = x W^T` over packed weights, and what is done with a result while it is at hand.
//!
//! Panels are the outer loop: a thread takes some, and multiplies each with all rows, so that a step
//! reads every weight once; or, where rows are many, with its part of them. Within a panel, groups of
//! inputs are the outer loop: each is unpacked for all rows. A result is one chain of additions over the
//! groups, in their order, whatever the batch.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod portable;

use std::cell::RefCell;
use std::ops::Range;

use super::activations::{Activations, BF16_ROWS, CODE_GROUP, Needs, PairBits};
use super::aligned::Aligned;
use super::elementwise::Activation;
use super::isa::for_each_isa;
use super::packed::{PANEL_ROWS, PackedMatrix, Panel, PanelFormat};
use super::shared::SharedMut;
use super::{Compute, Isa, Pool};

/// Rows that are multiplied with a panel at once: their sums stay in the first cache.
const RUN_ROWS: usize = 64;
const _: () = assert!(RUN_ROWS.is_multiple_of(BF16_ROWS));

/// Results of some rows for one panel. (rows, 16)
type Sums = [[f32; PANEL_ROWS]];

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    Store,
    /// Added to what is there: the residual stream.
    Add,
}

/// Multiplies the rows of `x` with matrices whose outputs follow one another, adds the bias, and
/// stores or adds the results to `y` (num_rows, outputs of all parts).
///
/// # Panics
/// If sizes do not fit, or `x` lacks the form that a part multiplies ([`needs`]).
pub fn matmul(
    compute: &Compute,
    parts: &[PackedMatrix],
    bias: Option<&[f32]>,
    x: &Activations,
    (epilogue, y): (Epilogue, &mut [f32]),
) {
    let width: usize = parts.iter().map(PackedMatrix::outputs).sum();
    assert!(
        parts.iter().all(|part| part.inputs() == x.row_len()),
        "bug: rows of {}",
        x.row_len()
    );
    assert_eq!(y.len(), x.num_rows() * width, "bug: room for the results");
    assert!(
        bias.is_none_or(|bias| bias.len() == width),
        "bug: a bias for each output"
    );
    let y = SharedMut::new(y);
    let num_panels = parts.iter().map(PackedMatrix::num_panels).sum();
    let (isa, pool) = (compute.isa(), compute.pool());
    for_each_run(pool, (x.num_rows(), num_panels), 1, |rows, panel, sums| {
        let (part, index, part_column) = locate(parts, panel);
        let column = part_column + index * PANEL_ROWS;
        let len = PANEL_ROWS.min(part_column + part.outputs() - column);
        let columns = Columns { width, column, len };
        columns.prefetch(&y, rows.clone());
        multiply(isa, &part.panel(index), x, rows.start, sums);
        if let Some(bias) = bias {
            add_to_rows(isa, sums, &bias[column..column + len]);
        }
        // Each row is visited once with each panel; these columns of it are the panel's own.
        finish(isa, epilogue, sums, &y, (rows.start, columns));
    });
}

/// `activation(x W^T + b)`, or `activation(x G^T + b) * (x U^T + c)` where there are two matrices, to the rows
/// of `y` in the forms of `needs`; `biases` is b, then c. If one form alone is needed, it is made while the
/// results are at hand, which the values of `y` then are not.
///
/// # Panics
/// As [`matmul`], and if the matrices differ in size.
pub fn matmul_activated(
    compute: &Compute,
    (gate, up): (&PackedMatrix, Option<&PackedMatrix>),
    biases: Option<&[f32]>,
    activation: Activation,
    x: &Activations,
    (y, needs): (&mut Activations, Needs),
) {
    let width = gate.outputs();
    let num_matrices = 1 + usize::from(up.is_some());
    for matrix in [Some(gate), up].into_iter().flatten() {
        assert_eq!(
            (matrix.inputs(), matrix.outputs()),
            (x.row_len(), width),
            "bug: sizes"
        );
    }
    assert_eq!(
        (y.num_rows(), y.row_len()),
        (x.num_rows(), width),
        "bug: room for the results"
    );
    assert!(
        biases.is_none_or(|biases| biases.len() == num_matrices * width),
        "bug: a bias for each output"
    );
    let (isa, pool) = (compute.isa(), compute.pool());
    // The results of a panel, to the sums of the gate.
    let multiply_panel = |columns: Columns, first_row: usize, gates: &mut Sums, ups: &mut Sums| {
        let Columns { column, len, .. } = columns;
        let multiply_one = |matrix: &PackedMatrix, first_bias: usize, sums: &mut Sums| {
            multiply(isa, &matrix.panel(column / PANEL_ROWS), x, first_row, sums);
            if let Some(biases) = biases {
                add_to_rows(isa, sums, &biases[first_bias + column..][..len]);
            }
        };
        multiply_one(gate, 0, gates);
        match up {
            Some(up) => {
                multiply_one(up, width, ups);
                activation.apply_gate(isa, gates.as_flattened_mut(), ups.as_flattened());
            }
            None => activation.apply(isa, gates.as_flattened_mut()),
        }
    };
    let columns_of = |column: usize| {
        let len = PANEL_ROWS.min(width - column);
        Columns { width, column, len }
    };
    match y.places(isa, needs) {
        Some(places) => {
            let num_groups = width / CODE_GROUP;
            for_each_run(pool, (x.num_rows(), num_groups), 4, |rows, group, sums| {
                let (gates, ups) = sums.split_at_mut(2 * rows.len());
                let halves = gates.chunks_exact_mut(rows.len());
                let halves = halves.zip(ups.chunks_exact_mut(rows.len())).enumerate();
                for (half, (gates, ups)) in halves {
                    let column = group * CODE_GROUP + half * PANEL_ROWS;
                    multiply_panel(columns_of(column), rows.start, gates, ups);
                }
                // Both halves of a row come to lie side by side, where the other factors were.
                let (first, second) = gates.split_at(rows.len());
                let results = first.iter().zip(second);
                for (values, (first, second)) in ups.as_chunks_mut().0.iter_mut().zip(results) {
                    *values = [*first, *second];
                }
                let values = ups.as_flattened();
                // SAFETY: each row is visited once with each group; runs are whole blocks.
                unsafe { places.set(isa, values, rows, group..group + 1) };
            });
        }
        None => {
            let values = SharedMut::new(y.values_mut());
            for_each_run(
                pool,
                (x.num_rows(), gate.num_panels()),
                num_matrices,
                |rows, panel, sums| {
                    let columns = columns_of(panel * PANEL_ROWS);
                    let (gates, ups) = sums.split_at_mut(rows.len());
                    columns.prefetch(&values, rows.clone());
                    multiply_panel(columns, rows.start, gates, ups);
                    // Each row is visited once with each panel; these columns of it are the panel's own.
                    finish(isa, Epilogue::Store, gates, &values, (rows.start, columns));
                },
            );
            y.quantize(compute, needs);
        }
    }
}

/// Which forms of the activations these matrices multiply.
pub fn needs<'a>(matrices: impl IntoIterator<Item = &'a PackedMatrix>) -> Needs {
    let mut needs = Needs::default();
    for matrix in matrices {
        match matrix.format() {
            PanelFormat::F32 | PanelFormat::F16 => needs.values = true,
            PanelFormat::Bf16 => needs.bf16 = true,
            PanelFormat::Q5Zero | PanelFormat::Q5Min => needs.codes = Some(PairBits::Five),
            _ => needs.codes = needs.codes.or(Some(PairBits::Four)),
        }
    }
    needs
}

/// The part that has panel `index` of all parts, its own index of that panel, and its first column.
fn locate(parts: &[PackedMatrix], mut index: usize) -> (&PackedMatrix, usize, usize) {
    let mut column = 0;
    for part in parts {
        if index < part.num_panels() {
            return (part, index, column);
        }
        index -= part.num_panels();
        column += part.outputs();
    }
    panic!("bug: a panel beyond the last");
}

/// Calls `f` for each panel with each run of rows, and with zeros for some sums of a row. All rows pass one panel
/// after the other; but where there are many, each thread has a part of them to itself, which it has made
/// before and goes on with after: they need not come from another one's caches.
fn for_each_run(
    pool: &Pool,
    (num_rows, num_panels): (usize, usize),
    sums_of_row: usize,
    f: impl Fn(Range<usize>, usize, &mut Sums) + Sync,
) {
    thread_local! {
        static SUMS: RefCell<Aligned<f32>> = RefCell::default();
    }
    let parts = (num_rows / RUN_ROWS).clamp(1, pool.num_threads());
    let bound = |part: usize| match part == parts {
        true => num_rows,
        false => (part * num_rows / parts).next_multiple_of(BF16_ROWS),
    };
    let num_items = parts * num_panels;
    pool.for_each(num_items, pool.chunk_of(num_items), |items| {
        SUMS.with_borrow_mut(|sums| {
            for item in items {
                let (part, panel) = (item / num_panels, item % num_panels);
                let end = bound(part + 1);
                for start in (bound(part)..end).step_by(RUN_ROWS) {
                    let rows = start..end.min(start + RUN_ROWS);
                    sums.resize(sums_of_row * rows.len() * PANEL_ROWS);
                    sums.fill(0.0);
                    f(rows, panel, sums.as_chunks_mut().0);
                }
            }
        });
    });
}

/// Rows from `first` on times one panel, as many as there are sums, which are zeros at first.
fn multiply(isa: Isa, panel: &Panel<'_>, x: &Activations, first: usize, sums: &mut Sums) {
    match isa {
        Isa::Portable => portable::multiply(panel, x, first, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx2 => unsafe { avx2::multiply(panel, x, first, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni => unsafe { avx2::vnni::multiply(panel, x, first, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Bf16 if panel.format == PanelFormat::Bf16 => unsafe {
            avx512_bf16::multiply(panel, x, first, sums);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { avx512::multiply(panel, x, first, sums) },
        #[cfg(not(target_arch = "x86_64"))]
        isa => unreachable!("bug: {isa} on another architecture"),
    }
}

/// The columns of `y` that a panel's results belong to.
#[derive(Clone, Copy)]
struct Columns {
    /// Of a row.
    width: usize,
    /// The first.
    column: usize,
    /// Their number.
    len: usize,
}

impl Columns {
    /// Asks for the places of results, a row of `y` apart, while their sums are still made.
    fn prefetch(&self, y: &SharedMut<'_, f32>, rows: Range<usize>) {
        for row in rows {
            y.prefetch(row * self.width + self.column);
        }
    }
}

for_each_isa! {
    /// Puts results where they belong, from a row on, which nobody else uses meanwhile.
    fn finish(epilogue: Epilogue, sums: &Sums, y: &SharedMut<'_, f32>, place: (usize, Columns)) {
        let (first_row, columns) = place;
        for (row, results) in (first_row..).zip(sums) {
            let start = row * columns.width + columns.column;
            // SAFETY: as the caller promises.
            let y = unsafe { y.part(start..start + columns.len) };
            // All panels but the last fill their width, which the compiler may know.
            match y.as_chunks_mut::<PANEL_ROWS>().0 {
                [y] => finish_row(epilogue, results, y),
                _ => finish_row(epilogue, results, y),
            }
        }
    }
}

#[inline(always)]
fn finish_row(epilogue: Epilogue, results: &[f32], y: &mut [f32]) {
    for (y, result) in y.iter_mut().zip(results) {
        *y = match epilogue {
            Epilogue::Store => *result,
            Epilogue::Add => *y + result,
        };
    }
}

for_each_isa! {
    fn add_to_rows(sums: &mut Sums, bias: &[f32]) {
        for row in sums {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}
