//! The figures of a report: each file draws one from the loads that have what it needs, or says
//! that none has.

mod consistency;
mod dashboard;
mod latency_scaling;
mod percentiles;
mod queue_time;
mod sequence_length;
mod throughput;
mod timeline;
mod use_cases;

pub use self::throughput::curve as throughput_curve;
use super::chart::{Figure, Level, Panel};
use super::loads::Load;
use super::words::{TimeUnit, time};
use crate::bench::statistics::line::Line;

/// A figure with what is said about it.
pub struct Exhibit {
    /// Names its files.
    pub id: &'static str,
    pub figure: Figure,
    /// What it shows and how that was computed.
    pub caption: String,
    /// The numbers behind it.
    pub numbers: Table,
}

/// The first row names the columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            head: head.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }
}

/// What the figures are drawn from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub loads: &'a [Load],
    /// Times within which 95 % of the requests should end, in milliseconds, ascending.
    pub objectives_ms: &'a [f64],
}

/// A figure that may be drawn.
struct Kind {
    title: &'static str,
    /// What the loads must have for it.
    needs: &'static str,
    draw: fn(Source<'_>) -> Option<Exhibit>,
}

const KINDS: [Kind; 9] = [
    Kind {
        title: dashboard::TITLE,
        needs: "a run in which requests succeeded",
        draw: dashboard::draw,
    },
    Kind {
        title: latency_scaling::TITLE,
        needs: "answers of three lengths or more; the workload `latency` has them",
        draw: latency_scaling::draw,
    },
    Kind {
        title: percentiles::TITLE,
        needs: "two successful requests or more",
        draw: percentiles::draw,
    },
    Kind {
        title: queue_time::TITLE,
        needs: "a server that says how long each request waited (candlepower does), under a load such as the workload `production`",
        draw: queue_time::draw,
    },
    Kind {
        title: use_cases::TITLE,
        needs: "requests of two named classes or more; the workload `production` has them",
        draw: use_cases::draw,
    },
    Kind {
        title: sequence_length::TITLE,
        needs: "five requests or more in each of three length classes; the workload `sequence-length` has them",
        draw: sequence_length::draw,
    },
    Kind {
        title: throughput::TITLE,
        needs: "closed loops with different `--concurrency`, or one load of streamed answers whose requests at once vary, such as the workload `production`",
        draw: throughput::draw,
    },
    Kind {
        title: consistency::TITLE,
        needs: "two sizes of request or more, each sent five times or more; the workload `latency` has them",
        draw: consistency::draw,
    },
    Kind {
        title: timeline::TITLE,
        needs: "two requests or more",
        draw: timeline::draw,
    },
];

/// A figure that could not be drawn, and what would give it.
pub struct Missing {
    pub title: &'static str,
    pub needs: &'static str,
}

/// All figures that the loads allow, in the order in which they are read, and the others.
pub fn draw_all(source: Source<'_>) -> (Vec<Exhibit>, Vec<Missing>) {
    let mut exhibits = Vec::new();
    let mut missing = Vec::new();
    for Kind { title, needs, draw } in KINDS {
        match draw(source) {
            Some(exhibit) => exhibits.push(exhibit),
            None => missing.push(Missing { title, needs }),
        }
    }
    (exhibits, missing)
}

impl<'a> Source<'a> {
    /// The load with the most requests in flight: closest to a server in use.
    pub fn busiest(&self, has: impl Fn(&Load) -> bool) -> Option<&'a Load> {
        let loads = self.loads.iter().rev().filter(|load| has(load));
        loads.max_by_key(|load| load.peak_in_flight())
    }

    /// The load with the fewest requests in flight: closest to the server's own speed.
    pub fn calmest(&self, has: impl Fn(&Load) -> bool) -> Option<&'a Load> {
        let loads = self.loads.iter().filter(|load| has(load));
        loads.min_by_key(|load| load.peak_in_flight())
    }

    /// The objectives as levels of a plot in `unit`.
    fn levels(&self, unit: TimeUnit) -> Vec<Level> {
        let level = |ms: &f64| Level {
            value: unit.of(*ms),
            label: format!("SLO {}", short_time(*ms)),
        };
        self.objectives_ms.iter().map(level).collect()
    }
}

/// The load that shows best how latency grows with output length, and the line through it.
pub fn output_fit(source: Source<'_>) -> Option<(&Load, Line)> {
    let load = source.calmest(|load| latency_scaling::output_lengths(load).len() >= 3)?;
    Some((load, latency_scaling::fit(load)?))
}

/// A round time without decimals that say nothing.
pub fn short_time(ms: f64) -> String {
    match ms % 1000.0 == 0.0 {
        true => format!("{:.0} s", ms / 1e3),
        false => time(ms),
    }
}

fn figure(title: &str, load: &Load, panels: Vec<Panel>) -> Figure {
    Figure {
        title: title.to_owned(),
        subtitle: load.subtitle(),
        panels,
    }
}
