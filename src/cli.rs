//! The command line: one subcommand, one arm.

use clap::{Parser, Subcommand};

use crate::bench::{self, BenchArgs};
use crate::config::{LogFormat, ServeConfig};
use crate::text::template_worker;
use crate::{model, serve};

/// An LLM inference server with a built-in benchmark harness.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How the log on standard error is written
    #[arg(long, env = "LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a model and serve it over HTTP
    Serve(Box<ServeConfig>),
    /// Measure a server over HTTP and record the result
    Bench(Box<BenchArgs>),
    /// List the models of the catalogue, and which are on this machine
    Models,
    /// What `serve` starts to render chat templates
    #[command(name = template_worker::SUBCOMMAND, hide = true)]
    ChatTemplateWorker,
}

/// Runs the parsed command to its end.
///
/// # Errors
/// What went wrong, in one line for the user: the file or setting, and what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(config) => serve::run(&config),
        Command::Bench(args) => bench::run(*args),
        Command::Models => model::list(&mut std::io::stdout().lock()),
        Command::ChatTemplateWorker => Ok(template_worker::run()?),
    }
}
