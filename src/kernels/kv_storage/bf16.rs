//! V in bf16, for AVX-512 BF16, which multiplies what two slots have at once.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::element::{Stored, Value};
use super::{COLUMN, TILE_TOKENS};
use crate::kernels::Isa;
use crate::kernels::aligned::Number;

/// The bits of a bf16. In a column, the elements of two slots alternate.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Bf16(u16);

// SAFETY: bits of 0 are the number 0.
unsafe impl Number for Bf16 {}

impl Stored for Bf16 {}

impl Value for Bf16 {
    const SLOTS_TOGETHER: usize = 2;

    fn write_value(isa: Isa, v: &[f32], slot: usize, tile: &mut [Self], _: &mut [u16]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever holds this value made sure that the machine has it; see Compute.
            Isa::Avx512Bf16 => unsafe { write_value(v, slot, tile) },
            _ => panic!("bug: V in bf16 for {isa}"),
        }
    }
}

/// Writes a slot. The first of a pair makes zeros of the second, which comes later: what others left
/// there, maybe not even finite, must not be multiplied, not by 0 either.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn write_value(v: &[f32], slot: usize, tile: &mut [Bf16]) {
    let columns = tile.chunks_exact_mut(COLUMN * TILE_TOKENS);
    for (v, column) in v.chunks(COLUMN).zip(columns) {
        let pair = &mut column[slot / 2 * 2 * COLUMN..][..2 * COLUMN];
        let of_v = u16::MAX >> (COLUMN - v.len());
        // SAFETY: as many f32 as the mask has bits, and 32 elements, are there; loads and stores may be
        // unaligned.
        unsafe {
            let values = _mm512_maskz_loadu_ps(of_v, v.as_ptr());
            let values: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
            let values = _mm512_cvtepu16_epi32(values);
            match slot % 2 {
                0 => _mm512_storeu_si512(pair.as_mut_ptr().cast(), values),
                _ => {
                    let values = _mm512_slli_epi32::<16>(values);
                    _mm512_mask_storeu_epi16(pair.as_mut_ptr().cast(), 0xaaaa_aaaa, values);
                }
            }
        }
    }
}
