//! Samples the server while it is measured: resident memory, requests in it, KV cache in use.

use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::record::{Clock, ServerSample};
use super::server_stats::ServerStats;

/// Often enough for a peak, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(250);

/// Reads one process from the operating system.
pub struct ProcessProbe {
    system: System,
    pid: Pid,
}

impl ProcessProbe {
    /// `None` on a system that does not tell.
    pub fn new(pid: u32) -> Option<Self> {
        Some(Self {
            system: System::new().ok()?,
            pid: Pid::from_u32(pid),
        })
    }

    /// Resident memory, in bytes.
    pub fn memory_bytes(&mut self) -> Option<u64> {
        self.refresh(ProcessRefreshKind::nothing().with_memory());
        self.system
            .process(self.pid)
            .map(|process| process.memory())
    }

    /// CPU time used so far.
    pub fn cpu_time_ms(&mut self) -> Option<u64> {
        self.refresh(ProcessRefreshKind::nothing().with_cpu());
        self.system
            .process(self.pid)
            .map(|process| process.accumulated_cpu_time())
    }

    fn refresh(&mut self, kind: ProcessRefreshKind) {
        let pids = [self.pid];
        self.system
            .refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
    }
}

/// Collects samples of the server that `client` talks to.
pub struct Watch<'a> {
    client: &'a Client,
    process: Option<ProcessProbe>,
    clock: Clock,
    pub samples: Vec<ServerSample>,
}

impl<'a> Watch<'a> {
    /// The memory is that of `process`, or else what the server's own statistics say.
    pub fn new(client: &'a Client, process: Option<ProcessProbe>, clock: Clock) -> Self {
        Self {
            client,
            process,
            clock,
            samples: Vec::new(),
        }
    }

    /// Samples at each interval, until it is dropped.
    pub async fn run<T>(&mut self) -> T {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.sample().await;
        }
    }

    /// Takes one sample; none of a server about which nothing can be known.
    pub async fn sample(&mut self) {
        let at_ms = self.clock.ms(Instant::now());
        let memory_bytes = self.process.as_mut().and_then(ProcessProbe::memory_bytes);
        let stats = self.client.get_json("/stats").await.ok().flatten();
        if memory_bytes.is_none() && stats.is_none() {
            return;
        }
        let stats = stats
            .map(|stats| ServerStats::of(&stats))
            .unwrap_or_default();
        self.samples.push(ServerSample {
            at_ms,
            memory_bytes: memory_bytes.or(stats.memory.rss_bytes),
            num_running_requests: stats.batch.num_running_requests,
            num_waiting_requests: stats.queue.num_waiting_requests,
            kv_used_tokens: stats.kv_cache.used_tokens,
            kv_used_bytes: stats.kv_cache.used_bytes,
            num_steps: stats.batch.num_steps,
            num_step_sequences: stats.batch.num_step_sequences,
            device_memory_bytes: stats.memory.device_bytes,
        });
    }
}
