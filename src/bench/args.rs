//! The flags of `bench`. Settings of the server are no flags: they come through the environment,
//! as for `serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{Args, Subcommand, ValueEnum};

use super::ab::args::AbArgs;
use super::cache_state::CacheState;
use super::chaos::ChaosArgs;
use super::client::ApiKey;
use super::endpoint::Endpoint;
use super::goodput::{Bound, Slo};
use super::load::Arrivals;
use super::peers::args::PeersArgs;
use super::plan::{PhasePlan, Plan};
use super::record::{ClientSettings, Scale};
use super::report::args::ReportArgs;
use super::rollback::RollbackArgs;
use super::search::SearchArgs;
use super::workload::Prompt;
use super::workload::plain::{WordRange, WorkloadParams};

/// Measure a server over HTTP and append the result to BENCHMARKS.md
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Without --endpoint, bench starts a server of its own on a free port; its settings come through \
    the environment:\n\n    ENABLE_BATCHING=false candlepower bench\n    MAX_BATCH_SIZE=16 candlepower bench\n\n\
    With the same flags both runs send the same prompts; the record carries their hash."
)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// Measure a server that already runs: the base address of an OpenAI-compatible one, or the
    /// address of a /generate [default: start this program's own server]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<Endpoint>,
    /// The key to send to a server that asks for one
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<ApiKey>,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Raw records, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
    /// Measure first how fast this machine reads memory, to show the server's share of it
    #[arg(long, conflicts_with = "endpoint")]
    pub measure_bandwidth: bool,
    /// Write the result in another program's format too, beside the raw records
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// A format of results that others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As `vllm bench serve --save-result --save-detailed` writes it
    VllmJson,
}

/// What is sent, and how.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// A named workload (candlepower bench workloads lists them), or a .toml file of one; it says
    /// what the plain flags say otherwise
    #[arg(long, value_name = "NAME", conflicts_with_all = [
        "dataset", "requests", "concurrency", "request_rate", "burstiness", "ramp_from", "max_tokens",
        "repeat_ratio", "warmup", "prompt_words",
    ])]
    pub workload: Option<String>,
    /// Part of the workload's requests
    #[arg(long, default_value_t = 1.0, value_parser = parse_above_0, requires = "workload")]
    pub scale: f64,
    /// Part of the workload's prompt and output lengths
    #[arg(long, default_value_t = 1.0, value_parser = parse_above_0, requires = "workload")]
    pub scale_lengths: f64,
    /// Part of the workload's request rates
    #[arg(long, default_value_t = 1.0, value_parser = parse_above_0, requires = "workload")]
    pub scale_rates: f64,
    /// Prompts from a file: ShareGPT's JSON, or one {"prompt": …} a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_words", "repeat_ratio"])]
    pub dataset: Option<PathBuf>,
    /// Send the prompts of --dataset in an order of the seed's, or in the file's
    #[arg(long, default_value = "true", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL", requires = "dataset")]
    pub shuffle: bool,
    /// Counts the tokens of --workload and --dataset, where the server has no /tokenize: the model's
    /// tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Requests to measure
    #[arg(long, default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub requests: usize,
    /// Clients; each sends its next request when its last one ended
    #[arg(long, default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub concurrency: usize,
    /// Open loop instead: requests come at this mean rate, with Poisson gaps, however slow the
    /// server is; latencies count from when each was due
    #[arg(long, value_parser = parse_rate, value_name = "PER_SECOND", conflicts_with = "concurrency")]
    pub request_rate: Option<f64>,
    /// Shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts,
    /// more comes evenly
    #[arg(long, default_value_t = 1.0, value_parser = parse_above_0, value_name = "SHAPE")]
    pub burstiness: f64,
    /// The rate rises from this one to --request-rate, in a straight line over the requests
    #[arg(long, value_parser = parse_rate, value_name = "PER_SECOND")]
    pub ramp_from: Option<f64>,
    /// Tokens to generate for each request
    #[arg(long, default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub max_tokens: usize,
    /// Share of the requests that repeat an earlier prompt exactly, to exercise the prefix cache
    #[arg(long, default_value_t = 0.3, value_parser = parse_ratio)]
    pub repeat_ratio: f64,
    /// Requests sent before the measured ones and discarded
    #[arg(long, default_value_t = 5)]
    pub warmup: usize,
    /// Words of a prompt, as a number or a range (a word is about 1.3 tokens)
    #[arg(long, default_value = "20-120", value_name = "WORDS")]
    pub prompt_words: WordRange,
    /// Seed of the prompts: the same seed and flags give the same prompts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Generate to --max-tokens even where the model would stop, so that runs compare
    #[arg(long, default_value = "true", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub ignore_eos: bool,
    /// What the prefix cache holds of the measured prompts at the start; verified from what the
    /// server says it took from there [default: cold for an own server, as-is for another]
    #[arg(long, value_name = "STATE")]
    pub cache_state: Option<CacheState>,
    /// What a good request takes at most, in milliseconds: ttft:500 tpot:50 e2e:3000
    #[arg(long, value_name = "BOUND", num_args = 1..)]
    pub goodput: Vec<Bound>,
    /// How late an open loop may send at p99, in milliseconds, before its run is void
    #[arg(long, default_value_t = 10.0, value_parser = parse_milliseconds, value_name = "MS")]
    pub max_send_delay: f64,
    /// Seconds after which the client gives up on a request
    #[arg(long, default_value_t = 300.0, value_parser = parse_seconds, value_name = "SECONDS")]
    pub request_timeout: f64,
}

