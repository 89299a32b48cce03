//! What more requests at once give.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::analysis::in_flight::{Served, served_by_count};
use crate::bench::report::chart::{
    Axis, Bar, BarGroup, BarPlot, Color, Panel, Plot, Span, Stacking, Tile,
};
use crate::bench::report::loads::Load;
use crate::bench::report::words::{number, percent, times};

pub const TITLE: &str = "Throughput and requests at once";

/// Time and events that a number of requests in flight needs, to be shown.
const DURATION_MIN_MS: f64 = 500.0;
const EVENTS_MIN: usize = 50;

/// One way to have several requests at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub name: String,
    pub at_once: f64,
    pub tokens_per_s: f64,
    /// In which load.
    pub load: String,
}

/// The points of a curve, and where they come from.
pub struct Curve<'a> {
    pub points: Vec<Point>,
    pub load: &'a Load,
    pub is_of_one_load: bool,
}

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let curve = curve(source)?;
    let first = curve.points.first()?;
    let mut numbers = Table::new([curve.x_label(), "output (tokens/s)", "to the first", "load"]);
    for point in &curve.points {
        numbers.row([
            point.name.clone(),
            number(point.tokens_per_s),
            times(point.tokens_per_s / first.tokens_per_s),
            point.load.clone(),
        ]);
    }
    let caption = match curve.is_of_one_load {
        true => {
            "Left: events with text that came while so many requests were in flight, a second (most servers send a token an event). Counts that \
                 lasted less than half a second or gave less than 50 events are left out. Right: the whole load."
        }
        false => {
            "Left: output tokens a second of each load, by the requests in flight in the mean over its time; loads of other \
             requests differ in more than that. Right: the load with the most."
        }
    };
    Some(Exhibit {
        id: "throughput",
        figure: figure(TITLE, curve.load, vec![curve.panel(), capacity(curve.load)]),
        caption: caption.to_owned(),
        numbers,
    })
}

/// By closed loops where they differ in their requests at once; else by the moments of the busiest
/// load. An open loop as a whole is given what it asks for, however much more there is.
pub fn curve(source: Source<'_>) -> Option<Curve<'_>> {
    let mut points: Vec<(Point, &Load)> = source
        .loads
        .iter()
        .filter_map(|load| Some((of_load(load)?, load)))
        .collect();
    points.sort_by(|a, b| a.0.at_once.total_cmp(&b.0.at_once));
    points.dedup_by(|b, a| b.0.at_once < a.0.at_once * 1.2);
    if let (2.., Some((_, busiest))) = (points.len(), points.last()) {
        return Some(Curve {
            load: busiest,
            points: points.into_iter().map(|(point, _)| point).collect(),
            is_of_one_load: false,
        });
    }
    let load = source.busiest(|load| of_moments(load).len() >= 2)?;
    Some(Curve {
        points: of_moments(load),
        load,
        is_of_one_load: true,
    })
}

fn of_load(load: &Load) -> Option<Point> {
    load.record.run.client.concurrency?;
    let at_once = load.mean_in_flight();
    Some(Point {
        name: number(at_once),
        at_once,
        tokens_per_s: load
            .metrics
            .output_throughput_tokens_per_s
            .filter(|tokens| *tokens > 0.0)?,
        load: load.name.clone(),
    })
}

fn of_moments(load: &Load) -> Vec<Point> {
    let is_enough =
        |served: &Served| served.duration_ms >= DURATION_MIN_MS && served.events >= EVENTS_MIN;
    served_by_count(&load.record.requests)
        .into_iter()
        .filter(|(_, served)| is_enough(served))
        .map(|(count, served)| Point {
            name: count.to_string(),
            at_once: count as f64,
            tokens_per_s: served.events_per_s(),
            load: load.name.clone(),
        })
        .collect()
}

impl Curve<'_> {
    fn x_label(&self) -> &'static str {
        match self.is_of_one_load {
            true => "requests in flight",
            false => "requests in flight, mean",
        }
    }

    fn panel(&self) -> Panel {
        let first = self.points.first().map_or(1.0, |point| point.tokens_per_s);
        let group = |point: &Point| {
            let speed_up = times(point.tokens_per_s / first);
            let value = number(point.tokens_per_s);
            BarGroup {
                name: point.name.clone(),
                bars: vec![Bar {
                    value: point.tokens_per_s,
                    color: Color::Blue,
                    label: format!("{value} ({speed_up})"),
                    tooltip: format!(
                        "{} {}: {value} tokens/s, {speed_up}",
                        point.name,
                        self.x_label()
                    ),
                }],
            }
        };
        Panel {
            title: "Throughput by requests at once".to_owned(),
            span: Span::Half,
            height: 280.0,
            plot: Plot::Bars(BarPlot {
                x_label: self.x_label().to_owned(),
                y: Axis::new("output (tokens/s)"),
                groups: self.points.iter().map(group).collect(),
                stacking: Stacking::SideBySide,
                keys: Vec::new(),
            }),
        }
    }
}

/// Key numbers of a load.
pub fn capacity(load: &Load) -> Panel {
    let metrics = &load.metrics;
    let tile = |value: Option<f64>, name: &str| {
        value.map(|value| Tile {
            value: number(value),
            name: name.to_owned(),
        })
    };
    let mut tiles: Vec<Tile> = [
        tile(metrics.output_throughput_tokens_per_s, "output tokens/s"),
        tile(Some(metrics.request_throughput_per_s), "requests/s"),
        tile(metrics.latencies.ttft_ms.map(|ms| ms.p50), "TTFT P50 (ms)"),
        tile(metrics.latencies.tpot_ms.map(|ms| ms.p50), "TPOT P50 (ms)"),
        tile(metrics.server.mean_batch_size, "batch size, mean"),
    ]
    .into_iter()
    .flatten()
    .collect();
    tiles.push(Tile {
        value: percent(metrics.error_rate),
        name: "error rate".to_owned(),
    });
    Panel {
        title: "Key numbers".to_owned(),
        span: Span::Half,
        height: 280.0,
        plot: Plot::Tiles(tiles),
    }
}
