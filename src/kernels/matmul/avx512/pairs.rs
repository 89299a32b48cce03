//! Products of 4-bit and 5-bit codes with many rows, in fewer multiplications.
//!
//! Winograd's inner product (A new algorithm for inner product, IEEE Transactions on Computers C-17, 1968)
//! makes one product of two, `a w + b v = (a + v)(b + w) - a b - v w`. The sums that are taken off belong
//! to the row of activations alone, which has them ready ([`CodeGroup::start`]), and to the weights alone,
//! for all rows at once. What is added instead are bytes, in units that have nothing else to do while two
//! of four multiply. Integers are exact: the results have the bits of the plain product.
//!
//! Step 2 i of the activations takes part with `v` of step 2 i + 1 as unsigned bytes, and step 2 i + 1 with
//! `w` of step 2 i as signed ones. Weights' codes are less their middle there: with 4 bits, sums are
//! -120 - 8 + 128 = 0 to 120 + 7 + 128 = 255, and -128 to 127. Not all steps are paired: two additions
//! for each multiplication that is saved would be more than the other units take.

use super::*;
use crate::kernels::activations::PAIRED_STEPS;

/// What turns a group's integer products into weights' products.
#[derive(Clone, Copy)]
struct GroupWeights {
    /// Those of paired steps less their middle; of odd ones then moved up by 128.
    codes: Codes,
    /// Sums of what paired steps' codes have as products of each other.
    pair_products: __m512i,
    scales: __m512,
    /// Where codes have no zero.
    mins: __m512,
}

/// As `multiply_codes`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply<const BITS: u32, const ZERO: i32, const MINS: bool>(
    panel: &Panel<'_>,
    x: &Activations,
    first: usize,
    sums: &mut Sums,
) {
    let middle = x.pair_bits().middle();
    assert!(1 << BITS <= 2 * middle, "bug: codes for fewer bits");
    let minus_middle = _mm512_set1_epi8(-middle as i8);
    let odd_minus_middle = _mm512_set1_epi8((128 - middle) as i8);
    for group in 0..panel.num_groups() {
        panel.prefetch_next(group);
        let plain = match BITS {
            4 => unpack_4_bits(panel, group),
            _ => unpack_5_bits(panel, group),
        };
        // 4-bit codes times the value of a high digit still fit bytes.
        let high_steps = match BITS {
            4 => plain.map(|codes| _mm512_slli_epi16::<HIGH_BITS>(codes)),
            _ => plain,
        };
        let mut codes = plain;
        let mut pair_products = _mm512_setzero_si512();
        for even in (0..PAIRED_STEPS).step_by(2) {
            codes[even] = _mm512_add_epi8(plain[even], minus_middle);
            codes[even + 1] = _mm512_add_epi8(plain[even + 1], odd_minus_middle);
            pair_products = _mm512_dpbusd_epi32(pair_products, codes[even + 1], codes[even]);
        }
        let weights = GroupWeights {
            codes,
            pair_products,
            scales: load_halves(panel.scales, group),
            mins: match MINS {
                true => load_halves(panel.mins, group),
                false => _mm512_setzero_ps(),
            },
        };
        let mut x = &x.group(group)[first..][..sums.len()];
        let mut sums = &mut *sums;
        while !x.is_empty() {
            let rows = match x.len() {
                4.. => add_rows::<BITS, ZERO, MINS, 4>(weights, &high_steps, x, sums),
                3 => add_rows::<BITS, ZERO, MINS, 3>(weights, &high_steps, x, sums),
                2 => add_rows::<BITS, ZERO, MINS, 2>(weights, &high_steps, x, sums),
                _ => add_rows::<BITS, ZERO, MINS, 1>(weights, &high_steps, x, sums),
            };
            (x, sums) = (&x[rows..], &mut sums[rows..]);
        }
    }
}

/// Adds a group's products with the first `R` rows to their sums in memory, and says how many that were.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_rows<const BITS: u32, const ZERO: i32, const MINS: bool, const R: usize>(
    weights: GroupWeights,
    high_steps: &Codes,
    x: &[CodeGroup],
    sums: &mut Sums,
) -> usize {
    let x: &[_; R] = x.first_chunk().expect("bug: R rows");
    let sums: &mut [_; R] = sums.first_chunk_mut().expect("bug: R rows");
    let mut products = [_mm512_setzero_si512(); R];
    for r in 0..R {
        products[r] = _mm512_set1_epi32(x[r].start(ZERO));
    }
    macro_rules! add_step {
        ($step:expr) => {
            for r in 0..R {
                let four = _mm512_set1_epi32(four_codes(&x[r].low, $step));
                products[r] = _mm512_dpbusd_epi32(products[r], weights.codes[$step], four);
            }
        };
    }
    macro_rules! add_pair {
        ($even:expr) => {
            for r in 0..R {
                let even = _mm512_set1_epi32(four_codes(&x[r].low, $even));
                let odd = _mm512_set1_epi32(four_codes(&x[r].low, $even + 1));
                let even = _mm512_add_epi8(even, weights.codes[$even + 1]);
                let odd = _mm512_add_epi8(odd, weights.codes[$even]);
                products[r] = _mm512_dpbusd_epi32(products[r], even, odd);
            }
        };
    }
    const { assert!(PAIRED_STEPS == 6 && STEPS_OF_GROUP == 8) };
    // By turns, so that there always are additions and multiplications to do.
    add_step!(6);
    add_pair!(0);
    for r in 0..R {
        let codes = high_steps[x[r].tall_step()];
        let four = _mm512_set1_epi32(four_codes(&x[r].high, 0));
        products[r] = match BITS {
            4 => _mm512_dpbusd_epi32(products[r], codes, four),
            _ => {
                let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, four);
                _mm512_add_epi32(products[r], _mm512_slli_epi32::<HIGH_BITS>(high))
            }
        };
    }
    add_pair!(2);
    add_step!(7);
    add_pair!(4);
    for r in 0..R {
        let product = _mm512_sub_epi32(products[r], weights.pair_products);
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(product), weights.scales);
        let scale = _mm512_set1_ps(x[r].scale);
        let mut total = _mm512_fmadd_ps(product, scale, load_sums(&sums[r]));
        if MINS {
            let scaled_sum = _mm512_set1_ps(x[r].scaled_sum);
            total = _mm512_fmadd_ps(weights.mins, scaled_sum, total);
        }
        store_sums(&mut sums[r], total);
    }
    R
}
