//! Sends the storm's requests, and keeps the clients' book.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

use super::act::{Act, Kind};
use super::caller::{Caller, Seen};
use super::ledger::Entry;
use super::record::Plan;
use crate::bench::endpoint::Endpoint;

/// The calm: as many clients, each with as many requests one after the other. Together they fill
/// the KV cache once.
const CALM_CLIENTS: usize = 16;
const CALM_REQUESTS: usize = 6;

const BURST_INTERVAL: Duration = Duration::from_secs(5);

pub struct Storm {
    caller: Caller,
    rng: ChaCha8Rng,
    num_sent: usize,
    /// What became of each request so far.
    pub entries: Vec<Entry>,
}

impl Storm {
    pub fn new(endpoint: &Endpoint, seed: u64) -> Self {
        Self {
            caller: Caller::new(endpoint),
            rng: ChaCha8Rng::seed_from_u64(seed),
            num_sent: 0,
            entries: Vec::new(),
        }
    }

    fn next_id(&mut self) -> String {
        self.num_sent += 1;
        format!("chaos-{}", self.num_sent)
    }

    /// A load that the server carries; returns how many requests a second it served.
    ///
    /// # Errors
    /// One of them is not served.
    pub async fn calm(&mut self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..CALM_CLIENTS {
            let acts: Vec<(String, Act)> = (0..CALM_REQUESTS)
                .map(|_| (self.next_id(), Act::of(Kind::Streaming, &mut self.rng)))
                .collect();
            let caller = self.caller.clone();
            clients.spawn(async move {
                let mut entries = Vec::new();
                for (id, act) in acts {
                    entries.push(play(&caller, id, act).await);
                }
                entries
            });
        }
        let mut entries: Vec<Entry> = clients.join_all().await.into_iter().flatten().collect();
        let capacity_per_s = entries.len() as f64 / began.elapsed().as_secs_f64();
        // Alone, so that it finds room; every buffer then has its size when memory is looked at.
        let long = Act::of(Kind::LongPrompt, &mut self.rng);
        entries.push(play(&self.caller.clone(), self.next_id(), long).await);
        for entry in &entries {
            let is_served = matches!(entry.seen, Seen::Completed { .. });
            ensure!(is_served, "in the calm before the storm, {entry:?}");
        }
        self.entries.extend(entries);
        Ok(capacity_per_s)
    }

    /// Requests at Poisson moments, and bursts, until the time is over and all have ended.
    pub async fn blow(&mut self, plan: &Plan) {
        let began = tokio::time::Instant::now();
        let end = began + Duration::from_secs_f64(plan.duration_s);
        let mut arrival = began;
        let mut burst = began + BURST_INTERVAL / 2;
        let mut callers = JoinSet::new();
        loop {
            let next = arrival.min(burst);
            if next >= end {
                break;
            }
            tokio::time::sleep_until(next).await;
            let acts: Vec<Act> = match next == burst {
                true => {
                    burst += BURST_INTERVAL;
                    (0..plan.burst)
                        .map(|_| Act::of(Kind::Patient, &mut self.rng))
                        .collect()
                }
                false => {
                    let uniform: f64 = self.rng.random();
                    let gap = -(1.0 - uniform).ln() / plan.arrivals_per_s;
                    arrival += Duration::from_secs_f64(gap);
                    vec![Act::draw(&mut self.rng)]
                }
            };
            for act in acts {
                let (id, caller) = (self.next_id(), self.caller.clone());
                callers.spawn(async move { play(&caller, id, act).await });
            }
            while let Some(ended) = callers.try_join_next() {
                self.entries.extend(ended);
            }
        }
        self.entries.extend(callers.join_all().await);
    }
}

async fn play(caller: &Caller, id: String, act: Act) -> Entry {
    let (kind, max_tokens) = (act.kind, act.max_tokens);
    let seen = caller.play(act, &id).await;
    Entry {
        id,
        kind,
        max_tokens,
        seen,
    }
}
