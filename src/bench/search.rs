//! `bench search`: the highest request rate at which the server still meets an objective.
//!
//! Rates are tried one after another on one server, each with as many requests as `--requests` says
//! and with prompts of its own: doubled until one does not hold, then bisected between the last that
//! held and the first that did not. A rate holds if at least `good_share` of all its requests met the
//! objective and the client kept its schedule. Every rate that was tried is a phase of the record, so
//! the answer follows from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::args::LoadArgs;
use super::client::ApiKey;
use super::endpoint::Endpoint;
use super::layouts::sweep;
use super::measurement::{Measurement, Target};
use super::metrics::Metrics;
use super::plan::Plan;
use super::planning::Prompts;
use super::record::Record;
use super::session::{Kept, keep};
use super::validity::late_phase;

/// A rate that is this much above the last that held is not worth another try.
const TOLERANCE: f64 = 1.1;

/// At a rate that makes all requests due within this time they come at once, and any higher rate
/// asks the same.
const SHORTEST_SCHEDULE_S: f64 = 0.05;

/// Doubling, halving and bisecting from any rate to any other end before.
const TRIES_MAX: usize = 60;

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Which requests count as good is said by --goodput:\n\n    \
    candlepower bench search --goodput ttft:500 tpot:50 --requests 40 --max-tokens 32"
)]
pub struct SearchArgs {
    /// The rate to try first, in requests a second
    #[arg(long, default_value_t = 0.5, value_parser = super::args::parse_rate, value_name = "PER_SECOND")]
    pub rate_from: f64,
    /// The lowest rate to try
    #[arg(long, default_value_t = 0.1, value_parser = super::args::parse_rate, value_name = "PER_SECOND")]
    pub rate_min: f64,
    /// Share of the requests that must be good
    #[arg(long, default_value_t = 0.9, value_parser = super::args::parse_ratio)]
    pub good_share: f64,
    /// Measure a server that already runs [default: start this program's own server]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<Endpoint>,
    /// The key to send to a server that asks for one
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<ApiKey>,
    /// Raw records, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
    #[command(flatten, next_help_heading = "Load at each rate")]
    pub load: LoadArgs,
}

/// What was searched for, as the record keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchSettings {
    pub rate_from_per_s: f64,
    pub good_share: f64,
}

/// Searches, prints, saves and adds to BENCHMARKS.md.
///
/// # Errors
/// The flags do not go together, or as for a run.
pub async fn session(folder: &Path, args: &SearchArgs) -> anyhow::Result<()> {
    let load = &args.load;
    ensure!(
        load.slo()?.is_some(),
        "a search needs an objective: --goodput ttft:500 tpot:50"
    );
    ensure!(
        load.workload.is_none()
            && load.dataset.is_none()
            && load.request_rate.is_none()
            && load.ramp_from.is_none(),
        "a search chooses the rates itself and draws its own prompts: --workload, --dataset, --request-rate and \
         --ramp-from have no part in it"
    );
    Prompts::read(&at_rate(load, args.rate_from))?;
    let kept = Kept {
        folder,
        output: args.output.as_deref(),
        append: !args.no_append,
        format: None,
        api_key: args.api_key.as_ref(),
    };
    keep(&kept, args.endpoint.as_ref(), async |target| {
        search(target, args).await
    })
    .await
}

async fn search(target: &Target, args: &SearchArgs) -> anyhow::Result<Record> {
    let mut measurement = Measurement::new(target, &args.load);
    let mut plan: Option<Plan> = None;
    let mut bracket = Bracket::new(args.rate_from, args.rate_min, rate_max(args));
    for number in 0..TRIES_MAX {
        let Some(rate_per_s) = bracket.next() else {
            break;
        };
        let mut load = at_rate(&args.load, rate_per_s);
        load.seed = load.seed.wrapping_add(number as u64);
        let mut tried = Prompts::read(&load)?
            .plan(&load, &target.plan_for())
            .await?;
        for phase in &mut tried.phases {
            phase.name = format!("{rate_per_s:.3} a second");
        }
        if plan.is_none() {
            measurement.warm_up(&tried).await;
        }
        for phase in &tried.phases {
            measurement.phase(phase).await?;
        }
        let all = plan.get_or_insert_with(|| Plan {
            phases: Vec::new(),
            ..tried.clone()
        });
        all.phases.extend(tried.phases);
        let so_far = measurement.record(all)?;
        let holds = holds(&so_far, all.phases.len() - 1, args.good_share);
        tracing::info!(
            "{rate_per_s:.3} requests/s: {}",
            if holds { "holds" } else { "does not hold" }
        );
        bracket.tell(rate_per_s, holds);
    }
    let Some(plan) = plan else {
        bail!("bug: no rate was tried");
    };
    let mut record = measurement.record(&plan)?;
    record.run.client.search = Some(SearchSettings {
        rate_from_per_s: args.rate_from,
        good_share: args.good_share,
    });
    Ok(record)
}

