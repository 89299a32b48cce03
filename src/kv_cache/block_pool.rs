//! Reference counts and the order in which blocks are given out.
//!
//! Life of a block: free (no content) > in use (one or more owners) > evictable (no owner, content
//! kept) > in use again by a prefix hit, or evicted and in use with new content. Every operation
//! is O(1).

/// Index of a block in KV storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// All blocks of the cache. Knows who is in use, not what is in them.
#[derive(Debug)]
pub(super) struct BlockPool {
    ref_counts: Vec<u32>,
    /// Blocks without content, the next one to give out last.
    free: Vec<BlockId>,
    evictable: LruList,
}

/// What [`BlockPool::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The block had no content.
    Free(BlockId),
    /// The block held cached tokens: the caller drops them from the prefix index.
    Evicted(BlockId),
}

impl BlockPool {
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).expect("bug: more blocks than ids");
        Self {
            ref_counts: vec![0; num_blocks as usize],
            free: (0..num_blocks).rev().map(BlockId).collect(),
            evictable: LruList::new(num_blocks as usize),
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    pub fn num_evictable(&self) -> usize {
        self.evictable.len
    }

    /// Blocks that [`take`](Self::take) can give out.
    pub fn num_available(&self) -> usize {
        self.num_free() + self.num_evictable()
    }

    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block.index()]
    }

    pub fn is_evictable(&self, block: BlockId) -> bool {
        self.evictable.contains(block)
    }

    /// Gives out a block with one owner: a free one, else the least recently used one.
    pub fn take(&mut self) -> Option<Taken> {
        let taken = match self.free.pop() {
            Some(block) => Taken::Free(block),
            None => Taken::Evicted(self.evictable.pop_oldest()?),
        };
        let (Taken::Free(block) | Taken::Evicted(block)) = taken;
        self.ref_counts[block.index()] = 1;
        Some(taken)
    }

    /// Adds an owner to a block that has content.
    pub fn share(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.index()];
        if *count == 0 {
            self.evictable.remove(block);
        }
        *count += 1;
    }

    /// Takes an owner away. The last one leaves the block evictable if `keep_content`, else free.
    pub fn release(&mut self, block: BlockId, keep_content: bool) {
        let count = &mut self.ref_counts[block.index()];
        assert!(
            *count > 0,
            "bug: {block:?} is released more often than taken"
        );
        *count -= 1;
        if *count == 0 {
            if keep_content {
                self.evictable.push_newest(block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Marks an evictable block as just used; does nothing for others.
    pub fn touch(&mut self, block: BlockId) {
        if self.evictable.contains(block) {
            self.evictable.remove(block);
            self.evictable.push_newest(block);
        }
    }
}

/// A doubly linked list through two arrays: oldest first, O(1) removal from the middle.
#[derive(Debug)]
struct LruList {
    /// (num_blocks + 1); the last entry is the list's head. `ABSENT` marks blocks not in the list.
    next: Vec<u32>,
    previous: Vec<u32>,
    len: usize,
}

const ABSENT: u32 = u32::MAX;

impl LruList {
    fn new(num_blocks: usize) -> Self {
        let head = num_blocks as u32;
        let mut next = vec![ABSENT; num_blocks + 1];
        let mut previous = next.clone();
        next[num_blocks] = head;
        previous[num_blocks] = head;
        Self {
            next,
            previous,
            len: 0,
        }
    }

    fn head(&self) -> u32 {
        self.next.len() as u32 - 1
    }

    fn contains(&self, block: BlockId) -> bool {
        self.next[block.index()] != ABSENT
    }

    fn push_newest(&mut self, block: BlockId) {
        let head = self.head();
        let newest = self.previous[head as usize];
        self.next[newest as usize] = block.0;
        self.previous[block.index()] = newest;
        self.next[block.index()] = head;
        self.previous[head as usize] = block.0;
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let next = self.next[block.index()];
        let previous = self.previous[block.index()];
        assert!(next != ABSENT, "bug: {block:?} is not evictable");
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
        self.next[block.index()] = ABSENT;
        self.previous[block.index()] = ABSENT;
        self.len -= 1;
    }

    fn pop_oldest(&mut self) -> Option<BlockId> {
        let oldest = self.next[self.head() as usize];
        (oldest != self.head()).then(|| {
            self.remove(BlockId(oldest));
            BlockId(oldest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &mut BlockPool) -> BlockId {
        match pool.take() {
            Some(Taken::Free(block) | Taken::Evicted(block)) => block,
            None => panic!("the pool is empty"),
        }
    }

    #[test]
    fn free_blocks_go_out_before_cached_ones_are_evicted() {
        let mut pool = BlockPool::new(2);
        let first = take(&mut pool);
        pool.release(first, true);
        assert_eq!(pool.take(), Some(Taken::Free(BlockId(1))));
        assert_eq!(pool.take(), Some(Taken::Evicted(first)));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn the_least_recently_used_block_is_evicted_first() {
        let mut pool = BlockPool::new(3);
        let blocks = [0, 1, 2].map(|_| take(&mut pool));
        for block in blocks {
            pool.release(block, true);
        }
        pool.touch(blocks[0]);
        pool.share(blocks[1]);
        assert_eq!(pool.take(), Some(Taken::Evicted(blocks[2])));
        assert_eq!(pool.take(), Some(Taken::Evicted(blocks[0])));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_shared_block_is_free_only_when_its_last_owner_leaves() {
        let mut pool = BlockPool::new(1);
        let block = take(&mut pool);
        pool.share(block);
        pool.release(block, false);
        assert_eq!(pool.num_available(), 0);
        pool.release(block, false);
        assert_eq!(pool.num_free(), 1);
    }
}
