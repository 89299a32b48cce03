//! The product in AVX2: 16 rows of weights are two registers of eight 32-bit lanes.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits, which
//! must not saturate. With digits of activations in -127..=127: eight steps of 4-bit codes reach
//! 8 * 2 * 15 * 127 = 30480, four steps of 5 bits 31496, two of 6 bits 32004, one step of signed bytes (as
//! magnitude times signed activation) 2 * 128 * 127 = 32512, all below 32768.

pub(super) mod vnni;

use std::arch::x86_64::*;
use std::hint::black_box;

use super::Sums;
use crate::kernels::activations::{Activations, CODE_GROUP, CodeGroup, HIGH_BITS};
use crate::kernels::packed::{HALVES, LANES, PANEL_ROWS, Panel, PanelFormat, STEP, STEPS_OF_GROUP};

/// One value for each of a panel's rows.
type Pair = [__m256i; 2];
type PairF32 = [__m256; 2];

/// The codes of a group, a byte each.
type Codes = [[u8; LANES]; STEPS_OF_GROUP];

/// Lets no load of codes cross a cache line.
#[repr(align(64))]
struct Unpacked(Codes);

/// What turns a group's integer products into weights' products.
struct GroupWeights {
    /// Of the first and the second 16 inputs, where they have scales of their own.
    scales: [PairF32; 2],
    mins: Option<PairF32>,
    zero: i32,
}

/// Defines `multiply`, compiled for some instructions with all its loops: a call to code for others is
/// never inlined. It takes from beside it `dot_part`, the `steps` that this sums, `dot_step`, and
/// `ZERO_OF_BYTES`.
macro_rules! define_multiply {
    ($features:literal) => {
        /// Adds rows from `first` on times one panel.
        #[target_feature(enable = $features)]
        pub(in crate::kernels::matmul) fn multiply(
            panel: &Panel<'_>,
            x: &Activations,
            first: usize,
            sums: &mut Sums,
        ) {
            match panel.format {
                PanelFormat::Q4Zero | PanelFormat::Q4Min => {
                    multiply_codes::<4>(panel, x, first, sums)
                }
                PanelFormat::Q5Zero | PanelFormat::Q5Min => {
                    multiply_codes::<5>(panel, x, first, sums)
                }
                PanelFormat::Q6 => multiply_codes::<6>(panel, x, first, sums),
                PanelFormat::Q8 => multiply_codes::<8>(panel, x, first, sums),
                PanelFormat::F32 | PanelFormat::F16 | PanelFormat::Bf16 => {
                    multiply_dense(panel, x, first, sums);
                }
            }
        }

        #[target_feature(enable = $features)]
        fn multiply_codes<const BITS: u32>(
            panel: &Panel<'_>,
            x: &Activations,
            first: usize,
            sums: &mut Sums,
        ) {
            let steps = steps::<BITS>();
            let mut unpacked = Unpacked([[0; LANES]; STEPS_OF_GROUP]);
            for group in 0..panel.num_groups() {
                panel.prefetch_next(group);
                match BITS {
                    4 => unpack_4_bits(panel, group, &mut unpacked.0),
                    5 => unpack_5_bits(panel, group, &mut unpacked.0),
                    6 => unpack_6_bits(panel, group, &mut unpacked.0),
                    _ => {}
                }
                let codes = match BITS {
                    8 => &panel.codes.as_chunks().0.as_chunks().0[group],
                    _ => &unpacked.0,
                };
                let weights = GroupWeights {
                    scales: match BITS {
                        6 => [0, 1].map(|half| load_halves(panel.scales, 2 * group + half)),
                        _ => [load_halves(panel.scales, group); 2],
                    },
                    mins: match panel.format.has_min() {
                        true => Some(load_halves(panel.mins, group)),
                        false => None,
                    },
                    zero: match BITS {
                        8 => ZERO_OF_BYTES,
                        _ => panel.format.zero(),
                    },
                };
                let mut x = &x.group(group)[first..][..sums.len()];
                let mut sums = &mut *sums;
                while !x.is_empty() {
                    let rows = match x.len() {
                        4.. => add_rows::<BITS, 4>(codes, steps, &weights, x, sums),
                        3 => add_rows::<BITS, 3>(codes, steps, &weights, x, sums),
                        2 => add_rows::<BITS, 2>(codes, steps, &weights, x, sums),
                        _ => add_rows::<BITS, 1>(codes, steps, &weights, x, sums),
                    };
                    (x, sums) = (&x[rows..], &mut sums[rows..]);
                }
            }
        }

        /// Adds a group's products with the first `R` rows to their sums, and says how many that were.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_rows<const BITS: u32, const R: usize>(
            codes: &Codes,
            steps: usize,
            weights: &GroupWeights,
            x: &[CodeGroup],
            sums: &mut Sums,
        ) -> usize {
            let x: &[CodeGroup; R] = x.first_chunk().expect("bug: R rows");
            // Q6 has a scale for each half of the group.
            let halves = if BITS == 6 { 2 } else { 1 };
            for half in 0..halves {
                let lows: [_; R] = std::array::from_fn(|r| &x[r].low);
                let mut products = dot_part::<BITS, R>(codes, steps, lows, half);
                for (x, products) in x.iter().zip(&mut products) {
                    let tall = x.tall_step();
                    if BITS == 6 && tall / (STEPS_OF_GROUP / 2) != half {
                        continue;
                    }
                    let four = _mm256_set1_epi32(i32::from_le_bytes(x.high.map(|high| high as u8)));
                    let high = dot_step::<BITS>(&codes[tall], four);
                    for part in 0..2 {
                        let high = _mm256_slli_epi32::<{ HIGH_BITS as i32 }>(high[part]);
                        products[part] = _mm256_add_epi32(products[part], high);
                    }
                }
                match BITS {
                    6 => add_scaled_half(products, half, weights, x, sums),
                    _ => add_scaled(products, weights, x, sums),
                }
            }
            R
        }

        /// Adds the products of a whole group to the sums.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_scaled<const R: usize>(
            products: [Pair; R],
            weights: &GroupWeights,
            x: &[CodeGroup; R],
            sums: &mut Sums,
        ) {
            for r in 0..R {
                let (x, sums) = (&x[r], &mut sums[r]);
                let x_scale = _mm256_set1_ps(x.scale);
                let mut row = load_sums(sums);
                let mut products = products[r];
                if weights.zero != 0 {
                    let zero = _mm256_set1_epi32(weights.zero * x.minus_sum);
                    products = products.map(|product| _mm256_add_epi32(product, zero));
                }
                for half in 0..2 {
                    let product = _mm256_cvtepi32_ps(products[half]);
                    let product = _mm256_mul_ps(product, weights.scales[0][half]);
                    row[half] = _mm256_fmadd_ps(product, x_scale, row[half]);
                }
                if let Some(mins) = weights.mins {
                    let scaled_sum = _mm256_set1_ps(x.scaled_sum);
                    for half in 0..2 {
                        row[half] = _mm256_fmadd_ps(mins[half], scaled_sum, row[half]);
                    }
                }
                store_sums(sums, row);
            }
        }

        /// Adds the products of the first or the second 16 inputs to the sums.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_scaled_half<const R: usize>(
            products: [Pair; R],
            part: usize,
            weights: &GroupWeights,
            x: &[CodeGroup; R],
            sums: &mut Sums,
        ) {
            for r in 0..R {
                let (x, sums) = (&x[r], &mut sums[r]);
                let x_scale = _mm256_set1_ps(x.scale);
                let mut row = load_sums(sums);
                let zero = _mm256_set1_epi32(weights.zero * x.half_sum(part));
                for half in 0..2 {
                    let product = _mm256_cvtepi32_ps(_mm256_sub_epi32(products[r][half], zero));
                    let product = _mm256_mul_ps(product, weights.scales[part][half]);
                    row[half] = _mm256_fmadd_ps(product, x_scale, row[half]);
                }
                store_sums(sums, row);
            }
        }
    };
}
use define_multiply;

