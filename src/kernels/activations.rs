//! The rows that are multiplied with weights: as f32, as bf16, and quantised in groups of 32.
//!
//! `value ~ scale * code`. Codes are bytes, and so half a scale off at most: nearly all of a
//! row's error would come from its few groups with a value that stands out, if that made their scale.
//! So in every group one step of four codes, that with the largest magnitude, has a high digit beside
//! the low one, and is left out when the scale is chosen. The kernels multiply eight steps of low digits
//! and one of high ones.

mod places;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod rounding;

use self::places::Bf16Places;
pub(super) use self::places::{CodePlaces, Places};
use super::aligned::Aligned;
use super::packed::{STEP, STEPS_OF_GROUP};
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Fewer elements are quicker done than shared out.
const MIN_ELEMENTS: usize = 4096;
/// Rows that a thread fills before it quantises them: their codes of a group are one stream of memory.
const ROWS_AT_ONCE: usize = 16;
/// Blocks of rows from which on each thread rounds those that it has filled.
const BLOCKS_OF_A_THREAD: usize = 2;
/// Pairs of bf16 that a thread takes at once, of a block of rows, where blocks are fewer.
const ROUNDED_PAIRS: usize = 64;
/// Rows whose bf16 lie together.
pub(super) const BF16_ROWS: usize = 16;

/// Elements that share a scale, in activations and weights alike.
pub const CODE_GROUP: usize = 32;

/// Value of a high digit, which 4-bit weights can be multiplied with and still be bytes. Where there are
/// high digits, low ones are -8..=7.
pub(super) const HIGH: i32 = 1 << HIGH_BITS;
pub(super) const HIGH_BITS: u32 = 4;
/// Steps whose products are made two at once, the first with the second and so on.
pub(super) const PAIRED_STEPS: usize = 6;
/// Zeros of weights whose products are made so.
const ZEROS: [i32; 3] = [0, 8, 16];

/// A group of a row, a line of the cache. Sums are of whole codes: `low + 16 * high`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub struct CodeGroup {
    pub low: [i8; CODE_GROUP],
    /// Of step `tall`; the other steps have none.
    pub high: [i8; STEP],
    /// The step with the largest magnitude.
    pub tall: u16,
    /// Sum of the first 16 codes.
    pub first_half_sum: i16,
    pub scale: f32,
    /// Sum of the codes, times `scale`: what a minimum of the weights is multiplied with.
    pub scaled_sum: f32,
    /// Minus the sum of the codes: times the zero of the weights' codes, what their product starts from.
    pub minus_sum: i32,
    /// What a product that is made of pairs starts from, for each of [`ZEROS`].
    starts: [i32; ZEROS.len()],
}

impl CodeGroup {
    /// Step `tall`, as an index of a group's steps.
    #[inline(always)]
    pub(super) fn tall_step(&self) -> usize {
        self.tall as usize % STEPS_OF_GROUP
    }

    /// What a product that is made of pairs starts from, with weights whose zero is one of [`ZEROS`].
    #[inline(always)]
    pub(super) fn start(&self, zero: i32) -> i32 {
        match zero {
            0 => self.starts[0],
            8 => self.starts[1],
            16 => self.starts[2],
            _ => panic!("bug: no pairs with a zero of {zero}"),
        }
    }

    /// Sum of the first or the second 16 codes.
    #[inline(always)]
    pub(super) fn half_sum(&self, half: usize) -> i32 {
        let first = i32::from(self.first_half_sum);
        match half {
            0 => first,
            _ => self.minus_sum.wrapping_add(first).wrapping_neg(),
        }
    }

    /// Code `index`, of all digits.
    pub fn code(&self, index: usize) -> i32 {
        let high = match index / STEP == self.tall_step() {
            true => i32::from(self.high[index % STEP]),
            false => 0,
        };
        i32::from(self.low[index]) + HIGH * high
    }
}

/// Bits of the widest weights that are multiplied in pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairBits {
    Four,
    Five,
}

impl PairBits {
    /// What pairs take off the weights' codes, which are 15 or 31 at most.
    pub(super) fn middle(self) -> i32 {
        match self {
            Self::Four => 8,
            Self::Five => 16,
        }
    }

    /// The largest digit: with a weight added, less its middle, it is a byte.
    fn max_digit(self) -> i32 {
        128 - self.middle()
    }
}

/// Which forms of the activations are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Those in f32.
    pub values: bool,
    /// Codes whose digits can be added to such weights.
    pub codes: Option<PairBits>,
    /// Where the instruction set multiplies bf16; others multiply the values.
    pub bf16: bool,
}

