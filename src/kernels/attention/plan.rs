//! How a step's attention is cut: into units of one sequence, and groups of units that share blocks.

use std::cmp::Ordering;
use std::ops::Range;

use super::{AttentionBatch, AttentionShape, UNIT_ROWS, rows_at_once};
use crate::kernels::Compute;
use crate::kernels::kv_storage::TILE_TOKENS;

/// How a step's attention is cut into units and these grouped; the same in every layer.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    pub(super) units: Vec<Unit>,
    pub(super) groups: Vec<Group>,
    /// Where attention writes K and V of each row, if it does.
    pub(super) slots: Vec<u32>,
    /// Blocks that are written, ascending, and the sequences that do.
    writers: Vec<(u32, usize)>,
}

/// Some query tokens of a sequence, which follow one another in it.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub sequence: usize,
    pub rows: Range<usize>,
}

/// Units whose contexts begin with the same tiles, or one unit.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub units: Range<usize>,
    pub shared_tiles: usize,
    /// Pairs of a row and a position.
    work: usize,
}

impl AttentionPlan {
    /// Cuts a step into units and groups, those with the most work first. K and V of its tokens must be there
    /// before attention; or see [`AttentionPlan::include_writes`].
    pub fn set(&mut self, compute: &Compute, shape: &AttentionShape, batch: &AttentionBatch<'_>) {
        let tokens = (UNIT_ROWS / shape.heads_per_kv_head()).max(1);
        self.units.clear();
        for (sequence, bounds) in batch.q_start.windows(2).enumerate() {
            let mut first = bounds[0] as usize;
            let positions = &batch.positions[first..bounds[1] as usize];
            for run in positions.chunk_by(|a, b| a + 1 == *b) {
                for some in run.chunks(tokens) {
                    let rows = first..first + some.len();
                    first = rows.end;
                    self.units.push(Unit { sequence, rows });
                }
            }
        }
        if shape.sliding_window.is_none() {
            // Those that can share come to lie together.
            let table = |unit: &Unit| batch.table_of(unit.sequence);
            self.units.sort_unstable_by(|a, b| {
                let order = match a.sequence == b.sequence {
                    true => Ordering::Equal,
                    false => table(a).cmp(table(b)),
                };
                order.then(a.rows.start.cmp(&b.rows.start))
            });
        }
        self.groups.clear();
        let most = match shape.sliding_window {
            None => rows_at_once(compute.isa()) / shape.heads_per_kv_head(),
            Some(_) => 0,
        };
        let mut first = 0;
        while first < self.units.len() {
            let group = Group::from(first, &self.units, most, shape, batch);
            first = group.units.end;
            self.groups.push(group);
        }
        let key = |group: &Group| (std::cmp::Reverse(group.work), group.units.start);
        self.groups.sort_unstable_by_key(key);
        // Room for as many rows, whether they are written or not: no later step allocates.
        self.slots.clear();
        self.slots.reserve(batch.positions.len());
        self.writers.clear();
        self.writers.reserve(batch.positions.len());
    }

    /// Lets attention itself write K and V of each row to its slot: each unit its own, before it reads what was
    /// in memory all the same. It does if it can ([`AttentionPlan::writes`]): if units are whole sequences, as in
    /// decode, and none reads a block that another one writes.
    pub fn include_writes(
        &mut self,
        shape: &AttentionShape,
        batch: &AttentionBatch<'_>,
        slots: &[u32],
    ) {
        assert_eq!(slots.len(), batch.positions.len(), "bug: a slot a row");
        let num_sequences = batch.q_start.windows(2).filter(|it| it[0] < it[1]).count();
        if self.units.len() != num_sequences {
            return;
        }
        for unit in &self.units {
            let blocks = slots[unit.rows.clone()].iter();
            let blocks = blocks.map(|slot| slot / shape.block_size as u32);
            self.writers
                .extend(blocks.map(|block| (block, unit.sequence)));
        }
        self.writers.sort_unstable();
        self.writers.dedup();
        let is_alone = |pair: &[(u32, usize)]| pair[0].0 != pair[1].0;
        let is_for = |block: &u32, sequence: usize| {
            let writer = self.writers.binary_search_by_key(block, |writer| writer.0);
            writer.map_or(true, |at| self.writers[at].1 == sequence)
        };
        let can_write = self.writers.windows(2).all(is_alone)
            && self.units.iter().all(|unit| {
                let blocks = batch.len_of(unit).div_ceil(shape.block_size);
                let mut table = batch.table_of(unit.sequence)[..blocks].iter();
                table.all(|block| is_for(block, unit.sequence))
            });
        if can_write {
            self.slots.extend_from_slice(slots);
        }
    }

