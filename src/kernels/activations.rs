//! The rows that are multiplied with weights: as f32, as bf16, and quantised in groups of 32.
//!
//! `value ~ scale * code`, code in -127..=127, scale = largest magnitude of the group / 127: an error
//! of at most 1/254 of that magnitude. So nearly all of a row's error comes from its loudest groups.
//! These get a second group of codes, for what rounding took from the first, as if a code had 15 bits;
//! the kernels multiply it like one more row. A group is loud if the square of its largest magnitude
//! is above `LOUD` times the mean square of its row: nothing but the row itself decides, and where
//! no value stands out, none is.

mod quantize;
#[cfg(target_arch = "x86_64")]
mod rounding;

use std::ops::Range;

use super::aligned::Aligned;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// One group in six is louder in SmolLM2's rows, one in ten in Qwen2.5-Coder's. By the rms of what all
/// rounding adds to the log-probabilities of SmolLM2's prose (0.031 nats; 0.025 at 12, 0.034 at 25, 0.074
/// without fine codes: tests/program/faithful.rs) this is worth as much as the loudest fifth of all rows
/// alike.
const LOUD: f32 = 18.0;

/// Rows whose loud groups one word tells: kernels take at most as many at once.
pub(super) const RUN_ROWS: usize = u64::BITS as usize;

/// Fewer elements are quicker done than shared out.
const MIN_ELEMENTS: usize = 4096;
/// Rows that one thread quantises, and notes the loud ones of in a byte: their codes of a group are two lines
/// of the cache.
const BLOCK_ROWS: usize = 4;
/// Pairs of bf16 that a thread takes at once, of a block of rows.
const ROUNDED_PAIRS: usize = 64;
/// Rows whose bf16 lie together.
pub(super) const BF16_ROWS: usize = 16;

/// Elements that share a scale, in activations and weights alike.
pub const CODE_GROUP: usize = 32;

/// What a group of 32 activations needs beside its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct GroupScale {
    pub scale: f32,
    /// Sum of the codes, times `scale`: what a minimum of the weights is multiplied with. That of a
    /// loud group has the sum of its fine codes too, and theirs is 0.
    pub scaled_sum: f32,
    /// Minus the sum of the codes: times the zero of the weights' codes, what their product starts from.
    pub minus_sum: i32,
    /// Sums of the first and the second 16 codes.
    pub half_sums: [i16; 2],
}

/// Which forms of the activations are multiplied, beside their values in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub codes: bool,
    /// Where the instruction set multiplies bf16; others multiply the values.
    pub bf16: bool,
}

/// A group's codes of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes<'a> {
    pub codes: &'a [i8; CODE_GROUP],
    pub scale: &'a GroupScale,
}

/// One group of some rows.
#[derive(Clone, Copy)]
pub(super) struct RunOfCodes<'a> {
    pub codes: &'a [[i8; CODE_GROUP]],
    pub scales: &'a [GroupScale],
    fine_codes: &'a [[i8; CODE_GROUP]],
    fine_scales: &'a [GroupScale],
    loud: u64,
}

impl<'a> RunOfCodes<'a> {
    /// `R` rows from `first` on.
    #[inline(always)]
    pub fn rows<const R: usize>(&self, first: usize) -> [(usize, Codes<'a>); R] {
        let codes: &[_; R] = self.codes[first..].first_chunk().expect("bug: R rows");
        let scales: &[_; R] = self.scales[first..].first_chunk().expect("bug: R rows");
        std::array::from_fn(|r| {
            let (codes, scale) = (&codes[r], &scales[r]);
            (first + r, Codes { codes, scale })
        })
    }

    /// What rounding took from a row's codes, if the row is loud.
    #[inline(always)]
    pub fn fine(&self, row: usize) -> Option<Codes<'a>> {
        (self.loud >> row & 1 != 0).then(|| self.fine_of(row))
    }

    #[inline(always)]
    fn fine_of(&self, row: usize) -> Codes<'a> {
        Codes {
            codes: &self.fine_codes[row],
            scale: &self.fine_scales[row],
        }
    }

    /// The loud rows, in order, with what rounding took from their codes.
    #[inline(always)]
    pub fn loud_rows(self) -> LoudRows<'a> {
        LoudRows { run: self }
    }
}

