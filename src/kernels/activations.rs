//! The rows that are multiplied with weights: as f32, and quantised in groups of 32.
//!
//! `value ~ scale * code`, code in -127..=127, scale = largest magnitude of the group / 127: an error
//! of at most 1/254 of that magnitude. Where that is too coarse, a second row of codes quantises what
//! the first left over, as if a code had 15 bits; the kernels multiply it as one more row.

use super::isa::for_each_isa;
use super::math::ROUND;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Elements that share a scale, in activations and weights alike.
pub const CODE_GROUP: usize = 32;

/// What a group of 32 activations needs beside its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct GroupScale {
    pub scale: f32,
    /// Sum of the codes, times `scale`.
    pub scaled_sum: f32,
    /// Sum of the codes.
    pub sum: i32,
    /// Sums of the first and the second 16 codes.
    pub half_sums: [i32; 2],
}

/// Which form of the activations a matrix multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub values: bool,
    pub codes: bool,
    /// A second row of codes for what rounding took from the first.
    pub fine: bool,
}

impl Needs {
    /// The same with fine codes.
    pub fn fine(self) -> Self {
        Self { fine: true, ..self }
    }

    /// Rows of codes that stand for one row of values.
    fn planes(self) -> usize {
        1 + usize::from(self.fine)
    }
}

/// A buffer of rows, kept from step to step.
///
/// Codes and scales lie group by group, so that a kernel that takes one group of weights reads
/// those of all rows in one run.
#[derive(Debug, Default)]
pub struct Activations {
    num_rows: usize,
    row_len: usize,
    planes: usize,
    values: Vec<f32>,             // (num_rows, row_len)
    codes: Vec<[i8; CODE_GROUP]>, // (row_len / 32, num_rows, planes)
    groups: Vec<GroupScale>,      // (row_len / 32, num_rows, planes)
}

impl Activations {
    /// Makes room for the rows; what they hold is unspecified.
    pub fn resize(&mut self, num_rows: usize, row_len: usize) {
        (self.num_rows, self.row_len) = (num_rows, row_len);
        grow(&mut self.values, num_rows * row_len);
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// (num_rows, row_len)
    pub fn values(&self) -> &[f32] {
        &self.values[..self.num_rows * self.row_len]
    }

    /// (num_rows, row_len)
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.num_rows * self.row_len]
    }

    /// Rows of codes that stand for one row of values, to be multiplied and added up: 1 or 2.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// Group `group` of every row, as `quantize` left it. (num_rows, planes)
    pub fn group(&self, group: usize) -> (&[[i8; CODE_GROUP]], &[GroupScale]) {
        let len = self.num_rows * self.planes;
        let rows = group * len..(group + 1) * len;
        (&self.codes[rows.clone()], &self.groups[rows])
    }

    /// Computes codes and scales from the values, if `needs` says so.
    pub fn quantize(&mut self, compute: &Compute, needs: Needs) {
        if needs.codes {
            self.fill(compute, needs, |_, _| ());
        }
    }

    /// Lets `fill_row(row, values)` set each row's values, and quantises them while they are in the
    /// cache.
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
        self.planes = needs.planes();
        if needs.codes {
            let num_groups = num_rows * self.planes * len / CODE_GROUP;
            grow(&mut self.codes, num_groups);
            grow(&mut self.groups, num_groups);
        }
        let (isa, planes) = (compute.isa(), self.planes);
        let values = SharedMut::new(&mut self.values);
        let codes = SharedMut::new(&mut self.codes);
        let groups = SharedMut::new(&mut self.groups);
        // Few short rows are quicker done than shared out.
        const MIN_ELEMENTS: usize = 4096;
        let chunk = compute
            .pool()
            .chunk_of(num_rows)
            .max(MIN_ELEMENTS.div_ceil(len.max(1)));
        compute.pool().for_each(num_rows, chunk, |rows| {
            for row in rows {
                // SAFETY: each row is visited once, and rows do not overlap.
                let values = unsafe { values.part(row * len..(row + 1) * len) };
                fill_row(row, values);
                if needs.codes {
                    // SAFETY: as above: the groups of a row are its own.
                    unsafe { quantize_row(isa, values, (row, num_rows, planes), &codes, &groups) };
                }
            }
        });
    }
}

