//! How alike equal requests are.

use super::Finding;
use crate::bench::report::analysis::cases::{Case, cases};
use crate::bench::report::figures::Source;
use crate::bench::report::words::percent;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let Some(load) = source.calmest(|load| cases(&load.answers).len() >= 2) else {
        return Vec::new();
    };
    let cases = cases(&load.answers);
    let Some(worst) = cases.iter().max_by(|a, b| {
        a.coefficient_of_variation()
            .total_cmp(&b.coefficient_of_variation())
    }) else {
        return Vec::new();
    };
    let variation = worst.coefficient_of_variation();
    let words = match variation {
        x if x < 0.05 => "Equal requests take equal time",
        x if x < 0.10 => "Equal requests take about equal time",
        x if x < 0.20 => "Equal requests take noticeably different times",
        _ => "Equal requests take very different times",
    };
    let below = cases
        .iter()
        .filter(|case: &&Case| case.coefficient_of_variation() < 0.05)
        .count();
    vec![Finding {
        topic: "Consistency",
        claim: format!(
            "{words}: the coefficient of variation is {} at most (of {} tokens), and below 5 % in {below} of {} sizes ({}).",
            percent(variation),
            worst.name(),
            cases.len(),
            load.name
        ),
        rule: "By the highest coefficient of variation of any size of request that was sent five times or more: below 5 %, 10 %, 20 %, or above.",
    }]
}