    /// Whether attention writes K and V itself.
    pub fn writes(&self) -> bool {
        !self.slots.is_empty()
    }
}

impl Group {
    /// Unit `first` and those after it with which it shares the most, of together at most `most` query
    /// tokens.
    fn from(
        first: usize,
        units: &[Unit],
        most: usize,
        shape: &AttentionShape,
        batch: &AttentionBatch<'_>,
    ) -> Self {
        /// Sharing less costs more than it saves.
        const LEAST_SHARED: usize = 8;
        // What lies behind a unit's last query is not to be read: it may be anything.
        let tiles = |unit: &Unit| batch.len_of(unit) / TILE_TOKENS;
        let work = |unit: &Unit| batch.len_of(unit) * unit.rows.len();
        let mut group = Self {
            units: first..first + 1,
            shared_tiles: 0,
            work: work(&units[first]),
        };
        let table = batch.table_of(units[first].sequence);
        let mut num_tokens = units[first].rows.len();
        let mut shared = tiles(&units[first]);
        for unit in &units[first + 1..] {
            num_tokens += unit.rows.len();
            if num_tokens > most {
                break;
            }
            let others = table.iter().zip(batch.table_of(unit.sequence));
            let same_blocks = others.take_while(|(a, b)| a == b).count();
            let common = same_blocks * shape.block_size / TILE_TOKENS;
            let common = common.min(tiles(unit)).min(shared);
            // Tiles that need not be read again, without this unit and with it.
            let (before, after) = (group.units.len() - 1, group.units.len());
            let saves_more = after * common > before * shared;
            if common < LEAST_SHARED || !saves_more {
                break;
            }
            shared = common;
            group.shared_tiles = shared;
            group.units.end += 1;
            group.work += work(unit);
        }
        group
    }
}

