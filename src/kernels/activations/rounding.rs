//! From rows of f32 to pairs of bf16, for AVX-512 BF16.
//!
//! The rows of a block alternate in the result: a square of 16 rows and 16 pairs is turned over in
//! registers, and each pair of all rows stored at once.

use std::arch::x86_64::*;
use std::ops::Range;

use super::BF16_ROWS;

/// Pairs of a row that become one register.
const PAIRS: usize = 16;

/// A register for each row, then for each pair.
type Square = [__m512i; BF16_ROWS];

/// Rounds columns of at most [`BF16_ROWS`] rows to the nearest bf16, an even one if two are; numbers
/// below the normal ones become zeros. (num_rows, row_len) to (pairs of the columns, num_rows)
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round_columns(
    rows: &[f32],
    row_len: usize,
    columns: Range<usize>,
    pairs: &mut [u32],
) {
    let num_rows = rows.len() / row_len;
    assert!(num_rows <= BF16_ROWS, "bug: a block of {num_rows} rows");
    for (first, pairs) in columns
        .clone()
        .step_by(2 * PAIRS)
        .zip(pairs.chunks_mut(PAIRS * num_rows))
    {
        let end = columns.end.min(first + 2 * PAIRS);
        let mut square: Square = [_mm512_setzero_si512(); BF16_ROWS];
        for row in 0..num_rows {
            square[row] = round(&rows[row * row_len..][first..end]);
        }
        if num_rows == 1 {
            store(pairs, square[0]);
            continue;
        }
        turn(&mut square);
        for (pairs, pair) in pairs.chunks_mut(num_rows).zip(square) {
            store(pairs, pair);
        }
    }
}

/// Rounds at most 32 values; zeros follow.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(values: &[f32]) -> __m512i {
    let is_value = u32::MAX >> (2 * PAIRS - values.len());
    let start = values.as_ptr();
    // SAFETY: as many f32 as the mask has bits are there, and the others are not read; any bits are
    // bf16 and whole numbers.
    unsafe {
        let low = _mm512_maskz_loadu_ps(is_value as u16, start);
        let high = _mm512_maskz_loadu_ps((is_value >> 16) as u16, start.wrapping_add(16));
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(places: &mut [u32], values: __m512i) {
    let is_place = u16::MAX >> (PAIRS - places.len());
    // SAFETY: as many u32 as the mask has bits are there, and nothing else is written.
    unsafe { _mm512_mask_storeu_epi32(places.as_mut_ptr().cast(), is_place, values) };
}

/// Turns rows into columns: by pairs of rows, fours, eights, and all.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(square: &mut Square) {
    let mut twos = *square;
    for i in 0..8 {
        let (a, b) = (square[2 * i], square[2 * i + 1]);
        twos[2 * i] = _mm512_unpacklo_epi32(a, b);
        twos[2 * i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    // Register 4 i + j: in each quarter q, what rows 4 i to 4 i + 3 have in column 4 q + j.
    let mut fours = twos;
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (twos[4 * i + half], twos[4 * i + half + 2]);
            fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    for j in 0..4 {
        let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let (even_low, even_high) = (
            _mm512_shuffle_i32x4::<EVEN>(a, b),
            _mm512_shuffle_i32x4::<EVEN>(c, d),
        );
        let (odd_low, odd_high) = (
            _mm512_shuffle_i32x4::<ODD>(a, b),
            _mm512_shuffle_i32x4::<ODD>(c, d),
        );
        square[j] = _mm512_shuffle_i32x4::<EVEN>(even_low, even_high);
        square[8 + j] = _mm512_shuffle_i32x4::<ODD>(even_low, even_high);
        square[4 + j] = _mm512_shuffle_i32x4::<EVEN>(odd_low, odd_high);
        square[12 + j] = _mm512_shuffle_i32x4::<ODD>(odd_low, odd_high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn values_are_rounded_as_the_half_crate_does_but_for_subnormal_ones() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let mut values: Vec<f32> = (0..4099).map(|i| (i as f32 * 0.37).sin() * 1e3).collect();
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX]);
        values.extend([1.0 + 1.0 / 256.0, f32::MIN_POSITIVE, 1e-40, -1e-40]);
        values.extend([0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000].map(f32::from_bits));
        for len in [values.len() - 1, values.len()] {
            let mut pairs = vec![0; len.div_ceil(2)];
            // SAFETY: the machine has the instructions.
            unsafe { round_columns(&values[..len], len, 0..len, &mut pairs) };
            let halves = pairs
                .iter()
                .flat_map(|pair| [*pair as u16, (pair >> 16) as u16]);
            for (i, bits) in halves.enumerate() {
                let value = values[..len].get(i).copied().unwrap_or(0.0);
                let value = if value.is_subnormal() { 0.0 } else { value };
                let (rounded, expected) =
                    (half::bf16::from_bits(bits), half::bf16::from_f32(value));
                assert!(
                    rounded == expected || rounded.is_nan() && expected.is_nan(),
                    "{value}"
                );
            }
        }
    }
}
