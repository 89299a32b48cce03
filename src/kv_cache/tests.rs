//! The cache against a naive model under random operations, and its borders one by one.

use proptest::prelude::*;

use super::{Admission, BLOCK_SIZE, BlockTable, KvCache};

/// Admits `tokens` and reuses all but the last one, whose logits have to be computed.
fn admit(cache: &mut KvCache, tokens: &[u32], headroom_blocks: usize) -> Option<Admission> {
    cache.admit(tokens, tokens.len() - 1, headroom_blocks)
}

/// Admits `tokens` and commits all of them, as a sequence that ran its whole prefill.
fn run(cache: &mut KvCache, tokens: &[u32]) -> (BlockTable, usize) {
    let mut table = admit(cache, tokens, 0).expect("the pool has room").table;
    let cached = table.num_tokens();
    cache.commit(&mut table, &tokens[cached..]);
    (table, cached)
}

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn a_repeated_short_prompt_is_a_hit_but_for_its_last_token() {
    let mut cache = KvCache::new(4);
    let prompt = tokens(0..10);
    let (mut first, cached) = run(&mut cache, &prompt);
    assert_eq!(cached, 0);
    cache.release(&mut first);
    let again = admit(&mut cache, &prompt, 0).expect("the pool has room");
    assert_eq!(again.table.num_tokens(), 9);
    let copy = again.copy.expect("a part of a block is copied");
    assert_eq!((copy.num_tokens, copy.to), (9, again.table.blocks()[0]));
}

#[test]
fn a_prompt_is_a_hit_while_its_first_sequence_still_runs() {
    let mut cache = KvCache::new(8);
    let prompt = tokens(0..40);
    let (first, _) = run(&mut cache, &prompt);
    let second = admit(&mut cache, &prompt, 0)
        .expect("the pool has room")
        .table;
    assert_eq!(second.num_tokens(), 39);
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    assert_ne!(first.blocks()[1], second.blocks()[1]);
}

#[test]
fn generated_tokens_are_reused_by_the_next_turn() {
    let mut cache = KvCache::new(8);
    let (mut table, _) = run(&mut cache, &tokens(0..40));
    for token in 40..70 {
        let len = table.num_tokens() + 1;
        assert!(cache.grow(&mut table, len, 0));
        cache.commit(&mut table, &[token]);
    }
    cache.release(&mut table);
    let (_, cached) = run(&mut cache, &tokens(0..90));
    assert_eq!(cached, 70);
}

#[test]
fn two_sequences_that_compute_the_same_block_end_with_one() {
    let mut cache = KvCache::new(8);
    let prompt = tokens(0..64);
    let mut tables = [(); 2].map(|()| admit(&mut cache, &prompt, 0).expect("room").table);
    assert_eq!(cache.stats().used_blocks, 4);
    for table in &mut tables {
        cache.commit(table, &prompt);
    }
    assert_eq!(tables[0].blocks(), tables[1].blocks());
    assert_eq!(cache.stats().used_blocks, 2);
    cache.check_invariants(tables.iter());
}

#[test]
fn the_tail_of_a_prefix_is_evicted_before_its_head() {
    let mut cache = KvCache::new(3);
    let (mut table, _) = run(&mut cache, &tokens(0..96));
    cache.release(&mut table);
    let (mut other, _) = run(&mut cache, &tokens(500..532));
    cache.release(&mut other);
    assert_eq!(cache.stats().evicted_blocks, 1);
    let (_, cached) = run(&mut cache, &tokens(0..65));
    assert_eq!(cached, 64);
}

#[test]
fn an_admission_that_does_not_fit_changes_nothing() {
    let mut cache = KvCache::new(3);
    let (mut table, _) = run(&mut cache, &tokens(0..64));
    cache.release(&mut table);
    let before = cache.stats();
    assert!(admit(&mut cache, &tokens(0..97), 0).is_none());
    assert!(admit(&mut cache, &tokens(0..65), 1).is_none());
    assert_eq!(cache.stats(), before);
    assert!(admit(&mut cache, &tokens(0..65), 0).is_some());
}

