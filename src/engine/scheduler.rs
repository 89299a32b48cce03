//! Who computes how many tokens in the next step.
//!
//! Decodes come first, one token each: no prompt delays them by more than a step. What is left of
//! the token budget goes to prompts, those that are being computed and those that wait: the lowest
//! priority value first, then the client that has had least, then first come, first served.
//!
//! When blocks lack for a running sequence, the youngest of the least urgent is preempted: its
//! blocks go back and it waits, to be recomputed, before all that has not begun. So the oldest of
//! the most urgent always gets on, and whatever the pool can hold alone is finished at last.
//!
//! Drafts take what is left after all that: they never cost another sequence its place.
//!
//! Deals in integers only: no tensor, no clock, no client.

use std::collections::VecDeque;

use super::fairness::Fairness;
use super::sequence::Sequence;
use super::speculation::DraftLimits;
use crate::kv_cache::{KvCache, PartialCopy};

/// Waiting and running sequences, and the limits of a step.
#[derive(Debug)]
pub(super) struct Scheduler {
    /// In the order of arrival; preempted ones before.
    pub waiting: VecDeque<Sequence>,
    /// In the order of admission.
    pub running: Vec<Sequence>,
    fairness: Fairness,
    max_batch_size: usize,
    max_batch_tokens: usize,
    reuses_prefixes: bool,
    drafts: Option<DraftLimits>,
}

/// One step: the chunks of `running`, in its order.
#[derive(Debug, Default)]
pub(super) struct StepPlan {
    pub chunks: Vec<Chunk>,
    pub copies: Vec<PartialCopy>,
    /// The last sequences of `running` that are new in it.
    pub num_admitted: usize,
    pub num_preempted: usize,
    /// One more sequence could have run, but for blocks.
    pub lacks_blocks: bool,
}

/// The next `num_tokens` pending tokens of `running[sequence]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub sequence: usize,
    pub num_tokens: usize,
    /// Nothing is pending after it, so its last row gives the next token.
    pub is_last: bool,
}

/// The least goes first.
type Turn = (i32, bool, u64);

impl Scheduler {
    /// `max_batch_tokens` of at least `max_batch_size` lets every running sequence decode in
    /// every step.
    pub fn new(
        max_batch_size: usize,
        max_batch_tokens: usize,
        reuses_prefixes: bool,
        drafts: Option<DraftLimits>,
    ) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            fairness: Fairness::default(),
            max_batch_size,
            max_batch_tokens,
            reuses_prefixes,
            drafts,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes a new sequence.
    pub fn enqueue(&mut self, sequence: Sequence) {
        self.fairness.enter(sequence.client);
        self.waiting.push_back(sequence);
    }

    /// Notes that a sequence, taken out of `waiting` or `running`, does not come back.
    pub fn dismiss(&mut self, sequence: &Sequence) {
        self.fairness.leave(sequence.client);
    }

    /// Plans the next step. Blocks are taken for it; nothing is computed.
    pub fn schedule(&mut self, kv: &mut KvCache, plan: &mut StepPlan) {
        plan.chunks.clear();
        plan.copies.clear();
        plan.num_admitted = 0;
        plan.num_preempted = self.make_room(kv);
        plan.lacks_blocks = plan.num_preempted > 0;
        let mut budget = self.max_batch_tokens;
        for sequence in 0..self.running.len() {
            if self.is_in_decode(sequence) {
                self.plan_chunk(sequence, &mut budget, plan);
            }
        }
        self.plan_prefills(kv, &mut budget, plan);
        plan.chunks.sort_unstable_by_key(|chunk| chunk.sequence);
        if let Some(limits) = self.drafts {
            self.plan_drafts(kv, limits, plan);
        }
    }

    /// Drafts with what the planned tokens leave of the limits, in equal shares. A draft takes a
    /// block only where each running sequence could have one more.
    fn plan_drafts(&mut self, kv: &mut KvCache, limits: DraftLimits, plan: &StepPlan) {
        let planned: usize = plan.chunks.iter().map(|chunk| chunk.num_tokens).sum();
        let step_tokens = limits.step_tokens.min(self.max_batch_tokens);
        let mut budget = step_tokens.saturating_sub(planned);
        let headroom_blocks = self.running.len();
        let decodes = |chunk: &&Chunk| chunk.is_last && chunk.num_tokens == 1;
        let mut num_left = plan.chunks.iter().filter(decodes).count();
        for chunk in plan.chunks.iter().filter(decodes) {
            let sequence = &mut self.running[chunk.sequence];
            let share = budget.div_ceil(num_left);
            num_left -= 1;
            sequence.draft(share.min(limits.draft_tokens));
            let end = sequence.tokens.len() + sequence.draft.len();
            if !kv.grow(&mut sequence.table, end, headroom_blocks) {
                let room = sequence.table.capacity_tokens() - sequence.tokens.len();
                sequence.draft.truncate(room);
            }
            budget -= sequence.draft.len();
        }
    }