define_multiply!("avx2,fma,f16c");

/// What `dot_part` takes signed bytes' zero to be.
const ZERO_OF_BYTES: i32 = 0;

/// Steps whose products 16 bits hold. The compiler must not know long ones: it would unroll the loop
/// over them, reorder its sums, and run out of registers.
fn steps<const BITS: u32>() -> usize {
    match BITS {
        5 => black_box(4),
        6 => 2,
        _ => black_box(8),
    }
}

/// 32-bit products of `R` rows with a group, or with a half of it where halves have scales.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_part<const BITS: u32, const R: usize>(
    codes: &Codes,
    steps: usize,
    x: [&[i8; CODE_GROUP]; R],
    part: usize,
) -> [Pair; R] {
    match BITS {
        4 => dot(codes, x, 0, steps).map(|products| widen(products)),
        5 => widen_and_add(dot(codes, x, 0, steps), dot(codes, x, steps, steps)),
        6 => {
            let start = 2 * part * steps;
            let first = dot(codes, x, start, steps);
            widen_and_add(first, dot(codes, x, start + steps, steps))
        }
        _ => dot_signed(codes, x, steps),
    }
}

/// 32-bit products of one step.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_step<const BITS: u32>(codes: &[u8; LANES], four: __m256i) -> Pair {
    load_pair(codes).map(|codes| {
        let products = match BITS {
            8 => _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes)),
            _ => _mm256_maddubs_epi16(codes, four),
        };
        _mm256_madd_epi16(products, _mm256_set1_epi16(1))
    })
}

