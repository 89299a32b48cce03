//! What the cache has done, with units.

use std::time::Duration;

/// A snapshot of the cache. Counts are since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvCacheStats {
    pub total_blocks: usize,
    /// Blocks with at least one owner.
    pub used_blocks: usize,
    /// Blocks without an owner that keep reusable content.
    pub cached_blocks: usize,
    pub free_blocks: usize,
    /// Prompt tokens of admitted sequences; a preempted sequence counts once.
    pub prefix_query_tokens: u64,
    /// Prompt tokens of admitted sequences that were taken from the cache.
    pub prefix_hit_tokens: u64,
    /// Blocks whose cached content gave way to new content.
    pub evicted_blocks: u64,
    pub eviction_time: Duration,
}
