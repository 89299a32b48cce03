//! Latency over output length, with a straight line through it, and the tokens a second of one
//! request.

use std::collections::{BTreeMap, BTreeSet};

use super::{Exhibit, Source, Table, figure, output_fit};
use crate::bench::report::chart::{
    Axis, Color, Line, Marker, Panel, Plot, Series, Span, XAxis, XyPlot,
};
use crate::bench::report::loads::Load;
use crate::bench::report::words::{TimeUnit, number, time};
use crate::bench::statistics::{Summary, line};

pub const TITLE: &str = "Latency and output length";

/// More prompt lengths than this are not lines of their own.
const PROMPT_LENGTHS_MAX: usize = 4;
/// From so many output lengths on, each request is a point instead of each length.
const LENGTHS_MAX: usize = 16;

/// Requests with prompts of one length, by output length.
struct Group {
    name: String,
    by_output_tokens: BTreeMap<u64, Summary>,
}

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let (load, fit) = output_fit(source)?;
    let groups = groups(load);
    let slowest = load
        .answers
        .iter()
        .map(|answer| answer.e2e_ms)
        .fold(0.0, f64::max);
    let unit = TimeUnit::for_max_ms(slowest);
    let mut numbers = Table::new([
        "prompt",
        "output tokens",
        "requests",
        "mean latency",
        "a token",
        "tokens/s of one request",
    ]);
    for group in &groups {
        for (tokens, e2e_ms) in &group.by_output_tokens {
            let per_token = e2e_ms.mean / *tokens as f64;
            numbers.row([
                group.name.clone(),
                tokens.to_string(),
                e2e_ms.count.to_string(),
                time(e2e_ms.mean),
                time(per_token),
                number(1e3 / per_token),
            ]);
        }
    }
    if numbers.rows.len() > 3 * LENGTHS_MAX {
        numbers.rows.clear();
    }
    Some(Exhibit {
        id: "latency-scaling",
        figure: figure(
            TITLE,
            load,
            vec![
                latency_panel(load, &groups, &fit, unit),
                speed_panel(&groups),
            ],
        ),
        caption: format!(
            "Left: {} of requests by the tokens they generated, and the straight line that fits all of them best: {} + {} a token \
             (R² {:.3}; 1 is a perfect line). Right: output tokens divided by latency; a flat line is a speed that does not \
             depend on length.",
            if is_scattered(load) {
                "latency"
            } else {
                "mean latency"
            },
            time(fit.intercept),
            time(fit.slope),
            fit.r_squared
        ),
        numbers,
    })
}

/// Over all successful requests of a load.
pub fn fit(load: &Load) -> Option<line::Line> {
    let points: Vec<(f64, f64)> = load
        .answers
        .iter()
        .filter_map(|answer| Some((answer.output_tokens? as f64, answer.e2e_ms)))
        .collect();
    line::fit(&points)
}

pub fn output_lengths(load: &Load) -> BTreeSet<u64> {
    load.answers
        .iter()
        .filter_map(|answer| answer.output_tokens)
        .filter(|n| *n > 0)
        .collect()
}

fn is_scattered(load: &Load) -> bool {
    output_lengths(load).len() > LENGTHS_MAX
}

fn groups(load: &Load) -> Vec<Group> {
    let prompts: BTreeSet<u64> = load
        .answers
        .iter()
        .filter_map(|answer| answer.prompt_tokens)
        .collect();
    let keys: Vec<Option<u64>> = match (2..=PROMPT_LENGTHS_MAX).contains(&prompts.len()) {
        true => prompts.into_iter().map(Some).collect(),
        false => vec![None],
    };
    let group = |key: &Option<u64>| {
        let mut latencies: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for answer in load
            .answers
            .iter()
            .filter(|a| key.is_none() || a.prompt_tokens == *key)
        {
            if let Some(tokens) = answer.output_tokens.filter(|n| *n > 0) {
                latencies.entry(tokens).or_default().push(answer.e2e_ms);
            }
        }
        Group {
            name: key.map_or("all prompts".to_owned(), |tokens| {
                format!("prompt of {tokens} tokens")
            }),
            by_output_tokens: latencies
                .into_iter()
                .filter_map(|(tokens, ms)| Some((tokens, Summary::of_ms(&ms)?)))
                .collect(),
        }
    };
    keys.iter().map(group).collect()
}

fn latency_panel(load: &Load, groups: &[Group], fit: &line::Line, unit: TimeUnit) -> Panel {
    let is_scattered = is_scattered(load);
    let mut series: Vec<Series> = lines(groups, |_, e2e_ms| unit.of(e2e_ms.mean));
    if is_scattered {
        for line in &mut series {
            line.line = Line::None;
        }
    }
    let longest = output_lengths(load).last().copied().unwrap_or(0) as f64;
    // Latency is never negative, whatever a line says of no tokens at all.
    let start = (-fit.intercept / fit.slope).clamp(0.0, longest);
    series.push(Series {
        name: format!("fit: {} a token", time(fit.slope)),
        color: Color::Vermillion,
        points: [start, longest]
            .map(|x| (x, unit.of((fit.intercept + fit.slope * x).max(0.0))))
            .to_vec(),
        line: Line::Dashed,
        marker: None,
        whiskers: Vec::new(),
    });
    Panel {
        title: "Latency by output length".to_owned(),
        span: Span::Half,
        height: 300.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Linear {
                label: "output tokens".to_owned(),
            },
            y: Axis::new(format!("latency ({})", unit.name)),
            series,
        }),
    }
}

fn speed_panel(groups: &[Group]) -> Panel {
    let mut series = lines(groups, |tokens, e2e_ms| tokens as f64 / e2e_ms.mean * 1e3);
    if groups
        .iter()
        .any(|group| group.by_output_tokens.len() > LENGTHS_MAX)
    {
        for line in &mut series {
            line.line = Line::None;
        }
    }
    Panel {
        title: "Speed of one request".to_owned(),
        span: Span::Half,
        height: 300.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Linear {
                label: "output tokens".to_owned(),
            },
            y: Axis::new("output tokens / latency (tokens/s)"),
            series,
        }),
    }
}

fn lines(groups: &[Group], value: impl Fn(u64, &Summary) -> f64) -> Vec<Series> {
    let colors = Color::SERIES.into_iter().cycle();
    let markers = Marker::ALL.into_iter().cycle();
    groups
        .iter()
        .zip(colors.zip(markers))
        .map(|(group, (color, marker))| Series {
            name: group.name.clone(),
            color,
            points: group
                .by_output_tokens
                .iter()
                .map(|(tokens, e2e_ms)| (*tokens as f64, value(*tokens, e2e_ms)))
                .collect(),
            line: Line::Solid,
            marker: Some(marker),
            whiskers: Vec::new(),
        })
        .collect()
}
