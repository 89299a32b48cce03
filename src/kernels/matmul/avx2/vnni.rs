//! The same product with VNNI: `vpdpbusd` multiplies four unsigned codes of a lane with four signed
//! activations and adds the sum to the lane's 32 bits, which no group fills. Signed bytes are moved up
//! by 128, which then is their zero. The bits of the results are the same.
//!
//! The instruction has two encodings, AVX-VNNI's and AVX-512's for 256 bits, and there are CPUs with
//! each of them alone.

use crate::kernels::activations::Activations;
use crate::kernels::matmul::Sums;
use crate::kernels::packed::Panel;

/// Adds rows from `first` on times one panel.
///
/// # Safety
/// The machine must have what `Isa::AvxVnni` stands for.
pub(in crate::kernels::matmul) unsafe fn multiply(
    panel: &Panel<'_>,
    x: &Activations,
    first: usize,
    sums: &mut Sums,
) {
    // SAFETY: as the caller promises; where the first encoding is not, the second is.
    unsafe {
        match is_x86_feature_detected!("avxvnni") {
            true => avx::multiply(panel, x, first, sums),
            false => avx512::multiply(panel, x, first, sums),
        }
    }
}

macro_rules! vnni {
    ($module:ident, $features:literal, $dpbusd:ident) => {
        mod $module {
            use super::super::*;

            define_multiply!($features);

            const ZERO_OF_BYTES: i32 = 128;

            /// All that have one scale.
            fn steps<const BITS: u32>() -> usize {
                match BITS {
                    6 => STEPS_OF_GROUP / 2,
                    _ => STEPS_OF_GROUP,
                }
            }

            /// 32-bit products of `R` rows with a group, or with a half of it where halves have
            /// scales.
            #[inline]
            #[target_feature(enable = $features)]
            fn dot_part<const BITS: u32, const R: usize>(
                codes: &Codes,
                steps: usize,
                x: [&[i8; CODE_GROUP]; R],
                part: usize,
            ) -> [Pair; R] {
                let start = part * steps;
                assert!(start + steps <= STEPS_OF_GROUP, "bug: steps of one group");
                let sign = _mm256_set1_epi8(i8::MIN);
                // Few rows take turns with two sums each, as none is there for another instruction
                // until it has been added to.
                let mut products = [[[_mm256_setzero_si256(); 2]; R]; 2];
                for step in start..start + steps {
                    let turn = if R <= 2 { step % 2 } else { 0 };
                    let mut codes = load_pair(&codes[step]);
                    if BITS == 8 {
                        for codes in &mut codes {
                            *codes = _mm256_xor_si256(*codes, sign);
                        }
                    }
                    for r in 0..R {
                        // SAFETY: the step is in the group, as checked.
                        let x = unsafe { broadcast_step(x[r], step) };
                        for half in 0..2 {
                            let sum = &mut products[turn][r][half];
                            *sum = $dpbusd(*sum, codes[half], x);
                        }
                    }
                }
                let [mut sums, second] = products;
                if R <= 2 {
                    for r in 0..R {
                        for half in 0..2 {
                            sums[r][half] = _mm256_add_epi32(sums[r][half], second[r][half]);
                        }
                    }
                }
                sums
            }

            /// 32-bit products of one step.
            #[inline]
            #[target_feature(enable = $features)]
            fn dot_step<const BITS: u32>(codes: &[u8; LANES], four: __m256i) -> Pair {
                load_pair(codes).map(|codes| {
                    let codes = match BITS {
                        8 => _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN)),
                        _ => codes,
                    };
                    $dpbusd(_mm256_setzero_si256(), codes, four)
                })
            }
        }
    };
}

vnni!(avx, "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
vnni!(
    avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32
);
