//! From rows of values to codes of 8 bits, and of 15 where it is loud.

use std::ops::Range;

use super::{BLOCK_ROWS, CODE_GROUP, CodePlaces, GroupScale, LOUD, RUN_ROWS};
use crate::kernels::Isa;
use crate::kernels::elementwise::sum;
use crate::kernels::isa::for_each_isa;
use crate::kernels::math::ROUND;

/// Below this magnitude its inverse overflows; such a group counts as zero.
const SMALLEST_MAGNITUDE: f32 = 1e-36;

/// Some rows, at most 64.
struct Rows<'a> {
    values: &'a [f32], // (rows, len)
    len: usize,
    /// What the square of a group's largest magnitude must be above to be loud in its row.
    loud_above: &'a [f32], // (rows)
}

impl Rows<'_> {
    #[inline(always)]
    fn group(&self, row: usize, group: usize) -> &[f32; CODE_GROUP] {
        let start = row * self.len + group * CODE_GROUP;
        let values = self.values[start..].first_chunk();
        values.expect("bug: whole groups")
    }
}

/// Where codes of a group of these rows go.
struct Places<'a> {
    codes: &'a mut [[i8; CODE_GROUP]],
    scales: &'a mut [GroupScale],
    fine_codes: &'a mut [[i8; CODE_GROUP]],
    fine_scales: &'a mut [GroupScale],
}

impl CodePlaces<'_> {
    /// Those of a group of some rows.
    ///
    /// # Safety
    /// While the result lives, nobody else may use them.
    #[inline(always)]
    unsafe fn of(&self, group: usize, rows: &Range<usize>) -> Places<'_> {
        let start = group * self.num_rows;
        let at = start + rows.start..start + rows.end;
        // SAFETY: as the caller promises.
        unsafe {
            Places {
                codes: self.codes.part(at.clone()),
                scales: self.scales.part(at.clone()),
                fine_codes: self.fine_codes.part(at.clone()),
                fine_scales: self.fine_scales.part(at),
            }
        }
    }

    /// Notes in which of some rows, whole blocks, a group is loud: a bit for each.
    ///
    /// # Safety
    /// Nobody else may use what these blocks have.
    #[inline(always)]
    unsafe fn note_loud(&self, group: usize, rows: &Range<usize>, is_loud: u64) {
        const OF_BLOCK: u64 = (1 << BLOCK_ROWS) - 1;
        for row in rows.clone().step_by(BLOCK_ROWS) {
            let at = row / BLOCK_ROWS * self.num_groups + group;
            // SAFETY: as the caller promises.
            let loud = unsafe { &mut self.loud_of_blocks.part(at..at + 1)[0] };
            *loud = (is_loud >> (row - rows.start) & OF_BLOCK) as u8;
        }
    }
}

/// The body of a function that quantises a group of some rows and says which are loud, from functions that
/// find a group's largest magnitude, quantise the group of a row, and quantise what that left over.
macro_rules! quantize_group_with {
    ($rows:ident, $group:ident, $places:ident, $largest_magnitude:path, $quantize:path, $quantize_rest:path) => {{
        // Which rows are loud is as good as random: a branch on it would be mispredicted.
        let mut is_loud = 0u64;
        for (row, &loud_above) in $rows.loud_above.iter().enumerate() {
            let values = $rows.group(row, $group);
            let magnitude = $largest_magnitude(values);
            let (codes, scale) = (&mut $places.codes[row], &mut $places.scales[row]);
            $quantize(values, magnitude, codes, scale);
            is_loud |= u64::from(magnitude * magnitude > loud_above) << row;
        }
        let mut rest = is_loud;
        while rest != 0 {
            let row = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let values = $rows.group(row, $group);
            let (codes, scale) = (&$places.codes[row], &mut $places.scales[row]);
            let fine_scale = &mut $places.fine_scales[row];
            $quantize_rest(
                values,
                (codes, scale.scale),
                &mut $places.fine_codes[row],
                fine_scale,
            );
            scale.scaled_sum += std::mem::take(&mut fine_scale.scaled_sum);
        }
        is_loud
    }};
}

/// Quantises the values (rows, len) of some rows, up to 64 in whole blocks, group after group.
///
/// # Safety
/// Nobody else may use the places of these rows.
pub(super) unsafe fn quantize_rows(
    isa: Isa,
    values: &[f32],
    rows: Range<usize>,
    places: &CodePlaces<'_>,
) {
    let len = places.num_groups * CODE_GROUP;
    let mut loud_above = [0.0; RUN_ROWS];
    let loud_above = &mut loud_above[..rows.len()];
    for (loud_above, row) in loud_above.iter_mut().zip(values.chunks_exact(len)) {
        *loud_above = LOUD * mean_square(isa, row);
    }
    let group_rows = Rows {
        values,
        len,
        loud_above,
    };
    for group in 0..places.num_groups {
        // SAFETY: as the caller promises.
        unsafe {
            let is_loud = quantize_group(isa, &group_rows, group, &mut places.of(group, &rows));
            places.note_loud(group, &rows, is_loud);
        }
    }
}

/// Quantises one group of the rows. Says which are loud: a bit for each.
fn quantize_group(isa: Isa, rows: &Rows<'_>, group: usize, places: &mut Places<'_>) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { avx512::quantize_group(rows, group, places) },
        _ => quantize_group_plain(isa, rows, group, places),
    }
}

for_each_isa! {
    fn mean_square(row: &[f32]) -> f32 {
        sum(row, |x| x * x) / row.len() as f32
    }
}

for_each_isa! {
    fn quantize_group_plain(rows: &Rows<'_>, group: usize, places: &mut Places<'_>) -> u64 {
        quantize_group_with!(rows, group, places, largest_magnitude, quantize, quantize_rest)
    }
}

