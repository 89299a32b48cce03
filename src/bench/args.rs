//! The flags of `bench`. Settings of the server are no flags: they come through the environment,
//! as for `serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{Args, Subcommand};

use super::ab::args::AbArgs;
use super::endpoint::Endpoint;
use super::load::Arrivals;
use super::record::ClientSettings;
use super::workload::{WordRange, Workload, WorkloadParams};

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
    #[command(flatten)]
    pub load: LoadArgs,
    /// Raw records, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
}

/// What is sent, and how.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
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
    /// Check that every number in BENCHMARKS.md follows from the raw records it names
    Verify,
}

impl LoadArgs {
    pub fn workload_params(&self) -> WorkloadParams {
        WorkloadParams {
            requests: self.requests,
            warmup: self.warmup,
            repeat_ratio: self.repeat_ratio,
            prompt_words: self.prompt_words,
            seed: self.seed,
        }
    }

    pub fn arrivals(&self) -> Arrivals {
        match self.request_rate {
            Some(rate_per_s) => Arrivals::Open {
                rate_per_s,
                seed: self.seed,
            },
            None => Arrivals::Closed {
                concurrency: self.concurrency,
            },
        }
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.request_timeout)
    }

    /// The flags as the record keeps them.
    pub fn client_settings(&self, workload: &Workload) -> ClientSettings {
        ClientSettings {
            requests: self.requests,
            concurrency: self.request_rate.is_none().then_some(self.concurrency),
            request_rate_per_s: self.request_rate,
            warmup: self.warmup,
            max_tokens: self.max_tokens,
            prompt_words: self.prompt_words,
            repeat_ratio: self.repeat_ratio,
            seed: self.seed,
            ignore_eos: self.ignore_eos,
            request_timeout_s: self.request_timeout,
            prompts_sha256: workload.sha256(),
        }
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
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

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "expected requests per second".to_owned())?;
    (0.001..=100_000.0)
        .contains(&rate)
        .then_some(rate)
        .ok_or_else(|| "a rate lies between 0.001 and 100000 requests per second".to_owned())
}
