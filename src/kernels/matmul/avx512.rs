//! The product in AVX-512 with VNNI: 16 rows of weights are one register of 32-bit lanes.
//!
//! `vpdpbusd` multiplies four unsigned codes of a lane with four signed activations and adds the sum
//! to the lane's 32 bits. A group's codes stay in eight registers while all rows pass by; each row's
//! activations are broadcast from memory, four bytes an instruction. Signed codes (Q8_0) are moved up
//! by 128, which then is their zero. More than four rows take fewer multiplications with 4-bit and 5-bit
//! codes, in `pairs`.

mod pairs;

use std::arch::x86_64::*;

use super::Sums;
use crate::kernels::activations::{Activations, CodeGroup, HIGH_BITS};
use crate::kernels::packed::{HALVES, LANES, PANEL_ROWS, Panel, PanelFormat, STEP, STEPS_OF_GROUP};

/// The codes of a group: a register for each step.
type Codes = [__m512i; STEPS_OF_GROUP];

/// What turns a group's integer products into weights' products.
#[derive(Clone, Copy)]
struct GroupWeights {
    codes: Codes,
    /// Of the first and the second 16 inputs, where they have scales of their own.
    scales: [__m512; 2],
    /// Where codes have no zero.
    mins: __m512,
}

/// Adds rows from `first` on times one panel.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply(panel: &Panel<'_>, x: &Activations, first: usize, sums: &mut Sums) {
    match panel.format {
        PanelFormat::Q4Zero => multiply_codes::<4, 8, false>(panel, x, first, sums),
        PanelFormat::Q4Min => multiply_codes::<4, 0, true>(panel, x, first, sums),
        PanelFormat::Q5Zero => multiply_codes::<5, 16, false>(panel, x, first, sums),
        PanelFormat::Q5Min => multiply_codes::<5, 0, true>(panel, x, first, sums),
        PanelFormat::Q6 => multiply_codes::<6, 32, false>(panel, x, first, sums),
        PanelFormat::Q8 => multiply_codes::<8, 128, false>(panel, x, first, sums),
        PanelFormat::F32 | PanelFormat::F16 | PanelFormat::Bf16 => {
            multiply_dense(panel, x, first, sums);
        }
    }
}

/// The weights of a group. Like the next one no function: with all of a group in registers, which a
/// call would put through memory, it must not be left to the compiler whether to inline it.
macro_rules! group_weights {
    ($bits:ident, $has_mins:ident, $panel:ident, $group:ident) => {
        GroupWeights {
            codes: match $bits {
                4 => unpack_4_bits($panel, $group),
                5 => unpack_5_bits($panel, $group),
                6 => unpack_6_bits($panel, $group),
                _ => read_8_bits($panel, $group),
            },
            scales: match $bits {
                6 => [
                    load_halves($panel.scales, 2 * $group),
                    load_halves($panel.scales, 2 * $group + 1),
                ],
                _ => [load_halves($panel.scales, $group); 2],
            },
            mins: match $has_mins {
                true => load_halves($panel.mins, $group),
                false => _mm512_setzero_ps(),
            },
        }
    };
}

/// Adds a group's products with `$rows` rows; `$steps` are the weights' codes, in memory.
macro_rules! add_products {
    ($bits:ident, $zero:ident, $has_mins:expr, $rows:tt, $weights:ident, $steps:ident, $x:expr, $totals:ident) => {{
        let x: &[CodeGroup; $rows] = $x;
        // Q6 has a scale for each half of the group.
        let (halves, steps) = match $bits {
            6 => (2, STEPS_OF_GROUP / 2),
            _ => (1, STEPS_OF_GROUP),
        };
        let mut products = [[_mm512_setzero_si512(); $rows]; 2];
        for r in 0..$rows {
            for half in 0..halves {
                products[half][r] = match ($zero, $bits) {
                    (0, _) => _mm512_setzero_si512(),
                    (_, 6) => _mm512_set1_epi32(-$zero * x[r].half_sum(half)),
                    // Shifted as a register: a number from outside of them is slower to spread.
                    _ => _mm512_sllv_epi32(
                        _mm512_set1_epi32(x[r].minus_sum),
                        _mm512_set1_epi32($zero.ilog2() as i32),
                    ),
                };
            }
        }
        for half in 0..halves {
            for step in half * steps..(half + 1) * steps {
                for r in 0..$rows {
                    let four = _mm512_set1_epi32(four_codes(&x[r].low, step));
                    let product = &mut products[half][r];
                    *product = _mm512_dpbusd_epi32(*product, $weights.codes[step], four);
                }
            }
        }
        for r in 0..$rows {
            let tall = x[r].tall_step();
            let four = _mm512_set1_epi32(four_codes(&x[r].high, 0));
            let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), $steps[tall], four);
            let high = _mm512_slli_epi32::<HIGH_BITS>(high);
            for half in 0..halves {
                let has_tall = if tall / steps == half { 0xffff } else { 0 };
                let product = &mut products[half][r];
                *product = _mm512_mask_add_epi32(*product, has_tall, *product, high);
            }
        }
        for r in 0..$rows {
            let product = _mm512_cvtepi32_ps(products[0][r]);
            let mut product = _mm512_mul_ps(product, $weights.scales[0]);
            if halves == 2 {
                let second = _mm512_cvtepi32_ps(products[1][r]);
                product = _mm512_fmadd_ps(second, $weights.scales[1], product);
            }
            let scale = _mm512_set1_ps(x[r].scale);
            $totals[r] = _mm512_fmadd_ps(product, scale, $totals[r]);
        }
        if $has_mins {
            for r in 0..$rows {
                let scaled_sum = _mm512_set1_ps(x[r].scaled_sum);
                $totals[r] = _mm512_fmadd_ps($weights.mins, scaled_sum, $totals[r]);
            }
        }
    }};
}

