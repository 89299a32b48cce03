//! Elementary functions of 16 numbers at once.

use std::arch::x86_64::*;
use std::f32::consts::LN_2;

pub const LANES: usize = 16;

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn load(values: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 f32 are there; the load may be unaligned.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn store(values: &mut [f32; LANES], results: __m512) {
    // SAFETY: 16 f32 are there; the store may be unaligned.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), results) }
}

/// `2^x`, at most 2 parts in 10^7 off; 0 below -150.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn exp2(x: __m512) -> __m512 {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // What is not a number stays so, and minus infinity gives 0.
    let x = _mm512_max_ps(_mm512_set1_ps(-1000.0), x);
    let n = _mm512_roundscale_ps::<NEAREST>(x);
    let r = _mm512_sub_ps(x, n);
    // The polynomial of Cephes' exp2f on -1 / 2 ..= 1 / 2.
    let mut p = _mm512_set1_ps(1.535_336_2e-4);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.339_887_4e-3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618_437e-3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550_332_5e-2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240_226_48));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(LN_2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, n)
}

/// `x / (1 + 2^y)`; where `y` is beyond 126, as if it were that, which is next to nothing.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn divide_by_one_plus_exp2(x: __m512, y: __m512) -> __m512 {
    // What is not a number stays so. Beyond, the inverse would not be one that can be made better.
    let y = _mm512_min_ps(_mm512_set1_ps(126.0), y);
    let divisor = _mm512_add_ps(_mm512_set1_ps(1.0), exp2(y));
    // 14 bits, and by Newton's method all: a division takes as long as the rest.
    let inverse = _mm512_rcp14_ps(divisor);
    let error = _mm512_fnmadd_ps(divisor, inverse, _mm512_set1_ps(1.0));
    let inverse = _mm512_fmadd_ps(inverse, error, inverse);
    _mm512_mul_ps(x, inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    fn first_of(values: __m512) -> f32 {
        let mut all = [0.0; LANES];
        // SAFETY: who has such values made them with these instructions.
        unsafe { store(&mut all, values) };
        all[0]
    }

    #[test]
    fn powers_of_two_are_close_to_the_exact_ones() {
        if !Isa::Avx512Vnni.is_available() {
            return;
        }
        let power = |x: f32| {
            // SAFETY: the machine has the instructions.
            unsafe { first_of(exp2(_mm512_set1_ps(x))) }
        };
        for i in -1_260_000..10_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp2();
            let error = (f64::from(power(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "2^{x} is {error:e} off");
        }
        assert_eq!([0.0, -150.5, f32::NEG_INFINITY].map(power), [1.0, 0.0, 0.0]);
        assert!(power(f32::NAN).is_nan());
    }

    #[test]
    fn quotients_are_close_to_the_exact_ones() {
        if !Isa::Avx512Vnni.is_available() {
            return;
        }
        let quotient = |x: f32, y: f32| {
            // SAFETY: the machine has the instructions.
            unsafe {
                first_of(divide_by_one_plus_exp2(
                    _mm512_set1_ps(x),
                    _mm512_set1_ps(y),
                ))
            }
        };
        for i in -1_300_000..1_300_000 {
            let y = i as f32 * 1e-4;
            let exact = 3.0 / (1.0 + f64::from(y).exp2());
            let error = (f64::from(quotient(3.0, y)) - exact).abs();
            assert!(
                error <= exact * 4e-7 + 1e-37,
                "3 / (1 + 2^{y}) is {error:e} off"
            );
        }
        assert_eq!(quotient(3.0, f32::NEG_INFINITY), 3.0);
        assert!(quotient(3.0, f32::NAN).is_nan());
        assert!(quotient(f32::NAN, 1.0).is_nan());
        assert_eq!(quotient(f32::INFINITY, -1e9), f32::INFINITY);
    }
}
