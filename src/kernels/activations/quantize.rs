//! From rows of values to codes: bytes, and one step of two digits.

use super::{CODE_GROUP, CodeGroup, HIGH, HIGH_BITS, PAIRED_STEPS, PairBits, ZEROS};
use crate::kernels::Isa;
use crate::kernels::isa::for_each_isa;
use crate::kernels::math::{ROUND, largest_magnitude};
use crate::kernels::packed::{STEP, STEPS_OF_GROUP};

/// Below this magnitude its inverse overflows; such a group counts as zero.
const SMALLEST_MAGNITUDE: f32 = 1e-36;
/// The largest code of two digits, of which the high one is a byte.
const MAX_CODE: f32 = (HIGH * 127) as f32;

/// Quantises rows (rows, len); `place_of(group, row)` is where a group belongs.
pub(super) fn quantize_rows<'a>(
    isa: Isa,
    (values, len): (&[f32], usize),
    pair_bits: PairBits,
    place_of: impl Fn(usize, usize) -> &'a mut CodeGroup,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Compute holds only an instruction set that the machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe {
            avx512::quantize_rows(values, len, pair_bits, place_of);
        },
        _ => {
            for group in 0..len / CODE_GROUP {
                for (row, values) in values.chunks_exact(len).enumerate() {
                    quantize_group(
                        isa,
                        group_of(values, group),
                        pair_bits,
                        place_of(group, row),
                    );
                }
            }
        }
    }
}

for_each_isa! {
    fn quantize_group(
        values: &[f32; CODE_GROUP],
        pair_bits: PairBits,
        group: &mut CodeGroup,
    ) {
        quantize(values, pair_bits, group);
    }
}

#[inline(always)]
fn group_of(row: &[f32], group: usize) -> &[f32; CODE_GROUP] {
    row.as_chunks().0.get(group).expect("bug: whole groups")
}

