//! The command line: one subcommand, one arm.

use clap::{Parser, Subcommand};

use crate::config::ServeConfig;

/// An LLM inference server with a built-in benchmark harness.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a model and serve it over HTTP
    Serve(Box<ServeConfig>),
}

/// Runs the parsed command to its end.
///
/// # Errors
/// What went wrong, in one line for the user: the file or setting, and what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(config) => anyhow::bail!("cannot serve {} yet", config.model.model),
    }
}