/// Grows a buffer, never shrinks it.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Quantises row `row` of `num_rows`, which is whole groups.
///
/// # Safety
/// Nobody else uses the codes and scales of this row meanwhile.
unsafe fn quantize_row(
    isa: Isa,
    values: &[f32],
    (row, num_rows, planes): (usize, usize, usize),
    codes: &SharedMut<'_, [i8; CODE_GROUP]>,
    groups: &SharedMut<'_, GroupScale>,
) {
    for (group, values) in values.as_chunks::<CODE_GROUP>().0.iter().enumerate() {
        let at = (group * num_rows + row) * planes;
        // SAFETY: as the caller promises.
        let (codes, groups) =
            unsafe { (codes.part(at..at + planes), groups.part(at..at + planes)) };
        quantize_group(isa, values, &mut codes[0], &mut groups[0]);
        if let ([coarse, fine], [scale, fine_scale]) = (&mut *codes, &mut *groups) {
            let rest = std::array::from_fn(|i| values[i] - scale.scale * f32::from(coarse[i]));
            quantize_group(isa, &rest, fine, fine_scale);
        }
    }
}

for_each_isa! {
    /// Quantises one group. One with a value that is not finite gets a scale that is not finite, so
    /// that the fault stays visible.
    fn quantize_group(values: &[f32; CODE_GROUP], codes: &mut [i8; CODE_GROUP], group: &mut GroupScale) {
        // As integers, magnitudes order like their values, and NaN above infinity.
        let mut largest = 0;
        for value in values {
            largest = largest.max((value.to_bits() & 0x7fff_ffff) as i32);
        }
        let magnitude = f32::from_bits(largest as u32);
        let scale = magnitude * (1.0 / 127.0);
        // Below this the inverse overflows; such a group counts as zero.
        let inverse = if magnitude > 1e-36 { 127.0 / magnitude } else { 0.0 };
        for (value, code) in values.iter().zip(&mut *codes) {
            *code = (value * inverse + ROUND).to_bits() as i8;
        }
        let mut half_sums = [0; 2];
        for (half, codes) in half_sums.iter_mut().zip(codes.chunks_exact(CODE_GROUP / 2)) {
            *half = codes.iter().map(|&code| i32::from(code)).sum();
        }
        let sum = half_sums[0] + half_sums[1];
        *group = GroupScale {
            scale,
            scaled_sum: scale * sum as f32,
            sum,
            half_sums,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;

    fn quantize(isa: Isa, values: &[f32; 32]) -> ([i8; 32], GroupScale) {
        let (mut codes, mut group) = ([0; 32], GroupScale::default());
        quantize_group(isa, values, &mut codes, &mut group);
        (codes, group)
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
                let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
                assert_eq!(group.half_sums, [sum(&codes[..16]), sum(&codes[16..])]);
                assert_eq!(group.sum, sum(&codes));
                assert_eq!(group.scaled_sum, group.scale * group.sum as f32);
            }
        }
    }

    #[test]
    fn fine_codes_leave_a_sixty_thousandth_of_the_largest_magnitude() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let compute = Compute::new(isa, Pool::new(2).expect("two threads"));
            let values: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 1.7).sin()).collect();
            let mut x = Activations::default();
            x.resize(3, 64);
            x.values_mut().copy_from_slice(&values);
            let needs = Needs {
                values: true,
                codes: true,
                fine: true,
            };
            x.quantize(&compute, needs);
            for (i, value) in values.iter().enumerate() {
                let (row, column) = (i / 64, i % 64);
                let (codes, scales) = x.group(column / CODE_GROUP);
                let plane =
                    |row: usize| f32::from(codes[row][column % CODE_GROUP]) * scales[row].scale;
                let read = plane(2 * row) + plane(2 * row + 1);
                assert!((read - value).abs() < 1.0 / 6e4, "{isa}: {value} is {read}");
            }
        }
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
}