fn at_rate(load: &LoadArgs, rate_per_s: f64) -> LoadArgs {
    LoadArgs {
        request_rate: Some(rate_per_s),
        ..load.clone()
    }
}

fn rate_max(args: &SearchArgs) -> f64 {
    args.load.requests as f64 / SHORTEST_SCHEDULE_S
}

fn holds(record: &Record, phase: usize, good_share: f64) -> bool {
    let metrics = Metrics::of(&record.of_phase(phase));
    let is_good = metrics
        .goodput
        .is_some_and(|goodput| goodput.good_rate >= good_share);
    is_good && late_phase(record, phase).is_none()
}

/// Between which rates the answer lies.
struct Bracket {
    held: Option<f64>,
    failed: Option<f64>,
    from: f64,
    least: f64,
    most: f64,
}

impl Bracket {
    fn new(from: f64, least: f64, most: f64) -> Self {
        Self {
            held: None,
            failed: None,
            from,
            least,
            most,
        }
    }

    /// The rate to try next; `None` when the answer is known well enough.
    fn next(&self) -> Option<f64> {
        match (self.held, self.failed) {
            (None, None) => Some(self.from),
            (Some(held), None) => Some(held * 2.0).filter(|rate| *rate <= self.most),
            (None, Some(failed)) => Some(failed / 2.0).filter(|rate| *rate >= self.least),
            (Some(held), Some(failed)) => {
                (failed / held > TOLERANCE).then(|| (held * failed).sqrt())
            }
        }
    }

    fn tell(&mut self, rate: f64, holds: bool) {
        match holds {
            true => self.held = Some(rate),
            false => self.failed = Some(rate),
        }
    }
}

/// The answer, and every rate that was tried.
pub fn render(record: &Record, settings: SearchSettings) -> String {
    let held = |index: &usize| holds(record, *index, settings.good_share);
    let indices: Vec<usize> = (0..record.run.phases.len()).collect();
    let rate = |index: &usize| record.run.phases[*index].arrivals.request_rate_per_s();
    let best = indices.iter().filter(|index| held(index)).filter_map(rate);
    let first_bad = indices.iter().filter(|index| !held(index)).filter_map(rate);
    let slo = record.run.client.slo.unwrap_or_default();
    let mut text = format!(
        "Highest rate at which at least {:.0} % of the requests met {slo}: ",
        settings.good_share * 100.0
    );
    let _ = match (best.reduce(f64::max), first_bad.reduce(f64::min)) {
        (Some(best), Some(bad)) => writeln!(text, "{best:.3} requests/s ({bad:.3} did not hold)\n"),
        (Some(best), None) => writeln!(text, "{best:.3} requests/s, the highest tried\n"),
        (None, _) => writeln!(text, "none of those tried\n"),
    };
    text.push_str(&sweep::render(record));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn searched(from: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut bracket = Bracket::new(from, 0.001, 5000.0);
        let mut tries = 0;
        while let Some(rate) = bracket.next() {
            bracket.tell(rate, rate <= capacity);
            tries += 1;
            assert!(tries <= TRIES_MAX, "no end");
        }
        (bracket.held, tries)
    }

    #[test]
    fn the_answer_lies_within_a_tenth_below_the_true_one() {
        for (from, capacity) in [(0.5, 3.3), (10.0, 3.3), (3.3, 3.3), (0.001, 1000.0)] {
            let (found, tries) = searched(from, capacity);
            let found = found.expect("a rate holds");
            assert!(
                found <= capacity && found * TOLERANCE >= capacity,
                "{found} of {capacity}"
            );
            assert!(tries < 30, "{tries} tries");
        }
    }

    #[test]
    fn a_server_that_holds_every_rate_ends_the_search() {
        assert_eq!(searched(1.0, f64::INFINITY).0, Some(4096.0));
    }

    #[test]
    fn a_server_that_holds_no_rate_ends_the_search() {
        assert_eq!(searched(1.0, 0.0).0, None);
    }
}
