//! What a report looks at: each load of each run, with its successful requests as the figures need
//! them.

use std::path::Path;

use anyhow::bail;

use crate::bench::ab::record::{AbRecord, Side};
use crate::bench::metrics::Metrics;
use crate::bench::peers::record::PeersRecord;
use crate::bench::raw_record::{Kind, RawRecord as _};
use crate::bench::record::{Record, RequestRecord, ServerTimings};
use crate::bench::{ab, peers, validity};

/// One load on a server: a run, or one phase of it.
pub struct Load {
    /// The file of the run, by its name alone.
    pub file: String,
    /// Of the workload, and of the phase where there are several; else the load in short.
    pub name: String,
    pub record: Record,
    pub metrics: Metrics,
    /// Why its run is void; said with the first load of the run alone.
    pub faults: Vec<String>,
    pub answers: Vec<Answer>,
}

/// A successful request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub class: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// From when it was due.
    pub e2e_ms: f64,
    pub timings: Option<ServerTimings>,
}

/// What the workload says a request is for.
pub fn class_of(request: &RequestRecord) -> Option<&str> {
    request.class.as_deref()
}

impl Answer {
    fn of(request: &RequestRecord) -> Self {
        Self {
            class: class_of(request).map(str::to_owned),
            prompt_tokens: request.usage.map(|usage| usage.prompt_tokens),
            output_tokens: request.output_tokens(),
            e2e_ms: request.end_ms - request.due_ms,
            timings: request.timings,
        }
    }

    pub fn total_tokens(&self) -> Option<u64> {
        Some(self.prompt_tokens? + self.output_tokens?)
    }
}

impl Load {
    /// The loads of a file: of a run, or of each block of a run in turn.
    ///
    /// # Errors
    /// The file is no record, or that of a drill.
    pub fn read(path: &Path) -> anyhow::Result<Vec<Self>> {
        let file = path.file_name().unwrap_or(path.as_os_str());
        let file = file.to_string_lossy();
        match Kind::of_file(path)? {
            Kind::Run => Ok(Self::of_run(&file, &Record::read(path)?)),
            Kind::Ab => {
                let AbRecord { ab, blocks } = AbRecord::read(path)?;
                let name = |block: &ab::record::Block| {
                    let settings = match block.side {
                        Side::A => &ab.a,
                        Side::B => &ab.b,
                    };
                    format!("{:?} {}: {settings}", block.side, block.pair + 1)
                };
                let blocks = blocks.iter().map(|block| (name(block), &block.record));
                Ok(Self::of_blocks(&file, blocks))
            }
            Kind::Peers => {
                let PeersRecord { peers, blocks } = PeersRecord::read(path)?;
                let name = |block: &peers::record::Block| {
                    format!("{} {}", peers.name_of(block.server), block.round + 1)
                };
                let blocks = blocks.iter().map(|block| (name(block), &block.record));
                Ok(Self::of_blocks(&file, blocks))
            }
            Kind::Chaos | Kind::Rollback => bail!(
                "{} is the record of a drill, which has no load to report on",
                path.display()
            ),
        }
    }

    fn of_blocks<'a>(file: &str, blocks: impl Iterator<Item = (String, &'a Record)>) -> Vec<Self> {
        let of_block = |(block, record)| {
            let mut loads = Self::of_run(file, record);
            for load in &mut loads {
                load.name = format!("{block}, {}", load.name);
            }
            loads
        };
        blocks.flat_map(of_block).collect()
    }

    /// The loads of a run: its phases.
    pub fn of_run(file: &str, run: &Record) -> Vec<Self> {
        let phases = 0..run.run.phases.len().max(1);
        let mut loads: Vec<Self> = phases
            .map(|phase| Self::of(file, name(run, phase), run.of_phase(phase)))
            .collect();
        if let Some(first) = loads.first_mut() {
            first.faults = validity::faults(run);
        }
        loads
    }

    fn of(file: &str, name: String, record: Record) -> Self {
        Self {
            file: file.to_owned(),
            name,
            metrics: Metrics::of(&record),
            faults: Vec::new(),
            answers: record
                .requests
                .iter()
                .filter(|request| request.is_success())
                .map(Answer::of)
                .collect(),
            record,
        }
    }

    /// What was measured, in one line.
    pub fn subtitle(&self) -> String {
        let model = self
            .record
            .run
            .server
            .model
            .as_deref()
            .unwrap_or("unnamed model");
        format!("{model} · {} · {}", self.name, self.file)
    }

    /// Most requests between their sending and their end at one time.
    pub fn peak_in_flight(&self) -> usize {
        self.metrics.peak_concurrent_requests
    }

    /// Requests in flight over the time of the load, in the mean.
    pub fn mean_in_flight(&self) -> f64 {
        let requests = self.record.requests.iter();
        let busy_ms: f64 = requests.map(|r| r.end_ms - r.sent_ms).sum();
        let duration_ms = self.record.run.duration_ms;
        if duration_ms > 0.0 {
            busy_ms / duration_ms
        } else {
            0.0
        }
    }

    pub fn latencies_ms(&self) -> Vec<f64> {
        self.answers.iter().map(|answer| answer.e2e_ms).collect()
    }
}

/// The workload, and the phase where there are several; else the load in short.
fn name(run: &Record, phase: usize) -> String {
    let client = &run.run.client;
    let phase = run
        .run
        .phases
        .get(phase)
        .filter(|_| run.run.phases.len() > 1);
    match (&client.workload, phase) {
        (Some(workload), Some(phase)) => format!("{}, {}", workload.name, phase.name),
        (Some(workload), None) => workload.name.clone(),
        (None, Some(phase)) => phase.name.clone(),
        (None, None) => match (client.request_rate_per_s, client.concurrency) {
            (Some(rate), _) => format!("{} requests, {rate} a second", client.requests),
            (None, clients) => {
                format!(
                    "{} requests, {} at once",
                    client.requests,
                    clients.unwrap_or(0)
                )
            }
        },
    }
}
