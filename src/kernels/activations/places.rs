//! Where threads put a form of rows that they have values of.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::rounding;
use super::{BF16_ROWS, CODE_GROUP, CodeGroup, PairBits, quantize};
use crate::kernels::Isa;
use crate::kernels::aligned::Aligned;
use crate::kernels::shared::SharedMut;

/// Places of the only form that is needed, filled group by group: 32 columns of some rows.
pub(in crate::kernels) enum Places<'a> {
    Codes(CodePlaces<'a>),
    Bf16(Bf16Places<'a>),
}

impl Places<'_> {
    /// Makes the form of some groups of some rows (rows, groups * 32). Of bf16, rows begin and end as
    /// blocks do.
    ///
    /// # Safety
    /// Nobody else may set these meanwhile.
    pub unsafe fn set(&self, isa: Isa, values: &[f32], rows: Range<usize>, groups: Range<usize>) {
        match self {
            // SAFETY: as the caller promises.
            Self::Codes(places) => unsafe { places.set(isa, values, rows, groups) },
            // SAFETY: as above.
            Self::Bf16(places) => unsafe { places.set(values, rows, groups) },
        }
    }
}

/// Places of codes.
pub(in crate::kernels) struct CodePlaces<'a> {
    groups: SharedMut<'a, CodeGroup>, // (row_len / 32, num_rows)
    num_rows: usize,
    pair_bits: PairBits,
}

impl<'a> CodePlaces<'a> {
    /// # Panics
    /// If rows are not whole groups.
    pub(super) fn new(
        groups: &'a mut Vec<CodeGroup>,
        (num_rows, len): (usize, usize),
        pair_bits: PairBits,
    ) -> Self {
        assert!(
            len.is_multiple_of(CODE_GROUP),
            "bug: rows of {len} have no whole groups"
        );
        let needed = groups.len().max(len / CODE_GROUP * num_rows);
        groups.resize(needed, CodeGroup::default());
        Self {
            groups: SharedMut::new(groups),
            num_rows,
            pair_bits,
        }
    }

    /// Quantises some groups of some rows. (rows, groups * 32)
    ///
    /// # Safety
    /// Nobody else may set these meanwhile.
    pub unsafe fn set(&self, isa: Isa, values: &[f32], rows: Range<usize>, groups: Range<usize>) {
        let len = groups.len() * CODE_GROUP;
        assert_eq!(values.len(), rows.len() * len, "bug: values of each row");
        quantize::quantize_rows(isa, (values, len), self.pair_bits, |group, row| {
            let index = (groups.start + group) * self.num_rows + rows.start + row;
            // SAFETY: as the caller promises; each group of a row is one at a time.
            let place = unsafe { self.groups.part(index..index + 1) };
            &mut place[0]
        });
    }
}

/// Places of bf16, for a Compute that multiplies it.
pub(in crate::kernels) struct Bf16Places<'a> {
    pairs: SharedMut<'a, u32>, // (num_rows / 16, row_len / 2, 16)
    num_rows: usize,
    row_len: usize,
}

impl<'a> Bf16Places<'a> {
    pub(super) fn new(pairs: &'a mut Aligned<u32>, (num_rows, row_len): (usize, usize)) -> Self {
        pairs.resize(num_rows * row_len.div_ceil(2));
        Self {
            pairs: SharedMut::new(pairs),
            num_rows,
            row_len,
        }
    }

    /// Rows and their length.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.num_rows, self.row_len)
    }

    /// Rounds some groups of some rows, whole blocks. (rows, groups * 32)
    ///
    /// # Safety
    /// As of [`Places::set`].
    unsafe fn set(&self, values: &[f32], rows: Range<usize>, groups: Range<usize>) {
        const PAIRS: usize = CODE_GROUP / 2;
        let pairs = groups.start * PAIRS..groups.end * PAIRS;
        let blocks = values.chunks(BF16_ROWS * 2 * pairs.len());
        for (first, values) in rows.step_by(BF16_ROWS).zip(blocks) {
            // SAFETY: as the caller promises.
            unsafe { self.set_columns(first, (values, 2 * pairs.len()), 0, pairs.clone()) };
        }
    }

    /// Rounds some pairs of the whole rows of the block from row `first` on. (rows, row_len)
    ///
    /// # Safety
    /// As of [`Places::set`].
    pub(super) unsafe fn set_block(&self, first: usize, values: &[f32], pairs: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { self.set_columns(first, (values, self.row_len), 2 * pairs.start, pairs) };
    }

    /// Rounds `pairs` of a block, which stand from `column` on in rows of `len` values.
    ///
    /// # Safety
    /// As of [`Places::set`].
    unsafe fn set_columns(
        &self,
        first: usize,
        (values, len): (&[f32], usize),
        column: usize,
        pairs: Range<usize>,
    ) {
        let num_rows = BF16_ROWS.min(self.num_rows - first);
        assert!(
            first.is_multiple_of(BF16_ROWS) && values.len() == num_rows * len,
            "bug: {} values of the rows from {first} on",
            values.len()
        );
        let columns = column..len.min(column + 2 * pairs.len());
        let block = first * self.row_len.div_ceil(2);
        // SAFETY: as the caller promises.
        let places = unsafe {
            self.pairs
                .part(block + pairs.start * num_rows..block + pairs.end * num_rows)
        };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: who has such places has a Compute with this instruction set.
        unsafe {
            rounding::round_columns(values, len, columns, places);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("bug: {} places for {columns:?}", places.len());
    }
}
