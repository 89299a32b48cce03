//! What is told about requests, in the log and for debugging.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

/// What the server tells of its requests.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Log")]
pub struct ObserveConfig {
    /// Write prompts and answers into the log
    #[arg(long, env = "LOG_PROMPTS", default_value = "false", action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub log_prompts: bool,
    /// Tell what happened to each of this many last requests at /debug/requests; 0: off
    #[arg(long, env = "DEBUG_REQUESTS", default_value_t = 0)]
    pub debug_requests: usize,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
