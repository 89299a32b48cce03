//! Numbers of a comparison as words: units, ratios, intervals, verdicts.

use super::comparison::{Comparison, Measure, Scale, Verdict};
use crate::bench::figures::{NOT_AVAILABLE, milliseconds, percent};
use crate::bench::statistics::interval::Interval;

/// A value of a figure; the unit stands elsewhere.
pub fn value(measure: &Measure, value: f64) -> String {
    match (measure.scale, measure.unit) {
        (Scale::Difference, _) => percent(value),
        (Scale::Ratio, "ms" | "requests/s") => milliseconds(value),
        (Scale::Ratio, _) => format!("{value:.1}"),
    }
}

/// The name of a figure with its unit.
pub fn label(measure: &Measure) -> String {
    match measure.unit {
        "" => measure.label.to_owned(),
        unit => format!("{} ({unit})", measure.label),
    }
}

/// By how much B differs from A: in percent, or in percentage points.
pub fn delta(measure: &Measure, comparison: &Comparison) -> String {
    match measure.scale {
        Scale::Ratio => format!("{:+.1} %", (comparison.change - 1.0) * 100.0),
        Scale::Difference => points(comparison.change),
    }
}

/// The ratio B/A and the interval of the change.
pub fn change(measure: &Measure, comparison: &Comparison) -> [String; 2] {
    let Interval { low, high } = comparison.interval;
    match measure.scale {
        Scale::Ratio => [
            ratio(comparison.change),
            format!("{} to {}", ratio(low), ratio(high)),
        ],
        Scale::Difference => [
            NOT_AVAILABLE.to_owned(),
            format!("{:+.1} to {}", low * 100.0, points(high)),
        ],
    }
}

pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::NoDifferenceShown => "no difference shown",
    }
}

/// A cell of the summary table.
pub fn in_short(measure: &Measure, comparison: Option<Comparison>) -> String {
    let Some(comparison) = comparison else {
        return NOT_AVAILABLE.to_owned();
    };
    format!(
        "{} → {} ({}), {}",
        value(measure, comparison.before),
        value(measure, comparison.after),
        delta(measure, &comparison),
        verdict(comparison.verdict)
    )
}

/// With enough digits to tell it from 1, and none for show.
fn ratio(ratio: f64) -> String {
    match ratio {
        0.001..1.0 => format!("{ratio:.4}"),
        1.0..10.0 => format!("{ratio:.3}"),
        10.0..=1000.0 => format!("{ratio:.1}"),
        _ if ratio < 1.0 => "under 0.001".to_owned(),
        _ => "over 1000".to_owned(),
    }
}

fn points(share: f64) -> String {
    format!("{:+.1} points", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_written_with_digits_that_tell() {
        for (value, written) in [
            (0.12345, "0.1235"),
            (0.99961, "0.9996"),
            (1.0, "1.000"),
            (2.5, "2.500"),
            (40.0, "40.0"),
            (0.0, "under 0.001"),
            (f64::INFINITY, "over 1000"),
        ] {
            assert_eq!(ratio(value), written);
        }
        assert_eq!(points(-0.26), "-26.0 points");
    }
}
