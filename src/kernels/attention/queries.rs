//! The queries of some rows, as the kernels of a type of K multiply them.

use crate::kernels::Isa;
use crate::kernels::kv_storage::{CodePair, scatter, write_query};

/// A buffer, of which one form is set at a time.
#[derive(Debug, Default)]
pub(super) struct Queries {
    num_rows: usize,
    values: Vec<f32>,     // (head_dim, rows)
    codes: Vec<CodePair>, // (head_dim / 2, rows)
    scales: Vec<f32>,     // (rows)
}

/// Codes of `R` queries (head_dim / 2, R), and what the sums of their products are multiplied with.
pub(super) type QueryCodes<'a, const R: usize> = (&'a [[CodePair; R]], &'a [f32; R]);

impl Queries {
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// (head_dim, R)
    pub fn values<const R: usize>(&self) -> &[[f32; R]] {
        self.values.as_chunks().0
    }

    pub fn codes<const R: usize>(&self) -> QueryCodes<'_, R> {
        let scales = self.scales.first_chunk();
        (self.codes.as_chunks().0, scales.expect("bug: R rows"))
    }

    pub fn set_values<'a>(
        &mut self,
        _: Isa,
        rows: impl Iterator<Item = &'a [f32]>,
        (num_rows, head_dim): (usize, usize),
    ) {
        self.num_rows = num_rows;
        self.values.resize(num_rows * head_dim, 0.0);
        for (r, row) in rows.enumerate() {
            scatter(row, (r, num_rows), &mut self.values);
        }
    }

    pub fn set_codes<'a>(
        &mut self,
        isa: Isa,
        rows: impl Iterator<Item = &'a [f32]>,
        (num_rows, head_dim): (usize, usize),
    ) {
        self.num_rows = num_rows;
        let len = num_rows * head_dim.div_ceil(2);
        self.codes.resize(len, CodePair::default());
        self.scales.clear();
        let scales = rows.enumerate();
        let scales = scales.map(|(r, row)| write_query(isa, row, r, num_rows, &mut self.codes));
        self.scales.extend(scales);
    }
}
