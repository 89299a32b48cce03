//! The product of bf16 weights with AVX-512 BF16: activations are bf16 too, sums f32.
//!
//! `vdpbf16ps` multiplies the two weights of a lane with two activations and adds both products to the
//! lane: twice the multiplications of f32. It rounds to nearest and takes subnormal numbers for zero.

use std::arch::x86_64::*;

use super::Sums;
use crate::kernels::activations::Activations;
use crate::kernels::packed::{LANES, PANEL_ROWS, Panel};

/// Adds rows from `first` on times one panel of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn multiply(panel: &Panel<'_>, x: &Activations, first: usize, mut sums: &mut Sums) {
    let len = panel.inputs.div_ceil(2);
    let mut x = &x.bf16_pairs()[first * len..];
    while !sums.is_empty() {
        let rows = match sums.len() {
            16.. => multiply_rows::<16>(panel, x, sums),
            8.. => multiply_rows::<8>(panel, x, sums),
            4.. => multiply_rows::<4>(panel, x, sums),
            3 => multiply_rows::<3>(panel, x, sums),
            2 => multiply_rows::<2>(panel, x, sums),
            _ => multiply_rows::<1>(panel, x, sums),
        };
        (x, sums) = (&x[rows * len..], &mut sums[rows..]);
    }
}

/// Multiplies the first `R` rows, and says how many that were.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_rows<const R: usize>(panel: &Panel<'_>, x: &[u32], results: &mut Sums) -> usize {
    let len = panel.inputs.div_ceil(2);
    let x: [&[u32]; R] = std::array::from_fn(|r| &x[r * len..][..len]);
    let weights = &panel.codes.as_chunks::<LANES>().0[..len];
    let mut sums = [_mm512_setzero_ps(); R];
    for (pair, weights) in weights.iter().enumerate() {
        // SAFETY: 64 bytes are there, and any bits are 32 bf16.
        let weights: __m512bh =
            unsafe { std::mem::transmute(_mm512_loadu_si512(weights.as_ptr().cast())) };
        for r in 0..R {
            let two = _mm512_set1_epi32(x[r][pair] as i32);
            // SAFETY: any bits are 32 bf16.
            let two: __m512bh = unsafe { std::mem::transmute(two) };
            sums[r] = _mm512_dpbf16_ps(sums[r], weights, two);
        }
    }
    for (results, sums) in results.iter_mut().zip(sums) {
        let results: &mut [f32; PANEL_ROWS] = results;
        // SAFETY: 16 f32 are there; the store may be unaligned.
        unsafe { _mm512_storeu_ps(results.as_mut_ptr(), sums) };
    }
    R
}
