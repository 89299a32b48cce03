//! Speed of the products and of attention, beside ceilings measured in the same run.
//!
//! `cargo bench --bench kernels [-- FILTER]`, threads from `NUM_THREADS`. Every number is the best of
//! several repeats: what the code can do when the machine lets it.

// For the ceilings of the multipliers, which only intrinsics reach.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candlepower::bench::bandwidth::read_bytes_per_s;
use candlepower::kernels::{
    Activations, AttentionBatch, AttentionPlan, AttentionShape, Compute, Epilogue, HeadTransform,
    Isa, KvShape, KvStorage, KvType, KvWrites, Needs, PackedMatrix, PanelFormat, Pool,
    SourceFormat, SourceMatrix, attend, matmul, needs,
};

const FORMATS: [(GgmlDType, SourceFormat); 11] = [
    (GgmlDType::Q4_0, SourceFormat::Q4_0),
    (GgmlDType::Q4_1, SourceFormat::Q4_1),
    (GgmlDType::Q5_0, SourceFormat::Q5_0),
    (GgmlDType::Q5_1, SourceFormat::Q5_1),
    (GgmlDType::Q8_0, SourceFormat::Q8_0),
    (GgmlDType::Q4K, SourceFormat::Q4K),
    (GgmlDType::Q5K, SourceFormat::Q5K),
    (GgmlDType::Q6K, SourceFormat::Q6K),
    (GgmlDType::BF16, SourceFormat::Bf16),
    (GgmlDType::F16, SourceFormat::F16),
    (GgmlDType::F32, SourceFormat::F32),
];
/// Inputs of the matrices: SmolLM2's widest product.
const INPUTS: usize = 1536;
/// Larger than the caches.
const MATRIX_BYTES: usize = 96 << 20;
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 256];

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    let threads = std::env::var("NUM_THREADS")
        .ok()
        .and_then(|n| n.parse().ok());
    let threads = threads.or(std::thread::available_parallelism().ok().map(|n| n.get()));
    let threads = threads.unwrap_or(1);
    for isa in Isa::ALL.into_iter().rev().filter(|isa| isa.is_available()) {
        let compute = Compute::new(isa, Pool::new(threads).expect("threads"));
        let bandwidth = read_bytes_per_s(threads).expect("memory");
        println!(
            "\n{isa}, {threads} threads; memory read at {:.1} GB/s",
            bandwidth / 1e9
        );
        let ceilings = Ceilings::measure(&compute);
        println!(
            "ceilings: 4-bit codes {:.0} GMAC/s, bytes {:.0}, bf16 {:.0}, f32 {:.0}",
            ceilings.nibbles, ceilings.bytes, ceilings.bf16, ceilings.f32
        );
        for (dtype, format) in FORMATS {
            if format!("{isa} {format:?}").contains(&filter) {
                measure_product(&compute, dtype, format, &ceilings, bandwidth);
            }
        }
        for kv_type in KvType::ALL {
            if format!("{isa} attention {kv_type}").contains(&filter) {
                measure_attention(&compute, kv_type, &ceilings, bandwidth);
            }
        }
    }
}

/// The best time of several calls, after one to warm up.
fn best(repeats: usize, mut f: impl FnMut()) -> Duration {
    f();
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..repeats).map(time).min().expect("a repeat")
}

fn measure_product(
    compute: &Compute,
    dtype: GgmlDType,
    format: SourceFormat,
    ceilings: &Ceilings,
    bandwidth: f64,
) {
    const DISTINCT_ROWS: usize = 64;
    let values: Vec<f32> = (0..DISTINCT_ROWS * INPUTS)
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let values = Tensor::from_vec(values, (DISTINCT_ROWS, INPUTS), &Device::Cpu).expect("values");
    let stored = QTensor::quantize(&values, dtype).expect("quantised");
    let bytes = stored.data().expect("bytes");
    let outputs = MATRIX_BYTES / (bytes.len() / DISTINCT_ROWS) / 16 * 16;
    let source = SourceMatrix {
        format,
        bytes: &bytes,
        inputs: INPUTS,
        transposed_outputs: None,
    };
    let panel_format = PanelFormat::of(format);
    let repeated = |row| row % DISTINCT_ROWS;
    let matrix = [PackedMatrix::pack(
        compute,
        &source,
        panel_format,
        outputs,
        repeated,
    )];
    let ceiling = match panel_format {
        PanelFormat::F32 | PanelFormat::F16 => ceilings.f32,
        PanelFormat::Bf16 => ceilings.bf16,
        PanelFormat::Q8 => ceilings.bytes,
        _ => ceilings.nibbles,
    };
    // Many rows are limited by arithmetic; a small matrix shows it in times too short for others to
    // interrupt.
    let small = MATRIX_BYTES / 128 / (bytes.len() / DISTINCT_ROWS) / 16 * 16;
    let small = [PackedMatrix::pack(
        compute,
        &source,
        panel_format,
        small,
        repeated,
    )];
    for rows in ROWS {
        let matrix = if rows < 8 { &matrix } else { &small };
        let outputs = matrix[0].outputs();
        let x = activations(compute, matrix, rows);
        let mut y = vec![0.0; rows * outputs];
        let time = best(8, || {
            matmul(compute, matrix, None, &x, (Epilogue::Store, &mut y));
        });
        black_box(&y);
        let per_second = |amount: usize| amount as f64 / time.as_secs_f64() / 1e9;
        let macs = per_second(rows * outputs * INPUTS);
        let read = per_second(matrix[0].num_bytes());
        println!(
            "{format:?}\t{rows:3} rows\t{macs:6.1} GMAC/s, {:3.0} %\t{read:5.1} GB/s, {:3.0} %",
            100.0 * macs / ceiling,
            100.0 * read * 1e9 / bandwidth,
        );
    }
}

