//! What each form of `bench` does, in order: measure, save, show, add to BENCHMARKS.md.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::args::{BenchArgs, BenchCommand};
use super::benchmarks_md::{self, Table};
use super::compare::compare_files;
use super::machine::{Commit, repository_root};
use super::measurement::{Target, measure};
use super::record::{Record, RequestRecord};
use super::result_file::ResultFile;
use super::section::RunSection;
use super::terminal::show;
use super::{ab, chaos, report, rollback, verify};

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
        Some(BenchCommand::Compare { records }) => {
            show(&compare_files(records)?);
            Ok(())
        }
        Some(BenchCommand::Report(args)) => {
            show(&report::write(folder, args)?);
            Ok(())
        }
        Some(BenchCommand::Verify) => {
            show(&(verify::verify(&repository_root(folder))? + "\n"));
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
    let root = repository_root(folder);
    // What cannot be sent is said before a server is started for it.
    args.load.plan(args.endpoint.is_none())?;
    args.load.slo()?;
    let file = ResultFile::prepare(folder, &root, args.output.as_deref(), "")?;
    let target = match &args.endpoint {
        Some(endpoint) => Target::running(endpoint, args.api_key.clone()).await?,
        None => Target::start(&Default::default(), &file.log()).await?,
    };
    let mut record = measure(&target, &args.load).await?;
    record.run.commit = Commit::of(&root);
    drop(target);

    let json = record.to_json()?;
    let (record, stored) = file.store(record, &json, Record::read);
    let section = RunSection::new(&record, &file.shown);
    show(&section.to_text());
    stored?;
    ensure_some_success(&record, &file.shown)?;
    if !args.no_append {
        let path = root.join("BENCHMARKS.md");
        let (row, markdown) = (section.to_summary_row(), section.to_markdown());
        benchmarks_md::append(&path, Table::Runs, &row, &markdown)?;
        let shown = path.strip_prefix(folder).unwrap_or(&path).display();
        show(&format!("{:<26}{shown}\n", "added to"));
    }
    Ok(())
}

/// A run in which nothing succeeded has no result to keep.
fn ensure_some_success(record: &Record, raw: &str) -> anyhow::Result<()> {
    let failure = record
        .requests
        .iter()
        .find_map(|r| Some((r.status, r.failure.as_ref()?)));
    let Some((status, failure)) = failure else {
        return Ok(());
    };
    ensure!(
        record.requests.iter().any(RequestRecord::is_success),
        "no request succeeded; the first failed with: {}: {} (all are in {raw})",
        failure.label(status),
        failure.message
    );
    Ok(())
}
