//! Weight matrices in the order in which the kernels read them.
//!
//! A panel holds 16 rows (output features). Within it, 64 bytes are the codes of four consecutive
//! inputs of all 16 rows, `[16 rows][4 inputs]`: one AVX-512 register, or two of AVX2, whose 32-bit
//! lanes are the rows. A step is such a group of four inputs; a group of 32 inputs has 8 steps.
//!
//! ```text
//! panel  = codes of all groups | high bits of all groups | scales | mins | up to 64-byte alignment
//! codes  = nibbles: 4 x 64 bytes, step s in the low half of vector s, step s + 4 in its high half
//!          bytes:   8 x 64 bytes
//! high   = 1 bit a code:  64 bytes, bit s of a lane belongs to step s
//!          2 bits a code: 2 x 64 bytes, bits 2 (s % 4) of vector s / 4
//! scales = 16 f16, one a row; twice that where 16 inputs share a scale, the first 16 inputs first
//! ```
//!
//! Dense panels are `[inputs][16 rows]`, for bf16 `[inputs / 2][16 rows][2]`. A quantised matrix takes
//! as many bytes as in its file, Q4_K 11 %, Q5_K 9 % and Q6_K 7 % more.

use half::{bf16, f16};

use super::blocks::{Group, NIBBLES};
use super::prefetch::{CACHE_LINE, prefetch};
use super::shared::SharedMut;
use super::weight_memory::WeightBytes;
use super::{CODE_GROUP, Compute, SourceFormat};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Inputs that lie together for each row.
pub(super) const STEP: usize = 4;
pub(super) const STEPS_OF_GROUP: usize = CODE_GROUP / STEP;
/// Bytes of one step's codes.
pub(super) const LANES: usize = PANEL_ROWS * STEP;
/// Bytes of one f16 for each row.
pub(super) const HALVES: usize = 2 * PANEL_ROWS;

/// How a panel holds its weights: `scale * (code - zero) + min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelFormat {
    /// 4 bits around a zero of 8: Q4_0.
    Q4Zero,
    /// 4 bits and a minimum: Q4_1, Q4_K.
    Q4Min,
    /// 5 bits around a zero of 16: Q5_0.
    Q5Zero,
    /// 5 bits and a minimum: Q5_1, Q5_K.
    Q5Min,
    /// 6 bits around a zero of 32, 16 inputs a scale: Q6_K.
    Q6,
    /// Signed bytes: Q8_0.
    Q8,
    F32,
    F16,
    Bf16,
}

impl PanelFormat {
    /// The format for a matrix as a file has it.
    pub fn of(source: SourceFormat) -> Self {
        match source {
            SourceFormat::F32 => Self::F32,
            SourceFormat::F16 => Self::F16,
            SourceFormat::Bf16 => Self::Bf16,
            SourceFormat::Q4_0 => Self::Q4Zero,
            SourceFormat::Q4_1 | SourceFormat::Q4K => Self::Q4Min,
            SourceFormat::Q5_0 => Self::Q5Zero,
            SourceFormat::Q5_1 | SourceFormat::Q5K => Self::Q5Min,
            SourceFormat::Q6K => Self::Q6,
            SourceFormat::Q8_0 => Self::Q8,
        }
    }

    /// Whether weights are f32, f16 or bf16 and multiply activations in f32.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// What is subtracted from a code.
    pub(super) fn zero(self) -> i32 {
        match self {
            Self::Q4Zero => 8,
            Self::Q5Zero => 16,
            Self::Q6 => 32,
            _ => 0,
        }
    }

    pub(super) fn has_min(self) -> bool {
        matches!(self, Self::Q4Min | Self::Q5Min)
    }

    /// Bytes of a group's codes, high bits, scales and mins.
    fn group_bytes(self) -> [usize; 4] {
        match self {
            Self::Q4Zero => [4 * LANES, 0, HALVES, 0],
            Self::Q4Min => [4 * LANES, 0, HALVES, HALVES],
            Self::Q5Zero => [4 * LANES, LANES, HALVES, 0],
            Self::Q5Min => [4 * LANES, LANES, HALVES, HALVES],
            Self::Q6 => [4 * LANES, 2 * LANES, 2 * HALVES, 0],
            Self::Q8 => [8 * LANES, 0, HALVES, 0],
            Self::F32 | Self::F16 | Self::Bf16 => [0; 4],
        }
    }

