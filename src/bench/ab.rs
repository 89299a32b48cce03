//! `bench ab`: two settings of this program's server, measured in turn in one run.
//!
//! Blocks follow each other A B B A A B B A …: what drifts steadily over the run weighs on both
//! sides alike, and the two blocks of a pair lie side by side. Each block starts a server of its
//! own and stops it, rather than keeping two at hand. So nothing but the measured server takes CPU
//! or memory, each block begins with an empty cache and a peak of memory of its own, and what a
//! process owes to its start alone (where its memory came to lie) varies between the blocks, where
//! the interval sees it, and does not tell A from B for the whole run.

pub mod args;
pub(super) mod comparison;
mod criterion;
mod editor;
pub mod record;
pub(super) mod section;
pub(super) mod tables;
pub(super) mod words;

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use self::args::{AbArgs, Settings};
use self::record::{Ab, AbRecord, Block, Prose, Side};
use super::args::LoadArgs;
use super::benchmarks_md::next_optimization;
use super::machine::Commit;
use super::measurement::{Target, measure};
use super::provenance::variable_of;
use super::raw_record::conclude;
use super::record::FORMAT_VERSION;
use super::result_file::ResultFile;
use super::server_log;
use super::server_stats::ServerStats;
use super::turns::{loads, log_block, turns};

/// Measures both sides, prints the comparison, saves the raw records, and adds the optimization to
/// BENCHMARKS.md.
///
/// # Errors
/// A server cannot be started or does not know a setting, a file cannot be written, or a side
/// served no request.
pub async fn session(folder: &Path, args: &AbArgs) -> anyhow::Result<()> {
    let loads = loads(&args.load, args.blocks)?;
    let prose = prose(args)?;
    let file = ResultFile::prepare(folder, args.output.as_deref(), "-ab")?;
    let record = AbRecord {
        ab: asked(args, prose, next_optimization(&file.page())?),
        blocks: measure_blocks(args, &loads, &file).await?,
    };
    conclude(record, &file, !args.no_append)
}

fn prose(args: &AbArgs) -> anyhow::Result<Prose> {
    let given = Prose {
        changes: args.changes.clone(),
        tradeoff: args.tradeoff.clone(),
        next: args.next.clone(),
    };
    match args.edit {
        true => editor::edit(&given),
        false => Ok(given),
    }
}

fn asked(args: &AbArgs, prose: Prose, number: usize) -> Ab {
    Ab {
        format_version: FORMAT_VERSION,
        number,
        name: args.name.clone(),
        a: args.a.clone(),
        b: args.b.clone(),
        targets: args.targets.clone(),
        prose,
    }
}

/// The pair and the side of each block, in the order of measuring.
fn order(pairs: usize) -> Vec<(usize, Side)> {
    turns(pairs, 2)
        .map(|(pair, side)| (pair, [Side::A, Side::B][side]))
        .collect()
}

async fn measure_blocks(
    args: &AbArgs,
    loads: &[LoadArgs],
    file: &ResultFile,
) -> anyhow::Result<Vec<Block>> {
    let commit = Commit::of(&file.root);
    let order = order(args.blocks);
    let mut blocks = Vec::with_capacity(order.len());
    for (position, (pair, side)) in order.iter().copied().enumerate() {
        let settings = match side {
            Side::A => &args.a,
            Side::B => &args.b,
        };
        let context = || format!("block {} of {}, side {side:?}", position + 1, order.len());
        let target = Target::start(&settings.0, &file.log())
            .await
            .with_context(context)?;
        ensure_known(settings, &target.stats().await?)?;
        let mut record = measure(&target, &loads[pair]).await.with_context(context)?;
        record.run.commit.clone_from(&commit);
        // The server has written its log to the end when it has ended.
        drop(target);
        server_log::join(&mut record.requests, &file.log());
        log_block(&context(), &record);
        blocks.push(Block { pair, side, record });
    }
    Ok(blocks)
}

/// A misspelt variable would change nothing, and the run would say so of the wrong thing.
pub(super) fn ensure_known(settings: &Settings, stats: &Value) -> anyhow::Result<()> {
    let reported = ServerStats::of(stats).settings;
    let variables: Vec<String> = reported.keys().map(|name| variable_of(name)).collect();
    if let Some(unknown) = settings.0.keys().find(|name| !variables.contains(name)) {
        bail!(
            "the server has no setting {unknown}; it has {}",
            variables.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_alternate_so_that_each_pair_begins_with_the_other_side() {
        let sides: String = order(4)
            .iter()
            .map(|(_, side)| format!("{side:?}"))
            .collect();
        assert_eq!(sides, "ABBAABBA");
        let pairs: Vec<usize> = order(4).iter().map(|(pair, _)| *pair).collect();
        assert_eq!(pairs, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_setting_that_the_server_does_not_have_is_refused() {
        let stats = json!({"settings": {"max_batch_size": 64, "request_timeout_s": 30.0}});
        let known: Settings = "MAX_BATCH_SIZE=1,REQUEST_TIMEOUT=60"
            .parse()
            .expect("settings");
        ensure_known(&known, &stats).expect("both are known");
        let misspelt: Settings = "MAX_BATCHSIZE=1".parse().expect("settings");
        let message = ensure_known(&misspelt, &stats)
            .expect_err("unknown")
            .to_string();
        assert!(message.contains("MAX_BATCHSIZE; it has"), "{message}");
    }
}
