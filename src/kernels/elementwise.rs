//! What happens to rows between the products: norms, rotation, activations, sums.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::activations::{Activations, Needs};
use super::isa::for_each_isa;
use super::math::{gelu_erf, gelu_tanh, silu};
use super::packed::PackedMatrix;
use super::shared::SharedMut;
use super::{Compute, Isa};

/// Partial sums of a reduction: their number and order are part of the result.
const SUM_LANES: usize = 16;
/// Fewer tokens are quicker done than shared out.
const TOKENS_OF_A_PART: usize = 8;

/// How rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind<'a> {
    /// `x / sqrt(mean(x^2) + eps) * weight`
    Rms { weight: &'a [f32] },
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`
    Layer { weight: &'a [f32], bias: &'a [f32] },
}

/// Functions between the two products of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU with the error function.
    Gelu,
    GeluTanh,
}

/// Cosines and sines of each token's angles.
#[derive(Debug, Default)]
pub struct Rotation {
    half_dim: usize,
    cos: Vec<f32>, // (num_tokens, half_dim)
    sin: Vec<f32>, // (num_tokens, half_dim)
}

/// Normalises `x`, as many rows as `out` has, to `out`, quantised where needed.
pub fn normalize(
    compute: &Compute,
    norm: NormKind<'_>,
    eps: f32,
    x: &[f32],
    (out, needs): (&mut Activations, Needs),
) {
    let (isa, len) = (compute.isa(), out.row_len());
    out.fill(compute, needs, |row, out| {
        out.copy_from_slice(&x[row * len..][..len]);
        normalize_row(isa, norm, eps, out);
    });
}

for_each_isa! {
    fn normalize_row(norm: NormKind<'_>, eps: f32, row: &mut [f32]) {
        let len = row.len() as f32;
        match norm {
            NormKind::Rms { weight } => {
                let inverse = 1.0 / (sum(row, |x| x * x) / len + eps).sqrt();
                for (x, weight) in row.iter_mut().zip(weight) {
                    *x = *x * inverse * weight;
                }
            }
            NormKind::Layer { weight, bias } => {
                let mean = sum(row, |x| x) / len;
                let variance = sum(row, |x| (x - mean) * (x - mean)) / len;
                let inverse = 1.0 / (variance + eps).sqrt();
                for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                    *x = (*x - mean) * inverse * weight + bias;
                }
            }
        }
    }
}

/// Sums `f` of all values, in an order that only their number decides.
#[inline(always)]
pub(super) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f(*value);
    }
    let mut width = SUM_LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

impl Activation {
    /// `values = activation(values)`
    pub(super) fn apply(self, isa: Isa, values: &mut [f32]) {
        match (self, isa) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Compute holds only an instruction set that the machine has.
            (Self::Silu, Isa::Avx512Vnni | Isa::Avx512Bf16) => unsafe {
                avx512::silu_slice(values);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Self::GeluTanh, Isa::Avx512Vnni | Isa::Avx512Bf16) => unsafe {
                avx512::gelu_tanh_slice(values);
            },
            (Self::Silu, _) => silu_slice(isa, values),
            (Self::Gelu, _) => gelu_erf_slice(isa, values),
            (Self::GeluTanh, _) => gelu_tanh_slice(isa, values),
        }
    }

    /// `gates = activation(gates) * values`
    pub(super) fn apply_gate(self, isa: Isa, gates: &mut [f32], values: &[f32]) {
        match (self, isa) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Compute holds only an instruction set that the machine has.
            (Self::Silu, Isa::Avx512Vnni | Isa::Avx512Bf16) => unsafe {
                avx512::silu_gate(gates, values);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Self::GeluTanh, Isa::Avx512Vnni | Isa::Avx512Bf16) => unsafe {
                avx512::gelu_tanh_gate(gates, values);
            },
            (Self::Silu, _) => silu_gate(isa, gates, values),
            (Self::Gelu, _) => gelu_erf_gate(isa, gates, values),
            (Self::GeluTanh, _) => gelu_tanh_gate(isa, gates, values),
        }
    }
}

/// Defines an activation of a slice, and of the gates of other values.
macro_rules! activation_of_slices {
    ($slice:ident, $gate:ident, $function:ident) => {
        for_each_isa! {
            fn $slice(values: &mut [f32]) {
                values.iter_mut().for_each(|x| *x = $function(*x));
            }
        }

        for_each_isa! {
            fn $gate(gates: &mut [f32], values: &[f32]) {
                for (gate, value) in gates.iter_mut().zip(values) {
                    *gate = $function(*gate) * value;
                }
            }
        }
    };
}

activation_of_slices!(silu_slice, silu_gate, silu);
activation_of_slices!(gelu_erf_slice, gelu_erf_gate, gelu_erf);
activation_of_slices!(gelu_tanh_slice, gelu_tanh_gate, gelu_tanh);

impl Rotation {
    /// The angles of a step's tokens: position times frequency, for each pair of a head.
    pub fn set(&mut self, positions: &[u32], inverse_frequencies: &[f32]) {
        self.half_dim = inverse_frequencies.len();
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for frequency in inverse_frequencies {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    /// Rotates the heads of one token, whose pairs are `i` and `i + head_dim / 2`.
    fn apply(&self, isa: Isa, token: usize, heads: &mut [f32]) {
        let angles = token * self.half_dim..(token + 1) * self.half_dim;
        rotate(isa, &self.cos[angles.clone()], &self.sin[angles], heads);
    }
}

for_each_isa! {
    fn rotate(cos: &[f32], sin: &[f32], heads: &mut [f32]) {
        for head in heads.chunks_exact_mut(2 * cos.len()) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((x, y), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}

/// What happens to the heads of Q and K between projection and attention.
#[derive(Clone, Copy, Debug)]
pub struct HeadTransform<'a> {
    /// Query heads, which come first in a row, and KV heads after them.
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// RMS norms of a query and a key head, and their epsilon.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
    pub rotation: Option<&'a Rotation>,
}

impl HeadTransform<'_> {
    /// Elements of a token's row: Q, K and V of all heads.
    pub fn width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Transforms some query heads of a token in place.
    pub(super) fn apply_to_queries(&self, isa: Isa, token: usize, heads: &mut [f32]) {
        self.apply(
            isa,
            token,
            heads,
            self.norms.map(|(weight, _, eps)| (weight, eps)),
        );
    }

    /// Transforms a key of a token in place.
    pub(super) fn apply_to_key(&self, isa: Isa, token: usize, head: &mut [f32]) {
        self.apply(
            isa,
            token,
            head,
            self.norms.map(|(_, weight, eps)| (weight, eps)),
        );
    }

    fn apply(&self, isa: Isa, token: usize, heads: &mut [f32], norm: Option<(&[f32], f32)>) {
        if let Some((weight, eps)) = norm {
            for head in heads.chunks_exact_mut(self.head_dim) {
                normalize_row(isa, NormKind::Rms { weight }, eps, head);
            }
        }
        if let Some(rotation) = self.rotation {
            rotation.apply(isa, token, heads);
        }
    }
}

/// `rows[i] = table[ids[i]] + positions_table[positions[i]]` (ids, table.inputs)
pub fn embed(
    compute: &Compute,
    (table, ids): (&PackedMatrix, &[u32]),
    positions: Option<(&PackedMatrix, &[u32])>,
    rows: &mut [f32],
) {
    let width = table.inputs();
    assert_eq!(rows.len(), ids.len() * width, "bug: room for the rows");
    let rows = SharedMut::new(rows);
    compute
        .pool()
        .for_each(ids.len(), TOKENS_OF_A_PART, |tokens| {
            for token in tokens {
                // SAFETY: each token is visited once, and rows do not overlap.
                let row = unsafe { rows.part(token * width..(token + 1) * width) };
                table.read_row(ids[token] as usize, row);
                if let Some((table, positions)) = positions {
                    table.add_row(positions[token] as usize, row);
                }
            }
        });
}
