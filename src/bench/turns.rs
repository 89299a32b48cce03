//! Blocks of several servers, measured in turn.

use anyhow::ensure;

use super::args::LoadArgs;
use super::metrics::Metrics;
use super::planning::Prompts;
use super::record::Record;
use super::validity;

/// The round and the server of each block: A B C, C B A, A B C, … What drifts steadily over the
/// run then weighs on all alike, and the blocks of a round lie side by side.
pub fn turns(rounds: usize, servers: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rounds).flat_map(move |round| {
        (0..servers).map(move |turn| match round % 2 {
            0 => (round, turn),
            _ => (round, servers - 1 - turn),
        })
    })
}

/// The load of each round, which differ in nothing but the seed.
///
/// # Errors
/// It cannot be sent, which is said here before a server is started for it.
pub fn loads(load: &LoadArgs, rounds: usize) -> anyhow::Result<Vec<LoadArgs>> {
    (0..rounds as u64)
        .map(|round| {
            let mut load = load.clone();
            load.seed = load.seed.wrapping_add(round);
            Prompts::read(&load)?;
            Ok(load)
        })
        .collect()
}

/// How a block went.
pub fn log_block(block: &str, record: &Record) {
    let metrics = Metrics::of(record);
    tracing::info!(
        "{block}: {} of {} requests succeeded in {:.1} s",
        metrics.num_successes,
        metrics.num_requests,
        metrics.duration_s
    );
}

/// A void block compares something else than was asked for.
///
/// # Errors
/// There is one; says which and why.
pub fn ensure_valid<'a>(
    records: impl Iterator<Item = &'a Record>,
    raw: &str,
) -> anyhow::Result<()> {
    for (position, record) in records.enumerate() {
        let faults = validity::faults(record);
        ensure!(
            faults.is_empty(),
            "block {} is void, and with it the run (its records are in {raw}): {}",
            position + 1,
            faults.join("; ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        let order: Vec<_> = turns(3, 3).collect();
        assert_eq!(
            order,
            [
                (0, 0),
                (0, 1),
                (0, 2),
                (1, 2),
                (1, 1),
                (1, 0),
                (2, 0),
                (2, 1),
                (2, 2)
            ]
        );
    }
}
