//! Every setting of `serve`: one struct a part, each field a flag and an environment variable.
//!
//! Nothing else in the crate reads the environment for settings. The structs derive their flags,
//! so that name, default and help text stand in one place.

mod http;
mod observe;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use serde::{Serialize, Serializer};

use crate::kernels::Isa;
use crate::model::Quantization;

pub use crate::kernels::KvType;
pub use http::{AllowedOrigins, ApiKey, HttpConfig, OpenEndpoints};
pub use observe::{LogFormat, ObserveConfig};

/// All settings of `serve`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct ServeConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub engine: EngineConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub server: ServerConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub http: HttpConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub observe: ObserveConfig,
}

/// What is loaded, and where it runs.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Model")]
pub struct ModelConfig {
    /// A catalogue name (see `candlepower models`), a .gguf file, a folder with config.json and
    /// safetensors, or a hub id: org/name[@revision][:file.gguf]
    #[arg(long, env = "MODEL", default_value = "smollm2-135m")]
    pub model: String,
    /// Makes the matrices of a model that is not quantised smaller when they are loaded: q8_0,
    /// q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0 [default: as its files have them]
    #[arg(long, env = "QUANTIZE")]
    #[serde(serialize_with = "as_text")]
    pub quantize: Option<Quantization>,
    /// auto, cpu, cuda or cuda:N; auto takes a GPU where there is one
    #[arg(long, env = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Compute threads [default: one for each core]
    #[arg(long, env = "NUM_THREADS")]
    pub num_threads: Option<usize>,
    /// Instruction set of the CPU kernels: auto, portable, avx2, avx-vnni, avx512-vnni or
    /// avx512-bf16; auto takes the widest there is
    #[arg(long, env = "CPU_ISA", default_value = "auto")]
    pub cpu_isa: IsaChoice,
}

/// How requests are scheduled and how much memory they share.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Batching and KV cache")]
pub struct EngineConfig {
    /// false: strictly one request at a time, the baseline of every comparison
    #[arg(long, env = "ENABLE_BATCHING", default_value = "true", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub enable_batching: bool,
    /// false: every prompt is computed from its first token on, the baseline of what reuse gives
    #[arg(long, env = "ENABLE_PREFIX_CACHING", default_value = "true", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub enable_prefix_caching: bool,
    /// Most sequences in one step
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 64)]
    pub max_batch_size: usize,
    /// Most tokens in one step, so also the size of a prefill chunk: it bounds how long a long
    /// prompt delays the others' next token
    #[arg(long, env = "MAX_BATCH_TOKENS", default_value_t = 256)]
    pub max_batch_tokens: usize,
    /// How long an idle engine waits for company before its first step (0.05, 50ms)
    #[arg(long, env = "MAX_WAIT_TIME", default_value = "0", value_parser = parse_duration)]
    #[serde(rename = "max_wait_time_s", serialize_with = "as_seconds")]
    pub max_wait_time: Duration,
    /// Most requests that wait; one more is refused with 429
    #[arg(long, env = "QUEUE_MAX_SIZE", default_value_t = 1000)]
    pub queue_max_size: usize,
    /// Most time for one request, waiting and generating (30, 1500ms)
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "30", value_parser = parse_duration)]
    #[serde(rename = "request_timeout_s", serialize_with = "as_seconds")]
    pub request_timeout: Duration,
    /// A step that takes longer makes the server unready; four times this ends the process
    #[arg(long, env = "STALL_TIMEOUT", default_value = "30", value_parser = parse_duration)]
    #[serde(rename = "stall_timeout_s", serialize_with = "as_seconds")]
    pub stall_timeout: Duration,
    /// Longest sequence, prompt and output, in tokens [default: the model's window, or what the
    /// KV cache holds]
    #[arg(long, env = "MAX_MODEL_LEN")]
    pub max_model_len: Option<usize>,
    /// Memory for the KV cache: bytes, 2GiB, or a share of the free memory (25%)
    #[arg(long, env = "KV_CACHE_SIZE", default_value = "2GiB")]
    pub kv_cache_size: MemorySize,
    /// Type of K and V in the cache: f32, f16, or q8_0, which takes half the memory of f16
    #[arg(long, env = "KV_CACHE_TYPE", default_value_t)]
    pub kv_cache_type: KvType,
    #[command(flatten)]
    #[serde(flatten)]
    pub speculation: SpeculationConfig,
}

/// Whether and how far a step computes tokens ahead that may turn out wrong.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculationConfig {
    /// Drafts of the next tokens, verified in the step that they save; the output is the same
    #[arg(long, env = "SPECULATIVE", value_enum, default_value_t = SpeculationConfig::OFF.speculative)]
    pub speculative: Speculative,
    /// Most tokens of a draft, up to 32
    #[arg(long, env = "SPECULATIVE_TOKENS", default_value_t = SpeculationConfig::OFF.speculative_tokens)]
    pub speculative_tokens: usize,
    /// Drafts fill a step up to this many tokens, so a batch of as many sequences has none: from
    /// there on a step costs what it computes, and a wrong draft delays all
    #[arg(long, env = "SPECULATIVE_STEP_TOKENS", default_value_t = SpeculationConfig::OFF.speculative_step_tokens)]
    pub speculative_step_tokens: usize,
}

