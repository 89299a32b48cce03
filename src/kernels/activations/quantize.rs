//! From rows of values to codes: bytes, and one step of two digits.

use super::{CODE_GROUP, CodeGroup, HIGH, HIGH_BITS};
use crate::kernels::Isa;
use crate::kernels::isa::for_each_isa;
use crate::kernels::math::ROUND;
use crate::kernels::packed::{STEP, STEPS_OF_GROUP};

/// Below this magnitude its inverse overflows; such a group counts as zero.
const SMALLEST_MAGNITUDE: f32 = 1e-36;

/// Quantises one group of some rows (rows, len), to one for each row.
pub(super) fn quantize_group(
    isa: Isa,
    (values, len): (&[f32], usize),
    group: usize,
    groups: &mut [CodeGroup],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe {
            avx512::quantize_group(values, len, group, groups);
        },
        _ => quantize_group_plain(isa, values, len, group, groups),
    }
}

for_each_isa! {
    fn quantize_group_plain(values: &[f32], len: usize, group: usize, groups: &mut [CodeGroup]) {
        for (row, quantized) in values.chunks_exact(len).zip(groups) {
            quantize(group_of(row, group), quantized);
        }
    }
}

#[inline(always)]
fn group_of(row: &[f32], group: usize) -> &[f32; CODE_GROUP] {
    row.as_chunks().0.get(group).expect("bug: whole groups")
}

/// Quantises one group. One with a value that is not finite gets a scale that is not finite, so that
/// the fault stays visible.
#[inline(always)]
fn quantize(values: &[f32; CODE_GROUP], group: &mut CodeGroup) {
    // As integers, magnitudes order like their values, and NaN above infinity.
    let mut largest = [0; STEPS_OF_GROUP];
    for (largest, values) in largest.iter_mut().zip(values.as_chunks::<STEP>().0) {
        let magnitudes = values.map(|value| value.to_bits() & 0x7fff_ffff);
        *largest = magnitudes.into_iter().fold(0, u32::max);
    }
    let mut tall = 0;
    for step in 1..STEPS_OF_GROUP {
        tall = if largest[step] > largest[tall] {
            step
        } else {
            tall
        };
    }
    let tallest = std::mem::take(&mut largest[tall]);
    let others = largest.into_iter().fold(0, u32::max);
    let magnitude = magnitude_of_scale(f32::from_bits(tallest), others);

    let inverse = inverse_scale(magnitude);
    // Whole numbers in 32 bits first: their sums need no widening.
    let mut codes = [0i32; CODE_GROUP];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits()) as i32;
    }
    let mut half_sums = [0i32; 2];
    for (half, codes) in half_sums.iter_mut().zip(codes.chunks_exact(CODE_GROUP / 2)) {
        *half = codes.iter().fold(0, |sum, code| sum.wrapping_add(*code));
    }
    let tall_codes = &mut codes.as_chunks_mut::<STEP>().0[tall];
    let highs = tall_codes.map(|code| code.wrapping_add(HIGH / 2) >> HIGH_BITS);
    for (code, high) in tall_codes.iter_mut().zip(highs) {
        *code = code.wrapping_sub(high << HIGH_BITS);
    }
    for (low, code) in group.low.iter_mut().zip(codes) {
        *low = code as i8;
    }
    group.high = highs.map(|high| high as i8);
    group.tall = tall as u32;
    set_sums(group, magnitude, half_sums);
}

