//! How many requests a day.

use super::Finding;
use crate::bench::report::figures::Source;
use crate::bench::report::words::{counted, number, percent};

const SECONDS_A_DAY: f64 = 86_400.0;
/// Shorter loads, and those that fail more often, say nothing of a day.
const DURATION_MIN_S: f64 = 10.0;
const ERROR_RATE_MAX: f64 = 0.05;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let is_telling = |metrics: &crate::bench::metrics::Metrics| {
        metrics.duration_s >= DURATION_MIN_S && metrics.error_rate <= ERROR_RATE_MAX
    };
    let Some(load) = source.busiest(|load| is_telling(&load.metrics) && load.peak_in_flight() >= 2)
    else {
        return Vec::new();
    };
    let metrics = &load.metrics;
    let rate = metrics.request_throughput_per_s;
    // Two digits: the run is a sample of a day, and a short one.
    let a_day = rate * SECONDS_A_DAY;
    let digits = 10f64.powf(a_day.log10().floor() - 1.0);
    vec![Finding {
        topic: "Daily capacity",
        claim: format!(
            "About {} requests a day, if the {} requests/s of {} over {} s hold around the clock, with this mix of requests (error rate {}).",
            counted_number((a_day / digits).round() * digits),
            number(rate),
            load.name,
            number(metrics.duration_s),
            percent(metrics.error_rate)
        ),
        rule: "Successful requests a second × 86,400, to two digits, of the load with the most requests in flight; said when it has two at once or more, lasted 10 s or more, and failed in 5 % or less.",
    }]
}

fn counted_number(x: f64) -> String {
    let text = counted(x as usize, "");
    text.trim_end_matches('s').trim_end().to_owned()
}