/// 16-bit products of `R` rows with unsigned codes, over some steps of a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const R: usize>(
    codes: &Codes,
    x: [&[i8; CODE_GROUP]; R],
    start: usize,
    steps: usize,
) -> [Pair; R] {
    assert!(start + steps <= STEPS_OF_GROUP, "bug: steps of one group");
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for step in start..start + steps {
        // SAFETY: the step is in the group, as checked.
        let codes = load_pair(unsafe { codes.get_unchecked(step) });
        for r in 0..R {
            // SAFETY: as above.
            let x = unsafe { broadcast_step(x[r], step) };
            for half in 0..2 {
                let products = _mm256_maddubs_epi16(codes[half], x);
                sums[r][half] = _mm256_add_epi16(sums[r][half], products);
            }
        }
    }
    sums
}

/// 32-bit products of `R` rows with signed codes, over a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_signed<const R: usize>(codes: &Codes, x: [&[i8; CODE_GROUP]; R], steps: usize) -> [Pair; R] {
    assert!(steps <= STEPS_OF_GROUP, "bug: steps of one group");
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for step in 0..steps {
        // SAFETY: the step is in the group, as checked.
        let codes = load_pair(unsafe { codes.get_unchecked(step) });
        // The sign moves to the activation, which never is -128 and so can always take it.
        let magnitudes = codes.map(|codes| _mm256_abs_epi8(codes));
        for r in 0..R {
            // SAFETY: as above.
            let x = unsafe { broadcast_step(x[r], step) };
            for half in 0..2 {
                let signed = _mm256_sign_epi8(x, codes[half]);
                let products = _mm256_maddubs_epi16(magnitudes[half], signed);
                let products = _mm256_madd_epi16(products, ones);
                sums[r][half] = _mm256_add_epi32(sums[r][half], products);
            }
        }
    }
    sums
}

