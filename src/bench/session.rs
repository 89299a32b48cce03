//! What each form of `bench` does, in order: measure, save, show, add to BENCHMARKS.md.

use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::args::{BenchArgs, BenchCommand, Format};
use super::client::ApiKey;
use super::compare::compare_files;
use super::endpoint::Endpoint;
use super::machine::{Commit, repository_root};
use super::measurement::{Target, measure};
use super::planning::Prompts;
use super::raw_record::conclude;
use super::record::Record;
use super::result_file::ResultFile;
use super::terminal::show;
use super::workload::definition::Definition;
use super::{ab, bandwidth, chaos, peers, report, rollback, search, server_log, verify, vllm_json};

/// Measures, prints the table, saves the raw records, and adds the run to BENCHMARKS.md; or what
/// else the subcommand says.
///
/// # Errors
/// The server cannot be started or reached, a file cannot be written, or no request succeeded.
/// Requests that fail among others that succeed are no error, but part of the result.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let folder = std::env::current_dir().context("cannot tell the current folder")?;
    run_in(&folder, &args)
}

/// [`run`] for another current folder: results go to the git repository around it, or to itself.
///
/// # Errors
/// As for [`run`].
pub fn run_in(folder: &Path, args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        None => until_interrupted(session(folder, args)),
        Some(BenchCommand::Ab(args)) => until_interrupted(ab::session(folder, args)),
        Some(BenchCommand::Chaos(args)) => until_interrupted(chaos::session(folder, args)),
        Some(BenchCommand::Rollback(args)) => until_interrupted(rollback::session(folder, args)),
        Some(BenchCommand::Peers(args)) => until_interrupted(peers::session(folder, args)),
        Some(BenchCommand::Search(args)) => until_interrupted(search::session(folder, args)),
        Some(BenchCommand::Workloads) => {
            show(&Definition::list()?);
            Ok(())
        }
        Some(BenchCommand::Compare { records }) => {
            show(&compare_files(records)?);
            Ok(())
        }
        Some(BenchCommand::Report(args)) => {
            show(&report::write(folder, args)?);
            Ok(())
        }
        Some(BenchCommand::Verify { rewrite }) => {
            let root = repository_root(folder);
            if *rewrite {
                verify::rewrite(&root)?;
            }
            show(&(verify::verify(&root)? + "\n"));
            Ok(())
        }
    }
}

fn until_interrupted(session: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // One thread: the load generator must leave the cores to the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the client's runtime")?;
    runtime.block_on(async {
        // Whichever ends first drops the other, and with the session its server.
        tokio::select! {
            result = session => result,
            result = interrupted() => result,
        }
    })
}

async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    bail!("interrupted; nothing was recorded")
}

async fn session(folder: &Path, args: &BenchArgs) -> anyhow::Result<()> {
    // What cannot be sent is said before a server is started for it.
    Prompts::read(&args.load)?;
    let kept = Kept {
        folder,
        output: args.output.as_deref(),
        append: !args.no_append,
        format: args.format,
        api_key: args.api_key.as_ref(),
    };
    // Before there is a server that would share the memory.
    let read_bytes_per_s = match args.measure_bandwidth {
        true => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let speed = bandwidth::read_bytes_per_s(threads);
            Some(speed.context("no memory to measure how fast it is read")?)
        }
        false => None,
    };
    let load = &args.load;
    keep(&kept, args.endpoint.as_ref(), async |target| {
        let mut record = measure(target, load).await?;
        record.run.machine.read_bytes_per_s = read_bytes_per_s;
        Ok(record)
    })
    .await
}

/// What becomes of a record.
pub struct Kept<'a> {
    pub folder: &'a Path,
    pub output: Option<&'a Path>,
    /// Whether BENCHMARKS.md gets it.
    pub append: bool,
    /// Another format to write it in.
    pub format: Option<Format>,
    /// What the server asks for, if it runs already.
    pub api_key: Option<&'a ApiKey>,
}

/// Has a server measured, an own one if there is no `endpoint`; saves the record, prints it, and adds
/// it to BENCHMARKS.md.
///
/// # Errors
/// As for [`run`]; and the run is void, see [`validity`](super::validity).
pub async fn keep(
    kept: &Kept<'_>,
    endpoint: Option<&Endpoint>,
    measure: impl AsyncFnOnce(&Target) -> anyhow::Result<Record>,
) -> anyhow::Result<()> {
    let file = ResultFile::prepare(kept.folder, kept.output, "")?;
    let target = match endpoint {
        Some(endpoint) => Target::running(endpoint, kept.api_key.cloned()).await?,
        None => Target::start(&Default::default(), &file.log()).await?,
    };
    let mut record = measure(&target).await?;
    record.run.commit = Commit::of(&file.root);
    // An own server has written its log to the end when it has ended.
    drop(target);
    if endpoint.is_none() {
        server_log::join(&mut record.requests, &file.log());
    }
    if kept.format == Some(Format::VllmJson) {
        let other = file.path.with_extension("vllm.json");
        std::fs::write(&other, vllm_json::render(&record)?)
            .with_context(|| format!("cannot write {}", other.display()))?;
    }
    conclude(record, &file, kept.append)
}
