//! One measurement: a server, the load on it, and what was observed, as a [`Record`].

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;

use super::args::LoadArgs;
use super::cache_state::CacheState;
use super::client::{ApiKey, Client, RequestParams};
use super::endpoint::{Api, Endpoint};
use super::load::{Arrivals, run_load};
use super::machine::Machine;
use super::own_server::OwnServer;
use super::peers::server::{self as peer_server, Peer};
use super::plan::{PhasePlan, Plan};
use super::planning::{PlanFor, Prompts};
use super::progress::progress_bar;
use super::provenance::{command_line, settings_from_environment};
use super::record::{
    Clock, FORMAT_VERSION, OWN_SERVER, Phase, Record, RequestRecord, Run, ServerRecord,
    judge_missing_usage, round_to_us,
};
use super::server_process::ServerProcess;
use super::server_stats::ServerStats;
use super::watch::{ProcessProbe, Watch};
use super::workload::Prompt;

/// Names the program in records.
pub const TOOL: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// Clients that warm the server up where the workload has no number of its own.
const WARMUP_CONCURRENCY: usize = 4;

/// A moment as records have it: UTC, RFC 3339, to the second.
pub fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The server to measure; one that was started for it ends with it.
pub struct Target {
    process: Option<ServerProcess>,
    client: Client,
    model: Option<String>,
    /// As records name it.
    name: String,
    /// What one of our own was started with, on top of this program's environment.
    own_settings: Option<BTreeMap<String, String>>,
}

impl Target {
    /// A server that already runs.
    ///
    /// # Errors
    /// It cannot be reached, or lists no model.
    pub async fn running(endpoint: &Endpoint, api_key: Option<ApiKey>) -> anyhow::Result<Self> {
        let client = Client::new(endpoint.clone(), api_key);
        Self::open(client, None, endpoint.to_string(), None).await
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
        let waiting = progress_bar(None, "starting the server");
        let mut server = OwnServer::start(command, log)?;
        let endpoint = server.ready().await?;
        waiting.finish_and_clear();
        let name = OWN_SERVER.to_owned();
        let client = Client::new(endpoint, None);
        let process = Some(server.into_process());
        Self::open(client, process, name, Some(settings.clone())).await
    }

    /// Another server: started by its command, or as it runs already.
    ///
    /// # Errors
    /// It cannot be started or reached, does not get ready, or lists no model.
    pub async fn peer(peer: &Peer, api_key: Option<ApiKey>, log: &Path) -> anyhow::Result<Self> {
        if let Some(endpoint) = peer.endpoint() {
            return Self::running(&endpoint, api_key).await;
        }
        let waiting = progress_bar(None, "starting the other server");
        let (server, endpoint) = peer_server::start(&peer.server, log).await?;
        waiting.finish_and_clear();
        let client = Client::new(endpoint, api_key);
        Self::open(client, Some(server), peer.server.clone(), None).await
    }

    /// So that no server is measured by how it treats idle connections.
    pub fn with_connection_per_request(mut self) -> Self {
        self.client = self.client.with_connection_per_request();
        self
    }

    async fn open(
        client: Client,
        process: Option<ServerProcess>,
        name: String,
        own_settings: Option<BTreeMap<String, String>>,
    ) -> anyhow::Result<Self> {
        let model = client.model_id().await?;
        ensure!(
            model.is_some() || client.endpoint.api == Api::Generate,
            "{} lists no model: --endpoint takes the base address of an OpenAI-compatible server, \
             or the address of a /generate",
            client.endpoint.url("/v1/models")
        );
        Ok(Self {
            process,
            client,
            model,
            name,
            own_settings,
        })
    }

    fn process(&self) -> Option<ProcessProbe> {
        let server = self.process.as_ref()?;
        ProcessProbe::new(server.pid())
    }

    /// The settings that came through the environment: through this program's own, and in all.
    fn environment(&self, stats: &ServerStats) -> [BTreeMap<String, String>; 2] {
        let Some(settings) = &self.own_settings else {
            return [BTreeMap::new(), BTreeMap::new()];
        };
        let inherited = settings_from_environment(&stats.settings);
        let mut all = inherited.clone();
        all.extend(settings.clone());
        [inherited, all]
    }

    /// What a plan must know of it.
    pub fn plan_for(&self) -> PlanFor<'_> {
        PlanFor {
            client: &self.client,
            model: self.model.as_deref().unwrap_or_default(),
            is_own: self.own_settings.is_some(),
        }
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
/// The server cannot be reached before the load, or the plan cannot be made. One that dies under it
/// is a result.
pub async fn measure(target: &Target, load: &LoadArgs) -> anyhow::Result<Record> {
    let plan = Prompts::read(load)?.plan(load, &target.plan_for()).await?;
    let mut measurement = Measurement::new(target, load);
    measurement.warm_up(&plan).await;
    for phase in &plan.phases {
        measurement.phase(phase).await?;
    }
    measurement.record(&plan)
}

/// A measurement under way: what has been seen so far.
pub struct Measurement<'a> {
    target: &'a Target,
    load: &'a LoadArgs,
    params: RequestParams,
    started: Timestamp,
    machine: Machine,
    clock: Clock,
    watch: Watch<'a>,
    own_cpu: Option<ProcessProbe>,
    requests: Vec<RequestRecord>,
    phases: Vec<Phase>,
}

