//! From the logits of a step to a sequence's next tokens.

use std::time::Instant;

use super::logprobs::TokenLogprobs;
use super::request::{Event, FinishReason, TokenId};
use super::sampler::{NotFinite, Sampler};
use super::sequence::Sequence;
use crate::runner::Logits;

/// How a sequence ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Finished(FinishReason),
    Cancelled,
    TimedOut,
    Failed(String),
    /// The model computed no numbers for it.
    Corrupted(NotFinite),
}

/// What one step gave a sequence.
#[derive(Debug, Default)]
pub(super) struct Generated {
    pub num_tokens: usize,
    /// Tokens of the draft that turned out right: their K and V stay in the cache.
    pub num_accepted: usize,
    /// Set if the sequence has ended.
    pub outcome: Option<Outcome>,
}

impl Generated {
    pub fn ended(outcome: Outcome) -> Self {
        Self {
            outcome: Some(outcome),
            ..Self::default()
        }
    }
}

/// Reports the prompt tokens that the rows of logits from `first_row` on score.
pub(super) fn score_prompt(
    sequence: &mut Sequence,
    num_tokens: usize,
    logits: &Logits,
    first_row: usize,
) -> Result<(), NotFinite> {
    let num_top = sequence.prompt_logprobs.unwrap_or(0);
    let scored: Vec<_> = sequence
        .scored_positions(num_tokens)
        .zip(first_row..)
        .map(|(position, row)| {
            TokenLogprobs::score(logits.row(row), sequence.tokens[position + 1], num_top)
        })
        .collect();
    if scored.iter().any(|token| token.logprob.is_nan()) {
        return Err(NotFinite);
    }
    if !scored.is_empty() {
        sequence.num_scored_positions += scored.len();
        sequence.send(Event::Prompt(scored));
    }
    Ok(())
}

/// Samples the next token from row `first_row`, and one more from each following row as long as
/// the draft foresaw the token before it.
pub(super) fn generate(
    sequence: &mut Sequence,
    sampler: &mut Sampler,
    logits: &Logits,
    first_row: usize,
    at: Instant,
) -> Generated {
    let mut generated = Generated::default();
    loop {
        let logits = logits.row(first_row + generated.num_tokens);
        let id = match sampler.sample(logits, &mut sequence.sampler) {
            Ok(id) => id,
            Err(error) => {
                generated.outcome = Some(Outcome::Corrupted(error));
                return generated;
            }
        };
        let drafted = sequence.draft.get(generated.num_tokens) == Some(&id);
        generated.num_tokens += 1;
        generated.num_accepted += usize::from(drafted);
        generated.outcome = accept(sequence, id, logits, at);
        if !drafted || generated.outcome.is_some() {
            return generated;
        }
    }
}

/// Adds a sampled token to its sequence; says whether it was the last.
fn accept(sequence: &mut Sequence, id: TokenId, logits: &[f32], at: Instant) -> Option<Outcome> {
    sequence.tokens.push(id);
    sequence.first_token.get_or_insert(at);
    let logprobs = sequence
        .logprobs
        .map(|num_top| Box::new(TokenLogprobs::score(logits, id, num_top)));
    sequence.send(Event::Token { at, id, logprobs });
    if sequence.stop_token_ids.contains(&id) {
        Some(Outcome::Finished(FinishReason::Stop))
    } else if sequence.num_output_tokens() == sequence.max_tokens {
        Some(Outcome::Finished(FinishReason::Length))
    } else {
        None
    }
}