/// Codes have `BITS` bits and a zero of `ZERO`, a power of two or 0; with `MINS`, a minimum is added.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_codes<const BITS: u32, const ZERO: i32, const MINS: bool>(
    panel: &Panel<'_>,
    x: &Activations,
    first: usize,
    sums: &mut Sums,
) {
    match sums.len() {
        1 => multiply_few::<BITS, ZERO, MINS, 1>(panel, x, first, sums),
        2 => multiply_few::<BITS, ZERO, MINS, 2>(panel, x, first, sums),
        3 => multiply_few::<BITS, ZERO, MINS, 3>(panel, x, first, sums),
        4 => multiply_few::<BITS, ZERO, MINS, 4>(panel, x, first, sums),
        _ if BITS <= 5 => pairs::multiply::<BITS, ZERO, MINS>(panel, x, first, sums),
        _ => multiply_many::<BITS, ZERO, MINS>(panel, x, first, sums),
    }
}

/// Multiplies `R` rows, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_few<const BITS: u32, const ZERO: i32, const MINS: bool, const R: usize>(
    panel: &Panel<'_>,
    x: &Activations,
    first: usize,
    sums: &mut Sums,
) {
    let mut totals = [_mm512_setzero_ps(); R];
    for group in 0..panel.num_groups() {
        panel.prefetch_next(group);
        let weights = group_weights!(BITS, MINS, panel, group);
        let steps = weights.codes;
        let x = x.group(group)[first..].first_chunk();
        let x = x.expect("bug: R rows");
        add_products!(BITS, ZERO, MINS, R, weights, steps, x, totals);
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        store_sums(sums, totals);
    }
}

/// Multiplies rows whose sums are too many for the registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_many<const BITS: u32, const ZERO: i32, const MINS: bool>(
    panel: &Panel<'_>,
    x: &Activations,
    first: usize,
    sums: &mut Sums,
) {
    for group in 0..panel.num_groups() {
        panel.prefetch_next(group);
        let weights = group_weights!(BITS, MINS, panel, group);
        let steps = weights.codes;
        let mut x = &x.group(group)[first..][..sums.len()];
        let mut sums = &mut *sums;
        while !x.is_empty() {
            let rows = match x.len() {
                // Two products a row fill the registers.
                8.. if BITS != 6 => add_rows::<BITS, ZERO, MINS, 8>(weights, &steps, x, sums),
                4.. => add_rows::<BITS, ZERO, MINS, 4>(weights, &steps, x, sums),
                3 => add_rows::<BITS, ZERO, MINS, 3>(weights, &steps, x, sums),
                2 => add_rows::<BITS, ZERO, MINS, 2>(weights, &steps, x, sums),
                _ => add_rows::<BITS, ZERO, MINS, 1>(weights, &steps, x, sums),
            };
            (x, sums) = (&x[rows..], &mut sums[rows..]);
        }
    }
}

/// Adds a group's products with the first `R` rows to their sums in memory, and says how many that were.
/// Each of these functions is called in one place, so that the compiler puts it there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_rows<const BITS: u32, const ZERO: i32, const MINS: bool, const R: usize>(
    weights: GroupWeights,
    steps: &Codes,
    x: &[CodeGroup],
    sums: &mut Sums,
) -> usize {
    let x = x.first_chunk().expect("bug: R rows");
    let sums: &mut [_; R] = sums.first_chunk_mut().expect("bug: R rows");
    let mut totals = [_mm512_setzero_ps(); R];
    for r in 0..R {
        totals[r] = load_sums(&sums[r]);
    }
    add_products!(BITS, ZERO, MINS, R, weights, steps, x, totals);
    for r in 0..R {
        store_sums(&mut sums[r], totals[r]);
    }
    R
}

/// The four codes of a step, in one lane.
#[inline(always)]
fn four_codes(codes: &[i8], step: usize) -> i32 {
    let four = codes.as_chunks::<STEP>().0[step];
    i32::from_le_bytes(four.map(|code| code as u8))
}

