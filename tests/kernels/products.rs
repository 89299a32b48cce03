//! Packed weights against candle's reading of the same bytes, products against plain arithmetic.

use crate::{assert_close, compute, isas, noise};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candlepower::kernels::{
    Activation, Activations, Compute, Epilogue, Isa, Needs, PackedMatrix, PairBits, PanelFormat,
    SourceFormat, SourceMatrix, matmul, matmul_activated, needs,
};

const QUANTIZED: [(GgmlDType, SourceFormat); 8] = [
    (GgmlDType::Q4_0, SourceFormat::Q4_0),
    (GgmlDType::Q4_1, SourceFormat::Q4_1),
    (GgmlDType::Q5_0, SourceFormat::Q5_0),
    (GgmlDType::Q5_1, SourceFormat::Q5_1),
    (GgmlDType::Q8_0, SourceFormat::Q8_0),
    (GgmlDType::Q4K, SourceFormat::Q4K),
    (GgmlDType::Q5K, SourceFormat::Q5K),
    (GgmlDType::Q6K, SourceFormat::Q6K),
];
const DENSE: [(GgmlDType, SourceFormat); 3] = [
    (GgmlDType::F32, SourceFormat::F32),
    (GgmlDType::F16, SourceFormat::F16),
    (GgmlDType::BF16, SourceFormat::Bf16),
];

/// A matrix in a file's format, and its values as candle reads them. (outputs, inputs)
fn stored(dtype: GgmlDType, outputs: usize, inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let values = Tensor::from_vec(noise(outputs * inputs, 7), (outputs, inputs), &Device::Cpu);
    let stored = QTensor::quantize(&values.expect("a matrix"), dtype).expect("quantised");
    let bytes = stored.data().expect("bytes").into_owned();
    let values = stored
        .dequantize(&Device::Cpu)
        .and_then(|values| values.flatten_all());
    (
        bytes,
        values.and_then(|values| values.to_vec1()).expect("values"),
    )
}

pub fn pack(
    compute: &Compute,
    format: SourceFormat,
    bytes: &[u8],
    n: usize,
    k: usize,
) -> PackedMatrix {
    let source = SourceMatrix {
        format,
        bytes,
        inputs: k,
        transposed_outputs: None,
    };
    PackedMatrix::pack(compute, &source, PanelFormat::of(format), n, |row| row)
}

pub fn activations(compute: &Compute, needs: Needs, rows: usize, values: &[f32]) -> Activations {
    let mut x = Activations::default();
    x.resize(rows, values.len() / rows);
    x.values_mut().copy_from_slice(values);
    x.quantize(compute, needs);
    x
}

/// Noise in which one value stands out of one group in four, at another place in each.
fn uneven_noise(rows: usize, len: usize, seed: u64) -> Vec<f32> {
    let mut values = noise(rows * len, seed);
    for (row, values) in values.chunks_exact_mut(len).enumerate() {
        for (group, values) in values.chunks_mut(32).enumerate() {
            if (row + group).is_multiple_of(4) {
                values[(5 * row + 7 * group) % values.len()] *= 60.0;
            }
        }
    }
    values
}

fn product(compute: &Compute, matrix: &PackedMatrix, x: &Activations) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.num_rows() * matrix.outputs()];
    let parts = std::slice::from_ref(matrix);
    matmul(compute, parts, None, x, (Epilogue::Store, &mut y));
    y
}

