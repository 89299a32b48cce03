//! The plain version of the product, which is also the reference of the others.
//!
//! Quantised panels are unpacked a group at a time and share one integer kernel; the compiler
//! vectorises it for what every machine of the target has.

use super::Sums;
use crate::kernels::activations::{Activations, CODE_GROUP, CodeGroup, HIGH};
use crate::kernels::math::f16_to_f32;
use crate::kernels::packed::{LANES, PANEL_ROWS, Panel, PanelFormat, STEP, STEPS_OF_GROUP};

/// Codes less their zero. (steps, rows, inputs of a step)
type Codes = [[u8; LANES]; STEPS_OF_GROUP];

/// Adds rows from `first` on times one panel.
pub(super) fn multiply(panel: &Panel<'_>, x: &Activations, first: usize, sums: &mut Sums) {
    if panel.format.is_dense() {
        let values = &x.values()[first * x.row_len()..];
        for (x, sums) in values.chunks_exact(x.row_len()).zip(sums) {
            multiply_dense(panel, x, sums);
        }
        return;
    }
    for group in 0..panel.num_groups() {
        let weights = UnpackedGroup::new(panel, group);
        for (x, sums) in x.group(group)[first..].iter().zip(&mut *sums) {
            weights.add_products(x, sums);
        }
    }
}

struct UnpackedGroup {
    codes: Codes,
    /// Of the first and the second 16 inputs.
    scales: [[f32; PANEL_ROWS]; 2],
    shares_scale: bool,
    mins: Option<[f32; PANEL_ROWS]>,
}

impl UnpackedGroup {
    fn new(panel: &Panel<'_>, group: usize) -> Self {
        let shares_scale = panel.format != PanelFormat::Q6;
        let first_scale = if shares_scale { group } else { 2 * group };
        let second_scale = if shares_scale { group } else { 2 * group + 1 };
        Self {
            codes: unpack_codes(panel, group),
            scales: [
                read_halves(panel.scales, first_scale),
                read_halves(panel.scales, second_scale),
            ],
            shares_scale,
            mins: panel
                .format
                .has_min()
                .then(|| read_halves(panel.mins, group)),
        }
    }

    fn add_products(&self, x: &CodeGroup, sums: &mut [f32; PANEL_ROWS]) {
        let [mut first, mut second] = dot(&self.codes, &x.low);
        let tall = x.tall_step();
        let of_half = [&mut first, &mut second];
        let products = dot_step(&self.codes[tall], &x.high);
        for (sum, product) in of_half[tall / (STEPS_OF_GROUP / 2)]
            .iter_mut()
            .zip(products)
        {
            *sum += HIGH * product;
        }
        if self.shares_scale {
            for (first, second) in first.iter_mut().zip(&second) {
                *first += second;
            }
        }
        for lane in 0..PANEL_ROWS {
            sums[lane] += first[lane] as f32 * self.scales[0][lane] * x.scale;
        }
        if !self.shares_scale {
            for lane in 0..PANEL_ROWS {
                sums[lane] += second[lane] as f32 * self.scales[1][lane] * x.scale;
            }
        }
        if let Some(mins) = &self.mins {
            for lane in 0..PANEL_ROWS {
                sums[lane] += mins[lane] * x.scaled_sum;
            }
        }
    }
}

/// Integer products of the first and the second half of a group.
fn dot(codes: &Codes, x: &[i8; CODE_GROUP]) -> [[i32; PANEL_ROWS]; 2] {
    let mut halves = [[0; PANEL_ROWS]; 2];
    for (step, (codes, x)) in codes.iter().zip(x.as_chunks().0).enumerate() {
        let sums = &mut halves[step / (STEPS_OF_GROUP / 2)];
        for (sum, product) in sums.iter_mut().zip(dot_step(codes, x)) {
            *sum += product;
        }
    }
    halves
}

/// Integer products of one step.
#[inline(always)]
fn dot_step(codes: &[u8; LANES], x: &[i8; STEP]) -> [i32; PANEL_ROWS] {
    let x = x.map(i32::from);
    let mut products = [0; PANEL_ROWS];
    for (product, codes) in products.iter_mut().zip(codes.as_chunks::<STEP>().0) {
        for (code, x) in codes.iter().zip(x) {
            *product += i32::from(*code as i8) * x;
        }
    }
    products
}

fn unpack_codes(panel: &Panel<'_>, group: usize) -> Codes {
    let mut codes = [[0; LANES]; STEPS_OF_GROUP];
    if panel.format == PanelFormat::Q8 {
        let bytes = &panel.codes[group * STEPS_OF_GROUP * LANES..];
        for (codes, bytes) in codes.iter_mut().zip(bytes.chunks_exact(LANES)) {
            codes.copy_from_slice(bytes);
        }
        return codes;
    }
    let zero = panel.format.zero() as u8;
    let nibbles = &panel.codes[group * 4 * LANES..];
    for (step, codes) in codes.iter_mut().enumerate() {
        let nibbles = &nibbles[step % 4 * LANES..][..LANES];
        let shift = 4 * (step / 4);
        for (code, byte) in codes.iter_mut().zip(nibbles) {
            *code = byte >> shift & 15;
        }
        let (vector, shift, mask) = match panel.format {
            PanelFormat::Q5Zero | PanelFormat::Q5Min => (group, step, 1),
            PanelFormat::Q6 => (group * 2 + step / 4, 2 * (step % 4), 3),
            _ => (0, 0, 0),
        };
        if mask != 0 {
            for (code, byte) in codes
                .iter_mut()
                .zip(&panel.highs[vector * LANES..][..LANES])
            {
                *code |= (byte >> shift & mask) << 4;
            }
        }
        for code in codes {
            *code = code.wrapping_sub(zero);
        }
    }
    codes
}

fn read_halves(bytes: &[u8], index: usize) -> [f32; PANEL_ROWS] {
    let bytes = &bytes[index * 2 * PANEL_ROWS..][..2 * PANEL_ROWS];
    std::array::from_fn(|lane| {
        f16_to_f32(u16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]))
    })
}

fn multiply_dense(panel: &Panel<'_>, x: &[f32], sums: &mut [f32; PANEL_ROWS]) {
    match panel.format {
        PanelFormat::F32 => {
            for (x, weights) in x.iter().zip(panel.codes.chunks_exact(4 * PANEL_ROWS)) {
                for (sum, weight) in sums.iter_mut().zip(weights.as_chunks().0) {
                    *sum += x * f32::from_le_bytes(*weight);
                }
            }
        }
        PanelFormat::F16 => {
            for (x, weights) in x.iter().zip(panel.codes.chunks_exact(2 * PANEL_ROWS)) {
                for (sum, weight) in sums.iter_mut().zip(weights.as_chunks().0) {
                    *sum += x * f16_to_f32(u16::from_le_bytes(*weight));
                }
            }
        }
        _ => {
            for (x, weights) in x.chunks(2).zip(panel.codes.chunks_exact(4 * PANEL_ROWS)) {
                for (sum, pair) in sums.iter_mut().zip(weights.as_chunks().0) {
                    let pair = u32::from_le_bytes(*pair);
                    *sum += x[0] * f32::from_bits(pair << 16);
                    if let Some(second) = x.get(1) {
                        *sum += second * f32::from_bits(pair & 0xffff_0000);
                    }
                }
            }
        }
    }
}
