//! The load over time: requests in flight, the server's batch, and its KV cache.

use super::{Exhibit, Source, Table, figure};
use crate::bench::record::ServerSample;
use crate::bench::report::analysis::in_flight::{Step, steps};
use crate::bench::report::chart::{Axis, Color, Line, Panel, Plot, Series, Span, XAxis, XyPlot};
use crate::bench::report::loads::Load;
use crate::bench::report::words::number;

pub const TITLE: &str = "Over time";

/// As many moments as a picture has columns; of each the highest number is shown.
const COLUMNS: usize = 400;

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.busiest(|load| load.record.requests.len() >= 2)?;
    let in_flight = in_flight(load);
    let batch = batch_sizes(load);
    let kv = kv_usage(load);
    let mut numbers = Table::new(["over the load", "mean", "highest"]);
    let mut panels = vec![panel(
        "Requests in flight",
        "requests",
        Color::Blue,
        in_flight.clone(),
    )];
    numbers.row([
        "requests in flight".to_owned(),
        number(load.mean_in_flight()),
        number(highest(&in_flight)),
    ]);
    for (title, label, color, points) in [
        ("Batch size", "sequences", Color::Green, batch),
        ("KV cache in use", kv.label, Color::Purple, kv.points),
    ] {
        if points.len() >= 2 {
            let mean = points.iter().map(|(_, y)| y).sum::<f64>() / points.len() as f64;
            numbers.row([
                format!("{} ({label})", title.to_lowercase()),
                number(mean),
                number(highest(&points)),
            ]);
            panels.push(panel(title, label, color, points));
        }
    }
    Some(Exhibit {
        id: "timeline",
        figure: figure(TITLE, load, panels),
        caption: "In flight: requests between their sending and their end, as the client saw them, the most in each 400th of the time. Batch size and KV cache: what the server said when \
                  it was asked, four times a second."
            .to_owned(),
        numbers,
    })
}

fn panel(title: &str, label: &str, color: Color, points: Vec<(f64, f64)>) -> Panel {
    Panel {
        title: title.to_owned(),
        span: Span::Full,
        height: 170.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Linear {
                label: "time since the first request was due (s)".to_owned(),
            },
            y: Axis::new(label),
            series: vec![Series {
                name: String::new(),
                color,
                points,
                line: Line::Area,
                marker: None,
                whiskers: Vec::new(),
            }],
        }),
    }
}

fn start_ms(load: &Load) -> f64 {
    load.record
        .requests
        .iter()
        .map(|r| r.due_ms)
        .fold(f64::INFINITY, f64::min)
}

/// Stairs: each column as high as the most that were in flight within it.
fn in_flight(load: &Load) -> Vec<(f64, f64)> {
    let start = start_ms(load);
    let steps = steps(&load.record.requests);
    let end = steps.last().map_or(start, |step| step.at_ms);
    let width_ms = (end - start) / COLUMNS as f64;
    let mut points: Vec<(f64, f64)> = vec![(0.0, 0.0)];
    for column in 0..COLUMNS {
        let from = start + column as f64 * width_ms;
        let height = highest_between(&steps, from, from + width_ms) as f64;
        let before = points.last().map_or(0.0, |(_, y)| *y);
        if height != before {
            let at_s = (from - start) / 1e3;
            points.extend([(at_s, before), (at_s, height)]);
        }
    }
    let end_s = (end - start) / 1e3;
    let before = points.last().map_or(0.0, |(_, y)| *y);
    points.extend([(end_s, before), (end_s, 0.0)]);
    points
}

fn highest_between(steps: &[Step], from_ms: f64, to_ms: f64) -> usize {
    let after = steps.partition_point(|step| step.at_ms <= from_ms);
    let within = steps.iter().skip(after.saturating_sub(1));
    within
        .take_while(|step| step.at_ms < to_ms)
        .map(|step| step.count)
        .max()
        .unwrap_or(0)
}

fn sampled(load: &Load, value: impl Fn(&ServerSample) -> Option<f64>) -> Vec<(f64, f64)> {
    let start = start_ms(load);
    let samples = load.record.run.server.samples.iter();
    samples
        .filter(|sample| sample.at_ms >= start)
        .filter_map(|sample| Some(((sample.at_ms - start) / 1e3, value(sample)?)))
        .collect()
}

/// Sequences a step between two samples where the server counts its steps, else those running at
/// each.
fn batch_sizes(load: &Load) -> Vec<(f64, f64)> {
    let start = start_ms(load);
    let samples = &load.record.run.server.samples;
    let between = |pair: &[ServerSample]| {
        let [before, after] = pair else { return None };
        let steps = after.num_steps?.checked_sub(before.num_steps?)?;
        let sequences = after
            .num_step_sequences?
            .checked_sub(before.num_step_sequences?)?;
        let mean = if steps > 0 {
            sequences as f64 / steps as f64
        } else {
            0.0
        };
        (after.at_ms >= start).then_some(((after.at_ms - start) / 1e3, mean))
    };
    let counted: Vec<(f64, f64)> = samples.windows(2).filter_map(between).collect();
    match counted.is_empty() {
        true => sampled(load, |sample| sample.num_running_requests.map(|n| n as f64)),
        false => counted,
    }
}

struct KvUsage {
    label: &'static str,
    points: Vec<(f64, f64)>,
}

/// Of the whole where the server tells how much that is, else in tokens.
fn kv_usage(load: &Load) -> KvUsage {
    let tokens = |sample: &ServerSample| sample.kv_used_tokens.map(|n| n as f64);
    match load.metrics.server.kv_capacity_tokens.filter(|n| *n > 0) {
        Some(capacity) => KvUsage {
            label: "% of its tokens",
            points: sampled(load, |sample| {
                Some(tokens(sample)? / capacity as f64 * 100.0)
            }),
        },
        None => KvUsage {
            label: "tokens",
            points: sampled(load, tokens),
        },
    }
}

fn highest(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(_, y)| *y).fold(0.0, f64::max)
}
