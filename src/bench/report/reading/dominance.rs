//! Where most of the time goes.

use super::Finding;
use crate::bench::report::analysis::breakdown::{Breakdown, Part};
use crate::bench::report::figures::Source;
use crate::bench::report::words::{percent, time};

/// The share from which a part dominates.
pub const DOMINANT: f64 = 0.5;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let Some(load) = source.busiest(|load| Breakdown::mean(&load.answers).is_some()) else {
        return Vec::new();
    };
    let Some(mean) = Breakdown::mean(&load.answers) else {
        return Vec::new();
    };
    let shares: Vec<String> = mean
        .parts()
        .iter()
        .map(|(part, ms)| {
            format!(
                "{} {} ({})",
                part.name(),
                percent(mean.share(*part)),
                time(*ms)
            )
        })
        .collect();
    let dominant = mean
        .parts()
        .into_iter()
        .find(|(part, _)| mean.share(*part) >= DOMINANT);
    let claim = match dominant.map(|(part, _)| part) {
        Some(Part::Queue) => {
            "Waiting dominates: requests spend more time in the queue than being worked on."
        }
        Some(Part::Prefill) => "Prefill dominates: most of the time goes into reading prompts.",
        Some(Part::Decode) => "Decode dominates: most of the time goes into generating tokens.",
        Some(Part::Outside) => {
            "Most of the time passes outside of the server's own account: in the client, the network, or before it counts."
        }
        None => "No part dominates.",
    };
    vec![Finding {
        topic: "What dominates",
        claim: format!(
            "{claim} Of the mean latency of {}, {}.",
            load.name,
            shares.join(", ")
        ),
        rule: "A part dominates when it makes up half of the time of all successful requests or more, on the load with the most requests in flight.",
    }]
}
