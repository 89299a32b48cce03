//! `bench chaos`: a storm on a server of this program's own, and then the books.
//!
//! First a calm load finds what the server can carry. Then requests arrive at a multiple of that
//! rate, from clients of every kind (see [`act`]): they hang up in the queue, in prefill and in
//! decode, read slowly, want an answer sooner than there can be one, send what is no request. Now and
//! then a burst overflows the queue. In the middle the server is replaced by another on its port.
//!
//! When all is quiet again, what the clients saw must be what the servers say, request by request
//! and token by token; no block may have a reference, and no server's memory may have grown with its
//! requests (see [`memory`]). Any residue fails the run.

mod act;
mod caller;
mod ledger;
mod memory;
pub mod record;
mod section;
mod server_log;
mod storm;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;

use self::ledger::Balance;
use self::memory::{Memory, MemorySample};
use self::record::{ChaosRecord, Plan, ReplacementTimes};
use self::server_log::ServerBook;
use self::storm::Storm;
use super::client::Client;
use super::drill::Circumstances;
use super::raw_record::conclude;
use super::record::round_to_us;
use super::relay::Relay;
use super::result_file::ResultFile;
use super::server_stats::ServerStats;
use super::watch::ProcessProbe;

/// Time for a server to become quiet once nobody asks any more.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// The server that the storm is meant for: little of everything, so that all limits are reached.
/// What the environment sets stays.
const SETTINGS: [(&str, &str); 8] = [
    ("MAX_BATCH_SIZE", "16"),
    ("QUEUE_MAX_SIZE", "32"),
    ("KV_CACHE_SIZE", "40MiB"),
    ("MAX_MODEL_LEN", "1024"),
    ("REQUEST_TIMEOUT", "30"),
    ("DRAIN_TIMEOUT", "60"),
    ("LOG_FORMAT", "json"),
    ("RUST_LOG", "info"),
];

/// Storm a server of this program's own with clients of every kind, replace it meanwhile, and check
/// that the books of both sides balance
#[derive(Args, Clone, Debug)]
pub struct ChaosArgs {
    /// Length of the storm
    #[arg(long, default_value_t = 30.0, value_parser = parse_seconds, value_name = "SECONDS")]
    pub duration: f64,
    /// Arrivals, as a multiple of what the server was found to carry
    #[arg(long, default_value_t = 3.0, value_parser = parse_overload, value_name = "FACTOR")]
    pub overload: f64,
    /// Seed of the arrivals and of what each client does
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Raw record, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    // Less does not show how the memory of two servers goes.
    (20.0..=86_400.0)
        .contains(&seconds)
        .then_some(seconds)
        .ok_or_else(|| "a storm lasts from 20 seconds to a day".to_owned())
}

fn parse_overload(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| "expected a factor".to_owned())?;
    (0.1..=20.0)
        .contains(&factor)
        .then_some(factor)
        .ok_or_else(|| "an overload lies between 0.1 and 20".to_owned())
}

/// Holds the storm, settles the books, saves and shows them.
///
/// # Errors
/// A server does not start or end, a file cannot be written, or something is left: all of it, one a
/// line.
pub async fn session(folder: &Path, args: &ChaosArgs) -> anyhow::Result<()> {
    let file = ResultFile::prepare(folder, args.output.as_deref(), "-chaos")?;
    conclude(hold(args, &file).await?, &file, !args.no_append)
}

fn settings() -> BTreeMap<String, String> {
    let of_ours = SETTINGS
        .iter()
        .filter(|(name, _)| std::env::var_os(name).is_none());
    of_ours
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

async fn hold(args: &ChaosArgs, file: &ResultFile) -> anyhow::Result<ChaosRecord> {
    let settings = settings();
    let logs = [1, 2].map(|number| file.path.with_extension(format!("server-{number}.log")));
    for log in &logs {
        // The servers add to what is there, and an earlier run is none of theirs.
        std::fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
    }
    let mut relay = Relay::start(&settings, &logs[0]).await?;
    let client = Client::new(relay.endpoint.clone(), None);
    let stats = client.get_json("/stats").await?.unwrap_or_default();
    let about = Circumstances::now(&file.root, &settings, &stats);
    let max_waiting = stats["queue"]["max_waiting_requests"].as_u64().unwrap_or(0);

    let mut storm = Storm::new(&relay.endpoint, args.seed);
    let capacity_per_s = storm.calm().await?;
    settle(&client).await?;
    let mut memory = Memory {
        before_bytes: memory_of(relay.pid())?,
        ..Memory::default()
    };
    let plan = Plan {
        duration_s: args.duration,
        overload: args.overload,
        seed: args.seed,
        capacity_per_s,
        arrivals_per_s: capacity_per_s * args.overload,
        burst: 2 * max_waiting as usize,
    };
    let pids = RefCell::new(vec![relay.pid()]);
    let replacing = async {
        tokio::time::sleep(Duration::from_secs_f64(args.duration / 2.0)).await;
        let note = |pid| pids.borrow_mut().push(pid);
        relay.replace(&settings, &logs[1], note).await
    };
    let storm_and_replacement = async { tokio::join!(storm.blow(&plan), replacing).1 };
    let replacement = tokio::select! {
        replacement = storm_and_replacement => replacement?,
        never = sample(&pids, &mut memory.samples) => never,
    };
    settle(&client).await?;
    memory.after_bytes = memory_of(relay.pid())?;
    let mut faults = Vec::new();
    let (ready, _) = client.get("/health/ready").await?;
    if !ready.is_success() {
        faults.push(format!("the server is not ready after the storm: {ready}"));
    }
    relay.stop().await?;

    let books = logs
        .iter()
        .map(|log| ServerBook::read(log))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let balance = Balance::of(&storm.entries, &books);
    faults.extend(memory.faults());
    faults.extend(balance.faults.iter().cloned());
    Ok(ChaosRecord {
        chaos: plan,
        about,
        balance,
        replacement: ReplacementTimes {
            start_up_ms: round_to_us(replacement.start_up.as_secs_f64() * 1e3),
            drain_ms: round_to_us(replacement.drain.as_secs_f64() * 1e3),
        },
        memory,
        faults,
    })
}

/// Notes the memory of the servers that there are, once a second.
async fn sample<T>(pids: &RefCell<Vec<u32>>, samples: &mut Vec<MemorySample>) -> T {
    let began = Instant::now();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let at_s = began.elapsed().as_secs_f64().round();
        for &pid in &*pids.borrow() {
            // One that has been replaced is gone some time.
            if let Ok(bytes) = memory_of(pid) {
                samples.push(MemorySample { at_s, pid, bytes });
            }
        }
    }
}

fn memory_of(pid: u32) -> anyhow::Result<u64> {
    ProcessProbe::new(pid)
        .and_then(|mut probe| probe.memory_bytes())
        .context("the system does not tell how much memory the server has")
}

/// Waits until nobody is in the server any more.
async fn settle(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let stats = client.get_json("/stats").await?.unwrap_or_default();
        let stats = ServerStats::of(&stats);
        let (waiting, running) = (
            stats.queue.num_waiting_requests,
            stats.batch.num_running_requests,
        );
        if (waiting, running) == (Some(0), Some(0)) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{waiting:?} requests wait and {running:?} run, though all clients have left"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
