//! Elementary functions without branches, which the compiler turns into vector code.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E};

/// Added to a small f32, rounds it to a whole number, which the low bits then hold.
pub(super) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// NaN if there is one.
#[inline(always)]
pub(super) fn largest_magnitude(values: &[f32]) -> f32 {
    // As integers, magnitudes order like their values, and NaN above infinity.
    let mut largest = 0;
    for value in values {
        largest = largest.max((value.to_bits() & 0x7fff_ffff) as i32);
    }
    f32::from_bits(largest as u32)
}

/// `e^x`; at most 2 parts in 10^7 off, 0 below -87, infinite above 88.3.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // ln 2 in two parts, so that n * LN_2_HIGH is exact (Cody and Waite).
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // The polynomial of Cephes' expf on -ln(2) / 2 ..= ln(2) / 2.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = if x < -87.0 { 0.0 } else { y * power };
    if x > 88.3 { f32::INFINITY } else { y }
}

#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU in its tanh approximation is `x / (1 + e^(-2 * inner))`, where `inner` is this times `x + x^3` times
/// [`GELU_CUBE`]: 0.5 * (1 + tanh(inner)) is the logistic function of 2 * inner.
pub(super) const SQRT_2_OVER_PI: f32 = FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
pub(super) const GELU_CUBE: f32 = 0.044_715;

#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let inner = SQRT_2_OVER_PI * (x + GELU_CUBE * x * x * x);
    x / (1.0 + exp(-2.0 * inner))
}

/// GELU with the error function.
#[inline(always)]
pub(super) fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function, at most 5e-7 off: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let y = 1.0 - p * t * exp(-magnitude * magnitude);
    y.copysign(x)
}

/// The value of an IEEE half in its bits.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // The multiplication moves the exponent's bias and makes subnormals normal.
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let special = f32::from_bits(magnitude << 13 | 0x7f80_0000);
    let value = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// The nearest IEEE half, ties to even, as its bits; beyond the range it is the largest finite one.
#[inline(always)]
pub(super) fn f32_to_f16(value: f32) -> u16 {
    const LARGEST: f32 = 65504.0;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = value.abs().min(LARGEST);
    let bits = magnitude.to_bits();
    // Added to 0.5, a subnormal half is what the low bits hold, rounded by the addition.
    let subnormal = (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let is_odd = bits >> 13 & 1;
    let normal = bits
        .wrapping_sub((127 - 15) << 23)
        .wrapping_add(0xfff + is_odd)
        >> 13;
    sign | if bits < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    } as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_exact_one_over_its_whole_range() {
        for i in -880_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(
                error < 2e-7 || (x < -87.0 && exp(x) == 0.0),
                "exp({x}) is {error:e} off"
            );
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_half_is_read_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            let same = ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
            assert!(same, "{bits:#06x}: {ours} is not {theirs}");
        }
    }

    #[test]
    fn halves_are_written_to_the_nearest_and_stay_finite() {
        for bits in 0..=u16::MAX {
            let half = half::f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(f32_to_f16(half.to_f32()), bits, "{half}");
            }
        }
        for i in 0..4_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.abs() < 65504.0 {
                assert_eq!(f32_to_f16(x), half::f16::from_f32(x).to_bits(), "{x:e}");
            }
        }
        let largest = half::f16::MAX.to_bits();
        assert_eq!(f32_to_f16(1e9), largest);
        assert_eq!(f32_to_f16(f32::NEG_INFINITY), largest | 0x8000);
    }
}