    /// Bytes of a panel's parts.
    fn panel_bytes(self, inputs: usize) -> [usize; 4] {
        match self {
            Self::F32 => [inputs * 4 * PANEL_ROWS, 0, 0, 0],
            Self::F16 => [inputs * 2 * PANEL_ROWS, 0, 0, 0],
            Self::Bf16 => [inputs.next_multiple_of(2) * 2 * PANEL_ROWS, 0, 0, 0],
            _ => self
                .group_bytes()
                .map(|bytes| bytes * (inputs / CODE_GROUP)),
        }
    }
}

/// A matrix of `outputs` rows and `inputs` columns, in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    format: PanelFormat,
    outputs: usize,
    inputs: usize,
    /// Bytes of each part of a panel, then of the whole panel.
    part_bytes: [usize; 4],
    panel_bytes: usize,
    data: WeightBytes,
}

/// One panel's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel<'a> {
    pub format: PanelFormat,
    pub inputs: usize,
    pub codes: &'a [u8],
    pub highs: &'a [u8],
    pub scales: &'a [u8],
    pub mins: &'a [u8],
    /// The panel after this one, which most likely is read next; empty after the last.
    next: &'a [u8],
}

/// A matrix as its file has it.
#[derive(Clone, Copy, Debug)]
pub struct SourceMatrix<'a> {
    pub format: SourceFormat,
    pub bytes: &'a [u8],
    pub inputs: usize,
    /// Dense matrices may be stored (inputs, outputs); this is then the stride of an input.
    pub transposed_outputs: Option<usize>,
}

impl PackedMatrix {
    /// Packs `outputs` rows in parallel; row `i` is row `source_row(i)` of the source.
    ///
    /// # Panics
    /// If the source is too short, rows are not whole blocks, or a quantised matrix is to be
    /// transposed or made dense.
    pub fn pack(
        compute: &Compute,
        source: &SourceMatrix<'_>,
        format: PanelFormat,
        outputs: usize,
        source_row: impl Fn(usize) -> usize + Sync,
    ) -> Self {
        let inputs = source.inputs;
        let is_dense = format.is_dense();
        assert!(
            format == PanelFormat::of(source.format)
                || is_dense && PanelFormat::of(source.format).is_dense(),
            "bug: {:?} cannot become {format:?}",
            source.format
        );
        assert!(
            inputs.is_multiple_of(source.format.block_len()),
            "bug: rows of {inputs} inputs"
        );
        assert!(
            is_dense || source.transposed_outputs.is_none(),
            "bug: transposed blocks"
        );
        let part_bytes = format.panel_bytes(inputs);
        let panel_bytes = part_bytes.iter().sum::<usize>().next_multiple_of(LANES);
        let num_panels = outputs.div_ceil(PANEL_ROWS);
        let mut packed = Self {
            format,
            outputs,
            inputs,
            part_bytes,
            panel_bytes,
            data: compute.weight_memory.zeros(num_panels * panel_bytes),
        };
        let bytes = SharedMut::new(&mut packed.data);
        compute
            .pool()
            .for_each(num_panels, compute.pool().chunk_of(num_panels), |panels| {
                for panel in panels {
                    // SAFETY: each panel is visited once, and panels do not overlap.
                    let bytes =
                        unsafe { bytes.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
                    let rows = panel * PANEL_ROWS..outputs.min((panel + 1) * PANEL_ROWS);
                    let mut writer = PanelWriter::new(format, part_bytes, bytes);
                    for (lane, row) in rows.enumerate() {
                        match is_dense {
                            true => writer.write_dense_row(source, source_row(row), lane),
                            false => writer.write_row(source, source_row(row), lane),
                        }
                    }
                }
            });
        packed
    }

    pub fn format(&self) -> PanelFormat {
        self.format
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> usize {
        self.data.len()
    }

    pub(super) fn num_panels(&self) -> usize {
        self.outputs.div_ceil(PANEL_ROWS)
    }

    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let (bytes, rest) = self.data[index * self.panel_bytes..].split_at(self.panel_bytes);
        let next = &rest[..rest.len().min(self.panel_bytes)];
        let [codes, highs, scales, mins] = self.part_bytes;
        let (codes, rest) = bytes.split_at(codes);
        let (highs, rest) = rest.split_at(highs);
        let (scales, rest) = rest.split_at(scales);
        Panel {
            format: self.format,
            inputs: self.inputs,
            codes,
            highs,
            scales,
            mins: &rest[..mins],
            next,
        }
    }

    /// The weights of one output as f32, which is also a row of an embedding. (inputs)
    pub fn read_row(&self, output: usize, values: &mut [f32]) {
        values.fill(0.0);
        self.add_row(output, values);
    }

    /// Adds the weights of one output. (inputs)
    pub fn add_row(&self, output: usize, values: &mut [f32]) {
        assert!(
            output < self.outputs,
            "bug: row {output} of {}",
            self.outputs
        );
        let (panel, lane) = (self.panel(output / PANEL_ROWS), output % PANEL_ROWS);
        for (input, value) in values.iter_mut().enumerate() {
            *value += panel.weight(lane, input);
        }
    }
}

impl Panel<'_> {
    pub fn num_groups(&self) -> usize {
        self.inputs / CODE_GROUP
    }