/// `x W^T` in f64, from the rows that `matrix` says it has and, where `isa` multiplies codes or bf16,
/// from `x` as quantised or rounded; and the sum of the magnitudes, which bounds the rounding.
fn exact_product(isa: Isa, matrix: &PackedMatrix, x: &Activations) -> Vec<(f64, f64)> {
    let (n, k) = (matrix.outputs(), matrix.inputs());
    let mut weights = vec![0.0; n * k];
    for (row, weights) in weights.chunks_exact_mut(k).enumerate() {
        matrix.read_row(row, weights);
    }
    let mut exact = Vec::new();
    for row in 0..x.num_rows() {
        let value = |i: usize| match matrix.format() {
            PanelFormat::Bf16 if isa == Isa::Avx512Bf16 => {
                half::bf16::from_f32(x.values()[row * k + i]).to_f64()
            }
            format if format.is_dense() => f64::from(x.values()[row * k + i]),
            _ => {
                let group = &x.group(i / 32)[row];
                f64::from(group.code(i % 32)) * f64::from(group.scale)
            }
        };
        let x: Vec<f64> = (0..k).map(value).collect();
        exact.extend(weights.chunks_exact(k).map(|weights| {
            let products = weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
            products.fold((0.0, 0.0), |(sum, magnitude), p| {
                (sum + p, magnitude + p.abs())
            })
        }));
    }
    exact
}

#[test]
fn packed_rows_are_the_file_s_rows() {
    let compute = compute(Isa::Portable, 2);
    for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
        let inputs = 256 * 3;
        for outputs in [1, 15, 16, 17, 50] {
            let (bytes, expected) = stored(dtype, outputs, inputs);
            let packed = pack(&compute, format, &bytes, outputs, inputs);
            let mut row = vec![0.0; inputs];
            // The scales of K formats are rounded to f16 once more: scale * code - min, each at
            // most 1/2048 off.
            let tolerance = match format {
                SourceFormat::Q4K | SourceFormat::Q5K | SourceFormat::Q6K => 3.0 / 2048.0,
                _ => 0.0,
            };
            for (output, expected) in expected.chunks_exact(inputs).enumerate() {
                packed.read_row(output, &mut row);
                let wrong = row
                    .iter()
                    .zip(expected)
                    .filter(|(a, b)| (**a - **b).abs() > tolerance);
                assert_eq!(wrong.count(), 0, "{format:?}, row {output} of {outputs}");
            }
        }
    }
}

#[test]
fn rows_can_be_reordered_and_dense_matrices_transposed() {
    let compute = compute(Isa::Portable, 1);
    let (outputs, inputs) = (20, 33);
    let values = noise(outputs * inputs, 3);
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    for transposed in [false, true] {
        let source = SourceMatrix {
            format: SourceFormat::F32,
            bytes: &bytes,
            inputs,
            transposed_outputs: transposed.then_some(outputs),
        };
        let last_first = |row| outputs - 1 - row;
        let packed = PackedMatrix::pack(&compute, &source, PanelFormat::F32, outputs, last_first);
        let mut row = vec![0.0; inputs];
        for output in 0..outputs {
            packed.read_row(output, &mut row);
            let value = |input: usize| match transposed {
                true => values[input * outputs + last_first(output)],
                false => values[last_first(output) * inputs + input],
            };
            let expected: Vec<_> = (0..inputs).map(value).collect();
            assert_eq!(row, expected, "transposed {transposed}, row {output}");
        }
    }
}

#[test]
fn a_quantised_matrix_takes_the_bytes_of_its_file() {
    let compute = compute(Isa::Portable, 1);
    for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
        let (bytes, _) = stored(dtype, 64, 512);
        let packed = pack(&compute, format, &bytes, 64, 512);
        let ratio = packed.num_bytes() as f64 / bytes.len() as f64;
        assert!((1.0..1.12).contains(&ratio), "{format:?}: {ratio}");
    }
}