/// A buffer of rows, kept from step to step.
///
/// Codes lie group by group, so that a kernel that takes one group of weights reads those of all rows
/// in one run.
#[derive(Debug, Default)]
pub struct Activations {
    num_rows: usize,
    row_len: usize,
    values: Aligned<f32>,     // (num_rows, row_len)
    bf16_pairs: Aligned<u32>, // (num_rows / 16, row_len / 2, 16)
    groups: Vec<CodeGroup>,   // (row_len / 32, num_rows)
    pair_bits: Option<PairBits>,
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

    /// Group `group` of all rows, as `quantize` left it. (num_rows)
    #[inline(always)]
    pub fn group(&self, group: usize) -> &[CodeGroup] {
        &self.groups[group * self.num_rows..][..self.num_rows]
    }

    /// What the groups were made for.
    #[inline(always)]
    pub(super) fn pair_bits(&self) -> PairBits {
        self.pair_bits.expect("bug: multiplied without codes")
    }

    /// Places of codes, if they alone are needed: who has values at hand then makes codes of them, and need
    /// not store them. What is there is unspecified until all are set.
    ///
    /// # Panics
    /// If rows are not whole groups.
    pub(super) fn places_of_codes(&mut self, needs: Needs) -> Option<CodePlaces<'_>> {
        let pair_bits = needs.codes.filter(|_| !needs.values && !needs.bf16)?;
        self.pair_bits = Some(pair_bits);
        let size = (self.num_rows, self.row_len);
        Some(CodePlaces::new(&mut self.groups, size, pair_bits))
    }

    /// As [`Activations::places_of_codes`], of codes or bf16, where rows are whole groups.
    pub(super) fn places(&mut self, isa: Isa, needs: Needs) -> Option<Places<'_>> {
        let are_whole_groups = self.row_len.is_multiple_of(CODE_GROUP);
        let size = (self.num_rows, self.row_len);
        match needs {
            _ if !are_whole_groups => None,
            Needs {
                values: false,
                codes: None,
                bf16: true,
            } if isa == Isa::Avx512Bf16 => {
                Some(Places::Bf16(Bf16Places::new(&mut self.bf16_pairs, size)))
            }
            _ => self.places_of_codes(needs).map(Places::Codes),
        }
    }

    /// Computes from the values what `needs` says.
    pub fn quantize(&mut self, compute: &Compute, needs: Needs) {
        if needs.codes.is_some() || needs.bf16 {
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
        let (isa, pool) = (compute.isa(), compute.pool());
        self.pair_bits = needs.codes;
        let codes = needs
            .codes
            .map(|pair_bits| CodePlaces::new(&mut self.groups, (num_rows, len), pair_bits));
        let bf16 = (needs.bf16 && isa == Isa::Avx512Bf16)
            .then(|| Bf16Places::new(&mut self.bf16_pairs, (num_rows, len)));
        let has_blocks = num_rows >= BLOCKS_OF_A_THREAD * pool.num_threads() * BF16_ROWS;
        let (by_block, by_column) = match has_blocks {
            true => (bf16, None),
            false => (None, bf16),
        };
        let values = SharedMut::new(&mut self.values);
        // A thread has rows to itself: whole blocks, where it rounds them at once.
        let unit = match by_block {
            Some(_) => BF16_ROWS,
            None => 1,
        };
        let num_items = num_rows.div_ceil(unit);
        let least = MIN_ELEMENTS.div_ceil(len * unit);
        let chunk = pool.chunk_of(num_items).max(least);
        pool.for_each(num_items, chunk, |items| {
            let rows = items.start * unit..num_rows.min(items.end * unit);
            for start in rows.clone().step_by(ROWS_AT_ONCE) {
                let rows = start..rows.end.min(start + ROWS_AT_ONCE);
                // SAFETY: each row is visited once, and rows do not overlap.
                let values = unsafe { values.part(rows.start * len..rows.end * len) };
                for (row, values) in rows.clone().zip(values.chunks_exact_mut(len)) {
                    fill_row(row, values);
                }
                if let Some(places) = &codes {
                    // SAFETY: as above.
                    unsafe { places.set(isa, values, rows, 0..len / CODE_GROUP) };
                }
                if let Some(places) = &by_block {
                    // SAFETY: as above.
                    unsafe { places.set_block(start, values, 0..len.div_ceil(2)) };
                }
            }
        });
        if let Some(places) = by_column {
            round(compute, &self.values, &places);
        }
    }
}

