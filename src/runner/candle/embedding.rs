//! Look-up tables of the candle runner, kept as the file stores them and decoded row by row.
//!
//! A table is as large as the head and only a few of its rows are used in a step, so that it stays
//! quantised where it was.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use candle_core::quantized::GgmlDType;

use crate::model::{StoredTensor, decode_f32};

/// One vector for each id.
#[derive(Debug)]
pub(super) struct Embedding {
    bytes: Vec<u8>,
    dtype: GgmlDType,
    num_rows: usize,
    row_bytes: usize,
    row_len: usize,
}

impl Embedding {
    pub fn load(stored: &StoredTensor) -> Result<Self> {
        let bytes = stored.read_bytes()?;
        Ok(Self {
            row_bytes: bytes.len() / stored.shape[0],
            bytes,
            dtype: stored.dtype,
            num_rows: stored.shape[0],
            row_len: stored.shape[1],
        })
    }

    /// The vectors of `ids`. (ids, row_len)
    pub fn lookup(&self, ids: &[u32]) -> Result<Tensor> {
        let mut bytes = Vec::with_capacity(ids.len() * self.row_bytes);
        for &id in ids {
            let id = id as usize;
            ensure!(
                id < self.num_rows,
                "id {id} lies outside a table of {} vectors",
                self.num_rows
            );
            bytes.extend(&self.bytes[id * self.row_bytes..][..self.row_bytes]);
        }
        decode_f32(self.dtype, &bytes, &[ids.len(), self.row_len])
    }
}
