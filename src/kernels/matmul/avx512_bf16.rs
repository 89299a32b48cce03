//! The product of bf16 weights with AVX-512 BF16: activations are bf16 too, sums f32.
//!
//! `vdpbf16ps` multiplies the two weights of a lane with two activations and adds both products to the
//! lane: twice the multiplications of f32. It rounds to nearest and takes subnormal numbers for zero.

use std::arch::x86_64::*;

use super::Sums;
use crate::kernels::activations::{Activations, BF16_ROWS};
use crate::kernels::packed::{LANES, PANEL_ROWS, Panel};
use crate::kernels::prefetch::prefetch;

/// Bytes that are asked for ahead: two pages, before which the hardware does not look.
const AHEAD_BYTES: usize = 8192;

/// Adds rows from `first` on times one panel of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn multiply(panel: &Panel<'_>, x: &Activations, first: usize, sums: &mut Sums) {
    let row_pairs = panel.inputs.div_ceil(2);
    let blocks = x.bf16_pairs(first).chunks(BF16_ROWS * row_pairs);
    for (sums, x) in sums.chunks_mut(BF16_ROWS).zip(blocks) {
        macro_rules! multiply_rows_of {
            ($($rows:literal)*) => {
                match sums.len() {
                    $($rows => multiply_rows::<$rows>(panel, x, sums),)*
                    rows => unreachable!("bug: a block of {rows} rows"),
                }
            };
        }
        multiply_rows_of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
    }
}

/// Multiplies a block of `R` rows.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_rows<const R: usize>(panel: &Panel<'_>, x: &[u32], results: &mut Sums) {
    let x = x.as_chunks::<R>().0;
    let weights = panel.codes.as_chunks::<LANES>().0;
    let mut sums = [_mm512_setzero_ps(); R];
    for (weights, x) in weights.iter().zip(x) {
        let weights = weights.as_ptr();
        prefetch(weights.wrapping_add(AHEAD_BYTES));
        // SAFETY: 64 bytes are there, and any bits are 32 bf16.
        let weights: __m512bh = unsafe { std::mem::transmute(_mm512_loadu_si512(weights.cast())) };
        for r in 0..R {
            // SAFETY: any bits are 32 bf16.
            let two: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(x[r] as i32)) };
            sums[r] = _mm512_dpbf16_ps(sums[r], weights, two);
        }
    }
    for (results, sums) in results.iter_mut().zip(sums) {
        let results: &mut [f32; PANEL_ROWS] = results;
        // SAFETY: 16 f32 are there; the store may be unaligned.
        unsafe { _mm512_storeu_ps(results.as_mut_ptr(), sums) };
    }
}