/// Loud rows of a run that were not taken yet.
pub(super) struct LoudRows<'a> {
    run: RunOfCodes<'a>,
}

impl<'a> LoudRows<'a> {
    /// The next `R` rows, which must be there.
    #[inline(always)]
    pub fn next_rows<const R: usize>(&mut self) -> [(usize, Codes<'a>); R] {
        std::array::from_fn(|_| {
            let row = self.run.loud.trailing_zeros() as usize;
            self.run.loud &= self.run.loud - 1;
            (row, self.run.fine_of(row))
        })
    }
}

impl<'a> Iterator for LoudRows<'a> {
    type Item = (usize, Codes<'a>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        (self.run.loud != 0).then(|| self.next_rows::<1>()[0])
    }

    #[inline(always)]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.run.loud.count_ones() as usize;
        (len, Some(len))
    }
}

impl ExactSizeIterator for LoudRows<'_> {}

/// A buffer of rows, kept from step to step.
///
/// Codes and scales lie group by group, so that a kernel that takes one group of weights reads
/// those of all rows in one run.
#[derive(Debug, Default)]
pub struct Activations {
    num_rows: usize,
    row_len: usize,
    values: Aligned<f32>,         // (num_rows, row_len)
    bf16_pairs: Aligned<u32>,     // (num_rows / 16, row_len / 2, 16)
    codes: Aligned<i8>,           // (row_len / 32, num_rows, 32)
    scales: Vec<GroupScale>,      // (row_len / 32, num_rows)
    fine_codes: Aligned<i8>,      // (row_len / 32, num_rows, 32), set where loud
    fine_scales: Vec<GroupScale>, // (row_len / 32, num_rows), set where loud
    /// A bit for each row of a run, set where the group is loud.
    loud: Vec<u64>, // (row_len / 32, num_rows / 64)
    /// The same by blocks, as threads write it.
    loud_of_blocks: Vec<u8>, // (num_rows / 4, row_len / 32)
}

impl Activations {
    /// Makes room for the rows; what they hold is unspecified.
    pub fn resize(&mut self, num_rows: usize, row_len: usize) {
        (self.num_rows, self.row_len) = (num_rows, row_len);
        self.values.resize(num_rows * row_len);
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// (num_rows, row_len)
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// (num_rows, row_len)
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Rows from `first` on, a multiple of [`BF16_ROWS`], two values in bf16 each, the first in the
    /// lower half; after an odd last one stands 0. Those of [`BF16_ROWS`] rows, or of the rest, lie
    /// together: a kernel reads one stream, where the rows of a power of two would fall into the
    /// same few sets of the cache. (num_rows / BF16_ROWS, row_len / 2, BF16_ROWS)
    pub(super) fn bf16_pairs(&self, first: usize) -> &[u32] {
        debug_assert!(first.is_multiple_of(BF16_ROWS));
        let row_pairs = self.row_len.div_ceil(2);
        &self.bf16_pairs[first * row_pairs..self.num_rows * row_pairs]
    }

    /// A group of a row as `quantize` left it, and where it is loud what that left over.
    pub fn group(&self, row: usize, group: usize) -> (Codes<'_>, Option<Codes<'_>>) {
        let fine = self.run(group, row..row + 1).fine(0);
        let at = group * self.num_rows + row;
        let codes = Codes {
            codes: &groups_of(&self.codes)[at],
            scale: &self.scales[at],
        };
        (codes, fine)
    }

    /// Group `group` of some rows of a run of [`RUN_ROWS`]; of all of them, but for one at a time.
    #[inline(always)]
    pub(super) fn run(&self, group: usize, rows: Range<usize>) -> RunOfCodes<'_> {
        debug_assert!(rows.start % RUN_ROWS + rows.len() <= RUN_ROWS);
        let start = group * self.num_rows;
        let at = start + rows.start..start + rows.end;
        let runs = self.num_rows.div_ceil(RUN_ROWS);
        let loud = self.loud[group * runs + rows.start / RUN_ROWS];
        RunOfCodes {
            codes: &groups_of(&self.codes)[at.clone()],
            scales: &self.scales[at.clone()],
            fine_codes: &groups_of(&self.fine_codes)[at.clone()],
            fine_scales: &self.fine_scales[at],
            loud: loud >> (rows.start % RUN_ROWS),
        }
    }

