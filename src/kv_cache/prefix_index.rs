//! Which tokens each block holds, and which prefix they stand behind: a tree of blocks.
//!
//! A block is known by its parent block and its tokens, so a hit is exact by construction: there
//! is no hash that could collide. A lookup compares tokens with the children of one block a level:
//! O(prompt tokens + children of the blocks on the path).

use super::{BLOCK_SIZE, BlockId};

/// The tree. Blocks enter when they hold their first token, and leave by [`remove`](Self::remove).
#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// (num_blocks)
    entries: Vec<Entry>,
    /// Children of each block, and of the empty prefix at the end. (num_blocks + 1)
    children: Vec<Vec<Child>>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    parent: Option<BlockId>,
    /// Up to BLOCK_SIZE tokens; empty for a block that is not in the tree.
    tokens: Vec<u32>,
}

/// The first token stands here too, so that most children are passed over without a cache miss.
#[derive(Clone, Copy, Debug)]
struct Child {
    first_token: u32,
    block: BlockId,
}

/// The longest cached prefix of some tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PrefixMatch {
    /// Full blocks, from the start.
    pub blocks: Vec<BlockId>,
    /// A further block of which only the first tokens match, and how many.
    pub partial: Option<(BlockId, usize)>,
}

impl PrefixIndex {
    pub fn new(num_blocks: usize) -> Self {
        Self {
            entries: vec![Entry::default(); num_blocks],
            children: vec![Vec::new(); num_blocks + 1],
        }
    }

    pub fn contains(&self, block: BlockId) -> bool {
        !self.entries[block.index()].tokens.is_empty()
    }

    pub fn tokens(&self, block: BlockId) -> &[u32] {
        &self.entries[block.index()].tokens
    }

    pub fn has_children(&self, block: BlockId) -> bool {
        !self.children[block.index()].is_empty()
    }

    pub fn parent(&self, block: BlockId) -> Option<BlockId> {
        self.entries[block.index()].parent
    }

    /// Finds the longest prefix of `tokens` that is in the tree.
    pub fn lookup(&self, tokens: &[u32]) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        for chunk in tokens.chunks(BLOCK_SIZE) {
            match self.best_child(found.blocks.last().copied(), chunk, None) {
                Some((block, BLOCK_SIZE)) => found.blocks.push(block),
                partial => {
                    found.partial = partial;
                    break;
                }
            }
        }
        found
    }

    /// The block behind `parent` that shares the most leading tokens with `tokens`, at least one;
    /// `except` is passed over.
    fn best_child(
        &self,
        parent: Option<BlockId>,
        tokens: &[u32],
        except: Option<BlockId>,
    ) -> Option<(BlockId, usize)> {
        let mut best = None;
        let mut best_len = 0;
        for child in &self.children[self.node(parent)] {
            if child.first_token != tokens[0] || Some(child.block) == except {
                continue;
            }
            let len = common_prefix(self.tokens(child.block), tokens);
            if len > best_len {
                best = Some((child.block, len));
                best_len = len;
                if len == tokens.len() {
                    break;
                }
            }
        }
        best
    }

    /// Appends tokens to a block, which enters the tree behind `parent` with its first ones.
    pub fn append(&mut self, block: BlockId, parent: Option<BlockId>, tokens: &[u32]) {
        let entry = &mut self.entries[block.index()];
        if entry.tokens.is_empty() {
            entry.parent = parent;
            entry.tokens.reserve_exact(BLOCK_SIZE);
            let node = self.node(parent);
            self.children[node].push(Child {
                first_token: tokens[0],
                block,
            });
        }
        let entry = &mut self.entries[block.index()];
        assert_eq!(entry.parent, parent, "bug: {block:?} has two parents");
        entry.tokens.extend_from_slice(tokens);
        assert!(entry.tokens.len() <= BLOCK_SIZE, "bug: {block:?} overflows");
    }

    /// Another block behind the same parent whose tokens begin with all tokens of `block`.
    pub fn twin(&self, block: BlockId) -> Option<BlockId> {
        let tokens = self.tokens(block);
        self.best_child(self.parent(block), tokens, Some(block))
            .filter(|&(_, len)| len == tokens.len())
            .map(|(twin, _)| twin)
    }

    /// Takes a block out of the tree. It must not have children: they could not be found any more.
    pub fn remove(&mut self, block: BlockId) {
        assert!(
            !self.has_children(block),
            "bug: {block:?} leaves before its children"
        );
        let node = self.node(self.parent(block));
        let siblings = &mut self.children[node];
        let place = siblings
            .iter()
            .position(|child| child.block == block)
            .expect("bug: a block is not among its parent's children");
        siblings.swap_remove(place);
        self.entries[block.index()].tokens.clear();
    }

    /// Where the children of `parent` are listed.
    fn node(&self, parent: Option<BlockId>) -> usize {
        parent.map_or(self.entries.len(), BlockId::index)
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
        range.collect()
    }

    #[test]
    fn the_longest_of_several_children_is_found() {
        let mut index = PrefixIndex::new(3);
        index.append(BlockId(0), None, &[1, 2, 3]);
        index.append(BlockId(1), None, &[1, 2, 9, 9]);
        let found = index.lookup(&[1, 2, 9, 4]);
        assert_eq!(found.partial, Some((BlockId(1), 3)));
        assert_eq!(index.lookup(&[7]).partial, None);
    }

    #[test]
    fn equal_tokens_behind_another_prefix_are_no_hit() {
        let mut index = PrefixIndex::new(3);
        index.append(BlockId(0), None, &tokens(0..32));
        index.append(BlockId(1), Some(BlockId(0)), &tokens(100..132));
        assert_eq!(index.lookup(&tokens(100..132)), PrefixMatch::default());

        let mut both = tokens(0..32);
        both.extend(100..140);
        assert_eq!(index.lookup(&both).blocks, [BlockId(0), BlockId(1)]);
    }

    #[test]
    fn a_block_grows_and_a_removed_one_is_forgotten() {
        let mut index = PrefixIndex::new(1);
        index.append(BlockId(0), None, &[5]);
        index.append(BlockId(0), None, &[6, 7]);
        assert_eq!(index.lookup(&[5, 6, 7, 8]).partial, Some((BlockId(0), 3)));
        index.remove(BlockId(0));
        assert_eq!(index.lookup(&[5, 6, 7, 8]), PrefixMatch::default());
    }
}
