//! Who computes how many tokens in the next step.
//!
//! Running sequences come first, in the order of their admission: one token each in decode, a
//! chunk in prefill. What is left of the token budget admits waiting sequences, first come, first
//! served. When blocks lack for a running sequence, the youngest running one is preempted: its
//! blocks go back and it waits at the front, to be recomputed. So the oldest always gets on, and
//! whatever the pool can hold alone is finished at last.
//!
//! Deals in integers only: no tensor, no clock, no client.

use std::collections::VecDeque;

use super::sequence::Sequence;
use crate::kv_cache::{KvCache, PartialCopy};

/// Waiting and running sequences, and the limits of a step.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub waiting: VecDeque<Sequence>,
    /// In the order of admission.
    pub running: Vec<Sequence>,
    max_batch_size: usize,
    max_batch_tokens: usize,
}

/// One step: the chunks of `running`, in its order.
#[derive(Debug, Default)]
pub(super) struct StepPlan {
    pub chunks: Vec<Chunk>,
    pub copies: Vec<PartialCopy>,
    /// The last sequences of `running` that are new in it.
    pub num_admitted: usize,
    pub num_preempted: usize,
}

/// The next `num_tokens` pending tokens of `running[sequence]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub sequence: usize,
    pub num_tokens: usize,
    /// Nothing is pending after it, so its last row gives the next token.
    pub is_last: bool,
}

impl Scheduler {
    /// `max_batch_tokens` of at least `max_batch_size` lets every running sequence decode in
    /// every step.
    pub fn new(max_batch_size: usize, max_batch_tokens: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            max_batch_size,
            max_batch_tokens,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Plans the next step. Blocks are taken for it; nothing is computed.
    pub fn schedule(&mut self, kv: &mut KvCache, plan: &mut StepPlan) {
        plan.chunks.clear();
        plan.copies.clear();
        plan.num_admitted = 0;
        plan.num_preempted = self.make_room(kv);
        let mut budget = self.max_batch_tokens;

        for in_decode in [true, false] {
            for sequence in 0..self.running.len() {
                if (self.running[sequence].num_pending_tokens() == 1) == in_decode {
                    self.plan_chunk(sequence, &mut budget, plan);
                }
            }
        }
        // A sequence that was preempted just now would only push the next one out again.
        if plan.num_preempted == 0 {
            self.admit(kv, &mut budget, plan);
        }
        plan.chunks.sort_unstable_by_key(|chunk| chunk.sequence);
    }

    /// Gives every running sequence room for its pending tokens, preempting the youngest ones
    /// while blocks lack. Returns how many were preempted.
    fn make_room(&mut self, kv: &mut KvCache) -> usize {
        let mut num_preempted = 0;
        let mut next = 0;
        while next < self.running.len() {
            let sequence = &mut self.running[next];
            let num_tokens = sequence.tokens.len();
            if kv.grow(&mut sequence.table, num_tokens) {
                next += 1;
                continue;
            }
            let mut youngest = self
                .running
                .pop()
                .expect("bug: nobody runs, yet one needs room");
            kv.release(&mut youngest.table);
            self.waiting.push_front(youngest);
            num_preempted += 1;
        }
        num_preempted
    }

    fn plan_chunk(&self, sequence: usize, budget: &mut usize, plan: &mut StepPlan) {
        let pending = self.running[sequence].num_pending_tokens();
        let num_tokens = pending.min(*budget);
        if num_tokens > 0 {
            *budget -= num_tokens;
            plan.chunks.push(Chunk {
                sequence,
                num_tokens,
                is_last: num_tokens == pending,
            });
        }
    }

    fn admit(&mut self, kv: &mut KvCache, budget: &mut usize, plan: &mut StepPlan) {
        while *budget > 0 && self.running.len() < self.max_batch_size {
            // A block for each running sequence stays back, so that the newcomer is not
            // preempted by their very next tokens.
            let headroom_blocks = self.running.len();
            let Some(sequence) = self.waiting.front_mut() else {
                return;
            };
            let Some(admission) = kv.admit(
                &sequence.tokens,
                sequence.max_reused_tokens(),
                headroom_blocks,
            ) else {
                return;
            };
            sequence.table = admission.table;
            plan.copies.extend(admission.copy);
            plan.num_admitted += 1;
            self.running.extend(self.waiting.pop_front());
            self.plan_chunk(self.running.len() - 1, budget, plan);
        }
    }
}
