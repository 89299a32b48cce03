//! Attention of a whole step by one kernel that reads K and V where they lie, block by block.

use candle_core::{DType, Device, Result, Tensor};

use super::RaggedBatch;
use super::kv_pool::KvPool;
use crate::model::ModelSpec;

/// The kernel's pages are whole multiples of so many tokens.
const PAGE_STEP: usize = 32;
/// The sizes of a head that the kernel is compiled for.
const HEAD_DIMS: [usize; 4] = [64, 128, 256, 512];

/// A step as the kernel wants it; sequences in the order of the step's rows.
pub(super) struct PagedStep {
    q_start: Tensor,       // (sequences + 1)
    context_start: Tensor, // (sequences + 1)
    /// Filled up with block 0, which is not read. (sequences, most blocks of one)
    block_tables: Tensor,
    most_queries: usize,
    longest_context: usize,
    page_tokens: usize,
}

/// Whether the kernel takes such a model; the others gather K and V.
pub(super) fn is_possible(
    spec: &ModelSpec,
    block_size: usize,
    dtype: DType,
    device: &Device,
) -> bool {
    device.is_cuda()
        && matches!(dtype, DType::F16 | DType::BF16)
        && HEAD_DIMS.contains(&spec.head_dim)
        && block_size.is_multiple_of(PAGE_STEP)
}

impl PagedStep {
    /// `order` has the batch's sequences in the order of the step's rows.
    pub fn new(
        batch: &RaggedBatch,
        order: &[usize],
        block_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let num_queries = |i: usize| batch.q_start[i + 1] - batch.q_start[i];
        let table = |i: usize| {
            let (start, end) = (batch.block_table_start[i], batch.block_table_start[i + 1]);
            &batch.block_tables[start as usize..end as usize]
        };
        let most = |of: &dyn Fn(usize) -> usize| order.iter().map(|&i| of(i)).max().unwrap_or(0);
        let most_blocks = most(&|i| table(i).len());
        let block_tables: Vec<u32> = order
            .iter()
            .flat_map(|&i| {
                let padding = std::iter::repeat_n(0, most_blocks - table(i).len());
                table(i).iter().copied().chain(padding)
            })
            .collect();
        let running_sum = |of: &dyn Fn(usize) -> u32| {
            let mut sums = vec![0];
            for &i in order {
                sums.push(sums[sums.len() - 1] + of(i));
            }
            Tensor::new(sums, device)
        };
        Ok(Self {
            q_start: running_sum(&num_queries)?,
            context_start: running_sum(&|i| batch.seq_lens[i])?,
            block_tables: Tensor::from_vec(block_tables, (order.len(), most_blocks), device)?,
            most_queries: most(&|i| num_queries(i) as usize),
            longest_context: most(&|i| batch.seq_lens[i] as usize),
            page_tokens: block_size,
        })
    }

    /// Attention of all rows. (tokens, num_heads * head_dim)
    pub fn attend(
        &self,
        spec: &ModelSpec,
        kv: &KvPool,
        q: &Tensor, // (tokens, num_heads, head_dim), not scaled
    ) -> Result<Tensor> {
        let (k, v) = kv.pages(self.page_tokens)?;
        candle_flash_attn::flash_attn_varlen_paged_windowed(
            q,
            &k,
            &v,
            &self.q_start,
            &self.context_start,
            &self.block_tables,
            None,
            self.most_queries,
            self.longest_context,
            (spec.head_dim as f32).powf(-0.5),
            spec.sliding_window.map(|window| window - 1),
            Some(0),
            self.page_tokens,
            None,
        )?
        .flatten_from(1)
    }
}
