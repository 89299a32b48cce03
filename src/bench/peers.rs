//! `bench peers`: our server and others, measured in turn in one run by one client.
//!
//! As in `bench ab`, one server runs at a time and each block begins with an empty cache. A peer
//! that runs already, given by its address, keeps both its memory and its cache.

pub mod args;
pub mod record;
mod section;
pub mod server;

use std::path::Path;

use anyhow::Context as _;

use self::args::PeersArgs;
use self::record::{Asked, Block, PeersRecord};
use super::ab::ensure_known;
use super::machine::Commit;
use super::measurement::{Target, measure};
use super::raw_record::conclude;
use super::record::FORMAT_VERSION;
use super::result_file::ResultFile;
use super::server_log;
use super::turns::{loads, log_block, turns};

/// Measures all servers, prints the comparison, saves the raw records, and adds a section to
/// BENCHMARKS.md.
///
/// # Errors
/// A server cannot be started or reached, a file cannot be written, or a server served no request.
pub async fn session(folder: &Path, args: &PeersArgs) -> anyhow::Result<()> {
    let file = ResultFile::prepare(folder, args.output.as_deref(), "-peers")?;
    let asked = Asked {
        format_version: FORMAT_VERSION,
        name: args.name.clone(),
        own: args.own.clone(),
        servers: args.peers.clone(),
    };
    let record = PeersRecord {
        blocks: measure_blocks(args, &file).await?,
        peers: asked,
    };
    conclude(record, &file, !args.no_append)
}

async fn measure_blocks(args: &PeersArgs, file: &ResultFile) -> anyhow::Result<Vec<Block>> {
    let loads = loads(&args.load, args.blocks)?;
    let commit = Commit::of(&file.root);
    let num_servers = args.peers.len() + 1;
    let num_blocks = args.blocks * num_servers;
    let mut blocks = Vec::with_capacity(num_blocks);
    for (round, server) in turns(args.blocks, num_servers) {
        let peer = server.checked_sub(1).map(|peer| &args.peers[peer]);
        let context = || {
            let name = peer.map_or("our server", |peer| peer.name.as_str());
            format!("block {} of {num_blocks}, {name}", blocks.len() + 1)
        };
        let target = match peer {
            None => Target::start(&args.own.0, &file.log()).await,
            Some(peer) => Target::peer(peer, args.api_key.clone(), &file.log()).await,
        };
        let target = target.with_context(context)?.with_connection_per_request();
        if peer.is_none() {
            ensure_known(&args.own, &target.stats().await?)?;
        }
        let mut record = measure(&target, &loads[round])
            .await
            .with_context(context)?;
        record.run.commit.clone_from(&commit);
        // The server has written its log to the end when it has ended.
        drop(target);
        if peer.is_none() {
            server_log::join(&mut record.requests, &file.log());
        }
        log_block(&context(), &record);
        blocks.push(Block {
            round,
            server,
            record,
        });
    }
    Ok(blocks)
}