/// Vector `index` of 64 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load(bytes: &[u8], index: usize) -> __m512i {
    let bytes: &[u8; LANES] = &bytes.as_chunks().0[index];
    // SAFETY: 64 bytes are there; the load may be unaligned.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack_4_bits(panel: &Panel<'_>, group: usize) -> Codes {
    let nibble = _mm512_set1_epi8(15);
    let mut codes = [_mm512_setzero_si512(); STEPS_OF_GROUP];
    for v in 0..STEPS_OF_GROUP / 2 {
        let bytes = load(panel.codes, group * (STEPS_OF_GROUP / 2) + v);
        codes[v] = _mm512_and_si512(bytes, nibble);
        codes[v + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
    }
    codes
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack_5_bits(panel: &Panel<'_>, group: usize) -> Codes {
    let mut codes = unpack_4_bits(panel, group);
    let fifth = _mm512_set1_epi8(16);
    let plane = load(panel.highs, group);
    // Bit s of a byte belongs to step s.
    let mut step_bit = _mm512_set1_epi8(1);
    for codes in &mut codes {
        let is_set = _mm512_test_epi8_mask(plane, step_bit);
        *codes = _mm512_mask_add_epi8(*codes, is_set, *codes, fifth);
        step_bit = _mm512_add_epi8(step_bit, step_bit);
    }
    codes
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack_6_bits(panel: &Panel<'_>, group: usize) -> Codes {
    let mut codes = unpack_4_bits(panel, group);
    let two_bits = _mm512_set1_epi8(0x30);
    for part in 0..2 {
        let plane = load(panel.highs, 2 * group + part);
        let shifted = [
            _mm512_slli_epi16::<4>(plane),
            _mm512_slli_epi16::<2>(plane),
            plane,
            _mm512_srli_epi16::<2>(plane),
        ];
        for (v, bits) in shifted.into_iter().enumerate() {
            let codes = &mut codes[4 * part + v];
            *codes = _mm512_or_si512(*codes, _mm512_and_si512(bits, two_bits));
        }
    }
    codes
}

/// Signed bytes, moved up by 128.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn read_8_bits(panel: &Panel<'_>, group: usize) -> Codes {
    let sign = _mm512_set1_epi8(i8::MIN);
    let mut codes = [_mm512_setzero_si512(); STEPS_OF_GROUP];
    for (step, codes) in codes.iter_mut().enumerate() {
        *codes = _mm512_xor_si512(load(panel.codes, group * STEPS_OF_GROUP + step), sign);
    }
    codes
}

/// Multiplies f32, f16 or bf16 weights, some rows at a time through all inputs.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_dense(panel: &Panel<'_>, x: &Activations, first: usize, mut sums: &mut Sums) {
    let len = x.row_len();
    let mut x = &x.values()[first * len..];
    while !sums.is_empty() {
        let rows = match sums.len() {
            12.. => add_dense_rows::<12>(panel, x, sums),
            4.. => add_dense_rows::<4>(panel, x, sums),
            3 => add_dense_rows::<3>(panel, x, sums),
            2 => add_dense_rows::<2>(panel, x, sums),
            _ => add_dense_rows::<1>(panel, x, sums),
        };
        (x, sums) = (&x[rows * len..], &mut sums[rows..]);
    }
}

/// Multiplies the first `R` rows, and says how many that were.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_dense_rows<const R: usize>(panel: &Panel<'_>, x: &[f32], results: &mut Sums) -> usize {
    let len = panel.inputs;
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r * len..][..len]);
    let mut sums = [_mm512_setzero_ps(); R];
    match panel.format {
        PanelFormat::F32 => {
            for k in 0..len {
                let weights = _mm512_castsi512_ps(load(panel.codes, k));
                add_dense_products(&mut sums, weights, x, k);
            }
        }
        PanelFormat::F16 => {
            for k in 0..len {
                add_dense_products(&mut sums, load_halves(panel.codes, k), x, k);
            }
        }
        _ => {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            for pair in 0..len.div_ceil(2) {
                let weights = load(panel.codes, pair);
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights));
                add_dense_products(&mut sums, even, x, 2 * pair);
                if 2 * pair + 1 < len {
                    let odd = _mm512_castsi512_ps(_mm512_and_si512(weights, upper));
                    add_dense_products(&mut sums, odd, x, 2 * pair + 1);
                }
            }
        }
    }
    for (results, sums) in results.iter_mut().zip(&sums) {
        store_sums(results, *sums);
    }
    R
}

/// Adds the products with input `k` of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_dense_products<const R: usize>(
    sums: &mut [__m512; R],
    weights: __m512,
    x: [&[f32]; R],
    k: usize,
) {
    for r in 0..R {
        sums[r] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x[r][k]), sums[r]);
    }
}

/// Set `index` of 16 f16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_halves(bytes: &[u8], index: usize) -> __m512 {
    let halves: &[u8; HALVES] = &bytes.as_chunks().0[index];
    // SAFETY: 32 bytes are there; the load may be unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_sums(sums: &[f32; PANEL_ROWS]) -> __m512 {
    // SAFETY: 16 f32 are there; the load may be unaligned.
    unsafe { _mm512_loadu_ps(sums.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store_sums(results: &mut [f32; PANEL_ROWS], sums: __m512) {
    // SAFETY: 16 f32 are there; the store may be unaligned.
    unsafe { _mm512_storeu_ps(results.as_mut_ptr(), sums) }
}