/// Adds neighbours to 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(products: Pair) -> Pair {
    products.map(|p| _mm256_madd_epi16(p, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_and_add<const R: usize>(first: [Pair; R], second: [Pair; R]) -> [Pair; R] {
    std::array::from_fn(|r| {
        let (first, second) = (widen(first[r]), widen(second[r]));
        [
            _mm256_add_epi32(first[0], second[0]),
            _mm256_add_epi32(first[1], second[1]),
        ]
    })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_4_bits(panel: &Panel<'_>, group: usize, codes: &mut Codes) {
    let nibble = _mm256_set1_epi8(15);
    let packed = &panel
        .codes
        .as_chunks::<LANES>()
        .0
        .as_chunks::<{ STEPS_OF_GROUP / 2 }>()
        .0[group];
    for (v, bytes) in packed.iter().enumerate() {
        let bytes = load_pair(bytes);
        let low = bytes.map(|bytes| _mm256_and_si256(bytes, nibble));
        let high = bytes.map(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble));
        store_pair(&mut codes[v], low);
        store_pair(&mut codes[v + 4], high);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_5_bits(panel: &Panel<'_>, group: usize, codes: &mut Codes) {
    unpack_4_bits(panel, group, codes);
    let fifth = _mm256_set1_epi8(16);
    let plane = load_pair(&panel.highs.as_chunks::<LANES>().0[group]);
    // Shifted right by one each step, they bring the next step's bit to the fifth place.
    let mut high_bits = plane;
    let mut low_bits = plane.map(|bits| _mm256_slli_epi16::<4>(bits));
    for v in 0..STEPS_OF_GROUP / 2 {
        add_bits(&mut codes[v], low_bits, fifth);
        add_bits(&mut codes[v + 4], high_bits, fifth);
        low_bits = low_bits.map(|bits| _mm256_srli_epi16::<1>(bits));
        high_bits = high_bits.map(|bits| _mm256_srli_epi16::<1>(bits));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_6_bits(panel: &Panel<'_>, group: usize, codes: &mut Codes) {
    unpack_4_bits(panel, group, codes);
    let two_bits = _mm256_set1_epi8(0x30);
    let planes = &panel.highs.as_chunks::<LANES>().0.as_chunks::<2>().0[group];
    for (part, plane) in planes.iter().enumerate() {
        let plane = load_pair(plane);
        let shifted = [
            plane.map(|bits| _mm256_slli_epi16::<4>(bits)),
            plane.map(|bits| _mm256_slli_epi16::<2>(bits)),
            plane,
            plane.map(|bits| _mm256_srli_epi16::<2>(bits)),
        ];
        for (v, bits) in shifted.into_iter().enumerate() {
            add_bits(&mut codes[4 * part + v], bits, two_bits);
        }
    }
}

/// Sets those bits of a step's codes that `mask` selects.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_bits(codes: &mut [u8; LANES], bits: Pair, mask: __m256i) {
    let mut pair = load_pair(codes);
    for half in 0..2 {
        pair[half] = _mm256_or_si256(pair[half], _mm256_and_si256(bits[half], mask));
    }
    store_pair(codes, pair);
}

/// Multiplies f32, f16 or bf16 weights, some rows at a time through all inputs.
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_dense(panel: &Panel<'_>, x: &Activations, first: usize, mut sums: &mut Sums) {
    let len = x.row_len();
    let mut x = &x.values()[first * len..];
    while !sums.is_empty() {
        let rows = match sums.len() {
            4.. => add_dense_rows::<4>(panel, x, sums),
            3 => add_dense_rows::<3>(panel, x, sums),
            2 => add_dense_rows::<2>(panel, x, sums),
            _ => add_dense_rows::<1>(panel, x, sums),
        };
        (x, sums) = (&x[rows * len..], &mut sums[rows..]);
    }
}

/// Multiplies the first `R` rows, and says how many that were.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_dense_rows<const R: usize>(panel: &Panel<'_>, x: &[f32], results: &mut Sums) -> usize {
    let len = panel.inputs;
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r * len..][..len]);
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    match panel.format {
        PanelFormat::F32 => {
            let weights = &panel.codes.as_chunks().0[..len];
            for (k, weights) in weights.iter().enumerate() {
                let weights = load_pair(weights).map(|w| _mm256_castsi256_ps(w));
                add_products(&mut sums, weights, x, k);
            }
        }
        PanelFormat::F16 => {
            let weights = &panel.codes.as_chunks().0[..len];
            for (k, weights) in weights.iter().enumerate() {
                add_products(&mut sums, convert_halves(weights), x, k);
            }
        }
        _ => {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            for (pair, weights) in panel.codes.as_chunks::<LANES>().0.iter().enumerate() {
                let weights = load_pair(weights);
                let even = weights.map(|w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)));
                add_products(&mut sums, even, x, 2 * pair);
                if 2 * pair + 1 < len {
                    let odd = weights.map(|w| _mm256_castsi256_ps(_mm256_and_si256(w, upper)));
                    add_products(&mut sums, odd, x, 2 * pair + 1);
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
#[target_feature(enable = "avx2,fma,f16c")]
fn add_products<const R: usize>(
    sums: &mut [PairF32; R],
    weights: PairF32,
    x: [&[f32]; R],
    k: usize,
) {
    for r in 0..R {
        let x = _mm256_set1_ps(x[r][k]);
        for half in 0..2 {
            sums[r][half] = _mm256_fmadd_ps(weights[half], x, sums[r][half]);
        }
    }
}

/// Four activations, for every row of the panel.
///
/// # Safety
/// `step` is less than the steps of a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn broadcast_step(x: &[i8; CODE_GROUP], step: usize) -> __m256i {
    // SAFETY: four bytes from there on lie in the group, as the caller promises.
    let four = unsafe { x.as_ptr().add(step * STEP).cast::<i32>().read_unaligned() };
    _mm256_set1_epi32(four)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_pair(bytes: &[u8; LANES]) -> Pair {
    // SAFETY: 64 bytes are there; the loads may be unaligned.
    unsafe {
        [
            _mm256_loadu_si256(bytes.as_ptr().cast()),
            _mm256_loadu_si256(bytes.as_ptr().add(32).cast()),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_pair(bytes: &mut [u8; LANES], pair: Pair) {
    // SAFETY: 64 bytes are there; the stores may be unaligned.
    unsafe {
        _mm256_storeu_si256(bytes.as_mut_ptr().cast(), pair[0]);
        _mm256_storeu_si256(bytes.as_mut_ptr().add(32).cast(), pair[1]);
    }
}

/// Set `index` of 16 f16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_halves(bytes: &[u8], index: usize) -> PairF32 {
    convert_halves(&bytes.as_chunks().0[index])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn convert_halves(halves: &[u8; HALVES]) -> PairF32 {
    // SAFETY: 32 bytes are there; the loads may be unaligned.
    unsafe {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().add(16).cast())),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_sums(sums: &[f32; PANEL_ROWS]) -> PairF32 {
    // SAFETY: 16 f32 are there; the loads may be unaligned.
    unsafe {
        [
            _mm256_loadu_ps(sums.as_ptr()),
            _mm256_loadu_ps(sums.as_ptr().add(8)),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_sums(results: &mut [f32; PANEL_ROWS], sums: PairF32) {
    // SAFETY: 16 f32 are there; the stores may be unaligned.
    unsafe {
        _mm256_storeu_ps(results.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(results.as_mut_ptr().add(8), sums[1]);
    }
}
