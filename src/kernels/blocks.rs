//! The block formats of GGUF files, read one group of 32 weights at a time.
//!
//! A quantised weight is `scale * (code - zero) + min`. Formats: ggml-common.h and ggml-quants.c of
//! <https://github.com/ggml-org/ggml>.

use half::{bf16, f16};

use super::activations::CODE_GROUP;

/// Weights of a block of the K formats.
const SUPER_BLOCK: usize = 256;
const GROUPS_OF_SUPER_BLOCK: usize = SUPER_BLOCK / CODE_GROUP;

/// How a file stores a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// The codes of a group, four at a time.
pub(super) type Fours = [u32; CODE_GROUP / 4];

/// The lowest four bits, two bits, and bit of each of four codes.
pub(super) const NIBBLES: u32 = 0x0f0f_0f0f;
const TWO_BITS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// 32 weights that follow one another in a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// Four codes in each, the first in the lowest byte; unsigned, but for Q8_0.
    pub codes: Fours,
    /// Of the first and the second 16 weights; only Q6_K has two.
    pub scales: [f16; 2],
    pub min: f16,
}

impl SourceFormat {
    /// Weights of a block; rows are whole blocks.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => CODE_GROUP,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Weight `index` of the bytes of a dense matrix.
    pub(super) fn dense_value(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(at(bytes, 4 * index)),
            Self::F16 => f16::from_le_bytes(at(bytes, 2 * index)).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(at(bytes, 2 * index)).to_f32(),
            _ => panic!("bug: {self:?} is not dense"),
        }
    }

    /// Group `index` of the bytes of one row.
    pub(super) fn group(self, row: &[u8], index: usize) -> Group {
        let block = match self.block_len() {
            SUPER_BLOCK => index / GROUPS_OF_SUPER_BLOCK,
            _ => index,
        };
        let block = &row[block * self.block_bytes()..][..self.block_bytes()];
        let part = index % GROUPS_OF_SUPER_BLOCK;
        match self {
            Self::Q4_0 => legacy(half_at(block, 0), f16::ZERO, None, &block[2..]),
            Self::Q4_1 => legacy(half_at(block, 0), half_at(block, 2), None, &block[4..]),
            Self::Q5_0 => {
                let high_bits = u32::from_le_bytes(at(block, 2));
                legacy(half_at(block, 0), f16::ZERO, Some(high_bits), &block[6..])
            }
            Self::Q5_1 => {
                let high_bits = u32::from_le_bytes(at(block, 4));
                legacy(
                    half_at(block, 0),
                    half_at(block, 2),
                    Some(high_bits),
                    &block[8..],
                )
            }
            Self::Q8_0 => Group {
                codes: fours(&block[2..]),
                scales: [half_at(block, 0); 2],
                min: f16::ZERO,
            },
            Self::Q4K => q4k(block, part),
            Self::Q5K => q5k(block, part),
            Self::Q6K => q6k(block, part),
            Self::F32 | Self::F16 | Self::Bf16 => panic!("bug: {self:?} has no groups"),
        }
    }
}

/// Little-endian words.
fn fours<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words: &[[u8; 4]; N] = bytes.as_chunks().0.first_chunk().expect("bug: N words");
    words.map(u32::from_le_bytes)
}

/// Q4_0 to Q5_1: byte `i` holds weights `i` and `i + 16`; a fifth bit comes from `high_bits`.
fn legacy(scale: f16, min: f16, high_bits: Option<u32>, nibbles: &[u8]) -> Group {
    let nibbles: [u32; CODE_GROUP / 8] = fours(nibbles);
    let mut codes = [0; CODE_GROUP / 4];
    for (i, pairs) in nibbles.into_iter().enumerate() {
        codes[i] = pairs & NIBBLES;
        codes[i + nibbles.len()] = pairs >> 4 & NIBBLES;
    }
    if let Some(high_bits) = high_bits {
        // Moves bit i of four to byte i.
        const SPREAD: u32 = 1 | 1 << 7 | 1 << 14 | 1 << 21;
        for (i, codes) in codes.iter_mut().enumerate() {
            let bits = high_bits >> (4 * i) & 15;
            *codes |= (bits.wrapping_mul(SPREAD) & BITS) << 4;
        }
    }
    Group {
        codes,
        scales: [scale; 2],
        min,
    }
}

fn q4k(block: &[u8], part: usize) -> Group {
    let nibbles: Fours = fours(&block[16 + part / 2 * 32..]);
    let codes = nibbles.map(|pairs| pairs >> (part % 2 * 4) & NIBBLES);
    with_packed_scales(block, part, codes)
}

fn q5k(block: &[u8], part: usize) -> Group {
    let high_bits: Fours = fours(&block[16..]);
    let nibbles: Fours = fours(&block[48 + part / 2 * 32..]);
    let codes = std::array::from_fn(|i| {
        (nibbles[i] >> (part % 2 * 4) & NIBBLES) | (high_bits[i] >> part & BITS) << 4
    });
    with_packed_scales(block, part, codes)
}

/// Q4_K and Q5_K: 6-bit multiples of two f16, for each group.
///
/// The products are rounded to f16, at most one part in 2048 off: far less than half a step of a
/// 4 or 5 bit code.
fn with_packed_scales(block: &[u8], part: usize, codes: Fours) -> Group {
    let packed = &block[4..16];
    let (scale, min) = match part < 4 {
        true => (packed[part] & 63, packed[part + 4] & 63),
        false => (
            packed[part + 4] & 15 | packed[part - 4] >> 6 << 4,
            packed[part + 4] >> 4 | packed[part] >> 6 << 4,
        ),
    };
    let multiple = |offset: usize, n: u8| half_at(block, offset).to_f32() * f32::from(n);
    Group {
        codes,
        scales: [f16::from_f32(multiple(0, scale)); 2],
        min: f16::from_f32(-multiple(2, min)),
    }
}

/// Q6_K: halves of 128 weights; an 8-bit multiple of one f16 for every 16 weights, rounded as above.
fn q6k(block: &[u8], part: usize) -> Group {
    let (half, part) = (part / 4, part % 4);
    let low: Fours = fours(&block[half * 64 + part % 2 * 32..]);
    let high: Fours = fours(&block[128 + half * 32..]);
    let codes = std::array::from_fn(|i| {
        (low[i] >> (part / 2 * 4) & NIBBLES) | (high[i] >> (2 * part) & TWO_BITS) << 4
    });
    let scale = |i: usize| {
        let multiple = block[192 + half * 8 + part * 2 + i] as i8;
        f16::from_f32(half_at(block, 208).to_f32() * f32::from(multiple))
    };
    Group {
        codes,
        scales: [scale(0), scale(1)],
        min: f16::ZERO,
    }
}

fn half_at(bytes: &[u8], offset: usize) -> f16 {
    f16::from_le_bytes(at(bytes, offset))
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N]
        .try_into()
        .expect("bug: a slice of N bytes")
}