fn activations(compute: &Compute, matrix: &[PackedMatrix], rows: usize) -> Activations {
    let mut x = Activations::default();
    x.resize(rows, INPUTS);
    for (i, value) in x.values_mut().iter_mut().enumerate() {
        *value = (i as f32 * 0.73).sin();
    }
    x.quantize(compute, needs(matrix));
    x
}

/// Most multiplications and additions a second, of all threads, in 10^9.
struct Ceilings {
    nibbles: f64,
    bytes: f64,
    bf16: f64,
    f32: f64,
}

impl Ceilings {
    fn measure(compute: &Compute) -> Self {
        const ITERATIONS: usize = 20_000;
        let parts = compute.pool().num_threads() * 16;
        let measure = |(kernel, macs): Loop| {
            let time = best(20, || {
                compute.pool().for_each(parts, 1, |some| {
                    for _ in some {
                        // SAFETY: compute's instruction set is there, and the loop is of no wider one.
                        unsafe { kernel(ITERATIONS) };
                    }
                });
            });
            (parts * ITERATIONS * macs) as f64 / time.as_secs_f64() / 1e9
        };
        let [nibbles, bytes, bf16, f32] = loops(compute.isa()).map(measure);
        Self {
            nibbles,
            bytes,
            bf16,
            f32,
        }
    }
}

/// A loop in registers alone, and its multiplications in one round.
type Loop = (unsafe fn(usize), usize);

/// Those of 4-bit codes, bytes, bf16 and f32. Portable code has those of AVX2 for a ceiling.
#[cfg(target_arch = "x86_64")]
fn loops(isa: Isa) -> [Loop; 4] {
    use peak::*;
    let (narrow, wide) = ((f32_avx2 as _, 10 * 8), (f32_avx512 as _, 10 * 16));
    let vnni = (bytes_vnni as _, 10 * 64);
    match isa {
        Isa::Avx512Bf16 => [vnni, vnni, (bf16_avx512 as _, 10 * 32), wide],
        Isa::Avx512Vnni => [vnni, vnni, wide, wide],
        Isa::AvxVnni => {
            let vnni: Loop = match is_x86_feature_detected!("avxvnni") {
                true => (bytes_avx_vnni as _, 10 * 32),
                false => (bytes_vnni_of_256 as _, 10 * 32),
            };
            [vnni, vnni, narrow, narrow]
        }
        Isa::Avx2 | Isa::Portable => {
            let (nibbles, bytes) = ((nibbles_avx2 as _, 8 * 32), (bytes_avx2 as _, 8 * 32));
            [nibbles, bytes, narrow, narrow]
        }
    }
}