    /// Asks for what the next panel has in place of a group of this one: a panel's parts are several
    /// short streams, too short for the hardware to foresee.
    #[inline(always)]
    pub(super) fn prefetch_next(&self, group: usize) {
        let len = self.next.len().div_ceil(self.num_groups());
        let start = self.next.len().min(group * len);
        let end = self.next.len().min(start + len);
        for line in self.next[start..end].chunks(CACHE_LINE) {
            prefetch(line.as_ptr());
        }
    }

    /// One weight: the definition that every kernel's reading of a panel must agree with.
    pub fn weight(&self, lane: usize, input: usize) -> f32 {
        match self.format {
            PanelFormat::F32 => f32::from_le_bytes(at(self.codes, 4 * (input * PANEL_ROWS + lane))),
            PanelFormat::F16 => half_at(self.codes, input * PANEL_ROWS + lane),
            PanelFormat::Bf16 => {
                let index = input / 2 * LANES / 2 + lane * 2 + input % 2;
                bf16::from_le_bytes(at(self.codes, 2 * index)).to_f32()
            }
            _ => {
                let group = input / CODE_GROUP;
                let scale_index = match self.format {
                    PanelFormat::Q6 => input / (CODE_GROUP / 2),
                    _ => group,
                };
                let scale = half_at(self.scales, scale_index * PANEL_ROWS + lane);
                let min = match self.format.has_min() {
                    true => half_at(self.mins, group * PANEL_ROWS + lane),
                    false => 0.0,
                };
                self.code(lane, input) as f32 * scale + min
            }
        }
    }

    /// A quantised weight's code less its zero.
    pub fn code(&self, lane: usize, input: usize) -> i32 {
        let (group, step) = (input / CODE_GROUP, input % CODE_GROUP / STEP);
        let byte = lane * STEP + input % STEP;
        if self.format == PanelFormat::Q8 {
            return i32::from(self.codes[(group * STEPS_OF_GROUP + step) * LANES + byte] as i8);
        }
        let low = self.codes[(group * 4 + step % 4) * LANES + byte] >> (4 * (step / 4)) & 15;
        let high = match self.format {
            PanelFormat::Q5Zero | PanelFormat::Q5Min => {
                self.highs[group * LANES + byte] >> step & 1
            }
            PanelFormat::Q6 => {
                self.highs[(group * 2 + step / 4) * LANES + byte] >> (2 * (step % 4)) & 3
            }
            _ => 0,
        };
        i32::from(low | high << 4) - self.format.zero()
    }
}

/// Fills one panel, row by row.
struct PanelWriter<'a> {
    format: PanelFormat,
    codes: &'a mut [u8],
    highs: &'a mut [u8],
    scales: &'a mut [u8],
    mins: &'a mut [u8],
}

