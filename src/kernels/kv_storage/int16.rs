//! K as whole numbers of 16 bits, which instructions multiply two at a time and add without rounding.
//!
//! `key ~ code * scale / most`, for each token and head with a scale of its own, not below its largest
//! magnitude. Queries are made the same way when they are multiplied. `most` is such that no sum of
//! products of a head leaves 32 bits: 5792 for heads of 64, 4095 for 128. So the largest elements, of
//! which most of a score comes, are as exact as in f16 at least.

use super::TILE_TOKENS;
use super::element::{Key, Stored, scatter};
use crate::kernels::Isa;
use crate::kernels::aligned::Number;
use crate::kernels::isa::for_each_isa;
use crate::kernels::math::{ROUND, largest_magnitude};

/// The codes of two dimensions, which lie together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub struct CodePair(pub [i16; 2]);

impl CodePair {
    /// Both, the first in the lower half.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub fn bits(self) -> i32 {
        let [first, second] = self.0;
        i32::from(second) << 16 | i32::from(first as u16)
    }
}

/// Pairs that are made at once.
const GROUP_PAIRS: usize = 16;

/// Scales below it count as zero: their inverse would overflow.
const SMALLEST_SCALE: f32 = 1e-30;

// SAFETY: bits of 0 are two codes of 0.
unsafe impl Number for CodePair {}

impl Stored for CodePair {
    fn num_scales(_: usize) -> usize {
        1
    }
}

impl Key for CodePair {
    fn tile_rows(head_dim: usize) -> usize {
        head_dim.div_ceil(2)
    }

    fn write_key(isa: Isa, k: &[f32], lane: usize, tile: &mut [Self], scales: &mut [u16]) {
        scales[lane] = write_key(isa, k, lane, tile);
    }
}

/// The largest code of a key and of a query.
pub fn largest_code(head_dim: usize) -> f32 {
    let most = (f64::from(i32::MAX) / head_dim as f64).sqrt();
    most.min(f64::from(i16::MAX)).floor() as f32
}

/// The scale in its bits as it is stored.
#[inline(always)]
pub fn scale_of(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The upper half of an f32 not below `magnitude`; of one that is not finite, not finite.
#[inline(always)]
fn stored_scale(magnitude: f32) -> u16 {
    const NAN: u32 = 0x7fff_0000;
    ((magnitude.to_bits().min(NAN) + 0xffff) >> 16) as u16
}

/// Writes codes, of which `scale` has the largest, `most`, to a lane of rows of `stride`.
fn write_codes(
    isa: Isa,
    values: &[f32],
    (scale, most): (f32, f32),
    (lane, stride): (usize, usize),
    pairs: &mut [CodePair],
) {
    let inverse = match scale > SMALLEST_SCALE {
        true => most / scale,
        false => 0.0,
    };
    let groups = pairs.chunks_mut(GROUP_PAIRS * stride);
    for (values, pairs) in values.chunks(2 * GROUP_PAIRS).zip(groups) {
        match (isa, values.as_chunks().0) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Compute holds only an instruction set that the machine has.
            (Isa::Avx512Vnni | Isa::Avx512Bf16, [values]) => unsafe {
                avx512::write_group(values, inverse, (lane, stride), pairs);
            },
            _ => write_group(isa, values, inverse, lane, stride, pairs),
        }
    }
}

for_each_isa! {
    /// Writes the codes of up to [`GROUP_PAIRS`] pairs.
    fn write_group(
        values: &[f32],
        inverse: f32,
        lane: usize,
        stride: usize,
        pairs: &mut [CodePair],
    ) {
        let mut codes = [0i16; 2 * GROUP_PAIRS];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (value * inverse + ROUND).to_bits() as i16;
        }
        let codes: [CodePair; GROUP_PAIRS] =
            std::array::from_fn(|i| CodePair([codes[2 * i], codes[2 * i + 1]]));
        scatter(&codes, (lane, stride), pairs);
    }
}