/// Unknown here: shares come out as 0 %.
#[cfg(not(target_arch = "x86_64"))]
fn loops(_: Isa) -> [Loop; 4] {
    unsafe fn nothing(_: usize) {}
    [(nothing, 1 << 40); 4]
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Defines a loop over independent sums, each of which takes one product a round.
    macro_rules! peak {
        ($name:ident, $features:literal, $sums:literal, $zero:expr, $a:expr, |$sum:ident, $x:ident| $product:expr) => {
            #[target_feature(enable = $features)]
            pub unsafe fn $name(rounds: usize) {
                let $x = $a;
                let mut sums = [$zero; $sums];
                for _ in 0..rounds {
                    for $sum in &mut sums {
                        *$sum = $product;
                    }
                }
                black_box(sums);
            }
        };
    }

    peak!(
        nibbles_avx2,
        "avx2",
        8,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(3),
        |sum, x| {
            let product = _mm256_maddubs_epi16(register(x), x);
            _mm256_add_epi16(product, *sum)
        }
    );
    peak!(
        bytes_avx2,
        "avx2",
        8,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(3),
        |sum, x| {
            let product = _mm256_maddubs_epi16(register(x), x);
            _mm256_add_epi32(_mm256_madd_epi16(product, x), *sum)
        }
    );
    peak!(
        f32_avx2,
        "avx2,fma",
        10,
        _mm256_setzero_ps(),
        _mm256_set1_ps(black_box(0.5)),
        |sum, x| _mm256_fmadd_ps(x, x, *sum)
    );
    peak!(
        f32_avx512,
        "avx512f",
        10,
        _mm512_setzero_ps(),
        _mm512_set1_ps(black_box(0.5)),
        |sum, x| _mm512_fmadd_ps(x, x, *sum)
    );
    peak!(
        bytes_vnni,
        "avx512f,avx512vnni",
        10,
        _mm512_setzero_si512(),
        _mm512_set1_epi32(black_box(3)),
        |sum, x| _mm512_dpbusd_epi32(*sum, x, x)
    );
    peak!(
        bytes_vnni_of_256,
        "avx512f,avx512vl,avx512vnni",
        10,
        _mm256_setzero_si256(),
        _mm256_set1_epi32(black_box(3)),
        |sum, x| _mm256_dpbusd_epi32(*sum, x, x)
    );
    peak!(
        bytes_avx_vnni,
        "avx2,avxvnni",
        10,
        _mm256_setzero_si256(),
        _mm256_set1_epi32(black_box(3)),
        |sum, x| _mm256_dpbusd_avx_epi32(*sum, x, x)
    );
    peak!(
        bf16_avx512,
        "avx512f,avx512bf16",
        10,
        _mm512_setzero_ps(),
        _mm512_set1_epi32(black_box(3)),
        |sum, x| {
            // SAFETY: any bits are 32 bf16.
            let x: __m512bh = unsafe { std::mem::transmute(x) };
            _mm512_dpbf16_ps(*sum, x, x)
        }
    );

    /// A copy that the compiler must not see through, at no cost: it would take the product out of
    /// the loop.
    #[target_feature(enable = "avx2")]
    fn register(mut x: __m256i) -> __m256i {
        // SAFETY: an empty instruction that claims to change one register.
        unsafe {
            std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags))
        };
        x
    }
}

fn measure_attention(compute: &Compute, kv_type: KvType, ceilings: &Ceilings, bandwidth: f64) {
    let shape = AttentionShape {
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        sliding_window: None,
        block_size: 32,
    };
    let as_they_are = HeadTransform {
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        norms: None,
        rotation: None,
    };
    let width = as_they_are.width();
    for context in [128usize, 1024, 4096] {
        for (sequences, queries) in [(1usize, 1usize), (16, 1), (1, 128)] {
            let blocks = context / shape.block_size;
            let kv_shape = KvShape {
                kv_type,
                num_kv_heads: 3,
                head_dim: 64,
                num_slots: sequences * context,
            };
            let mut kv = KvStorage::new(compute.isa(), kv_shape);
            let mut rows: Vec<f32> = (0..sequences * context * width)
                .map(|i| (i as f32).sin())
                .collect();
            let slots: Vec<u32> = (0..(sequences * context) as u32).collect();
            let mut writes = KvWrites::default();
            writes.set(&slots);
            kv.write(compute, &writes, &as_they_are, &mut rows);
            let first = (context - queries) as u32;
            let positions: Vec<u32> = (0..sequences).flat_map(|_| first..context as u32).collect();
            let q_start: Vec<u32> = (0..=sequences).map(|s| (s * queries) as u32).collect();
            let tables: Vec<u32> = (0..(sequences * blocks) as u32).collect();
            let starts: Vec<u32> = (0..=sequences).map(|s| (s * blocks) as u32).collect();
            let batch = AttentionBatch {
                positions: &positions,
                q_start: &q_start,
                block_tables: &tables,
                block_table_start: &starts,
            };
            let mut plan = AttentionPlan::default();
            plan.set(compute, &shape, &batch);
            let mut out = Activations::default();
            out.resize(positions.len(), 9 * 64);
            let needs = Needs {
                values: true,
                ..Needs::default()
            };
            let q = &mut rows[..positions.len() * width];
            let time = best(20, || {
                let out = (&mut out, needs);
                let kv = (&mut kv, &as_they_are);
                attend(compute, &shape, (&plan, &batch), kv, q, out);
            });
            black_box(out.values());
            let pairs: usize = positions.iter().map(|p| *p as usize + 1).sum();
            let seconds = time.as_secs_f64();
            let gmacs = (pairs * 9 * 64 * 2) as f64 / seconds / 1e9;
            let bytes = (sequences * context * kv_shape.bytes_per_slot()) as f64;
            println!(
                "attention {kv_type}\t{sequences} x {queries} queries, context {context}\t{:8.1} us\t{gmacs:5.1} GMAC/s\t{:3.0} %\t{:5.1} GB/s\t{:3.0} %",
                seconds * 1e6,
                100.0 * gmacs / ceilings.f32,
                bytes / seconds / 1e9,
                100.0 * bytes / seconds / bandwidth,
            );
        }
    }
}
