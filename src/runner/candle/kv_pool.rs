//! K and V of one layer, for all blocks of the pool: written in place, read by gathering slots.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::runner::BlockCopy;

/// Storage of one layer. The zeros cost no memory until a slot is written.
#[derive(Debug)]
pub(super) struct KvPool {
    k: Tensor, // (num_kv_heads, num_slots, head_dim)
    v: Tensor, // (num_kv_heads, num_slots, head_dim)
}

/// Tokens that follow one another both in the batch and in storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotRun {
    pub first_row: usize,
    pub first_slot: usize,
    pub len: usize,
}

impl SlotRun {
    /// Splits the slots of a step's tokens into runs.
    pub fn split(slots: &[u32]) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for (row, &slot) in slots.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.first_slot + run.len == slot as usize => run.len += 1,
                _ => runs.push(Self {
                    first_row: row,
                    first_slot: slot as usize,
                    len: 1,
                }),
            }
        }
        runs
    }
}

impl KvPool {
    pub fn new(shape: (usize, usize, usize)) -> Result<Self> {
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        Ok(Self {
            k: zeros()?,
            v: zeros()?,
        })
    }

    /// Copies the first positions of one block to another.
    pub fn copy_block(&self, copy: &BlockCopy, block_size: usize) -> candle_core::Result<()> {
        let from = copy.from_block as usize * block_size;
        let to = copy.to_block as usize * block_size;
        for pool in [&self.k, &self.v] {
            let tokens = pool
                .narrow(1, from, copy.num_tokens as usize)?
                .force_contiguous()?;
            pool.slice_set(&tokens, 1, to)?;
        }
        Ok(())
    }

    /// Writes K and V of a step's tokens, each (tokens, num_kv_heads, head_dim).
    pub fn write(&self, runs: &[SlotRun], k: &Tensor, v: &Tensor) -> candle_core::Result<()> {
        for (pool, tokens) in [(&self.k, k), (&self.v, v)] {
            let by_head = tokens.transpose(0, 1)?;
            for run in runs {
                let part = by_head.narrow(1, run.first_row, run.len)?.contiguous()?;
                pool.slice_set(&part, 1, run.first_slot)?;
            }
        }
        Ok(())
    }

    /// K and V at `slots`, each (num_kv_heads, slots, head_dim).
    pub fn gather(&self, slots: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        Ok((
            self.k.index_select(slots, 1)?,
            self.v.index_select(slots, 1)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_split_where_they_jump() {
        let run = |first_row, first_slot, len| SlotRun {
            first_row,
            first_slot,
            len,
        };
        assert_eq!(
            SlotRun::split(&[6, 7, 20, 21, 22, 3]),
            [run(0, 6, 2), run(2, 20, 3), run(5, 3, 1)]
        );
        assert_eq!(SlotRun::split(&[]), []);
    }
}