    fn is_in_decode(&self, sequence: usize) -> bool {
        self.running[sequence].num_pending_tokens() == 1
    }

    /// What was preempted waits before all others.
    fn turn_of(&self, sequence: &Sequence, is_running: bool) -> Turn {
        let is_preempted = !is_running && sequence.admitted.is_some();
        let computed_tokens = self.fairness.computed_tokens(sequence.client);
        (sequence.priority, !is_preempted, computed_tokens)
    }

    /// Gives every running sequence room for its pending tokens, preempting others while blocks
    /// lack. Returns how many were preempted.
    fn make_room(&mut self, kv: &mut KvCache) -> usize {
        let mut num_preempted = 0;
        let mut next = 0;
        while next < self.running.len() {
            let sequence = &mut self.running[next];
            let num_tokens = sequence.tokens.len();
            if kv.grow(&mut sequence.table, num_tokens, 0) {
                next += 1;
                continue;
            }
            let victim = (0..self.running.len())
                .max_by_key(|&index| (self.running[index].priority, index))
                .expect("bug: nobody runs, yet one needs room");
            let mut victim_sequence = self.running.remove(victim);
            kv.release(&mut victim_sequence.table);
            self.waiting.push_front(victim_sequence);
            num_preempted += 1;
            next -= usize::from(victim < next);
        }
        num_preempted
    }

    /// Shares what the decodes left among the prompts in turn.
    fn plan_prefills(&mut self, kv: &mut KvCache, budget: &mut usize, plan: &mut StepPlan) {
        let mut prefills: Vec<usize> = (0..self.running.len())
            .filter(|&sequence| !self.is_in_decode(sequence))
            .collect();
        // A sequence that was preempted just now would only push the next one out again.
        let mut may_admit = plan.num_preempted == 0;
        while *budget > 0 {
            may_admit &= self.running.len() < self.max_batch_size;
            let running = (0..prefills.len())
                .map(|place| (self.turn_of(&self.running[prefills[place]], true), place))
                .min();
            let waiting = (0..self.waiting.len())
                .filter(|_| may_admit)
                .map(|place| (self.turn_of(&self.waiting[place], false), place))
                .min();
            if let Some((turn, place)) = running
                && waiting.is_none_or(|(other, _)| turn <= other)
            {
                self.plan_chunk(prefills.remove(place), budget, plan);
            } else if let Some((_, place)) = waiting {
                if self.admit(place, kv, plan) {
                    self.plan_chunk(self.running.len() - 1, budget, plan);
                } else {
                    plan.lacks_blocks = true;
                    may_admit = false;
                }
            } else {
                return;
            }
        }
    }

    fn plan_chunk(&mut self, sequence: usize, budget: &mut usize, plan: &mut StepPlan) {
        let client = self.running[sequence].client;
        let pending = self.running[sequence].num_pending_tokens();
        let num_tokens = pending.min(*budget);
        if num_tokens > 0 {
            *budget -= num_tokens;
            self.fairness.charge(client, num_tokens);
            plan.chunks.push(Chunk {
                sequence,
                num_tokens,
                is_last: num_tokens == pending,
            });
        }
    }

    /// Lets the waiting sequence at `place` run, if there are blocks for it.
    fn admit(&mut self, place: usize, kv: &mut KvCache, plan: &mut StepPlan) -> bool {
        // A block for each running sequence stays back, so that the newcomer is not preempted by
        // their very next tokens.
        let headroom_blocks = self.running.len();
        let sequence = &mut self.waiting[place];
        let max_reused = match self.reuses_prefixes {
            true => sequence.max_reused_tokens(),
            false => 0,
        };
        let Some(admission) = kv.admit(&sequence.tokens, max_reused, headroom_blocks) else {
            return false;
        };
        sequence.table = admission.table;
        plan.copies.extend(admission.copy);
        plan.num_admitted += 1;
        self.running.extend(self.waiting.remove(place));
        true
    }
}
