//! What more requests at once give.

use super::Finding;
use crate::bench::report::figures::{Source, throughput_curve};
use crate::bench::report::words::{number, times};

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let finding = || {
        let curve = throughput_curve(source)?;
        let first = curve.points.first()?;
        let most = curve
            .points
            .iter()
            .max_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s))?;
        let speed_up = most.tokens_per_s / first.tokens_per_s;
        (most.at_once > first.at_once).then(|| Finding {
            topic: "Requests at once",
            claim: format!(
                "With {} requests in flight the server gives {} tokens/s, {} what it gives with {} ({}).",
                most.name,
                number(most.tokens_per_s),
                times(speed_up),
                first.name,
                match curve.is_of_one_load {
                    true => most.load.clone(),
                    false => format!("{} against {}", most.load, first.load),
                }
            ),
            rule: "The highest throughput of the curve against its first point; said when the highest is not the first. Of several closed loops, or of the moments of one load.",
        })
    };
    finding().into_iter().collect()
}
