//! When requests are sent.
//!
//! * Closed loop: a fixed number of clients, each sending its next request the moment its last one
//!   ended, so the load falls when the server slows down.
//! * Open loop: requests are due at moments drawn beforehand, and are sent then, however many are
//!   still unanswered. A server that stalls is asked all the same, and its stall shows in every
//!   request that was due meanwhile.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::client::{Client, RequestParams};
use super::record::{Clock, RequestRecord};
use super::workload::Prompt;

/// When the prompts of a run are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    Closed { concurrency: usize },
    Open { rate_per_s: f64, seed: u64 },
}

/// Sends all prompts and returns their records in sending order; `on_end` sees each as it ends.
pub async fn run_load(
    client: &Client,
    params: &RequestParams,
    prompts: &[Prompt],
    arrivals: Arrivals,
    clock: &Clock,
    on_end: impl Fn(&RequestRecord),
) -> Vec<RequestRecord> {
    let send = async |index: usize, prompt: &Prompt, due: Instant| {
        let record = client.send(params, prompt, index, due, clock).await;
        on_end(&record);
        record
    };
    match arrivals {
        Arrivals::Closed { concurrency } => closed_loop(prompts, concurrency, send).await,
        Arrivals::Open { rate_per_s, seed } => {
            let dues = poisson_arrivals(prompts.len(), rate_per_s, seed);
            open_loop(prompts, &dues, send).await
        }
    }
}

async fn closed_loop(
    prompts: &[Prompt],
    concurrency: usize,
    send: impl AsyncFn(usize, &Prompt, Instant) -> RequestRecord,
) -> Vec<RequestRecord> {
    let next = Cell::new(0);
    let worker = async || {
        let mut records = Vec::new();
        while let Some(prompt) = prompts.get(next.get()) {
            let index = next.replace(next.get() + 1);
            records.push(send(index, prompt, Instant::now()).await);
        }
        records
    };
    let workers = (0..concurrency.min(prompts.len())).map(|_| worker());
    let mut records: Vec<RequestRecord> = join_all(workers).await.into_iter().flatten().collect();
    records.sort_by_key(|record| record.index);
    records
}

async fn open_loop(
    prompts: &[Prompt],
    dues: &[Duration],
    send: impl AsyncFn(usize, &Prompt, Instant) -> RequestRecord,
) -> Vec<RequestRecord> {
    let start = Instant::now();
    let send = &send;
    let requests = prompts
        .iter()
        .zip(dues)
        .enumerate()
        .map(|(index, (prompt, due))| async move {
            let due = start + *due;
            tokio::time::sleep_until(due.into()).await;
            send(index, prompt, due).await
        });
    join_all(requests).await
}

/// Due times of a Poisson process, the first at 0: gaps are exponential with mean 1 / rate.
fn poisson_arrivals(count: usize, rate_per_s: f64, seed: u64) -> Vec<Duration> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut due_s = 0.0;
    (0..count)
        .map(|_| {
            let due = Duration::from_secs_f64(due_s);
            // 1 - u lies in (0, 1], so that the logarithm is finite.
            due_s -= (1.0 - rng.random::<f64>()).ln() / rate_per_s;
            due
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_their_rate_and_their_spread_and_follow_the_seed() {
        let dues = poisson_arrivals(20_001, 50.0, 3);
        assert_eq!(dues, poisson_arrivals(20_001, 50.0, 3));
        assert_ne!(dues, poisson_arrivals(20_001, 50.0, 4));
        assert_eq!(dues[0], Duration::ZERO);
        let gaps: Vec<f64> = dues
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "mean gap {mean} s");
        // Exponential gaps spread as far as their mean; even gaps would not spread at all.
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.05,
            "{}",
            variance.sqrt() / mean
        );
    }
}