/// Rounds some columns of a block of rows after the other: their rows alternate in the cache's lines, which
/// threads that took whole rows would pull from each other.
fn round(compute: &Compute, values: &[f32], places: &Bf16Places<'_>) {
    let (num_rows, len) = places.size();
    let num_pairs = len.div_ceil(2);
    let chunks = num_pairs.div_ceil(ROUNDED_PAIRS);
    let num_items = num_rows.div_ceil(BF16_ROWS) * chunks;
    let elements = 2 * ROUNDED_PAIRS * BF16_ROWS.min(num_rows);
    let chunk = MIN_ELEMENTS.div_ceil(elements.max(1));
    compute.pool().for_each(num_items, chunk, |items| {
        for item in items {
            let first = item / chunks * BF16_ROWS;
            let rows = first..num_rows.min(first + BF16_ROWS);
            let start = item % chunks * ROUNDED_PAIRS;
            let pairs = start..num_pairs.min(start + ROUNDED_PAIRS);
            // SAFETY: each item has pairs of its own, and is visited once.
            unsafe { places.set_block(first, &values[rows.start * len..rows.end * len], pairs) };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;

    fn quantize(isa: Isa, values: &[f32; 32]) -> CodeGroup {
        let compute = Compute::new(isa, Pool::new(1).expect("a thread"));
        let mut x = Activations::default();
        x.resize(1, CODE_GROUP);
        x.values_mut().copy_from_slice(values);
        let needs = Needs {
            codes: Some(PairBits::Four),
            ..Needs::default()
        };
        x.quantize(&compute, needs);
        x.group(0)[0]
    }

    #[test]
    fn codes_are_half_a_scale_off_at_most_and_sums_are_exact() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (magnitude, tall) in [1e-30f32, 0.7, 5.0, 3e30]
                .into_iter()
                .flat_map(|magnitude| [0, 2, 5, 7].map(|tall| (magnitude, tall)))
            {
                // One more value of the tall step stands out, and the others of it do not.
                let stands_out = |i| match i {
                    i if i == STEP * tall + 1 => -15.0,
                    i if i == STEP * tall + 2 => 10.0,
                    _ => 1.0,
                };
                let values: [f32; 32] = std::array::from_fn(|i| {
                    magnitude * stands_out(i) * (i as f32 * 1.7 + 0.3).sin()
                });
                let group = quantize(isa, &values);
                assert_eq!(group.tall_step(), tall, "{isa}");
                let others = (0..32).filter(|i| i / STEP != tall);
                let largest = others.map(|i| values[i].abs()).fold(0.0, f32::max);
                assert_eq!(group.scale, largest * (1.0 / 120.0), "{isa}");
                for (i, value) in values.iter().enumerate() {
                    let error = (group.code(i) as f32 * group.scale - value).abs();
                    assert!(
                        error <= 0.501 * group.scale,
                        "{isa}: {value} is {error:e} off"
                    );
                }
                let sum = |range: std::ops::Range<usize>| range.map(|i| group.code(i)).sum::<i32>();
                assert_eq!(
                    [0, 1].map(|half| group.half_sum(half)),
                    [sum(0..16), sum(16..32)]
                );
                assert_eq!(group.minus_sum, -sum(0..32));
                assert_eq!(group.scaled_sum, group.scale * -group.minus_sum as f32);
            }
        }
    }

    #[test]
    fn a_value_alone_has_all_digits() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for value in [3.0, -3.0] {
                let group = quantize(
                    isa,
                    &std::array::from_fn(|i| if i == 9 { value } else { 0.0 }),
                );
                let read = group.code(9) as f32 * group.scale;
                assert!((read - value).abs() <= 3.0 / 4000.0, "{isa}: {read}");
                assert!((0..32).all(|i| i == 9 || group.code(i) == 0), "{isa}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible_and_zero_stays_zero() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let group = quantize(isa, &[-3.0; 32]);
            assert!((0..32).all(|i| group.code(i) == -120));
            assert_eq!(quantize(isa, &[0.0; 32]), CodeGroup::default());
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 17] {
                    let group = quantize(
                        isa,
                        &std::array::from_fn(|i| if i == at { broken } else { 1.0 }),
                    );
                    assert!(!group.scale.is_finite(), "{isa}: {broken} at {at}");
                }
                let group = quantize(isa, &[broken; 32]);
                assert!(!group.scale.is_finite(), "{isa}: {broken}");
            }
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
        for (num_rows, len) in [
            (1, 1),
            (1, 4099),
            (5, 130),
            (16, 128),
            (35, 257),
            (100, 257),
            (64, 900),
        ] {
            let mut x = Activations::default();
            x.resize(num_rows, len);
            for (i, value) in x.values_mut().iter_mut().enumerate() {
                *value = half::bf16::from_bits(bits_of(i) as u16).to_f32();
            }
            let needs = Needs {
                bf16: true,
                ..Needs::default()
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
