//! What K and V may be stored as: how 16 elements are written, and whether they have scales.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{COLUMN, TILE_TOKENS};
use crate::kernels::Isa;
use crate::kernels::aligned::Number;
use crate::kernels::isa::for_each_isa;
use crate::kernels::math::{ROUND, f16_to_f32, f32_to_f16};

/// Elements of a head that share a scale, as in GGUF's Q8_0; the last of a head may be fewer.
pub const SCALE_GROUP: usize = 32;

/// The type of K and V in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    F32,
    /// 16 bits: K as whole numbers, with a scale for each token and head; V as f16, or bf16 where the
    /// instruction set multiplies that.
    #[default]
    F16,
    /// 8 bits, and for each 32 elements of a head a scale of 16.
    Q8_0,
}

impl KvType {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        })
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_named = |kind: &Self| kind.to_string().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let names = Self::ALL.map(|kind| kind.to_string()).join(", ");
            format!("expected one of {names}")
        })
    }
}

/// What the storage has an array of, and maybe scales.
pub trait Stored: Number + Copy + Default + fmt::Debug + Send + Sync + 'static {
    /// Scales that a head has for one token.
    fn num_scales(_head_dim: usize) -> usize {
        0
    }
}

/// What K is stored as.
pub trait Key: Stored {
    /// Rows of a tile.
    fn tile_rows(head_dim: usize) -> usize {
        head_dim
    }

    /// Writes a token's key into a lane of a tile and of its scales.
    fn write_key(isa: Isa, k: &[f32], lane: usize, tile: &mut [Self], scales: &mut [u16]);
}

/// What V is stored as.
pub trait Value: Stored {
    /// Slots whose elements alternate in a column.
    const SLOTS_TOGETHER: usize = 1;

    /// Writes a token's value into a slot of a tile's columns and of its scales.
    fn write_value(isa: Isa, v: &[f32], slot: usize, tile: &mut [Self], scales: &mut [u16]);
}

/// A number: an f32, the bits of an f16, or a code to be multiplied with the scale of its group.
pub trait Element: Stored {
    const IS_SCALED: bool = false;

    /// Exact.
    fn to_f32(self) -> f32;
}

/// Spreads elements over a lane of rows of `stride`.
#[inline(always)]
pub fn scatter<T: Copy>(elements: &[T], (lane, stride): (usize, usize), rows: &mut [T]) {
    for (element, row) in elements.iter().zip(rows.chunks_exact_mut(stride)) {
        row[lane] = *element;
    }
}

impl Stored for f32 {}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Key for f32 {
    fn write_key(_: Isa, k: &[f32], lane: usize, tile: &mut [f32], _: &mut [u16]) {
        scatter(k, (lane, TILE_TOKENS), tile);
    }
}

impl Value for f32 {
    fn write_value(_: Isa, v: &[f32], slot: usize, tile: &mut [f32], _: &mut [u16]) {
        for (v, column) in v
            .chunks(COLUMN)
            .zip(tile.chunks_exact_mut(COLUMN * TILE_TOKENS))
        {
            column[slot * COLUMN..][..v.len()].copy_from_slice(v);
        }
    }
}

impl Stored for u16 {}

impl Element for u16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16_to_f32(self)
    }
}

impl Value for u16 {
    fn write_value(isa: Isa, v: &[f32], slot: usize, tile: &mut [u16], _: &mut [u16]) {
        write_value_halves(isa, v, slot, tile);
    }
}

for_each_isa! {
    fn write_value_halves(v: &[f32], slot: usize, tile: &mut [u16]) {
        for (v, column) in v.chunks(COLUMN).zip(tile.chunks_exact_mut(COLUMN * TILE_TOKENS)) {
            for (half, v) in column[slot * COLUMN..][..COLUMN].iter_mut().zip(v) {
                *half = f32_to_f16(*v);
            }
        }
    }
}

impl Stored for i8 {
    fn num_scales(head_dim: usize) -> usize {
        head_dim.div_ceil(SCALE_GROUP)
    }
}

