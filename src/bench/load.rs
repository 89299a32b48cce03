//! When requests are sent.
//!
//! * Closed loop: a fixed number of clients, each sending its next request the moment its last one
//!   ended, so the load falls when the server slows down.
//! * Open loop: requests are due at moments drawn beforehand, and are sent then, however many are
//!   still unanswered. A server that stalls is asked all the same, and its stall shows in every
//!   request that was due meanwhile.

mod arrivals;

use std::cell::Cell;
use std::ops::Range;
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
    let units = units(prompts);
    let next = Cell::new(0);
    let worker = async || {
        let mut records = Vec::new();
        while let Some(unit) = units.get(next.get()) {
            next.set(next.get() + 1);
            for index in unit.clone() {
                records.push(send(index, &prompts[index], Instant::now()).await);
            }
        }
        records
    };
    let workers = (0..concurrency.min(units.len())).map(|_| worker());
    let mut records: Vec<RequestRecord> = join_all(workers).await.into_iter().flatten().collect();
    records.sort_by_key(|record| record.index);
    records
}

/// What one client sends in turn: a conversation, or a request alone.
fn units(prompts: &[Prompt]) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let goes_on =
            prompt.session.is_some() && index > 0 && prompts[index - 1].session == prompt.session;
        match units.last_mut() {
            Some(unit) if goes_on => unit.end = index + 1,
            _ => units.push(index..index + 1),
        }
    }
    units
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_a_conversation_are_sent_by_one_client_and_other_requests_by_any() {
        let of = |session| Prompt {
            session,
            ..Prompt::default()
        };
        let sessions = [
            None,
            Some(1),
            Some(1),
            Some(2),
            None,
            None,
            Some(3),
            Some(3),
        ];
        let prompts: Vec<Prompt> = sessions.into_iter().map(of).collect();
        assert_eq!(units(&prompts), [0..1, 1..3, 3..4, 4..5, 5..6, 6..8]);
        assert!(units(&[]).is_empty());
    }
}
