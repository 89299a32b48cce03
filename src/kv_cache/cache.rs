//! The cache as the scheduler sees it: admit, grow, commit, release.

use std::time::{Duration, Instant};

use super::block_pool::{BlockPool, Taken};
use super::prefix_index::PrefixIndex;
use super::{BLOCK_SIZE, BlockId, BlockTable, KvCacheStats};

/// All blocks and what they hold. A `None` or `false` from an allocation is an outcome, not an
/// error: the scheduler waits or preempts.
#[derive(Debug)]
pub struct KvCache {
    pool: BlockPool,
    index: PrefixIndex,
    prefix_query_tokens: u64,
    prefix_hit_tokens: u64,
    evicted_blocks: u64,
    eviction_time: Duration,
}

/// A sequence's start in the cache.
#[derive(Debug)]
pub struct Admission {
    /// Covers all tokens asked for; its `num_tokens` are already computed.
    pub table: BlockTable,
    /// What the runner copies before it computes the rest.
    pub copy: Option<PartialCopy>,
}

/// The matching first part of a cached block, wanted in a block of the sequence's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialCopy {
    pub from: BlockId,
    pub to: BlockId,
    pub num_tokens: usize,
}

impl KvCache {
    pub fn new(num_blocks: usize) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            index: PrefixIndex::new(num_blocks),
            prefix_query_tokens: 0,
            prefix_hit_tokens: 0,
            evicted_blocks: 0,
            eviction_time: Duration::ZERO,
        }
    }

    /// Tokens that fit in all blocks together.
    pub fn capacity_tokens(&self) -> usize {
        self.pool.num_blocks() * BLOCK_SIZE
    }

    /// Takes blocks for all `tokens`, sharing what is cached of the first `max_reused_tokens`.
    /// `None`, and nothing changed, unless `headroom_blocks` stay available.
    pub fn admit(
        &mut self,
        tokens: &[u32],
        max_reused_tokens: usize,
        headroom_blocks: usize,
    ) -> Option<Admission> {
        let found = self.index.lookup(&tokens[..max_reused_tokens]);
        let new_blocks = tokens.len().div_ceil(BLOCK_SIZE) - found.blocks.len();
        let revived = found.blocks.iter().filter(|&&b| self.pool.is_evictable(b));
        if new_blocks + revived.count() + headroom_blocks > self.pool.num_available() {
            return None;
        }

        for &block in &found.blocks {
            self.pool.share(block);
        }
        if let Some((block, _)) = found.partial {
            self.pool.touch(block);
        }
        let mut table = BlockTable {
            num_tokens: found.blocks.len() * BLOCK_SIZE,
            blocks: found.blocks,
        };
        let enough = self.grow(&mut table, tokens.len(), 0);
        assert!(enough, "bug: fewer blocks than were counted");

        let copy = found.partial.map(|(from, num_tokens)| {
            let to = table.blocks[table.num_tokens / BLOCK_SIZE];
            let start = table.num_tokens;
            self.commit(&mut table, &tokens[start..start + num_tokens]);
            PartialCopy {
                from,
                to,
                num_tokens,
            }
        });
        Some(Admission { table, copy })
    }

    /// Empties the cache, whatever state it is in. Tables that are still around must be dropped, not
    /// released. Counts stay.
    pub fn reset(&mut self) {
        let num_blocks = self.pool.num_blocks();
        self.pool = BlockPool::new(num_blocks);
        self.index = PrefixIndex::new(num_blocks);
    }

    /// Counts what an admission found; apart from [`admit`](Self::admit), so that a preempted
    /// sequence that comes back is not counted twice.
    pub fn count_prefix_query(&mut self, query_tokens: usize, hit_tokens: usize) {
        self.prefix_query_tokens += query_tokens as u64;
        self.prefix_hit_tokens += hit_tokens as u64;
    }

    /// Makes room for `num_tokens` tokens in all. `false`, and nothing changed, unless there are
    /// blocks for it and `headroom_blocks` stay available.
    pub fn grow(
        &mut self,
        table: &mut BlockTable,
        num_tokens: usize,
        headroom_blocks: usize,
    ) -> bool {
        let wanted = num_tokens.div_ceil(BLOCK_SIZE);
        let missing = wanted.saturating_sub(table.blocks.len());
        if missing > 0 && missing + headroom_blocks > self.pool.num_available() {
            return false;
        }
        for _ in 0..missing {
            let block = self.take_block();
            table.blocks.push(block);
        }
        true
    }

    fn take_block(&mut self) -> BlockId {
        match self
            .pool
            .take()
            .expect("bug: available blocks were counted")
        {
            Taken::Free(block) => block,
            Taken::Evicted(block) => {
                let start = Instant::now();
                self.index.remove(block);
                self.evicted_blocks += 1;
                self.eviction_time += start.elapsed();
                block
            }
        }
    }

    /// Records that the next tokens of a sequence are computed (or copied), and can be reused.
    pub fn commit(&mut self, table: &mut BlockTable, mut tokens: &[u32]) {
        while !tokens.is_empty() {
            let place = table.num_tokens / BLOCK_SIZE;
            let room = BLOCK_SIZE - table.num_tokens % BLOCK_SIZE;
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            let parent = place.checked_sub(1).map(|before| table.blocks[before]);
            self.index.append(table.blocks[place], parent, now);
            table.num_tokens += now.len();
            if now.len() == room {
                self.share_twin(table, place);
            }
            tokens = later;
        }
    }

    /// If another block holds the same full prefix, uses that one and gives up the own.
    fn share_twin(&mut self, table: &mut BlockTable, place: usize) {
        let own = table.blocks[place];
        if let Some(twin) = self.index.twin(own) {
            self.pool.share(twin);
            table.blocks[place] = twin;
            self.index.remove(own);
            self.pool.release(own, false);
        }
    }

    /// Makes the content of a sequence's blocks unknown to others, as far as nobody has built on it.
    /// For content that turned out broken; the blocks are still to be released.
    pub fn forget(&mut self, table: &BlockTable) {
        for &block in table.blocks.iter().rev() {
            if self.pool.ref_count(block) > 1 || self.index.has_children(block) {
                return;
            }
            if self.index.contains(block) {
                self.index.remove(block);
            }
        }
    }

    /// Gives all blocks of a sequence back. What was committed stays for reuse.
    pub fn release(&mut self, table: &mut BlockTable) {
        // In reverse, so that the tail of a prefix is evicted before its head.
        for block in table.blocks.drain(..).rev() {
            let last_owner = self.pool.ref_count(block) == 1;
            let mut keep = self.index.contains(block);
            let is_partial = self.index.tokens(block).len() < BLOCK_SIZE;
            if last_owner && keep && is_partial && self.index.twin(block).is_some() {
                self.index.remove(block);
                keep = false;
            }
            self.pool.release(block, keep);
        }
        table.num_tokens = 0;
    }

    pub fn stats(&self) -> KvCacheStats {
        KvCacheStats {
            total_blocks: self.pool.num_blocks(),
            used_blocks: self.pool.num_blocks() - self.pool.num_available(),
            cached_blocks: self.pool.num_evictable(),
            free_blocks: self.pool.num_free(),
            prefix_query_tokens: self.prefix_query_tokens,
            prefix_hit_tokens: self.prefix_hit_tokens,
            evicted_blocks: self.evicted_blocks,
            eviction_time: self.eviction_time,
        }
    }

    /// Panics unless counts, owners and content agree. `tables` are all that exist.
    #[cfg(test)]
    pub fn check_invariants<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut owners = vec![0; self.pool.num_blocks()];
        for table in tables {
            assert!(table.num_tokens <= table.capacity_tokens());
            for (place, block) in table.blocks.iter().enumerate() {
                owners[block.index()] += 1;
                let held = table.num_tokens.saturating_sub(place * BLOCK_SIZE);
                assert_eq!(self.index.tokens(*block).len(), held.min(BLOCK_SIZE));
            }
        }
        let mut used = 0;
        for (index, &count) in owners.iter().enumerate() {
            let block = BlockId(index as u32);
            assert_eq!(self.pool.ref_count(block), count, "{block:?}");
            used += usize::from(count > 0);
            let is_cached = count == 0 && self.index.contains(block);
            assert_eq!(self.pool.is_evictable(block), is_cached, "{block:?}");
            if let Some(parent) = self
                .index
                .parent(block)
                .filter(|_| self.index.contains(block))
            {
                assert_eq!(self.index.tokens(parent).len(), BLOCK_SIZE, "{block:?}");
                assert!(owners[parent.index()] >= 1 || count == 0, "{block:?}");
            }
        }
        assert_eq!(used + self.pool.num_available(), self.pool.num_blocks());
    }
}
