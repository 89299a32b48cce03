//! Activations of 16 numbers at once: the compiler finds neither the fused multiply-adds nor a quicker division.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use crate::kernels::math::avx512::{LANES, divide_by_one_plus_exp2, load, store};
use crate::kernels::math::{GELU_CUBE, SQRT_2_OVER_PI};

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn silu(x: __m512) -> __m512 {
    divide_by_one_plus_exp2(x, _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn gelu_tanh(x: __m512) -> __m512 {
    const FACTOR: f32 = -2.0 * SQRT_2_OVER_PI * LOG2_E;
    let cube = _mm512_set1_ps(FACTOR * GELU_CUBE);
    let factor = _mm512_fmadd_ps(_mm512_mul_ps(x, x), cube, _mm512_set1_ps(FACTOR));
    divide_by_one_plus_exp2(x, _mm512_mul_ps(x, factor))
}

/// Defines an activation of a slice, and of the gates of as many other values.
macro_rules! activation_of_slices {
    ($slice:ident, $gate:ident, $function:ident) => {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        pub fn $slice(values: &mut [f32]) {
            let (chunks, rest) = values.as_chunks_mut::<LANES>();
            for values in chunks {
                store(values, $function(load(values)));
            }
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            let results = $function(load(&padded));
            store(&mut padded, results);
            rest.copy_from_slice(&padded[..rest.len()]);
        }

        /// Both are whole registers.
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        pub fn $gate(gates: &mut [f32], values: &[f32]) {
            let (gates, rest) = gates.as_chunks_mut::<LANES>();
            assert!(rest.is_empty(), "bug: gates of whole panels");
            for (gates, values) in gates.iter_mut().zip(values.as_chunks().0) {
                let activated = $function(load(gates));
                store(gates, _mm512_mul_ps(activated, load(values)));
            }
        }
    };
}

activation_of_slices!(silu_slice, silu_gate, silu);
activation_of_slices!(gelu_tanh_slice, gelu_tanh_gate, gelu_tanh);