#[inline(always)]
fn largest_magnitude(values: &[f32; CODE_GROUP]) -> f32 {
    // As integers, magnitudes order like their values, and NaN above infinity.
    let mut largest = 0;
    for value in values {
        largest = largest.max((value.to_bits() & 0x7fff_ffff) as i32);
    }
    f32::from_bits(largest as u32)
}

/// Quantises one group. One with a value that is not finite gets a scale that is not finite, so that
/// the fault stays visible.
#[inline(always)]
fn quantize(
    values: &[f32; CODE_GROUP],
    magnitude: f32,
    codes: &mut [i8; CODE_GROUP],
    group: &mut GroupScale,
) {
    let inverse = inverse_scale(magnitude);
    // Whole numbers in 32 bits first: their sums need no widening.
    let mut rounded = [0i32; CODE_GROUP];
    for (rounded, value) in rounded.iter_mut().zip(values) {
        *rounded = (value * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits()) as i32;
    }
    let mut half_sums = [0i32; 2];
    for (half, rounded) in half_sums
        .iter_mut()
        .zip(rounded.chunks_exact(CODE_GROUP / 2))
    {
        *half = rounded.iter().fold(0, |sum, code| sum.wrapping_add(*code));
    }
    for (code, rounded) in codes.iter_mut().zip(rounded) {
        *code = rounded as i8;
    }
    *group = group_scale(magnitude, half_sums);
}

/// Quantises what is left of a group without its codes times their scale.
#[inline(always)]
fn quantize_rest(
    values: &[f32; CODE_GROUP],
    (codes, scale): (&[i8; CODE_GROUP], f32),
    fine_codes: &mut [i8; CODE_GROUP],
    fine_group: &mut GroupScale,
) {
    let mut rest = *values;
    for (rest, code) in rest.iter_mut().zip(codes) {
        *rest -= scale * f32::from(*code);
    }
    quantize(&rest, largest_magnitude(&rest), fine_codes, fine_group);
}

#[inline(always)]
fn inverse_scale(magnitude: f32) -> f32 {
    if magnitude > SMALLEST_MAGNITUDE {
        127.0 / magnitude
    } else {
        0.0
    }
}

#[inline(always)]
fn group_scale(magnitude: f32, half_sums: [i32; 2]) -> GroupScale {
    let scale = magnitude * (1.0 / 127.0);
    let sum = half_sums[0].wrapping_add(half_sums[1]);
    GroupScale {
        scale,
        scaled_sum: scale * sum as f32,
        minus_sum: sum.wrapping_neg(),
        half_sums: half_sums.map(|sum| sum as i16),
    }
}

/// The same bits, with the sums along a group in fewer instructions than the compiler finds.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub fn quantize_group(rows: &Rows<'_>, group: usize, places: &mut Places<'_>) -> u64 {
        quantize_group_with!(
            rows,
            group,
            places,
            largest_magnitude,
            quantize_values,
            quantize_rest
        )
    }

    /// A group in two registers.
    type Halves = [__m512; 2];

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn load(values: &[f32; CODE_GROUP]) -> Halves {
        // SAFETY: 32 f32 are there; the loads may be unaligned.
        [0, 16].map(|at| unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) })
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn largest_magnitude(values: &[f32; CODE_GROUP]) -> f32 {
        largest_of(load(values))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn largest_of(values: Halves) -> f32 {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let [low, high] = values.map(|half| _mm512_and_si512(_mm512_castps_si512(half), magnitude));
        f32::from_bits(_mm512_reduce_max_epi32(_mm512_max_epi32(low, high)) as u32)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn quantize_values(
        values: &[f32; CODE_GROUP],
        magnitude: f32,
        codes: &mut [i8; CODE_GROUP],
        group: &mut GroupScale,
    ) {
        *group = quantize(load(values), magnitude, codes);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn quantize_rest(
        values: &[f32; CODE_GROUP],
        (codes, scale): (&[i8; CODE_GROUP], f32),
        fine_codes: &mut [i8; CODE_GROUP],
        fine_group: &mut GroupScale,
    ) {
        let scale = _mm512_set1_ps(scale);
        let (values, codes) = (load(values), codes.as_chunks::<16>().0);
        // Nothing of it goes through memory: a load that spans two stores waits for both.
        let rest = std::array::from_fn(|half| {
            // SAFETY: 16 bytes are there; the load may be unaligned.
            let codes = unsafe { _mm_loadu_si128(codes[half].as_ptr().cast()) };
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
            _mm512_sub_ps(values[half], _mm512_mul_ps(scale, codes))
        });
        *fine_group = quantize(rest, largest_of(rest), fine_codes);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn quantize(values: Halves, magnitude: f32, codes: &mut [i8; CODE_GROUP]) -> GroupScale {
        let inverse = _mm512_set1_ps(inverse_scale(magnitude));
        // To the nearest whole number, the even one of two: the default of the machine.
        let [low, high] = values
            .map(|half| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(half, inverse))));
        for (codes, half) in codes.as_chunks_mut::<16>().0.iter_mut().zip([low, high]) {
            // SAFETY: 16 bytes are there; the store may be unaligned.
            unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), half) };
        }
        let codes = _mm256_set_m128i(high, low);
        let fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
        let twos = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b01_00_11_10>(fours));
        let sums = _mm256_add_epi32(twos, _mm256_shuffle_epi32::<0b10_11_00_01>(twos));
        let half_sums = [
            _mm256_extract_epi32::<0>(sums),
            _mm256_extract_epi32::<4>(sums),
        ];
        group_scale(magnitude, half_sums)
    }
}
