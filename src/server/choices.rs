//! Several answers to one prompt: `n`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::generation::{Generation, Job};
use super::openapi::schema::{described, integer};
use super::state::AppState;

/// Takes `n`, the number of answers to each prompt.
///
/// # Errors
/// It is something else than a number from 1 to the server's limit.
pub fn take_number(fields: &mut Fields, max: usize) -> Result<usize, ApiError> {
    let expected = format!("a whole number from 1 to {max}");
    let number = fields.take("n", &expected, |n: &usize| (1..=max).contains(n))?;
    Ok(number.unwrap_or(1))
}

/// What [`take_number`] takes.
pub fn schema(max: usize) -> Value {
    described(integer(1, max), "Answers to each prompt")
}

/// Which of the answers to its prompt a generation gives.
#[derive(Clone)]
pub struct Choice {
    pub index: usize,
    siblings: Arc<Siblings>,
}

/// The answers to one prompt. They are counted together, when the last has gone.
struct Siblings {
    state: Arc<AppState>,
    num_choices: usize,
    num_finished: AtomicUsize,
    longest_tokens: AtomicUsize,
}

impl Choice {
    /// This answer is complete.
    pub fn finished(&self, generated_tokens: usize) {
        let Siblings {
            num_finished,
            longest_tokens,
            ..
        } = &*self.siblings;
        num_finished.fetch_add(1, Ordering::Relaxed);
        longest_tokens.fetch_max(generated_tokens, Ordering::Relaxed);
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        if *self.num_finished.get_mut() == self.num_choices {
            let longest = *self.longest_tokens.get_mut();
            self.state
                .metrics
                .observe_choices(self.num_choices, longest);
        }
    }
}

/// Starts `n` generations for each job; those of one job stand together.
///
/// A prompt is computed once: the others begin when the first of them has, and find it in the
/// prefix cache.
///
/// # Errors
/// A generation is refused, or the first of a prompt failed; then none goes on.
pub async fn start(
    state: &Arc<AppState>,
    jobs: Vec<Job<'_>>,
    n: usize,
) -> Result<Vec<Generation>, ApiError> {
    let firsts = jobs.iter().map(|job| {
        let choice = Choice {
            index: 0,
            siblings: Arc::new(Siblings {
                state: state.clone(),
                num_choices: n,
                num_finished: AtomicUsize::new(0),
                longest_tokens: AtomicUsize::new(0),
            }),
        };
        Ok((
            Generation::start(state, job.clone(), choice.clone())?,
            choice,
        ))
    });
    let firsts = firsts.collect::<Result<Vec<_>, ApiError>>()?;
    let mut generations = Vec::with_capacity(firsts.len() * n);
    for ((mut first, choice), job) in firsts.into_iter().zip(jobs) {
        if n > 1 {
            first.computed().await?;
        }
        generations.push(first);
        for index in 1..n {
            let choice = Choice {
                index,
                ..choice.clone()
            };
            generations.push(Generation::start(state, job.clone(), choice)?);
        }
    }
    Ok(generations)
}