/// What has code 127, from the bits of the other steps' largest magnitude; the tallest code is 127 * 127
/// at most.
#[inline(always)]
fn magnitude_of_scale(tallest: f32, others: u32) -> f32 {
    f32::from_bits(others.max((tallest * (1.0 / 127.0)).to_bits()))
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
fn set_sums(group: &mut CodeGroup, magnitude: f32, half_sums: [i32; 2]) {
    let scale = magnitude * (1.0 / 127.0);
    let sum = half_sums[0].wrapping_add(half_sums[1]);
    group.scale = scale;
    group.scaled_sum = scale * sum as f32;
    group.minus_sum = sum.wrapping_neg();
    group.half_sums = half_sums;
}

/// The same bits, in fewer instructions than the compiler finds.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub fn quantize_group(values: &[f32], len: usize, group: usize, groups: &mut [CodeGroup]) {
        for (row, quantized) in values.chunks_exact(len).zip(groups) {
            quantize(group_of(row, group), quantized);
        }
    }

    /// The largest of a register's four runs of four, in each.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn largest_run(runs: __m512i) -> __m512i {
        let twos = _mm512_max_epi32(runs, _mm512_shuffle_i32x4::<0b01_00_11_10>(runs, runs));
        _mm512_max_epi32(twos, _mm512_shuffle_i32x4::<0b10_11_00_01>(twos, twos))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn quantize(values: &[f32; CODE_GROUP], group: &mut CodeGroup) {
        // SAFETY: 32 f32 are there; the loads may be unaligned.
        let values = [0, 16].map(|at| unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) });
        // A step is four lanes, a quarter of a register.
        let steps = values.map(|values| {
            let magnitude = _mm512_set1_epi32(0x7fff_ffff);
            let ones = _mm512_and_si512(_mm512_castps_si512(values), magnitude);
            let twos = _mm512_max_epi32(ones, _mm512_shuffle_epi32::<0b01_00_11_10>(ones));
            _mm512_max_epi32(twos, _mm512_shuffle_epi32::<0b10_11_00_01>(twos))
        });
        let tallest = largest_run(_mm512_max_epi32(steps[0], steps[1]));
        let [first, second] = steps.map(|step| _mm512_cmpeq_epi32_mask(step, tallest));
        let tall = (u32::from(first) | u32::from(second) << 16).trailing_zeros() / STEP as u32;
        let of_tall = 0xf_u32 << (STEP as u32 * tall);
        let of_tall = [of_tall as u16, (of_tall >> 16) as u16];
        let others: [__m512i; 2] =
            std::array::from_fn(|half| _mm512_maskz_mov_epi32(!of_tall[half], steps[half]));
        let others = largest_run(_mm512_max_epi32(others[0], others[1]));
        let tallest = _mm512_cvtss_f32(_mm512_castsi512_ps(tallest));
        let magnitude = magnitude_of_scale(tallest, _mm512_cvtsi512_si32(others).cast_unsigned());

        let inverse = _mm512_set1_ps(inverse_scale(magnitude));
        // To the nearest whole number, the even one of two: the default of the machine.
        let codes = values.map(|values| _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)));
        let highs: [__m512i; 2] = std::array::from_fn(|half| {
            let rounded = _mm512_add_epi32(codes[half], _mm512_set1_epi32(HIGH / 2));
            _mm512_maskz_srai_epi32::<HIGH_BITS>(of_tall[half], rounded)
        });
        let lows: [__m512i; 2] = std::array::from_fn(|half| {
            _mm512_sub_epi32(codes[half], _mm512_slli_epi32::<HIGH_BITS>(highs[half]))
        });
        let bytes = |[first, second]: [__m512i; 2]| {
            _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first))
        };
        let (lows, highs) = (bytes(lows), bytes(highs));
        // SAFETY: 32 bytes are there; the store may be unaligned.
        unsafe { _mm256_storeu_si256(group.low.as_mut_ptr().cast(), lows) };
        let high = _mm256_permutevar8x32_epi32(highs, _mm256_set1_epi32(tall.cast_signed()));
        group.high = _mm256_cvtsi256_si32(high)
            .to_le_bytes()
            .map(u8::cast_signed);
        group.tall = tall;

        let ones = _mm256_set1_epi8(1);
        let of_lows = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, lows);
        let of_highs = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, highs);
        let fours = _mm256_add_epi32(of_lows, _mm256_slli_epi32::<{ HIGH_BITS as i32 }>(of_highs));
        let twos = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b01_00_11_10>(fours));
        let sums = _mm256_add_epi32(twos, _mm256_shuffle_epi32::<0b10_11_00_01>(twos));
        let half_sums = [
            _mm256_extract_epi32::<0>(sums),
            _mm256_extract_epi32::<4>(sums),
        ];
        set_sums(group, magnitude, half_sums);
    }
}