impl Element for i8 {
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Key for i8 {
    fn write_key(isa: Isa, k: &[f32], lane: usize, tile: &mut [i8], scales: &mut [u16]) {
        write_key_codes(isa, k, lane, tile, scales);
    }
}

impl Value for i8 {
    fn write_value(isa: Isa, v: &[f32], slot: usize, tile: &mut [i8], scales: &mut [u16]) {
        write_value_codes(isa, v, slot, tile, scales);
    }
}

/// The codes of a group and the bits of its scale. A group too small for a scale is zeros.
#[inline(always)]
fn quantize(group: &[f32]) -> ([i8; SCALE_GROUP], u16) {
    let mut padded = [0.0; SCALE_GROUP];
    padded[..group.len()].copy_from_slice(group);
    let largest = padded.iter().fold(0f32, |max, x| max.max(x.abs()));
    let scale = f32_to_f16(largest / 127.0);
    // Of the scale as it is stored, so that its rounding costs nothing.
    let inverse = 1.0 / f16_to_f32(scale);
    let inverse = if scale == 0 { 0.0 } else { inverse };
    let codes = padded.map(|x| {
        // Where a scale was rounded down, the largest element lies beyond the last code.
        let code = (x * inverse).clamp(-127.0, 127.0) + ROUND;
        code.to_bits() as i8
    });
    (codes, scale)
}

for_each_isa! {
    fn write_key_codes(k: &[f32], lane: usize, tile: &mut [i8], scales: &mut [u16]) {
        let groups = tile.chunks_mut(SCALE_GROUP * TILE_TOKENS);
        let scales = scales.chunks_exact_mut(TILE_TOKENS);
        for ((k, rows), scales) in k.chunks(SCALE_GROUP).zip(groups).zip(scales) {
            let (codes, scale) = quantize(k);
            scatter(&codes, (lane, TILE_TOKENS), rows);
            scales[lane] = scale;
        }
    }
}

for_each_isa! {
    fn write_value_codes(v: &[f32], slot: usize, tile: &mut [i8], scales: &mut [u16]) {
        let groups = tile.chunks_mut(SCALE_GROUP * TILE_TOKENS);
        let scales = scales.chunks_exact_mut(TILE_TOKENS);
        for ((v, columns), scales) in v.chunks(SCALE_GROUP).zip(groups).zip(scales) {
            let (codes, scale) = quantize(v);
            let columns = columns.chunks_exact_mut(COLUMN * TILE_TOKENS);
            for (codes, column) in codes.chunks_exact(COLUMN).zip(columns) {
                column[slot * COLUMN..][..COLUMN].copy_from_slice(codes);
            }
            scales[slot] = scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_within_half_a_step_of_the_numbers() {
        for exponent in -14..23 {
            let size = 2f32.powi(exponent);
            for len in [1, 20, 32] {
                let group: Vec<f32> = (0..len)
                    .map(|i| size * ((i * 37 % 101) as f32 / 50.0 - 1.0))
                    .collect();
                let (codes, scale) = quantize(&group);
                let scale = f16_to_f32(scale);
                for (x, code) in group.iter().zip(codes) {
                    let error = (x - scale * code.to_f32()).abs();
                    // A scale below f16's normal numbers is rounded to fewer bits.
                    let rounding = if size < 2f32.powi(-6) {
                        2f32.powi(-18)
                    } else {
                        0.0
                    };
                    assert!(error <= scale * 0.57 + rounding, "{x} is {error} off");
                }
                assert!(codes[len..].iter().all(|code| *code == 0));
            }
        }
        assert_eq!(quantize(&[0.0; 32]), ([0; 32], 0));
        assert_eq!(quantize(&[1e-9; 32]), ([0; 32], 0));
    }

    #[test]
    fn types_are_named_as_they_are_shown() {
        for kind in KvType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("q4_0".parse::<KvType>().is_err());
    }
}