impl<'a> PanelWriter<'a> {
    fn new(format: PanelFormat, part_bytes: [usize; 4], bytes: &'a mut [u8]) -> Self {
        let (codes, rest) = bytes.split_at_mut(part_bytes[0]);
        let (highs, rest) = rest.split_at_mut(part_bytes[1]);
        let (scales, mins) = rest.split_at_mut(part_bytes[2]);
        Self {
            format,
            codes,
            highs,
            scales,
            mins,
        }
    }

    fn write_dense_row(&mut self, source: &SourceMatrix<'_>, row: usize, lane: usize) {
        for input in 0..source.inputs {
            let index = match source.transposed_outputs {
                None => row * source.inputs + input,
                Some(outputs) => input * outputs + row,
            };
            let value = source.format.dense_value(source.bytes, index);
            match self.format {
                PanelFormat::F32 => {
                    put(
                        self.codes,
                        4 * (input * PANEL_ROWS + lane),
                        value.to_le_bytes(),
                    );
                }
                PanelFormat::F16 => put_half(self.codes, input * PANEL_ROWS + lane, value),
                _ => {
                    let index = input / 2 * LANES / 2 + lane * 2 + input % 2;
                    put(self.codes, 2 * index, bf16::from_f32(value).to_le_bytes());
                }
            }
        }
    }

    fn write_row(&mut self, source: &SourceMatrix<'_>, row: usize, lane: usize) {
        let row_bytes = source.inputs / source.format.block_len() * source.format.block_bytes();
        let bytes = &source.bytes[row * row_bytes..][..row_bytes];
        for index in 0..source.inputs / CODE_GROUP {
            self.write_group(index, lane, &source.format.group(bytes, index));
        }
    }

    fn write_group(&mut self, index: usize, lane: usize, group: &Group) {
        let put_four = |bytes: &mut [u8], vector: usize, four: u32| {
            put(bytes, vector * LANES + lane * STEP, four.to_le_bytes());
        };
        let codes = &group.codes;
        if self.format == PanelFormat::Q8 {
            for (step, four) in codes.iter().enumerate() {
                put_four(self.codes, index * STEPS_OF_GROUP + step, *four);
            }
        } else {
            let (low, high) = codes.split_at(STEPS_OF_GROUP / 2);
            for (vector, (low, high)) in low.iter().zip(high).enumerate() {
                let nibbles = low & NIBBLES | (high & NIBBLES) << 4;
                put_four(self.codes, index * STEPS_OF_GROUP / 2 + vector, nibbles);
            }
        }
        // What lies above the nibbles, of some steps side by side.
        let high_bits = |steps: &[u32], bits: usize| {
            let steps = steps.iter().enumerate();
            steps.fold(0, |word, (step, four)| {
                word | (four >> 4 & NIBBLES) << (bits * step)
            })
        };
        match self.format {
            PanelFormat::Q5Zero | PanelFormat::Q5Min => {
                put_four(self.highs, index, high_bits(codes, 1));
            }
            PanelFormat::Q6 => {
                for (part, steps) in codes.chunks_exact(STEPS_OF_GROUP / 2).enumerate() {
                    put_four(self.highs, 2 * index + part, high_bits(steps, 2));
                }
            }
            _ => {}
        }
        if self.format == PanelFormat::Q6 {
            for (half, scale) in group.scales.iter().enumerate() {
                let at = 2 * ((index * 2 + half) * PANEL_ROWS + lane);
                put(self.scales, at, scale.to_le_bytes());
            }
        } else {
            put(
                self.scales,
                2 * (index * PANEL_ROWS + lane),
                group.scales[0].to_le_bytes(),
            );
        }
        if self.format.has_min() {
            put(
                self.mins,
                2 * (index * PANEL_ROWS + lane),
                group.min.to_le_bytes(),
            );
        }
    }
}

fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}

fn put_half(bytes: &mut [u8], index: usize, value: f32) {
    put(bytes, 2 * index, f16::from_f32(value).to_le_bytes());
}

fn half_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes(at(bytes, 2 * index)).to_f32()
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N]
        .try_into()
        .expect("bug: a slice of N bytes")
}