impl SpeculationConfig {
    /// The defaults.
    pub const OFF: Self = Self {
        speculative: Speculative::Off,
        speculative_tokens: 15,
        speculative_step_tokens: 16,
    };
}

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Speculative {
    /// No drafts
    Off,
    /// What followed the last tokens where they stood before, in prompt or output
    Ngram,
}

/// Where the server listens.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "HTTP")]
pub struct ServerConfig {
    /// Address to listen on; 0.0.0.0 opens it to the network
    #[arg(long, env = "HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// true: share the port, once the model is loaded, with a running server that has this set too
    /// and is to be replaced (see scripts/hand-over)
    #[arg(long, env = "REUSE_PORT", default_value = "false", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub reuse_port: bool,
    /// Most time for the requests in flight when the server is told to stop; then they are ended
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "30", value_parser = parse_duration)]
    #[serde(rename = "drain_timeout_s", serialize_with = "as_seconds")]
    pub drain_timeout: Duration,
}

/// The device that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The instruction set that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsaChoice {
    Auto,
    Only(Isa),
}

impl FromStr for IsaChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let isa = Isa::ALL.into_iter().find(|isa| isa.to_string() == text);
        isa.map(Self::Only).ok_or_else(|| {
            let names = Isa::ALL.map(|isa| isa.to_string()).join(" or ");
            format!("expected auto, {names}")
        })
    }
}

impl fmt::Display for IsaChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(isa) => isa.fmt(f),
        }
    }
}

impl Serialize for IsaChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An amount of memory: fixed, or a share of what is free at start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemorySize {
    Bytes(u64),
    /// In percent, above 0 and at most 100.
    PercentOfFree(f64),
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 11] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1 << 30),
            ("B", 1),
            ("", 1),
        ];
        let expected = || "expected bytes, a size such as 2GiB, or a share such as 25%".to_owned();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
        let number: f64 = digits.trim().parse().map_err(|_| expected())?;
        let unit = text[digits.len()..].trim();
        if unit == "%" {
            return (number > 0.0 && number <= 100.0)
                .then_some(Self::PercentOfFree(number))
                .ok_or_else(|| "a share lies above 0% and at most at 100%".to_owned());
        }
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(expected)?;
        let bytes = number * *factor as f64;
        (bytes >= 1.0 && bytes < (1u64 << 60) as f64)
            .then_some(Self::Bytes(bytes as u64))
            .ok_or_else(expected)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => {
                let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
                let whole = units.iter().find(|(_, size)| bytes % size == 0);
                match whole {
                    Some((unit, size)) => write!(f, "{}{unit}", bytes / size),
                    None => write!(f, "{bytes}B"),
                }
            }
            Self::PercentOfFree(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a time: a bare number is seconds; `us`, `ms`, `s` and `m` may follow.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected seconds, or a time such as 50ms, 1.5s or 2m".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.trim().parse().map_err(|_| expected())?;
    let seconds = match &text[digits.len()..] {
        "" | "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        "m" => number * 60.0,
        _ => return Err(expected()),
    };
    (0.0..=86_400.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
        .ok_or_else(|| "a time lies between 0 and one day".to_owned())
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn as_text<S: Serializer>(kind: &Option<Quantization>, serializer: S) -> Result<S::Ok, S::Error> {
    match kind {
        Some(kind) => serializer.collect_str(kind),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_numbers_are_seconds_and_units_are_read() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("0.05", 50),
            ("50ms", 50),
            ("2m", 120_000),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "ms", "-1", "5 weeks", "nan", "inf", "1e9"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_bytes_or_units_or_a_share() {
        for (text, bytes) in [
            ("1024", 1024),
            ("2GiB", 2 << 30),
            ("1.5 KB", 1500),
            ("64m", 64 << 20),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize::Bytes(bytes)), "{text}");
        }
        assert_eq!("25%".parse(), Ok(MemorySize::PercentOfFree(25.0)));
        for text in ["2GiB", "1536MiB", "100B", "12.5%"] {
            assert_eq!(text.parse::<MemorySize>().expect(text).to_string(), text);
        }
        for text in ["", "0", "0%", "101%", "-5", "2 lions", "nan", "%"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn instruction_sets_are_named_as_they_are_shown() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(IsaChoice::Only(isa)));
        }
        assert_eq!("auto".parse(), Ok(IsaChoice::Auto));
        assert!("mmx".parse::<IsaChoice>().is_err());
    }

    #[test]
    fn devices_are_named_as_in_the_help() {
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