#[test]
fn products_are_right_in_every_format_and_shape() {
    for isa in isas() {
        let compute = compute(isa, 2);
        for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
            let whole_blocks = [256, 1024];
            let groups = [32, 96, 576];
            let any = [1, 7, 65];
            let lens = match format.block_len() {
                256 => whole_blocks.to_vec(),
                32 => [groups.as_slice(), &whole_blocks].concat(),
                _ => [any.as_slice(), &groups].concat(),
            };
            for inputs in lens {
                for (outputs, rows) in [
                    (1, 1),
                    (16, 2),
                    (17, 3),
                    (33, 4),
                    (64, 5),
                    (40, 13),
                    (16, 131),
                ] {
                    let (bytes, _) = stored(dtype, outputs, inputs);
                    let matrix = pack(&compute, format, &bytes, outputs, inputs);
                    let x = activations(
                        &compute,
                        needs([&matrix]),
                        rows,
                        &uneven_noise(rows, inputs, 5),
                    );
                    let what = format!("{isa} {format:?} {rows} x {inputs} x {outputs}");
                    let y = product(&compute, &matrix, &x);
                    assert_close(&what, &y, &exact_product(isa, &matrix, &x), 3e-6);
                }
            }
        }
    }
}

/// Blocks with every code at its extreme, and activations at theirs: where 16-bit sums would
/// saturate and signs overflow.
#[test]
fn products_are_right_at_the_extremes() {
    let one = half::f16::ONE.to_le_bytes();
    let fill = |head: usize, halves: &[usize], byte: u8, len: usize| {
        let mut block = vec![byte; len];
        for &at in halves {
            block[at..at + 2].copy_from_slice(&one);
        }
        assert!(head <= len);
        block
    };
    for isa in isas() {
        let compute = compute(isa, 1);
        for (format, halves) in [
            (SourceFormat::Q4_0, &[0usize] as &[usize]),
            (SourceFormat::Q4_1, &[0, 2]),
            (SourceFormat::Q5_0, &[0]),
            (SourceFormat::Q5_1, &[0, 2]),
            (SourceFormat::Q8_0, &[0]),
            (SourceFormat::Q4K, &[0, 2]),
            (SourceFormat::Q5K, &[0, 2]),
            (SourceFormat::Q6K, &[208]),
        ] {
            for byte in [0x00, 0x0f, 0x7f, 0x80, 0x81, 0xff] {
                let inputs = 640usize.next_multiple_of(format.block_len());
                let block = fill(2, halves, byte, format.block_bytes());
                let num_blocks = 16 * inputs / format.block_len();
                let bytes = block.repeat(num_blocks);
                let matrix = pack(&compute, format, &bytes, 16, inputs);
                let signs = [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, 0.499]];
                for signs in signs {
                    // In the first group a step stands out as far as digits reach.
                    let reach = match needs([&matrix]).codes {
                        Some(PairBits::Five) => 18.1,
                        _ => 16.9,
                    };
                    let tall = |i: usize| if i % inputs < 4 { reach } else { 1.0 };
                    let value = |i: usize| signs[i % 2] * tall(i);
                    let values: Vec<f32> = (0..5 * inputs).map(value).collect();
                    let x = activations(&compute, needs([&matrix]), 5, &values);
                    let what = format!("{isa} {format:?} of {byte:#04x} with {signs:?}");
                    assert_eq!(x.group(0)[4].high[0].abs(), 127, "{what}");
                    let y = product(&compute, &matrix, &x);
                    assert_close(&what, &y, &exact_product(isa, &matrix, &x), 1e-6);
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_and_with_any_threads() {
    for isa in isas() {
        let alone = compute(isa, 1);
        for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
            let (inputs, outputs, rows) = (512, 40, 203);
            let (bytes, _) = stored(dtype, outputs, inputs);
            let matrix = pack(&alone, format, &bytes, outputs, inputs);
            let values = uneven_noise(rows, inputs, 11);
            let expected: Vec<f32> = values
                .chunks_exact(inputs)
                .map(|row| activations(&alone, needs([&matrix]), 1, row))
                .flat_map(|row| product(&alone, &matrix, &row))
                .collect();
            for threads in [1, 2, 5] {
                let compute = compute(isa, threads);
                for batch in [2, 3, 4, 7, 23, 130, rows] {
                    let mut actual = Vec::new();
                    for values in values.chunks(batch * inputs) {
                        let rows = values.len() / inputs;
                        let x = activations(&compute, needs([&matrix]), rows, values);
                        actual.extend(product(&compute, &matrix, &x));
                    }
                    let same = actual
                        .iter()
                        .zip(&expected)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} {format:?}, {batch} rows, {threads} threads");
                }
            }
        }
    }
}

/// The integers are the same; the sums of some hundred groups differ by fused roundings.
#[test]
fn instruction_sets_agree() {
    let portable = compute(Isa::Portable, 1);
    for isa in isas() {
        let wide = compute(isa, 1);
        for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
            // Rounded activations have other products.
            if isa == Isa::Avx512Bf16 && format == SourceFormat::Bf16 {
                continue;
            }
            let (inputs, outputs, rows) = (1536, 48, 6);
            let (bytes, _) = stored(dtype, outputs, inputs);
            let matrix = pack(&portable, format, &bytes, outputs, inputs);
            let values = uneven_noise(rows, inputs, 13);
            // Beside 5-bit weights, digits are smaller.
            let (dtype, five_bits) = QUANTIZED[2];
            let (bytes, _) = stored(dtype, outputs, inputs);
            let beside = pack(&portable, five_bits, &bytes, outputs, inputs);
            for needs in [needs([&matrix]), needs([&matrix, &beside])] {
                let x = activations(&portable, needs, rows, &values);
                let same_x = activations(&wide, needs, rows, &values);
                let groups = needs.codes.map_or(0, |_| inputs / 32);
                for (row, group) in (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g))) {
                    let (ours, theirs) = (x.group(group)[row], same_x.group(group)[row]);
                    assert_eq!(ours, theirs, "{isa}, row {row}, group {group}");
                }
                let sizes = exact_product(isa, &matrix, &x);
                let expected = product(&portable, &matrix, &x);
                let expected: Vec<_> = (expected.iter().zip(sizes))
                    .map(|(y, (_, size))| (f64::from(*y), size))
                    .collect();
                let y = product(&wide, &matrix, &x);
                assert_close(&format!("{isa} {format:?}"), &y, &expected, 1e-6);
            }
        }
    }
}

