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
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