#[test]
fn a_block_that_is_copied_from_and_evicted_at_once_is_the_copy_itself() {
    let mut cache = KvCache::new(1);
    let (mut table, _) = run(&mut cache, &tokens(0..10));
    cache.release(&mut table);
    let admission = admit(&mut cache, &tokens(0..20), 0).expect("the one block is evictable");
    let copy = admission.copy.expect("ten tokens match");
    assert_eq!((copy.from, copy.num_tokens), (copy.to, 10));
}

#[derive(Clone, Debug)]
enum Operation {
    /// A prompt made of (start, length) out of few tokens, so that prefixes are often shared.
    Admit {
        family: u32,
        len: usize,
    },
    Generate {
        which: usize,
        tokens: Vec<u32>,
    },
    Release {
        which: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0..3u32, 1..150usize).prop_map(|(family, len)| Operation::Admit { family, len }),
        (any::<usize>(), prop::collection::vec(0..2u32, 1..40))
            .prop_map(|(which, tokens)| Operation::Generate { which, tokens }),
        any::<usize>().prop_map(|which| Operation::Release { which }),
    ]
}

/// What storage would hold: for each slot, the whole token prefix that its K and V depend on.
struct NaiveStorage(Vec<Option<Vec<u32>>>);

impl NaiveStorage {
    fn write(&mut self, table: &BlockTable, tokens: &[u32], from: usize) {
        for position in from..tokens.len() {
            self.0[table.slot(position) as usize] = Some(tokens[..=position].to_vec());
        }
    }

    /// Every committed position must hold what a sequence alone would have computed.
    fn check(&self, table: &BlockTable, tokens: &[u32]) {
        for position in 0..table.num_tokens() {
            let held = self.0[table.slot(position) as usize].as_deref();
            assert_eq!(held, Some(&tokens[..=position]), "position {position}");
        }
    }
}

proptest! {
    #[test]
    fn every_sequence_finds_its_own_prefix_whatever_is_shared_and_evicted(
        num_blocks in 1..12usize,
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let mut cache = KvCache::new(num_blocks);
        let mut storage = NaiveStorage(vec![None; num_blocks * BLOCK_SIZE]);
        let mut sequences: Vec<(Vec<u32>, BlockTable)> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Admit { family, len } => {
                    let prompt: Vec<u32> = (0..len as u32).map(|i| i / 40 * family).collect();
                    if let Some(Admission { mut table, copy }) = admit(&mut cache, &prompt, 0) {
                        if let Some(copy) = copy {
                            for offset in 0..copy.num_tokens {
                                let slot = |block: super::BlockId| block.index() * BLOCK_SIZE + offset;
                                storage.0[slot(copy.to)] = storage.0[slot(copy.from)].clone();
                            }
                        }
                        storage.check(&table, &prompt);
                        let cached = table.num_tokens();
                        prop_assert!(cached < prompt.len());
                        storage.write(&table, &prompt, cached);
                        cache.commit(&mut table, &prompt[cached..]);
                        sequences.push((prompt, table));
                    }
                }
                Operation::Generate { which, tokens } if !sequences.is_empty() => {
                    let which = which % sequences.len();
                    let (text, table) = &mut sequences[which];
                    if cache.grow(table, text.len() + tokens.len(), 0) {
                        let from = text.len();
                        text.extend(&tokens);
                        storage.write(table, text, from);
                        cache.commit(table, &tokens);
                    }
                }
                Operation::Release { which } if !sequences.is_empty() => {
                    let which = which % sequences.len();
                    let (_, mut table) = sequences.swap_remove(which);
                    cache.release(&mut table);
                }
                Operation::Generate { .. } | Operation::Release { .. } => {}
            }
            cache.check_invariants(sequences.iter().map(|(_, table)| table));
            for (text, table) in &sequences {
                storage.check(table, text);
            }
        }
        for (_, table) in &mut sequences {
            cache.release(table);
        }
        let stats = cache.stats();
        prop_assert_eq!(stats.used_blocks, 0);
        prop_assert_eq!(stats.cached_blocks + stats.free_blocks, num_blocks);
    }
}
