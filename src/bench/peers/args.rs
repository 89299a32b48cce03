//! The flags of `bench peers`.

use std::path::PathBuf;

use clap::Args;

use super::server::Peer;
use crate::bench::ab::args::{Settings, parse_blocks, parse_name};
use crate::bench::args::LoadArgs;
use crate::bench::client::ApiKey;

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "One server runs at a time, in blocks: ours, the peers in their order, then backwards, and so on. \
    All blocks of a round send the same prompts, the next round others.\n\n    \
    candlepower bench peers --name '16 clients' --concurrency 16 \\\n        \
    --peer 'llama.cpp=llama-server -m model.gguf -np 16 --port $PORT' \\\n        \
    --peer 'vLLM=http://127.0.0.1:8001'"
)]
pub struct PeersArgs {
    /// What the load is called
    #[arg(long, value_parser = parse_name)]
    pub name: String,
    /// Another server, as NAME=URL if it runs already (then it is never stopped), or as
    /// NAME=COMMAND, which has to listen on 127.0.0.1:$PORT; may be given several times
    #[arg(long = "peer", value_name = "PEER", required = true)]
    pub peers: Vec<Peer>,
    /// The key to send to servers that ask for one
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<ApiKey>,
    /// Settings of our server: VARIABLE=VALUE,… on top of the environment
    #[arg(long, value_name = "SETTINGS", default_value = "")]
    pub own: Settings,
    /// Blocks of each server, an even number: more of them make the intervals narrower
    #[arg(long, default_value_t = 6, value_parser = parse_blocks)]
    pub blocks: usize,
    /// Raw records, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
    #[command(flatten, next_help_heading = "Load of each block")]
    pub load: LoadArgs,
}