/// What else than measuring.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Table the figures of recorded runs side by side, with ratios to the first
    Compare {
        /// Raw records that bench has written
        #[arg(required = true, num_args = 2.., value_name = "FILE")]
        records: Vec<PathBuf>,
    },
    /// Measure two settings of this program's server in turn, A B B A, and record the difference
    Ab(Box<AbArgs>),
    /// Storm a server with clients of every kind, replace it meanwhile, and balance the books
    Chaos(ChaosArgs),
    /// Turn batching off by restart under load, and check that nobody notices
    Rollback(RollbackArgs),
    /// Measure this program's server and others in turn, and record how they compare
    Peers(Box<PeersArgs>),
    Report(ReportArgs),
    /// Find the highest request rate at which the server still meets an objective
    Search(Box<SearchArgs>),
    /// List the named workloads
    Workloads,
    /// Check that every number in BENCHMARKS.md follows from the raw records it names
    Verify {
        /// Write its method, tables and sections anew from the records that it names: for after a
        /// change of the layout
        #[arg(long)]
        rewrite: bool,
    },
}

impl LoadArgs {
    pub fn workload_params(&self) -> WorkloadParams {
        WorkloadParams {
            requests: self.requests,
            warmup: self.warmup,
            repeat_ratio: self.repeat_ratio,
            prompt_words: self.prompt_words,
            max_tokens: self.max_tokens,
            seed: self.seed,
        }
    }

    pub fn arrivals(&self) -> Arrivals {
        match self.request_rate {
            Some(request_rate_per_s) => Arrivals::Open {
                request_rate_per_s,
                burstiness: self.burstiness,
                ramp_from_per_s: self.ramp_from,
            },
            None => Arrivals::Closed {
                concurrency: self.concurrency,
            },
        }
    }

    /// The prompts as the one phase of a run.
    pub fn only_phase(&self, prompts: Vec<Prompt>) -> PhasePlan {
        PhasePlan {
            name: "measured".to_owned(),
            arrivals: self.arrivals(),
            seed: self.seed,
            prompts,
        }
    }

    pub fn scale(&self) -> Scale {
        Scale {
            requests: self.scale,
            lengths: self.scale_lengths,
            rates: self.scale_rates,
        }
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.request_timeout)
    }

    /// The objective of `--goodput`.
    ///
    /// # Errors
    /// A figure is bounded twice.
    pub fn slo(&self) -> anyhow::Result<Option<Slo>> {
        Slo::of_bounds(&self.goodput).map_err(anyhow::Error::msg)
    }

    /// The flags as the record keeps them.
    ///
    /// # Errors
    /// As for [`Self::slo`].
    pub fn client_settings(&self, plan: &Plan) -> anyhow::Result<ClientSettings> {
        let is_plain = plan.source.is_none();
        Ok(ClientSettings {
            workload: plan.source.clone(),
            requests: plan.prompts().count(),
            concurrency: plan.common(|phase| phase.arrivals.concurrency()),
            request_rate_per_s: plan.common(|phase| phase.arrivals.request_rate_per_s()),
            warmup: plan.warmup.len(),
            max_tokens: is_plain.then_some(self.max_tokens),
            prompt_words: is_plain.then_some(self.prompt_words),
            repeat_ratio: is_plain.then_some(self.repeat_ratio),
            seed: self.seed,
            ignore_eos: self.ignore_eos,
            request_timeout_s: self.request_timeout,
            cache_state: Some(plan.cache_state),
            slo: self.slo()?,
            max_send_delay_ms: Some(self.max_send_delay),
            search: None,
            prompts_sha256: plan.sha256(),
        })
    }
}

pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text
        .parse()
        .map_err(|_| "expected a number from 0 to 1".to_owned())?;
    (0.0..=1.0)
        .contains(&ratio)
        .then_some(ratio)
        .ok_or_else(|| "a share lies between 0 and 1".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    (0.001..=86_400.0)
        .contains(&seconds)
        .then_some(seconds)
        .ok_or_else(|| "a time lies between 1 ms and one day, in seconds".to_owned())
}

pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "expected requests per second".to_owned())?;
    (0.001..=100_000.0)
        .contains(&rate)
        .then_some(rate)
        .ok_or_else(|| "a rate lies between 0.001 and 100000 requests per second".to_owned())
}

fn parse_milliseconds(text: &str) -> Result<f64, String> {
    let ms: f64 = text
        .parse()
        .map_err(|_| "expected milliseconds".to_owned())?;
    (0.1..=3_600_000.0)
        .contains(&ms)
        .then_some(ms)
        .ok_or_else(|| "expected milliseconds, from 0.1 to an hour of them".to_owned())
}

fn parse_above_0(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    (0.001..=1000.0)
        .contains(&number)
        .then_some(number)
        .ok_or_else(|| "expected a number from 0.001 to 1000".to_owned())
}