    /// Computes from the values what `needs` says.
    pub fn quantize(&mut self, compute: &Compute, needs: Needs) {
        if needs.codes || needs.bf16 {
            self.fill(compute, needs, |_, _| ());
        }
    }

    /// Lets `fill_row(row, values)` set each row's values, and computes from them what `needs` says.
    ///
    /// # Panics
    /// If codes are needed and rows are not whole groups.
    pub(super) fn fill(
        &mut self,
        compute: &Compute,
        needs: Needs,
        fill_row: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (len, num_rows) = (self.row_len, self.num_rows);
        assert!(
            !needs.codes || len.is_multiple_of(CODE_GROUP),
            "bug: rows of {len} have no whole groups"
        );
        let isa = compute.isa();
        let num_blocks = num_rows.div_ceil(BLOCK_ROWS);
        let values = SharedMut::new(&mut self.values);
        let places = needs.codes.then(|| {
            let (num_groups, num_codes) = (len / CODE_GROUP, num_rows * len);
            self.codes.resize(num_codes);
            self.fine_codes.resize(num_codes);
            grow(&mut self.scales, num_groups * num_rows);
            grow(&mut self.fine_scales, num_groups * num_rows);
            grow(&mut self.loud_of_blocks, num_groups * num_blocks);
            CodePlaces {
                num_rows,
                num_groups,
                codes: SharedMut::new(self.codes.as_chunks_mut().0),
                scales: SharedMut::new(&mut self.scales),
                fine_codes: SharedMut::new(self.fine_codes.as_chunks_mut().0),
                fine_scales: SharedMut::new(&mut self.fine_scales),
                loud_of_blocks: SharedMut::new(&mut self.loud_of_blocks),
            }
        });
        let least = MIN_ELEMENTS.div_ceil(BLOCK_ROWS * len);
        let chunk = compute.pool().chunk_of(num_blocks).max(least);
        compute.pool().for_each(num_blocks, chunk, |blocks| {
            const AT_ONCE: usize = RUN_ROWS / BLOCK_ROWS;
            for start in blocks.clone().step_by(AT_ONCE) {
                let blocks = start..blocks.end.min(start + AT_ONCE);
                let rows = blocks.start * BLOCK_ROWS..num_rows.min(blocks.end * BLOCK_ROWS);
                // SAFETY: each row is visited once, and rows do not overlap.
                let values = unsafe { values.part(rows.start * len..rows.end * len) };
                for (row, values) in rows.clone().zip(values.chunks_exact_mut(len)) {
                    fill_row(row, values);
                }
                if let Some(places) = &places {
                    // SAFETY: as above; they begin with a block.
                    unsafe { quantize::quantize_rows(isa, values, rows, places) };
                }
            }
        });
        if needs.codes {
            self.gather_loud();
        }
        #[cfg(target_arch = "x86_64")]
        if needs.bf16 && isa == Isa::Avx512Bf16 {
            self.round(compute);
        }
    }

    /// Puts together what the threads have noted.
    fn gather_loud(&mut self) {
        let (num_groups, runs) = (self.row_len / CODE_GROUP, self.num_rows.div_ceil(RUN_ROWS));
        self.loud.clear();
        self.loud.resize(num_groups * runs, 0);
        let num_blocks = self.num_rows.div_ceil(BLOCK_ROWS);
        let blocks = self.loud_of_blocks.chunks_exact(num_groups);
        for (block, of_groups) in blocks.enumerate().take(num_blocks) {
            let first = block * BLOCK_ROWS;
            let words = self.loud[first / RUN_ROWS..].iter_mut().step_by(runs);
            for (word, of_group) in words.zip(of_groups) {
                *word |= u64::from(*of_group) << (first % RUN_ROWS);
            }
        }
    }