impl<'a> AttentionBatch<'a> {
    pub(super) fn table_of(&self, sequence: usize) -> &'a [u32] {
        let bounds = &self.block_table_start[sequence..sequence + 2];
        &self.block_tables[bounds[0] as usize..bounds[1] as usize]
    }

    /// Positions up to the last query of a unit.
    pub(super) fn len_of(&self, unit: &Unit) -> usize {
        self.positions[unit.rows.end - 1] as usize + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, Pool};

    /// Sequences and shared tiles of the groups that one query token of each sequence forms.
    fn groups_of(tables: &[&[u32]], sliding_window: Option<usize>) -> Vec<(Vec<usize>, usize)> {
        let shape = AttentionShape {
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 16,
            sliding_window,
            block_size: 2 * TILE_TOKENS,
        };
        let len = |table: &&[u32]| (table.len() * shape.block_size) as u32;
        let starts = |sizes: Vec<usize>| -> Vec<u32> {
            let sum = |i| sizes[..i].iter().sum::<usize>() as u32;
            (0..=sizes.len()).map(sum).collect()
        };
        let batch = AttentionBatch {
            positions: &tables
                .iter()
                .map(|table| len(table) - 1)
                .collect::<Vec<_>>(),
            q_start: &starts(vec![1; tables.len()]),
            block_tables: &tables.concat(),
            block_table_start: &starts(tables.iter().map(|table| table.len()).collect()),
        };
        let mut plan = AttentionPlan::default();
        let compute = Compute::new(Isa::Portable, Pool::new(1).expect("a thread"));
        plan.set(&compute, &shape, &batch);
        let of_group = |group: &Group| {
            let units = &plan.units[group.units.clone()];
            (
                units.iter().map(|unit| unit.sequence).collect(),
                group.shared_tiles,
            )
        };
        plan.groups.iter().map(of_group).collect()
    }

    #[test]
    fn sequences_that_share_much_form_groups_of_as_many_rows_as_a_kernel_takes() {
        let tables: [&[u32]; 4] = [
            &[1, 2, 3, 4, 5, 20],
            &[9, 2, 3, 4, 5, 21],
            &[1, 2, 3, 4, 5, 6, 22],
            &[1, 2, 3, 4, 5, 6, 23, 24],
        ];
        let found = groups_of(&tables, None);
        assert_eq!(found, [(vec![2, 3, 0], 10), (vec![1], 0)]);
        assert_eq!(groups_of(&tables, Some(64)).len(), tables.len());
        // Three blocks are too few, and this kernel takes four rows at once.
        let same: [&[u32]; 3] = [&[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 2, 3, 6]];
        assert_eq!(groups_of(&same, None).len(), 3);
        let same: [&[u32]; 6] = [&[1, 2, 3, 4]; 6];
        let sizes: Vec<_> = groups_of(&same, None)
            .into_iter()
            .map(|(it, _)| it.len())
            .collect();
        assert_eq!(sizes, [4, 2]);
        // One that shares little does not spoil what others share.
        let tables: [&[u32]; 3] = [
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11],
            &[1, 2, 3, 4, 12],
        ];
        assert_eq!(groups_of(&tables, None), [(vec![0, 1], 18), (vec![2], 0)]);
    }

    #[test]
    fn attention_writes_where_each_unit_is_a_sequence_and_reads_no_other_ones_block() {
        let shape = AttentionShape {
            num_heads: 7,
            num_kv_heads: 1,
            head_dim: 16,
            sliding_window: None,
            block_size: 2 * TILE_TOKENS,
        };
        // Two tokens a unit. Each sequence: its position, its tokens, its blocks.
        let can_write = |sequences: &[(u32, u32, &[u32])]| {
            let starts = |sizes: &mut dyn Iterator<Item = usize>| -> Vec<u32> {
                let mut ends = vec![0];
                ends.extend(sizes.scan(0, |end, size| {
                    *end += size as u32;
                    Some(*end)
                }));
                ends
            };
            let positions = sequences.iter().flat_map(|it| it.0..it.0 + it.1);
            let positions: Vec<u32> = positions.collect();
            let tables: Vec<u32> = sequences.iter().flat_map(|it| it.2).copied().collect();
            let batch = AttentionBatch {
                positions: &positions,
                q_start: &starts(&mut sequences.iter().map(|it| it.1 as usize)),
                block_tables: &tables,
                block_table_start: &starts(&mut sequences.iter().map(|it| it.2.len())),
            };
            let slots = sequences.iter().flat_map(|&(position, tokens, table)| {
                let slot = |p: u32| table[p as usize / 32] * 32 + p % 32;
                (position..position + tokens).map(slot)
            });
            let slots: Vec<u32> = slots.collect();
            let mut plan = AttentionPlan::default();
            let compute = Compute::new(Isa::Portable, Pool::new(1).expect("a thread"));
            plan.set(&compute, &shape, &batch);
            plan.include_writes(&shape, &batch, &slots);
            assert!(!plan.writes() || plan.slots == slots);
            plan.writes()
        };
        assert!(can_write(&[
            (40, 1, &[1, 2]),
            (31, 2, &[3, 4]),
            (0, 0, &[])
        ]));
        // One block of both is only read.
        assert!(can_write(&[(40, 1, &[1, 2]), (50, 1, &[1, 3])]));
        // More tokens than a unit has.
        assert!(!can_write(&[(40, 3, &[1, 2]), (50, 1, &[4, 3])]));
        // Two write to a block; one reads what another one writes; but not where it ends before.
        assert!(!can_write(&[(40, 1, &[1, 2]), (50, 1, &[3, 2])]));
        assert!(!can_write(&[(20, 1, &[1]), (50, 1, &[1, 2])]));
        assert!(can_write(&[(20, 1, &[1]), (31, 1, &[2, 1])]));
    }
}
