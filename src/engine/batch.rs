//! From a step's plan to the runner's ragged batch.

use super::scheduler::StepPlan;
use super::sequence::Sequence;
use crate::runner::{BlockCopy, RaggedBatch};

/// Fills `batch` with the planned chunks of `running`.
pub(super) fn fill(batch: &mut RaggedBatch, plan: &StepPlan, running: &[Sequence]) {
    batch.clear();
    batch.copies.extend(
        plan.copies
            .iter()
            .filter(|copy| copy.from != copy.to)
            .map(|copy| BlockCopy {
                from_block: copy.from.0,
                to_block: copy.to.0,
                num_tokens: copy.num_tokens as u32,
            }),
    );
    for chunk in &plan.chunks {
        let sequence = &running[chunk.sequence];
        let Sequence { tokens, table, .. } = sequence;
        let start = table.num_tokens();
        let planned = start + chunk.num_tokens;
        let end = planned + sequence.draft.len();
        let first_row = batch.token_ids.len();
        batch.q_start.push(first_row as u32);
        batch
            .block_table_start
            .push(batch.block_tables.len() as u32);
        batch.token_ids.extend(&tokens[start..planned]);
        batch.token_ids.extend(&sequence.draft);
        batch.positions.extend(start as u32..end as u32);
        batch
            .slots
            .extend((start..end).map(|position| table.slot(position)));
        batch.seq_lens.push(end as u32);
        batch
            .block_tables
            .extend(table.blocks().iter().map(|block| block.0));
        let scored = sequence.scored_positions(chunk.num_tokens);
        let rows = scored.map(|position| (first_row + position - start) as u32);
        batch.logit_rows.extend(rows);
        if chunk.is_last {
            let last_planned = first_row + chunk.num_tokens - 1;
            let rows = last_planned as u32..batch.token_ids.len() as u32;
            batch.logit_rows.extend(rows);
        }
    }
    batch.q_start.push(batch.token_ids.len() as u32);
    batch
        .block_table_start
        .push(batch.block_tables.len() as u32);
}