/// The same bits, in fewer instructions than the compiler finds.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{CodePair, GROUP_PAIRS};

    #[target_feature(enable = "avx512f")]
    pub fn write_group(
        values: &[f32; 2 * GROUP_PAIRS],
        inverse: f32,
        (lane, stride): (usize, usize),
        pairs: &mut [CodePair],
    ) {
        // To the nearest whole number, the even one of two: the default of the machine.
        let [first, second] = [0, 16].map(|at| {
            // SAFETY: 32 f32 are there; the loads may be unaligned.
            let values = unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) };
            let codes = _mm512_cvtps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(inverse)));
            _mm512_cvtepi32_epi16(codes)
        });
        let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        let index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let places = _mm512_mullo_epi32(index, _mm512_set1_epi32(stride as i32));
        assert!(
            lane + (GROUP_PAIRS - 1) * stride < pairs.len(),
            "bug: room for the pairs"
        );
        // SAFETY: the last place is inside, as checked, and so are those before it.
        unsafe {
            let first = pairs.as_mut_ptr().add(lane);
            _mm512_i32scatter_epi32::<{ size_of::<CodePair>() as i32 }>(
                first.cast(),
                places,
                codes,
            );
        }
    }
}

fn write_key(isa: Isa, k: &[f32], lane: usize, tile: &mut [CodePair]) -> u16 {
    let scale = stored_scale(magnitude(isa, k));
    let codes_of = (scale_of(scale), largest_code(k.len()));
    write_codes(isa, k, codes_of, (lane, TILE_TOKENS), tile);
    scale
}

/// Writes the codes of a query, one of `num_rows`, to its places (head_dim / 2, rows). With the result
/// and a key's scale, the sum of products is the score.
pub fn write_query(
    isa: Isa,
    q: &[f32],
    row: usize,
    num_rows: usize,
    pairs: &mut [CodePair],
) -> f32 {
    let (scale, most) = (magnitude(isa, q), largest_code(q.len()));
    write_codes(isa, q, (scale, most), (row, num_rows), pairs);
    scale / (most * most)
}

for_each_isa! {
    fn magnitude(values: &[f32]) -> f32 {
        largest_magnitude(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_the_largest_codes_fit_32_bits() {
        for head_dim in 1..1000 {
            let most = largest_code(head_dim) as i64;
            let next = most + 1;
            assert!(
                head_dim as i64 * most * most <= i64::from(i32::MAX),
                "{head_dim}"
            );
            let is_most = head_dim as i64 * next * next > i64::from(i32::MAX);
            assert!(is_most || most == i64::from(i16::MAX), "{head_dim}");
        }
    }

    #[test]
    fn keys_are_within_half_a_code_and_what_is_not_finite_stays_visible() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (head_dim, size) in [(1, 1.0), (7, 3e-20), (64, 0.7), (65, 1e30), (128, 40.0)] {
                let k: Vec<f32> = (0..head_dim)
                    .map(|i| size * ((i * 37 % 101) as f32 / 50.0 - 1.0))
                    .collect();
                let mut tile =
                    vec![CodePair::default(); CodePair::tile_rows(head_dim) * TILE_TOKENS];
                let mut scales = [0; TILE_TOKENS];
                CodePair::write_key(isa, &k, 5, &mut tile, &mut scales);
                let mut same = vec![CodePair::default(); tile.len()];
                CodePair::write_key(Isa::Portable, &k, 5, &mut same, &mut [0; TILE_TOKENS]);
                assert_eq!(tile, same, "{isa}: {head_dim}");
                let step = scale_of(scales[5]) / largest_code(head_dim);
                assert!(scale_of(scales[5]) <= 1.01 * largest_magnitude(&k));
                for (d, k) in k.iter().enumerate() {
                    let code = tile[d / 2 * TILE_TOKENS + 5].0[d % 2];
                    let error = (f32::from(code) * step - k).abs();
                    assert!(
                        error <= 0.501 * step,
                        "{isa}: {d} of {head_dim} is {error:e} off"
                    );
                }
                let others = tile
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| i % TILE_TOKENS != 5);
                assert!(
                    others
                        .into_iter()
                        .all(|(_, pair)| *pair == CodePair::default())
                );
            }
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut scales = [0; TILE_TOKENS];
                let mut tile = [CodePair::default(); 2 * TILE_TOKENS];
                CodePair::write_key(isa, &[1.0, broken, 2.0], 0, &mut tile, &mut scales);
                assert!(!scale_of(scales[0]).is_finite());
            }
            let mut tile = [CodePair([9; 2]); TILE_TOKENS];
            assert_eq!(write_key(isa, &[0.0; 2], 0, &mut tile), 0);
            assert_eq!(tile[0], CodePair::default());
        }
    }
}
