//! The paged KV cache's bookkeeping: blocks, block tables, prefix reuse, eviction, counts.
//!
//! Integers only; no tensor is ever seen here. A block holds [`BLOCK_SIZE`] token positions. Each
//! sequence owns a [`BlockTable`]; blocks that hold the same tokens behind the same prefix are
//! shared. A block without an owner keeps its content and can be evicted, least recently used
//! first and the tail of a prefix before its head.

mod block_pool;
mod block_table;
mod cache;
mod prefix_index;
mod stats;
#[cfg(test)]
mod tests;

pub use block_pool::BlockId;
pub use block_table::BlockTable;
pub use cache::{Admission, KvCache, PartialCopy};
pub use stats::KvCacheStats;

/// Token positions in a block.
pub const BLOCK_SIZE: usize = 32;
