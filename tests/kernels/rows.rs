//! Norms, activations and rotations against plain arithmetic.

use candle_core::{Device, Tensor};
use candlepower::kernels::{
    Activation, Activations, HeadTransform, Isa, KvShape, KvStorage, KvType, KvWrites, NormKind,
    Rotation, SourceFormat, TILE_TOKENS, matmul_activated, normalize,
};

use crate::products::{activations, pack};
use crate::{VALUES, assert_close, compute, isas, noise};

/// Numbers with the magnitude that bounds their rounding.
fn with_size(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
    values
        .into_iter()
        .map(|value| (value, value.abs() + 0.1))
        .collect()
}

#[test]
fn rows_are_normalised() {
    let eps = 1e-5;
    for isa in isas() {
        let compute = compute(isa, 2);
        for len in [1, 5, 16, 17, 576] {
            const ROWS: usize = 3;
            let (x, weight, bias) = (noise(ROWS * len, 1), noise(len, 2), noise(len, 3));
            for is_rms in [true, false] {
                let mut out = Activations::default();
                out.resize(ROWS, len);
                let kind = match is_rms {
                    true => NormKind::Rms { weight: &weight },
                    false => NormKind::Layer {
                        weight: &weight,
                        bias: &bias,
                    },
                };
                normalize(&compute, kind, eps, &x, (&mut out, VALUES));
                let expected = x.chunks_exact(len).flat_map(|row| {
                    let x = row.iter().map(|x| f64::from(*x));
                    let mean = if is_rms {
                        0.0
                    } else {
                        x.clone().sum::<f64>() / len as f64
                    };
                    let variance = x.clone().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
                    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
                    let (weight, bias) = (&weight, &bias);
                    x.enumerate().map(move |(i, x)| {
                        let y = (x - mean) * scale * f64::from(weight[i]);
                        if is_rms { y } else { y + f64::from(bias[i]) }
                    })
                });
                let what = format!("{isa}, {len} values, rms: {is_rms}");
                assert_close(&what, out.values(), &with_size(expected), 2e-5);
            }
        }
    }
}

#[test]
fn instruction_sets_give_norms_the_same_bits() {
    let len = 100;
    let (x, weight) = (noise(len, 5), noise(len, 6));
    let row = |isa: Isa| {
        let compute = compute(isa, 1);
        let mut out = Activations::default();
        out.resize(1, len);
        let kind = NormKind::Rms { weight: &weight };
        normalize(&compute, kind, 1e-6, &x, (&mut out, VALUES));
        out.values().to_vec()
    };
    for isa in isas() {
        assert_eq!(row(isa), row(Isa::Portable), "{isa}");
    }
}

/// Each value is multiplied with a weight of 1 first.
#[test]
fn activations_are_those_of_candle() {
    let x: Vec<f32> = (-2_000..2_000).map(|i| i as f32 * 0.01).collect();
    let tensor = Tensor::new(x.as_slice(), &Device::Cpu).expect("a vector");
    for (activation, reference) in [
        (Activation::Silu, tensor.silu()),
        (Activation::Gelu, tensor.gelu_erf()),
        (Activation::GeluTanh, tensor.gelu()),
    ] {
        let reference: Vec<f32> = reference.and_then(|y| y.to_vec1()).expect("a vector");
        let reference: Vec<_> = reference
            .iter()
            .map(|y| (f64::from(*y), f64::from(y.abs()) + 1.0))
            .collect();
        for isa in isas() {
            let compute = compute(isa, 1);
            let bytes = &1f32.to_le_bytes();
            let one = pack(&compute, SourceFormat::F32, bytes, 1, 1);
            let x = activations(&compute, VALUES, x.len(), &x);
            let mut y = Activations::default();
            y.resize(x.num_rows(), 1);
            let y_needs = (&mut y, VALUES);
            matmul_activated(&compute, (&one, None), None, activation, &x, y_needs);
            assert_close(
                &format!("{isa} {activation:?}"),
                y.values(),
                &reference,
                1e-6,
            );
        }
    }
}

#[test]
fn heads_of_q_and_k_are_normalised_and_rotated_and_v_is_left() {
    let (heads, kv_heads, dim, tokens) = (4, 2, 6, 11);
    let width = (heads + 2 * kv_heads) * dim;
    let eps = 1e-6;
    let (q_norm, k_norm) = (noise(dim, 7), noise(dim, 8));
    let frequencies = [1.0, 0.3, 0.01];
    let positions: Vec<u32> = (0..tokens).map(|token| token * 37).collect();
    let rows = noise(tokens as usize * width, 9);
    let mut expected = Vec::new();
    for (row, position) in rows.chunks_exact(width).zip(&positions) {
        for (head, values) in row.chunks_exact(dim).enumerate() {
            let values: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
            if head >= heads + kv_heads {
                expected.extend(values);
                continue;
            }
            let weight = if head < heads { &q_norm } else { &k_norm };
            let mean_square = values.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let scale = 1.0 / (mean_square + eps).sqrt();
            let normed: Vec<f64> = values
                .iter()
                .zip(weight)
                .map(|(x, w)| x * scale * f64::from(*w))
                .collect();
            let pairs = (0..dim / 2).map(|i| {
                let (sin, cos) = (f64::from(*position as f32 * frequencies[i])).sin_cos();
                let (a, b) = (normed[i], normed[i + dim / 2]);
                (a * cos - b * sin, a * sin + b * cos)
            });
            let (first, second): (Vec<_>, Vec<_>) = pairs.unzip();
            expected.extend(first.into_iter().chain(second));
        }
    }
    for isa in isas() {
        let compute = compute(isa, 3);
        let mut rotation = Rotation::default();
        rotation.set(&positions, &frequencies);
        let transform = HeadTransform {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim,
            norms: Some((&q_norm, &k_norm, eps as f32)),
            rotation: Some(&rotation),
        };
        let mut kv = KvStorage::new(
            isa,
            KvShape {
                kv_type: KvType::F32,
                num_kv_heads: kv_heads,
                head_dim: dim,
                num_slots: (tokens as usize).next_multiple_of(TILE_TOKENS),
            },
        );
        let mut writes = KvWrites::default();
        writes.set(&(0..tokens).collect::<Vec<_>>());
        let mut actual = rows.clone();
        kv.write(&compute, &writes, &transform, &mut actual);
        assert_close(
            &isa.to_string(),
            &actual,
            &with_size(expected.clone()),
            1e-5,
        );
    }
}