    /// Rounds the values to bf16, some columns of a block of rows after the other: their rows alternate
    /// in the cache's lines, which threads that took whole rows would pull from each other.
    #[cfg(target_arch = "x86_64")]
    fn round(&mut self, compute: &Compute) {
        let values = &self.values;
        let (len, num_rows) = (self.row_len, self.num_rows);
        let num_pairs = len.div_ceil(2);
        self.bf16_pairs.resize(num_rows * num_pairs);
        let bf16_pairs = SharedMut::new(&mut self.bf16_pairs);
        let chunks = num_pairs.div_ceil(ROUNDED_PAIRS);
        let num_items = num_rows.div_ceil(BF16_ROWS) * chunks;
        let elements = 2 * ROUNDED_PAIRS * BF16_ROWS.min(num_rows);
        let chunk = MIN_ELEMENTS.div_ceil(elements.max(1));
        compute.pool().for_each(num_items, chunk, |items| {
            for item in items {
                let first = item / chunks * BF16_ROWS;
                let block_rows = BF16_ROWS.min(num_rows - first);
                let start = item % chunks * ROUNDED_PAIRS;
                let end = num_pairs.min(start + ROUNDED_PAIRS);
                let block = first * num_pairs;
                // SAFETY: each item has pairs of its own, and is visited once.
                let pairs = unsafe {
                    bf16_pairs.part(block + start * block_rows..block + end * block_rows)
                };
                let rows = &values[first * len..(first + block_rows) * len];
                // SAFETY: a Compute holds only an instruction set that the machine has.
                unsafe { rounding::round_columns(rows, len, 2 * start..len.min(2 * end), pairs) };
            }
        });
    }
}

/// Where threads write codes, each those of blocks of its own.
struct CodePlaces<'a> {
    num_rows: usize,
    num_groups: usize,
    codes: SharedMut<'a, [i8; CODE_GROUP]>, // (num_groups, num_rows)
    scales: SharedMut<'a, GroupScale>,      // (num_groups, num_rows)
    fine_codes: SharedMut<'a, [i8; CODE_GROUP]>, // (num_groups, num_rows)
    fine_scales: SharedMut<'a, GroupScale>, // (num_groups, num_rows)
    loud_of_blocks: SharedMut<'a, u8>,      // (num_rows / 4, num_groups)
}

