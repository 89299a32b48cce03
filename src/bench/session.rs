//! One run from its flags to its report: the order of events, and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{BenchArgs, BenchCommand};
use super::benchmarks_md;
use super::client::{Client, RequestParams};
use super::compare::compare_files;
use super::endpoint::Api;
use super::load::{Arrivals, run_load};
use super::machine::{Commit, Machine, repository_root};
use super::own_server::OwnServer;
use super::progress::progress_bar;
use super::provenance::{command_line, settings_from_environment};
use super::record::{
    Clock, FORMAT_VERSION, OWN_SERVER, Record, RequestRecord, Run, ServerRecord, ServerSample,
    judge_missing_usage, round_to_us,
};
use super::report::Report;
use super::server_stats::ServerStats;
use super::watch::{ProcessProbe, Watch};
use super::workload::Workload;

/// Measures, prints the table, saves the raw records, and adds the run to BENCHMARKS.md.
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
    if let Some(BenchCommand::Compare { records }) = &args.command {
        print!("{}", compare_files(records)?);
        return Ok(());
    }
    // One thread: the load generator must leave the cores to the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the client's runtime")?;
    runtime.block_on(async {
        // Whichever ends first drops the other, and with the session its server.
        tokio::select! {
            result = session(folder, args) => result,
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
    let started = Timestamp::now();
    let root = repository_root(folder);
    let workload = Workload::draw(&args.workload_params())?;
    let output = args
        .output
        .as_ref()
        .map_or_else(|| default_output(&root, started), |file| folder.join(file));
    let parent = output.parent().unwrap_or(Path::new("")).to_owned();
    std::fs::create_dir_all(&parent)
        .with_context(|| format!("cannot create {}", parent.display()))?;

    let mut record = measure(args, &workload, started, &output).await?;
    judge_missing_usage(&mut record.requests);
    record.run.commit = Commit::of(&root);

    std::fs::write(&output, record.to_json()?)
        .with_context(|| format!("cannot write {}", output.display()))?;
    let raw = output
        .strip_prefix(&root)
        .unwrap_or(&output)
        .display()
        .to_string();
    let report = Report::new(&record, &raw);
    print!("{}", report.to_text());
    ensure_some_success(&record, &raw)?;
    if !args.no_append {
        let path = root.join("BENCHMARKS.md");
        benchmarks_md::append(&path, &report.to_summary_row(), &report.to_markdown())?;
        println!(
            "{:<26}{}",
            "added to",
            path.strip_prefix(folder).unwrap_or(&path).display()
        );
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

fn default_output(root: &Path, started: Timestamp) -> PathBuf {
    let name = started.strftime("%Y%m%dT%H%M%SZ.json").to_string();
    root.join("benches").join("results").join(name)
}

/// The server to measure; one of our own ends with it.
struct Target {
    own_server: Option<OwnServer>,
    client: Client,
    model: Option<String>,
}

impl Target {
    /// Starts a server if none was named, and asks for its model.
    async fn open(args: &BenchArgs, output: &Path) -> anyhow::Result<Self> {
        let (own_server, endpoint) = match &args.endpoint {
            Some(endpoint) => (None, endpoint.clone()),
            None => {
                let program = std::env::current_exe().context("cannot tell this program's file")?;
                let log = output.with_extension("log");
                let mut server = OwnServer::start(Command::new(program), &log)?;
                let waiting = progress_bar(None, "starting the server");
                let endpoint = server.ready().await?;
                waiting.finish_and_clear();
                (Some(server), endpoint)
            }
        };
        let client = Client::new(endpoint);
        let model = client.model_id().await?;
        ensure!(
            model.is_some() || client.endpoint.api == Api::Generate,
            "{} lists no model: --endpoint takes the base address of an OpenAI-compatible server, \
             or the address of a /generate",
            client.endpoint.url("/v1/models")
        );
        Ok(Self {
            own_server,
            client,
            model,
        })
    }

    fn process(&self) -> Option<ProcessProbe> {
        let server = self.own_server.as_ref()?;
        ProcessProbe::new(server.pid())
    }
}

/// Warms the server up and measures it.
async fn measure(
    args: &BenchArgs,
    workload: &Workload,
    started: Timestamp,
    output: &Path,
) -> anyhow::Result<Record> {
    let machine = Machine::this();
    let target = Target::open(args, output).await?;
    let client = &target.client;
    let params = RequestParams {
        model: target.model.clone().unwrap_or_default(),
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
        timeout: args.request_timeout(),
        id_prefix: format!("bench-{}", started.as_millisecond()),
    };
    warm_up(client, &params, workload, args.concurrency).await;

    let stats_before = client.get_json("/stats").await?.unwrap_or_default();
    let measured = measure_load(args, client, &params, workload, target.process()).await;
    // A server that died under the load is a result, and its records are kept.
    let stats_after = client
        .get_json("/stats")
        .await
        .ok()
        .flatten()
        .unwrap_or_default();

    let environment = match target.own_server {
        Some(_) => settings_from_environment(&ServerStats::of(&stats_before).settings),
        None => BTreeMap::new(),
    };
    let endpoint = args
        .endpoint
        .as_ref()
        .map_or(OWN_SERVER.to_owned(), ToString::to_string);
    let run = Run {
        format_version: FORMAT_VERSION,
        tool: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
        started: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        command: command_line(&environment),
        environment,
        commit: None,
        machine,
        client: args.client_settings(workload),
        server: ServerRecord {
            endpoint,
            api: client.endpoint.path().to_owned(),
            model: target.model.clone(),
            stats_before,
            stats_after,
            samples: measured.samples,
        },
        duration_ms: duration_ms(&measured.requests),
        client_cpu_ms: measured.client_cpu_ms,
    };
    Ok(Record {
        run,
        requests: measured.requests,
    })
}

async fn warm_up(client: &Client, params: &RequestParams, workload: &Workload, concurrency: usize) {
    let params = RequestParams {
        id_prefix: format!("{}-warmup", params.id_prefix),
        ..params.clone()
    };
    let bar = progress_bar(Some(workload.warmup.len()), "warming up");
    run_load(
        client,
        &params,
        &workload.warmup,
        Arrivals::Closed { concurrency },
        &Clock::start(),
        |_| bar.inc(1),
    )
    .await;
    bar.finish_and_clear();
}

struct Measured {
    requests: Vec<RequestRecord>,
    samples: Vec<ServerSample>,
    client_cpu_ms: u64,
}

async fn measure_load(
    args: &BenchArgs,
    client: &Client,
    params: &RequestParams,
    workload: &Workload,
    process: Option<ProcessProbe>,
) -> Measured {
    let mut own_cpu = ProcessProbe::new(std::process::id());
    let mut cpu_ms = || {
        own_cpu
            .as_mut()
            .and_then(ProcessProbe::cpu_time_ms)
            .unwrap_or_default()
    };
    let bar = progress_bar(Some(args.requests), "measuring");
    let failed = std::cell::Cell::new(0);
    let on_end = |record: &RequestRecord| {
        bar.inc(1);
        if !record.is_success() {
            failed.set(failed.get() + 1);
            bar.set_message(format!("measuring, {} failed", failed.get()));
        }
    };
    let clock = Clock::start();
    let mut watch = Watch::new(client, process, &clock);
    // However short the run, there is one sample of it.
    watch.sample().await;
    let cpu_before = cpu_ms();
    let prompts = &workload.measured;
    let requests = tokio::select! {
        requests = run_load(client, params, prompts, args.arrivals(), &clock, on_end) => requests,
        never = watch.run() => never,
    };
    let client_cpu_ms = cpu_ms().saturating_sub(cpu_before);
    bar.finish_and_clear();
    Measured {
        requests,
        samples: watch.samples,
        client_cpu_ms,
    }
}

fn duration_ms(requests: &[RequestRecord]) -> f64 {
    let first_due = requests
        .iter()
        .map(|r| r.due_ms)
        .fold(f64::INFINITY, f64::min);
    let last_end = requests.iter().map(|r| r.end_ms).fold(0.0, f64::max);
    round_to_us(last_end - first_due)
}