#[test]
fn parts_follow_one_another_and_bias_and_residual_are_added() {
    for isa in isas() {
        let compute = compute(isa, 3);
        let (inputs, rows) = (64, 6);
        let outputs = [16, 7, 30];
        let formats = [QUANTIZED[4], DENSE[2], QUANTIZED[1]];
        let parts: Vec<_> = (outputs.iter().zip(formats))
            .map(|(&n, (dtype, format))| {
                pack(&compute, format, &stored(dtype, n, inputs).0, n, inputs)
            })
            .collect();
        assert_eq!(
            needs(&parts),
            Needs {
                codes: Some(PairBits::Four),
                bf16: true,
                values: false
            }
        );
        let x = activations(&compute, needs(&parts), rows, &noise(rows * inputs, 17));
        let width: usize = outputs.iter().sum();
        let (bias, residual) = (noise(width, 19), noise(rows * width, 23));
        let mut y = residual.clone();
        matmul(&compute, &parts, Some(&bias), &x, (Epilogue::Add, &mut y));
        let mut stored_y = vec![f32::NAN; rows * width];
        matmul(
            &compute,
            &parts,
            Some(&bias),
            &x,
            (Epilogue::Store, &mut stored_y),
        );
        let mut column = 0;
        for part in &parts {
            let products = product(&compute, part, &x);
            for (row, products) in products.chunks_exact(part.outputs()).enumerate() {
                for (i, product) in products.iter().enumerate() {
                    let at = row * width + column + i;
                    let with_bias = product + bias[column + i];
                    assert_eq!(stored_y[at], with_bias, "{isa}, row {row}");
                    assert_eq!(y[at], residual[at] + with_bias, "{isa}, row {row}");
                }
            }
            column += part.outputs();
        }
    }
}