impl<'a> Measurement<'a> {
    pub fn new(target: &'a Target, load: &'a LoadArgs) -> Self {
        let started = Timestamp::now();
        let clock = Clock::start();
        Self {
            target,
            load,
            params: RequestParams {
                model: target.model.clone().unwrap_or_default(),
                ignore_eos: load.ignore_eos,
                timeout: load.request_timeout(),
                phase: 0,
                id_prefix: format!("bench-{}", started.as_millisecond()),
            },
            started,
            machine: Machine::this(),
            clock,
            watch: Watch::new(&target.client, target.process(), clock),
            own_cpu: ProcessProbe::new(std::process::id()),
            requests: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// Sends what is not measured.
    pub async fn warm_up(&self, plan: &Plan) {
        let params = RequestParams {
            id_prefix: format!("{}-warmup", self.params.id_prefix),
            ..self.params.clone()
        };
        let mut prompts = plan.warmup.clone();
        if plan.cache_state == CacheState::Warm {
            let first_times = plan.prompts().filter(|prompt| !prompt.repeat);
            prompts.extend(first_times.map(|prompt| Prompt {
                max_tokens: 1,
                ..prompt.clone()
            }));
        }
        let concurrency = plan.common(|phase| phase.arrivals.concurrency());
        let arrivals = Arrivals::Closed {
            concurrency: concurrency.unwrap_or(WARMUP_CONCURRENCY),
        };
        let bar = progress_bar(Some(prompts.len()), "warming up");
        let clock = Clock::start();
        let client = &self.target.client;
        run_load(client, &params, &prompts, &arrivals, 0, &clock, |_| {
            bar.inc(1)
        })
        .await;
        bar.finish_and_clear();
    }

    /// The record of what has been seen.
    ///
    /// # Errors
    /// Nothing has been measured.
    pub fn record(&self, plan: &Plan) -> anyhow::Result<Record> {
        let (target, phases) = (self.target, self.phases.clone());
        let (Some(first), Some(last)) = (phases.first(), phases.last()) else {
            bail!("the workload has no phase");
        };
        let (stats_before, stats_after) = (first.stats_before.clone(), last.stats_after.clone());
        let [inherited, environment] = target.environment(&ServerStats::of(&stats_before));
        let mut requests = self.requests.clone();
        judge_missing_usage(&mut requests);
        let run = Run {
            format_version: FORMAT_VERSION,
            tool: TOOL.to_owned(),
            started: utc(self.started),
            command: command_line(&inherited),
            environment,
            commit: None,
            machine: self.machine.clone(),
            client: self.load.client_settings(plan)?,
            server: ServerRecord {
                endpoint: target.name.clone(),
                api: target.client.endpoint.path().to_owned(),
                model: target.model.clone(),
                stats_before,
                stats_after,
                samples: self.watch.samples.clone(),
            },
            duration_ms: round_to_us(phases.iter().map(|phase| phase.duration_ms).sum()),
            client_cpu_ms: phases.iter().map(|phase| phase.client_cpu_ms).sum(),
            phases,
        };
        Ok(Record { run, requests })
    }

    fn now_ms(&self) -> f64 {
        self.clock.ms(Instant::now())
    }

    fn cpu_ms(&mut self) -> u64 {
        let own = self.own_cpu.as_mut();
        own.and_then(ProcessProbe::cpu_time_ms).unwrap_or_default()
    }

    /// Measures one phase.
    ///
    /// # Errors
    /// The server cannot be reached before the first one.
    pub async fn phase(&mut self, plan: &PhasePlan) -> anyhow::Result<()> {
        let target = self.target;
        // One that died in an earlier phase has no more to say of itself, and its requests fail.
        let stats_before = match self.phases.is_empty() {
            true => target.stats().await?,
            false => target.stats().await.unwrap_or_default(),
        };
        let params = RequestParams {
            phase: self.phases.len(),
            ..self.params.clone()
        };
        let bar = progress_bar(Some(plan.prompts.len()), "measuring");
        let failed = std::cell::Cell::new(0);
        let on_end = |record: &RequestRecord| {
            bar.inc(1);
            if !record.is_success() {
                failed.set(failed.get() + 1);
                bar.set_message(format!("measuring, {} failed", failed.get()));
            }
        };
        let start_ms = self.now_ms();
        // However short the phase, there is a sample of it.
        self.watch.sample().await;
        let cpu_before_ms = self.cpu_ms();
        let (client, clock) = (&target.client, &self.clock);
        let load = run_load(
            client,
            &params,
            &plan.prompts,
            &plan.arrivals,
            plan.seed,
            clock,
            on_end,
        );
        let requests = tokio::select! {
            requests = load => requests,
            never = self.watch.run() => never,
        };
        let client_cpu_ms = self.cpu_ms().saturating_sub(cpu_before_ms);
        bar.finish_and_clear();
        self.phases.push(Phase {
            name: plan.name.clone(),
            arrivals: plan.arrivals,
            start_ms,
            end_ms: self.now_ms(),
            duration_ms: duration_ms(&requests),
            client_cpu_ms,
            stats_before,
            stats_after: target.stats().await.unwrap_or_default(),
        });
        self.requests.extend(requests);
        Ok(())
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
