//! Where the tokens of one sequence lie.

use super::{BLOCK_SIZE, BlockId};

/// One sequence's ordered list of blocks, and how many of its tokens are computed in them.
///
/// Dropping a table that still holds blocks would leak them: it goes back through
/// [`KvCache::release`](super::KvCache::release).
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
    pub(super) num_tokens: usize,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens whose K and V are in the cache.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Tokens that fit in the blocks held.
    pub fn capacity_tokens(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }

    /// The slot of a token position, `block_id * BLOCK_SIZE + offset`.
    pub fn slot(&self, position: usize) -> u32 {
        self.blocks[position / BLOCK_SIZE].0 * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
    }
}
