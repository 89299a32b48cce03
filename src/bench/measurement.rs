//! One measurement: a server, the load on it, and what was observed, as a [`Record`].

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;

use super::args::LoadArgs;
use super::client::{Client, RequestParams};
use super::endpoint::{Api, Endpoint};
use super::load::{Arrivals, run_load};
use super::machine::Machine;
use super::own_server::OwnServer;
use super::progress::progress_bar;
use super::provenance::{command_line, settings_from_environment};
use super::record::{
    Clock, FORMAT_VERSION, OWN_SERVER, Record, RequestRecord, Run, ServerRecord, ServerSample,
    judge_missing_usage, round_to_us,
};
use super::server_stats::ServerStats;
use super::watch::{ProcessProbe, Watch};
use super::workload::Workload;

/// Names the program in records.
pub const TOOL: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// A moment as records have it: UTC, RFC 3339, to the second.
pub fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The server to measure; one of our own ends with it.
pub struct Target {
    own_server: Option<OwnServer>,
    client: Client,
    model: Option<String>,
    /// What its server was started with, on top of this program's environment.
    settings: BTreeMap<String, String>,
}

impl Target {
    /// A server that already runs.
    ///
    /// # Errors
    /// It cannot be reached, or lists no model.
    pub async fn running(endpoint: &Endpoint) -> anyhow::Result<Self> {
        Self::open(endpoint.clone(), None, BTreeMap::new()).await
    }

    /// This program's own server, started with `settings` on top of this program's environment;
    /// what it logs is added to `log`.
    ///
    /// # Errors
    /// It cannot be started, or does not get ready.
    pub async fn start(settings: &BTreeMap<String, String>, log: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell this program's file")?;
        let mut command = Command::new(program);
        command.envs(settings);
        let mut server = OwnServer::start(command, log)?;
        let waiting = progress_bar(None, "starting the server");
        let endpoint = server.ready().await?;
        waiting.finish_and_clear();
        Self::open(endpoint, Some(server), settings.clone()).await
    }

    async fn open(
        endpoint: Endpoint,
        own_server: Option<OwnServer>,
        settings: BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
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
            settings,
        })
    }

    fn process(&self) -> Option<ProcessProbe> {
        let server = self.own_server.as_ref()?;
        ProcessProbe::new(server.pid())
    }

    fn describe(&self) -> String {
        match self.own_server {
            Some(_) => OWN_SERVER.to_owned(),
            None => self.client.endpoint.to_string(),
        }
    }

    /// The settings that came through the environment: through this program's own, and in all.
    fn environment(&self, stats: &ServerStats) -> [BTreeMap<String, String>; 2] {
        if self.own_server.is_none() {
            return [BTreeMap::new(), BTreeMap::new()];
        }
        let inherited = settings_from_environment(&stats.settings);
        let mut all = inherited.clone();
        all.extend(self.settings.clone());
        [inherited, all]
    }

    /// What the server says of itself, `Null` if nothing.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn stats(&self) -> anyhow::Result<serde_json::Value> {
        Ok(self.client.get_json("/stats").await?.unwrap_or_default())
    }
}

/// Warms the server up and measures it.
///
/// # Errors
/// The server cannot be reached before the load. One that dies under it is a result.
pub async fn measure(
    target: &Target,
    load: &LoadArgs,
    workload: &Workload,
) -> anyhow::Result<Record> {
    let started = Timestamp::now();
    let machine = Machine::this();
    let client = &target.client;
    let params = RequestParams {
        model: target.model.clone().unwrap_or_default(),
        max_tokens: load.max_tokens,
        ignore_eos: load.ignore_eos,
        timeout: load.request_timeout(),
        id_prefix: format!("bench-{}", started.as_millisecond()),
    };
    warm_up(client, &params, workload, load.concurrency).await;

    let stats_before = target.stats().await?;
    let mut measured = measure_load(load, client, &params, workload, target.process()).await;
    // A server that died under the load is a result, and its records are kept.
    let stats_after = target.stats().await.unwrap_or_default();
    judge_missing_usage(&mut measured.requests);

    let [inherited, environment] = target.environment(&ServerStats::of(&stats_before));
    let run = Run {
        format_version: FORMAT_VERSION,
        tool: TOOL.to_owned(),
        started: utc(started),
        command: command_line(&inherited),
        environment,
        commit: None,
        machine,
        client: load.client_settings(workload),
        server: ServerRecord {
            endpoint: target.describe(),
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
    load: &LoadArgs,
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
    let bar = progress_bar(Some(load.requests), "measuring");
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
        requests = run_load(client, params, prompts, load.arrivals(), &clock, on_end) => requests,
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
