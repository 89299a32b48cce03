//! How latency grows: with the output, with the prompt, with both.

use super::Finding;
use crate::bench::report::analysis::cases::{Case, cases};
use crate::bench::report::analysis::classes::{by_length, growth_exponent};
use crate::bench::report::figures::{Source, output_fit, short_time};
use crate::bench::report::words::{number, time, times};

/// R² from which a line is a fair description.
const LINEAR_FROM: f64 = 0.95;
/// Exponents between these count as in proportion.
const PROPORTIONAL: std::ops::RangeInclusive<f64> = 0.9..=1.1;
/// A difference of means below so many standard errors is not told from noise.
const STANDARD_ERRORS: f64 = 3.0;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    [
        with_output(source),
        with_prompt(source),
        with_length(source),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn with_output(source: Source<'_>) -> Option<Finding> {
    let (load, fit) = output_fit(source)?;
    if fit.slope <= 0.0 {
        return None;
    }
    if fit.r_squared < LINEAR_FROM {
        return Some(Finding {
            topic: "Output length",
            claim: format!(
                "Output length alone does not give the latency: a straight line leaves {} % of its variance unexplained ({}).",
                number((1.0 - fit.r_squared) * 100.0),
                load.name
            ),
            rule: "Said when R² of the straight line through latency over output tokens is below 0.95, of three output lengths or more.",
        });
    }
    let limits: Vec<String> = source
        .objectives_ms
        .iter()
        .filter_map(|ms| {
            let tokens = ((ms - fit.intercept) / fit.slope).floor();
            let longest = load
                .answers
                .iter()
                .filter_map(|answer| answer.output_tokens)
                .max()? as f64;
            // The line says nothing of lengths that nobody measured.
            (1.0..=longest)
                .contains(&tokens)
                .then(|| format!("{} to {tokens:.0} tokens", short_time(*ms)))
        })
        .collect();
    let limits = match limits.is_empty() {
        true => String::new(),
        false => format!(
            " By that line, the mean latency stays within {}.",
            limits.join(", ")
        ),
    };
    Some(Finding {
        topic: "Output length",
        claim: format!(
            "Latency grows in a straight line with the output: {} a token on top of {} (R² {:.3}, {}).{limits}",
            time(fit.slope),
            time(fit.intercept),
            fit.r_squared,
            load.name
        ),
        rule: "Said when R² of the straight line through latency over output tokens is 0.95 or more, of three output lengths or more, on the load with the fewest requests in flight.",
    })
}

/// Shortest against longest prompt, at the output length that most prompts share.
fn with_prompt(source: Source<'_>) -> Option<Finding> {
    let load = source.calmest(|load| pair(&cases(&load.answers)).is_some())?;
    let all = cases(&load.answers);
    let (short, long) = pair(&all)?;
    let difference = long.e2e_ms.mean - short.e2e_ms.mean;
    let variance_of_mean = |case: &Case| case.e2e_ms.std.powi(2) / case.e2e_ms.count as f64;
    let standard_error = (variance_of_mean(short) + variance_of_mean(long)).sqrt();
    let is_shown = difference.abs() > STANDARD_ERRORS * standard_error;
    let at = format!(
        "{} against {} prompt tokens, {} output tokens, {}",
        long.prompt_tokens, short.prompt_tokens, short.output_tokens, load.name
    );
    Some(Finding {
        topic: "Prompt length",
        claim: match is_shown {
            true => format!(
                "A longer prompt takes {} {}: {at}.",
                time(difference.abs()),
                if difference > 0.0 { "longer" } else { "less" }
            ),
            false => format!("No effect of the prompt's length is shown: {at}."),
        },
        rule: "The means of the shortest and the longest prompt at the same output length differ by more than three standard errors, or no effect is shown.",
    })
}

/// The two ends of the prompt lengths at one output length; the widest apart.
fn pair(cases: &[Case]) -> Option<(&Case, &Case)> {
    let pairs = cases.iter().flat_map(|short| {
        let same_output = cases
            .iter()
            .filter(|long| long.output_tokens == short.output_tokens);
        same_output.map(move |long| (short, long))
    });
    pairs
        .filter(|(short, long)| short.prompt_tokens < long.prompt_tokens)
        .max_by_key(|(short, long)| {
            (
                long.prompt_tokens - short.prompt_tokens,
                std::cmp::Reverse(short.output_tokens),
            )
        })
}

fn with_length(source: Source<'_>) -> Option<Finding> {
    let candidates = source
        .loads
        .iter()
        .rev()
        .map(|load| (load, by_length(&load.answers)));
    let (load, classes) = candidates
        .max_by_key(|(_, classes)| classes.len())
        .filter(|(_, classes)| classes.len() >= 3)?;
    let exponent = growth_exponent(&classes)?;
    let (first, last) = (classes.first()?, classes.last()?);
    let tokens = last.mean_total_tokens? / first.mean_total_tokens?;
    let latency = last.e2e_ms.p95 / first.e2e_ms.p95;
    let shape = match exponent {
        x if PROPORTIONAL.contains(&x) => "in proportion to it",
        x if x > *PROPORTIONAL.end() => "faster than it (super-linear)",
        _ => "more slowly than it (sub-linear)",
    };
    Some(Finding {
        topic: "Sequence length",
        claim: format!(
            "From {} to {} tokens in the mean, {} the length, P95 latency grows {}: {shape} ({}).",
            number(first.mean_total_tokens?),
            number(last.mean_total_tokens?),
            times(tokens),
            times(latency),
            load.name
        ),
        rule: "The exponent k of P95 ~ tokens^k between the shortest and the longest class: 0.9 to 1.1 is in proportion. Needs three length classes of five requests or more.",
    })
}
