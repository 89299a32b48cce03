//! When requests are sent. Closed loop: a fixed number of clients, each sending its next request
//! the moment its last one ended, so the load falls when the server slows down.

use std::cell::Cell;
use std::time::Instant;

use futures_util::future::join_all;

use super::client::{Client, RequestParams};
use super::record::{Clock, RequestRecord};
use super::workload::Prompt;

/// Sends all prompts and returns their records in sending order; `on_end` sees each as it ends.
pub async fn closed_loop(
    client: &Client,
    params: &RequestParams,
    prompts: &[Prompt],
    concurrency: usize,
    clock: &Clock,
    on_end: impl Fn(&RequestRecord),
) -> Vec<RequestRecord> {
    let next = Cell::new(0);
    let worker = async || {
        let mut records = Vec::new();
        while let Some(prompt) = prompts.get(next.get()) {
            let index = next.replace(next.get() + 1);
            let due = Instant::now();
            let record = client.send(params, prompt, index, due, clock).await;
            on_end(&record);
            records.push(record);
        }
        records
    };
    let workers = (0..concurrency.min(prompts.len())).map(|_| worker());
    let mut records: Vec<RequestRecord> = join_all(workers).await.into_iter().flatten().collect();
    records.sort_by_key(|record| record.index);
    records
}
