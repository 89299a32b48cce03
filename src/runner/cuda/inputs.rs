//! What a step is, as kernels read it: one array, sent to the GPU at once.

use anyhow::Result;

use super::gpu::{Address, Buffer, Gpu};
use crate::runner::RaggedBatch;

/// Query rows of a unit of attention.
const UNIT_ROWS: u32 = 16;

/// Where the parts of a step lie on the GPU. Each is that of [`RaggedBatch`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inputs {
    pub token_ids: Address,
    pub positions: Address,
    pub slots: Address,
    pub q_start: Address,
    pub block_tables: Address,
    pub block_table_start: Address,
    pub logit_rows: Address,
    /// Sequence and first query row of each unit. (num_units, 2)
    pub units: Address,
    pub num_units: usize,
    /// Whether they lie elsewhere than those of the step before.
    pub has_moved: bool,
}

/// Sends steps to the GPU; keeps its memory from one to the next.
#[derive(Debug)]
pub(super) struct Sender {
    values: Vec<u32>,
    buffer: Buffer<u32>,
}

impl Sender {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            values: Vec::new(),
            buffer: gpu.zeros(1)?,
        })
    }

    /// `sharing` query heads have a KV head in common.
    pub fn send(&mut self, gpu: &Gpu, batch: &RaggedBatch, sharing: usize) -> Result<Inputs> {
        let parts = [
            &batch.token_ids,
            &batch.positions,
            &batch.slots,
            &batch.q_start,
            &batch.block_table_start,
            &batch.logit_rows,
        ];
        self.values.clear();
        let starts = parts.map(|part| {
            let start = self.values.len();
            self.values.extend_from_slice(part);
            start
        });
        let units = self.values.len();
        for (sequence, bounds) in batch.q_start.windows(2).enumerate() {
            let query_rows = (bounds[1] - bounds[0]) * sharing as u32;
            for first in (0..query_rows).step_by(UNIT_ROWS as usize) {
                self.values.extend([sequence as u32, first]);
            }
        }
        let block_tables = self.values.len();
        let num_units = (block_tables - units) / 2;
        // Last, so that the rest lies at the same places in steps of the same shape.
        self.values.extend_from_slice(&batch.block_tables);
        let has_moved = self.buffer.reserve(gpu, self.values.len())?;
        gpu.write(&self.values, &mut self.buffer)?;
        let [
            token_ids,
            positions,
            slots,
            q_start,
            block_table_start,
            logit_rows,
        ] = starts.map(|start| self.buffer.address_of(start));
        Ok(Inputs {
            token_ids,
            positions,
            slots,
            q_start,
            block_tables: self.buffer.address_of(block_tables),
            block_table_start,
            logit_rows,
            units: self.buffer.address_of(units),
            num_units,
            has_moved,
        })
    }
}