/// Grows a buffer, never shrinks it.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Codes by groups.
#[inline(always)]
fn groups_of(codes: &[i8]) -> &[[i8; CODE_GROUP]] {
    codes.as_chunks().0
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;

    fn quantize(isa: Isa, values: &[f32; 32]) -> ([i8; 32], GroupScale) {
        let compute = Compute::new(isa, Pool::new(1).expect("a thread"));
        let mut x = Activations::default();
        x.resize(1, CODE_GROUP);
        x.values_mut().copy_from_slice(values);
        let needs = Needs {
            codes: true,
            bf16: false,
        };
        x.quantize(&compute, needs);
        let (coarse, _) = x.group(0, 0);
        (*coarse.codes, *coarse.scale)
    }

    #[test]
    fn codes_are_half_a_step_off_at_most_and_sums_are_exact() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for magnitude in [1e-30f32, 0.7, 5.0, 3e30] {
                let values = std::array::from_fn(|i| magnitude * (i as f32 * 1.7).sin());
                let (codes, group) = quantize(isa, &values);
                for (code, value) in codes.iter().zip(&values) {
                    let error = (f32::from(*code) * group.scale - value).abs();
                    assert!(
                        error <= 0.501 * group.scale,
                        "{isa}: {value} is {error:e} off"
                    );
                }
                let sum = |codes: &[i8]| codes.iter().map(|&c| i16::from(c)).sum::<i16>();
                assert_eq!(group.half_sums, [sum(&codes[..16]), sum(&codes[16..])]);
                assert_eq!(group.minus_sum, -i32::from(sum(&codes)));
                assert_eq!(group.scaled_sum, group.scale * -group.minus_sum as f32);
            }
        }
    }

    #[test]
    fn loud_groups_have_fine_codes_and_others_none() {
        const LOUD_GROUPS: [usize; 2] = [1, 6];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let compute = Compute::new(isa, Pool::new(2).expect("two threads"));
            let (num_rows, len) = (67, 8 * CODE_GROUP);
            // Of the rows, each third has loud groups; 64 fill a word.
            let is_loud =
                |row: usize, group: usize| row.is_multiple_of(3) && LOUD_GROUPS.contains(&group);
            let value = |i: usize| {
                let stands_out = is_loud(i / len, i % len / CODE_GROUP) && i % CODE_GROUP == 5;
                if stands_out {
                    8.0
                } else {
                    0.5 * (i as f32 * 1.7).sin()
                }
            };
            let mut x = Activations::default();
            x.resize(num_rows, len);
            for (i, x) in x.values_mut().iter_mut().enumerate() {
                *x = value(i);
            }
            let needs = Needs {
                codes: true,
                bf16: false,
            };
            x.quantize(&compute, needs);
            for i in 0..num_rows * len {
                let (row, group) = (i / len, i % len / CODE_GROUP);
                let (coarse, fine) = x.group(row, group);
                assert_eq!(fine.is_some(), is_loud(row, group), "{isa}: {row}, {group}");
                let read = [Some(coarse), fine].into_iter().flatten();
                let read = read.map(|it| f32::from(it.codes[i % CODE_GROUP]) * it.scale.scale);
                let error = (read.sum::<f32>() - value(i)).abs();
                let most = if fine.is_some() {
                    8.0 / 6e4
                } else {
                    0.5 / 250.0
                };
                assert!(error < most, "{isa}: {i} is {error:e} off");
            }
        }
    }

    #[test]
    fn a_group_is_loud_where_its_largest_square_is_a_multiple_of_the_mean() -> std::io::Result<()> {
        let len = 8 * CODE_GROUP;
        // Beside ones, this value has exactly that square.
        let n = len as f32;
        let threshold = (LOUD * (n - 1.0) / (n - LOUD)).sqrt();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let compute = Compute::new(isa, Pool::new(1)?);
            let mut x = Activations::default();
            x.resize(2, len);
            x.values_mut().fill(1.0);
            x.values_mut()[40] = -1.0001 * threshold;
            x.values_mut()[len + 40] = 0.9999 * threshold;
            let needs = Needs {
                codes: true,
                bf16: false,
            };
            x.quantize(&compute, needs);
            for (row, group) in (0..2).flat_map(|row| (0..8).map(move |group| (row, group))) {
                let is_loud = x.group(row, group).1.is_some();
                assert_eq!(is_loud, (row, group) == (0, 1), "{isa}: {row}, {group}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_largest_magnitude_is_127_of_either_sign_and_zero_stays_zero() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let (codes, _) = quantize(isa, &[-3.0; 32]);
            assert_eq!(codes, [-127; 32]);
            let (codes, group) = quantize(isa, &[0.0; 32]);
            assert_eq!((codes, group), ([0; 32], GroupScale::default()));
            let (_, group) = quantize(isa, &std::array::from_fn(|i| [1.0, f32::NAN][i % 2]));
            assert!(group.scale.is_nan());
            let (_, group) = quantize(isa, &[f32::INFINITY; 32]);
            assert!(!group.scale.is_finite());
        }
    }

    #[test]
    fn rows_in_bf16_lie_by_blocks_and_pairs() -> std::io::Result<()> {
        // None of a subnormal number.
        let bits_of = |i: usize| 0x0080 + (i as u32 & 0x3fff);
        if !Isa::Avx512Bf16.is_available() {
            return Ok(());
        }
        let compute = Compute::new(Isa::Avx512Bf16, Pool::new(3)?);
        for (num_rows, len) in [(1, 1), (1, 4099), (5, 130), (16, 128), (35, 257), (64, 900)] {
            let mut x = Activations::default();
            x.resize(num_rows, len);
            for (i, value) in x.values_mut().iter_mut().enumerate() {
                *value = half::bf16::from_bits(bits_of(i) as u16).to_f32();
            }
            let needs = Needs {
                codes: false,
                bf16: true,
            };
            x.quantize(&compute, needs);
            let num_pairs = len.div_ceil(2);
            for row in 0..num_rows {
                let first = row / BF16_ROWS * BF16_ROWS;
                let block_rows = BF16_ROWS.min(num_rows - first);
                for pair in 0..num_pairs {
                    let stored = x.bf16_pairs(first)[pair * block_rows + row - first];
                    let bits = |column: usize| match column < len {
                        true => bits_of(row * len + column),
                        false => 0,
                    };
                    let expected = bits(2 * pair) | bits(2 * pair + 1) << 16;
                    assert_eq!(stored, expected, "{num_rows} x {len}: {row}, {pair}");
                }
            }
        }
        Ok(())
    }
}
