//! The engine's state of one generation.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::fairness::ClientId;
use super::forecast::Work;
use super::request::{EngineError, Event, Request, TokenId};
use super::sampler::SamplerState;
use super::speculation::Drafter;
use super::timeline::Timeline;
use crate::kv_cache::BlockTable;

/// One generation: its tokens, where they lie in the cache, and whom to tell.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt, then output.
    pub tokens: Vec<TokenId>,
    pub num_prompt_tokens: usize,
    pub max_tokens: usize,
    pub stop_token_ids: Vec<TokenId>,
    /// Alternatives to report of each generated and of each prompt token, if any are wanted.
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    /// Prompt positions whose next token is scored and reported.
    pub num_scored_positions: usize,
    pub table: BlockTable,
    pub sampler: SamplerState,
    pub drafter: Option<Drafter>,
    /// Tokens that the step computes ahead, behind the pending ones.
    pub draft: Vec<TokenId>,
    /// Arrival, admission and first token; queue, prefill and decode lie between them.
    pub arrived: Instant,
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub deadline: Instant,
    pub timeline: Option<Arc<Timeline>>,
    /// When a wait is in vain: the first token is wanted by then.
    pub first_token_deadline: Option<Instant>,
    pub priority: i32,
    pub client: ClientId,
    events: UnboundedSender<Event>,
}

impl Sequence {
    pub fn new(request: Request, deadline: Instant, events: UnboundedSender<Event>) -> Self {
        let mut tokens = request.prompt;
        // Room for the whole output now, so that no step has to move the tokens.
        tokens.reserve_exact(request.max_tokens);
        Self {
            num_prompt_tokens: tokens.len(),
            max_tokens: request.max_tokens,
            stop_token_ids: request.stop_token_ids,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            num_scored_positions: 0,
            table: BlockTable::default(),
            sampler: SamplerState::new(request.sampling, &tokens),
            tokens,
            drafter: None,
            draft: Vec::new(),
            arrived: request.arrived,
            admitted: None,
            first_token: None,
            deadline,
            timeline: request.timeline,
            first_token_deadline: request
                .first_token_within
                .map(|within| request.arrived + within),
            priority: request.priority,
            client: request.client,
            events,
        }
    }

    /// Tokens whose K and V are still to be computed; 1 in decode.
    pub fn num_pending_tokens(&self) -> usize {
        self.tokens.len() - self.table.num_tokens()
    }

    /// How many of the first tokens may come from the cache: the rest need logits of their own.
    pub fn max_reused_tokens(&self) -> usize {
        let last = self.tokens.len() - 1;
        if self.prompt_logprobs.is_some() && self.num_scored_positions < self.num_prompt_tokens - 1
        {
            self.num_scored_positions
        } else {
            last
        }
    }

    /// The positions of the next `num_tokens` pending tokens whose logits score a prompt token.
    pub fn scored_positions(&self, num_tokens: usize) -> Range<usize> {
        let start = self.table.num_tokens();
        let end = (start + num_tokens).min(self.num_prompt_tokens - 1);
        if self.prompt_logprobs.is_some() {
            start.max(self.num_scored_positions).min(end)..end
        } else {
            0..0
        }
    }

    /// Drafts up to `max_tokens` tokens for the next step. The step gives one token more than the
    /// draft has, so a draft never reaches the last token that is wanted.
    pub fn draft(&mut self, max_tokens: usize) {
        let wanted = self.max_tokens.saturating_sub(self.num_output_tokens());
        let max_tokens = max_tokens.min(wanted.saturating_sub(1));
        if let Some(drafter) = self.drafter.as_mut().filter(|_| max_tokens > 0) {
            drafter.propose(&self.tokens, max_tokens, &mut self.draft);
        }
    }

    pub fn num_output_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// What is still to be computed.
    pub fn work(&self) -> Work {
        Work {
            prefill_tokens: self
                .num_prompt_tokens
                .saturating_sub(self.table.num_tokens()),
            max_tokens: self.max_tokens - self.num_output_tokens(),
            generated_tokens: self.num_output_tokens(),
        }
    }

    /// Whether its time is over. A first token that comes late is still worth having once it is
    /// computed for, but not worth beginning.
    pub fn is_expired(&self, now: Instant) -> bool {
        let waits_in_vain = self
            .first_token_deadline
            .is_some_and(|deadline| now >= deadline);
        now >= self.deadline || (self.admitted.is_none() && waits_in_vain)
    }

    /// Whether the client has dropped its end.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Tells the client. One that has just left is noticed before the next step.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What the time up to `now` was spent on, as an error.
    pub fn timeout(&self, now: Instant) -> EngineError {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        EngineError::Timeout {
            queue: admitted.duration_since(self.arrived),
            prefill: first_token.duration_since(admitted),
            decode: now.duration_since(first_token),
            generated_tokens: self.num_output_tokens(),
        }
    }
}
