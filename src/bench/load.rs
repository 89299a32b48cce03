//! When requests are sent.
//!
//! * Closed loop: a fixed number of clients, each sending its next request the moment its last one
//!   ended, so the load falls when the server slows down.
//! * Open loop: requests are due at moments drawn beforehand, and are sent then, however many are
//!   still unanswered. A server that stalls is asked all the same, and its stall shows in every
//!   request that was due meanwhile.

mod arrivals;

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

pub use self::arrivals::Arrivals;
use super::client::{Client, RequestParams};
use super::record::{Clock, RequestRecord};
use super::workload::Prompt;

/// Sends all prompts and returns their records in sending order; `on_end` sees each as it ends.
pub async fn run_load(
    client: &Client,
    params: &RequestParams,
    prompts: &[Prompt],
    arrivals: &Arrivals,
    seed: u64,
    clock: &Clock,
    on_end: impl Fn(&RequestRecord),
) -> Vec<RequestRecord> {
    let send = async |index: usize, prompt: &Prompt, due: Instant| {
        let record = client.send(params, prompt, index, due, clock).await;
        on_end(&record);
        record
    };
    match arrivals.due_times(prompts.len(), seed) {
        Some(dues) => open_loop(prompts, &dues, send).await,
        None => {
            let concurrency = arrivals.concurrency().unwrap_or(1);
            closed_loop(prompts, concurrency, send).await
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