#[test]
fn gates_are_activated_and_multiplied() {
    for isa in isas() {
        let compute = compute(isa, 2);
        let (inputs, outputs, rows) = (96, 37, 7);
        let (dtype, format) = QUANTIZED[1];
        let gate = pack(
            &compute,
            format,
            &stored(dtype, outputs, inputs).0,
            outputs,
            inputs,
        );
        let (dtype, format) = DENSE[2];
        let up = pack(
            &compute,
            format,
            &stored(dtype, outputs, inputs).0,
            outputs,
            inputs,
        );
        let x = activations(
            &compute,
            needs([&gate, &up]),
            rows,
            &noise(rows * inputs, 29),
        );
        let biases = noise(2 * outputs, 31);
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let mut y = Activations::default();
            y.resize(rows, outputs);
            let (matrices, values) = ((&gate, Some(&up)), Needs::default());
            matmul_activated(
                &compute,
                matrices,
                Some(&biases),
                activation,
                &x,
                (&mut y, values),
            );
            let mut gates = Activations::default();
            gates.resize(rows, outputs);
            matmul_activated(
                &compute,
                (&gate, None),
                Some(&biases[..outputs]),
                activation,
                &x,
                (&mut gates, values),
            );
            let ups = product(&compute, &up, &x);
            for (i, (y, gate)) in y.values().iter().zip(gates.values()).enumerate() {
                let expected = gate * (ups[i] + biases[outputs + i % outputs]);
                assert_eq!(*y, expected, "{isa} {activation:?} {i}");
            }
        }
    }
}

/// As if the values had been stored, and quantised then.
#[test]
fn activated_products_are_quantised_where_they_are_made() {
    for isa in isas() {
        let compute = compute(isa, 2);
        let (inputs, outputs, rows) = (64, 96, 203);
        let [gate, up] = [QUANTIZED[1], QUANTIZED[0]].map(|(dtype, format)| {
            let (bytes, _) = stored(dtype, outputs, inputs);
            pack(&compute, format, &bytes, outputs, inputs)
        });
        let x = noise(rows * inputs, 37);
        let x = activations(&compute, needs([&gate, &up]), rows, &x);
        // What multiplies the results shows them: codes of both ranges, and bf16.
        for (dtype, format) in [QUANTIZED[1], QUANTIZED[2], DENSE[2]] {
            let (bytes, _) = stored(dtype, 40, outputs);
            let down = pack(&compute, format, &bytes, 40, outputs);
            let alone = needs([&down]);
            let with_values = Needs {
                values: true,
                ..alone
            };
            for up in [None, Some(&up)] {
                let [fused, stored] = [alone, with_values].map(|needs| {
                    let mut y = Activations::default();
                    y.resize(rows, outputs);
                    let y_needs = (&mut y, needs);
                    matmul_activated(&compute, (&gate, up), None, Activation::Silu, &x, y_needs);
                    product(&compute, &down, &y)
                });
                assert_eq!(fused, stored, "{isa} {format:?} {}", up.is_some());
            }
        }
    }
}

/// Both multiply exactly, and scale and add in the same order.
#[test]
fn avx_vnni_gives_the_bits_of_avx2() {
    let both = [Isa::Avx2, Isa::AvxVnni];
    if !both.into_iter().all(Isa::is_available) {
        return;
    }
    let [narrow, vnni] = both.map(|isa| compute(isa, 1));
    for (dtype, format) in QUANTIZED.into_iter().chain(DENSE) {
        let (inputs, outputs, rows) = (1536, 40, 7);
        let (bytes, _) = stored(dtype, outputs, inputs);
        let matrix = pack(&narrow, format, &bytes, outputs, inputs);
        let values = uneven_noise(rows, inputs, 17);
        for rows in 1..=rows {
            let x = activations(&narrow, needs([&matrix]), rows, &values[..rows * inputs]);
            let [expected, y] = [&narrow, &vnni]
                .map(|compute| product(compute, &matrix, &x))
                .map(|y| y.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            assert!(y == expected, "{format:?}, {rows} rows");
        }
    }
}