/// Quantises one group. One with a value that is not finite gets a scale that is not finite, so that
/// the fault stays visible.
#[inline(always)]
fn quantize(values: &[f32; CODE_GROUP], pair_bits: PairBits, group: &mut CodeGroup) {
    // As integers, so that NaN comes above infinity.
    let mut largest = [0; STEPS_OF_GROUP];
    for (largest, values) in largest.iter_mut().zip(values.as_chunks::<STEP>().0) {
        *largest = largest_magnitude(values).to_bits();
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
    let max_digit = pair_bits.max_digit() as f32;
    let magnitude = magnitude_of_scale(f32::from_bits(tallest), others, max_digit);

    let inverse = inverse_scale(magnitude, max_digit);
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
    group.tall = tall as u16;
    let sum = half_sums[0].wrapping_add(half_sums[1]);
    group.first_half_sum = half_sums[0] as i16;
    group.scale = scale_of(magnitude, max_digit);
    group.scaled_sum = group.scale * sum as f32;
    group.minus_sum = sum.wrapping_neg();
    let middle = pair_bits.middle();
    let mut start = 0;
    let paired = &group.low.as_chunks::<STEP>().0[..PAIRED_STEPS];
    for [even, odd] in paired.as_chunks().0 {
        for (even, odd) in even.iter().zip(odd) {
            let (even, odd) = (i32::from(*even), i32::from(*odd));
            start += middle * (even + odd) - (even + 128) * odd;
        }
    }
    group.starts = starts(start, group.minus_sum);
}

/// What has the largest digit for its code, from the bits of the other steps' largest magnitude; the
/// tallest code is [`MAX_CODE`] at most.
#[inline(always)]
fn magnitude_of_scale(tallest: f32, others: u32, max_digit: f32) -> f32 {
    f32::from_bits(others.max((tallest * (max_digit / MAX_CODE)).to_bits()))
}

#[inline(always)]
fn inverse_scale(magnitude: f32, max_digit: f32) -> f32 {
    if magnitude > SMALLEST_MAGNITUDE {
        max_digit / magnitude
    } else {
        0.0
    }
}

#[inline(always)]
fn scale_of(magnitude: f32, max_digit: f32) -> f32 {
    magnitude * (1.0 / max_digit)
}

/// What products of pairs start from: a zero of the weights is taken off all digits.
#[inline(always)]
fn starts(start: i32, minus_sum: i32) -> [i32; ZEROS.len()] {
    ZEROS.map(|zero| start.wrapping_add(minus_sum.wrapping_mul(zero)))
}

/// The same bits, in fewer instructions than the compiler finds.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::cell::RefCell;
    use std::mem::offset_of;

    use super::*;
    use crate::kernels::prefetch::prefetch_for_write;

    /// Groups that pass through the stages together: of one row, or of several, row by row.
    const AT_ONCE: usize = 16;
    /// Groups whose sums are made at once, a lane each.
    const FOUR: usize = 4;
    const _: () = assert!(AT_ONCE.is_multiple_of(FOUR));

    /// What one stage leaves to the next. One group's instructions all wait for each other, longer than the
    /// machine can look ahead; those of one stage of many groups do not.
    #[derive(Default)]
    #[repr(align(64))]
    struct Stages {
        /// The largest magnitude of each step, in its bits.
        magnitudes: [[u32; STEPS_OF_GROUP]; AT_ONCE],
        tall: [u32; AT_ONCE],
        tallest: [f32; AT_ONCE],
        others: [u32; AT_ONCE],
        inverse: [f32; AT_ONCE],
        scale: [f32; AT_ONCE],
        high: [[i8; STEP]; AT_ONCE],
        /// Of each step, what is added up for the group.
        sums: [[i32; STEPS_OF_GROUP]; AT_ONCE],
        starts: [[i32; STEPS_OF_GROUP]; AT_ONCE],
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub fn quantize_rows<'a>(
        values: &[f32],
        len: usize,
        pair_bits: PairBits,
        place_of: impl Fn(usize, usize) -> &'a mut CodeGroup,
    ) {
        thread_local! {
            // To clear them would take as long as a group of one row.
            static STAGES: RefCell<Stages> = RefCell::default();
        }
        let (num_groups, num_rows) = (len / CODE_GROUP, values.len() / len);
        let values_of = |(group, row): (usize, usize)| group_of(&values[row * len..][..len], group);
        STAGES.with_borrow_mut(|stages| {
            // Row after row, then the next group.
            let mut next = (0, 0);
            while next.0 < num_groups {
                let mut places = [(0, 0); AT_ONCE];
                let mut count = 0;
                while count < AT_ONCE && next.0 < num_groups {
                    places[count] = next;
                    count += 1;
                    next = match next.1 + 1 < num_rows {
                        true => (next.0, next.1 + 1),
                        false => (next.0 + 1, 0),
                    };
                }
                let places = &places[..count];
                // Who multiplied what was there has these lines too.
                for &(group, row) in places {
                    prefetch_for_write(place_of(group, row));
                }
                for (magnitudes, place) in stages.magnitudes.iter_mut().zip(places) {
                    find_magnitudes(values_of(*place), magnitudes);
                }
                for first in (0..count).step_by(FOUR) {
                    find_tall_steps(first, stages);
                }
                find_scales(stages, pair_bits.max_digit() as f32);
                for (index, &(group, row)) in places.iter().enumerate() {
                    let values = values_of((group, row));
                    quantize(values, index, pair_bits, stages, place_of(group, row));
                }
                for (four, places) in places.chunks(FOUR).enumerate() {
                    let rows = sums_of_four(four * FOUR, stages);
                    for (&(group, row), sums) in places.iter().zip(rows) {
                        set_sums(place_of(group, row), sums);
                    }
                }
            }
        });
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn load(values: &[f32; CODE_GROUP]) -> [__m512; 2] {
        // SAFETY: 32 f32 are there; the loads may be unaligned.
        [0, 16].map(|at| unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) })
    }

    /// What four groups have in a stage. (groups, steps)
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn load_rows<T>(stage: &[[T; STEPS_OF_GROUP]; AT_ONCE], first: usize) -> [__m256i; FOUR] {
        const { assert!(size_of::<T>() == 4) };
        let rows: &[_; FOUR] = stage[first..].first_chunk().expect("bug: four groups");
        // SAFETY: 32 bytes are there; the loads may be unaligned.
        std::array::from_fn(|i| unsafe { _mm256_loadu_si256(rows[i].as_ptr().cast()) })
    }

    /// What one group leaves. (steps)
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store_row<T>(row: &mut [T; STEPS_OF_GROUP], steps: __m256i) {
        const { assert!(size_of::<T>() == 4) };
        // SAFETY: 32 bytes are there; the store may be unaligned, and any bits are numbers.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), steps) };
    }

    /// Four lanes of a stage.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn load_lanes<T>(stage: &[T; AT_ONCE], first: usize) -> __m128i {
        const { assert!(size_of::<T>() == 4) };
        let lanes: &[_; FOUR] = stage[first..].first_chunk().expect("bug: four groups");
        // SAFETY: 16 bytes are there; the load may be unaligned.
        unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) }
    }

    /// The same, to write.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store_lanes<T>(stage: &mut [T; AT_ONCE], first: usize, values: __m128i) {
        const { assert!(size_of::<T>() == 4) };
        let lanes: &mut [_; FOUR] = stage[first..].first_chunk_mut().expect("bug: four groups");
        // SAFETY: 16 bytes are there; the store may be unaligned, and any bits are numbers.
        unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), values) };
    }

    /// Turns rows of four into columns, in each half of the registers.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn turn([a, b, c, d]: [__m256i; FOUR]) -> [__m256i; FOUR] {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (second_ab, second_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(second_ab, second_cd),
            _mm256_unpackhi_epi64(second_ab, second_cd),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn halves(pair: __m256i) -> [__m128i; 2] {
        [
            _mm256_castsi256_si128(pair),
            _mm256_extracti128_si256::<1>(pair),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn find_magnitudes(values: &[f32; CODE_GROUP], magnitudes: &mut [u32; STEPS_OF_GROUP]) {
        let sign = _mm512_set1_ps(-0.0);
        let [first, second] = load(values).map(|values| _mm512_andnot_ps(sign, values));
        // A step is a quarter of a register: those of both halves of the group come to lie side by side.
        let even = _mm512_shuffle_ps::<0b10_00_10_00>(first, second);
        let odd = _mm512_shuffle_ps::<0b11_01_11_01>(first, second);
        let twos = _mm512_max_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd));
        let fours = _mm512_max_epi32(twos, _mm512_shuffle_epi32::<0b10_11_00_01>(twos));
        let places = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14);
        let steps = _mm512_permutexvar_epi32(places, fours);
        store_row(magnitudes, _mm512_castsi512_si256(steps));
    }

    /// The first step with the largest magnitude, and the largest one of the others, of four groups.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn find_tall_steps(first: usize, stages: &mut Stages) {
        // Step `i` of each row, and step `i + 4`.
        let steps = turn(load_rows(&stages.magnitudes, first));
        let mut tall = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
        let (mut tallest, mut others) = (steps[0], _mm256_setzero_si256());
        for (i, step) in (1..).zip(&steps[1..]) {
            let index = _mm256_setr_epi32(i, i, i, i, i + 4, i + 4, i + 4, i + 4);
            let is_taller = _mm256_cmpgt_epi32_mask(*step, tallest);
            tall = _mm256_mask_mov_epi32(tall, is_taller, index);
            others = _mm256_max_epi32(others, _mm256_min_epi32(*step, tallest));
            tallest = _mm256_max_epi32(*step, tallest);
        }
        let ([tall, tall_4], [tallest, tallest_4]) = (halves(tall), halves(tallest));
        let [others, others_4] = halves(others);
        let is_taller = _mm_cmpgt_epi32_mask(tallest_4, tallest);
        let others = _mm_max_epi32(others, others_4);
        let others = _mm_max_epi32(others, _mm_min_epi32(tallest, tallest_4));
        store_lanes(
            &mut stages.tall,
            first,
            _mm_mask_mov_epi32(tall, is_taller, tall_4),
        );
        store_lanes(
            &mut stages.tallest,
            first,
            _mm_max_epi32(tallest, tallest_4),
        );
        store_lanes(&mut stages.others, first, others);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn find_scales(stages: &mut Stages, max_digit: f32) {
        let parts = stages.tallest.into_iter().zip(stages.others);
        for (row, (tallest, others)) in parts.enumerate() {
            let magnitude = magnitude_of_scale(tallest, others, max_digit);
            stages.inverse[row] = inverse_scale(magnitude, max_digit);
            stages.scale[row] = scale_of(magnitude, max_digit);
        }
    }

    /// The digits of a group, and what its sums are made of.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn quantize(
        values: &[f32; CODE_GROUP],
        row: usize,
        pair_bits: PairBits,
        stages: &mut Stages,
        group: &mut CodeGroup,
    ) {
        let (tall, inverse) = (stages.tall[row], stages.inverse[row]);
        let is_tall = 1_u8 << (tall % u8::BITS);
        // To the nearest whole number, the even one of two: the default of the machine.
        let [first, second] = load(values).map(|values| {
            let codes = _mm512_cvtps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(inverse)));
            _mm512_cvtepi32_epi8(codes)
        });
        let step = &values.as_chunks::<STEP>().0[tall as usize % STEPS_OF_GROUP];
        // SAFETY: 4 f32 are there; the load may be unaligned.
        let values = unsafe { _mm_loadu_ps(step.as_ptr()) };
        let codes = _mm_cvtps_epi32(_mm_mul_ps(values, _mm_set1_ps(inverse)));
        let rounded = _mm_add_epi32(codes, _mm_set1_epi32(HIGH / 2));
        let highs = _mm_srai_epi32::<{ HIGH_BITS as i32 }>(rounded);
        let lows = _mm_sub_epi32(codes, _mm_slli_epi32::<{ HIGH_BITS as i32 }>(highs));
        let (lows, highs) = (_mm_cvtepi32_epi8(lows), _mm_cvtepi32_epi8(highs));
        let low = _mm256_mask_broadcastd_epi32(_mm256_set_m128i(second, first), is_tall, lows);
        // SAFETY: 32 bytes are there; the store may be unaligned.
        unsafe { _mm256_storeu_si256(group.low.as_mut_ptr().cast(), low) };
        stages.high[row] = _mm_cvtsi128_si32(highs).to_le_bytes().map(u8::cast_signed);

        let of_lows = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), low);
        let of_highs = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(HIGH as i8), highs);
        let sums = _mm256_add_epi32(of_lows, _mm256_maskz_broadcastd_epi32(is_tall, of_highs));
        store_row(&mut stages.sums[row], sums);
        store_row(&mut stages.starts[row], starts_of_pairs(low, pair_bits));
    }

    /// What products of pairs start from with weights whose zero is 0, from the low digits: added up, steps
    /// are that.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn starts_of_pairs(low: __m256i, pair_bits: PairBits) -> __m256i {
        const EVEN: u8 = 0b0101_0101 & PAIRED;
        const PAIRED: u8 = (1 << PAIRED_STEPS) - 1;
        let moved_up = _mm256_xor_si256(low, _mm256_set1_epi8(i8::MIN));
        let other = _mm256_shuffle_epi32::<0b10_11_00_01>(low);
        let minus_other = _mm256_sub_epi8(_mm256_setzero_si256(), other);
        let middle = _mm256_set1_epi8(pair_bits.middle() as i8);
        let middles = _mm256_maskz_dpbusd_epi32(PAIRED, _mm256_setzero_si256(), middle, low);
        _mm256_mask_dpbusd_epi32(middles, EVEN, moved_up, minus_other)
    }

    /// What four groups from `first` on have beside low digits.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn sums_of_four(first: usize, stages: &Stages) -> [__m256i; FOUR] {
        // Of the first and of the second half of each row.
        let add_up = |[a, b, c, d]: [__m256i; FOUR]| {
            let (ab, cd) = (_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            halves(_mm256_hadd_epi32(ab, cd))
        };
        let [first_half, second_half] = add_up(load_rows(&stages.sums, first));
        let [start, other] = add_up(load_rows(&stages.starts, first));
        let start = _mm_add_epi32(start, other);
        let sum = _mm_add_epi32(first_half, second_half);
        let minus_sum = _mm_sub_epi32(_mm_setzero_si128(), sum);
        let scale = load_lanes(&stages.scale, first);
        let scaled_sum = _mm_mul_ps(_mm_castsi128_ps(scale), _mm_cvtepi32_ps(sum));
        let tall = load_lanes(&stages.tall, first);
        let starts = ZEROS.map(|zero| {
            let of_zero = _mm_mullo_epi32(minus_sum, _mm_set1_epi32(zero));
            _mm_add_epi32(start, of_zero)
        });
        let columns = [
            (load_lanes(&stages.high, first), minus_sum),
            (
                _mm_or_si128(tall, _mm_slli_epi32::<16>(first_half)),
                starts[0],
            ),
            (scale, starts[1]),
            (_mm_castps_si128(scaled_sum), starts[2]),
        ];
        turn(columns.map(|(first, second)| _mm256_set_m128i(second, first)))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn set_sums(group: &mut CodeGroup, sums: __m256i) {
        const { assert!(offset_of!(CodeGroup, high) + 32 == size_of::<CodeGroup>()) };
        let group = std::ptr::from_mut(group).cast::<u8>();
        // SAFETY: these are the last 32 bytes of the group, all after `low`, in the order of its fields; any
        // bits are numbers.
        unsafe {
            let place = group.add(offset_of!(CodeGroup, high));
            _mm256_storeu_si256(place.cast(), sums);
        }
    }
}
