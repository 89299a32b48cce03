//! Percentiles of the latency as bars, and the whole distribution as a curve.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::chart::{
    Axis, Bar, BarGroup, BarPlot, Color, Level, Line, Panel, Plot, Series, Span, Stacking, XAxis,
    XyPlot,
};
use crate::bench::report::loads::Load;
use crate::bench::report::words::{TimeUnit, time};
use crate::bench::statistics::Summary;

pub const TITLE: &str = "Percentiles of the latency";

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.busiest(|load| load.answers.len() >= 2)?;
    let e2e_ms = load.metrics.latencies.e2e_ms?;
    let unit = TimeUnit::for_max_ms(e2e_ms.max);
    let mut numbers = Table::new(["percentile", "latency", "meaning"]);
    for (name, ms, meaning) in [
        ("P50", e2e_ms.p50, "half of the requests end sooner"),
        ("P90", e2e_ms.p90, "90 % of the requests end sooner"),
        ("P95", e2e_ms.p95, "95 % of the requests end sooner"),
        ("P99", e2e_ms.p99, "99 % of the requests end sooner"),
        ("max", e2e_ms.max, "the slowest request"),
        ("mean", e2e_ms.mean, "says little of any one request"),
    ] {
        numbers.row([name.to_owned(), time(ms), meaning.to_owned()]);
    }
    Some(Exhibit {
        id: "percentiles",
        figure: figure(
            TITLE,
            load,
            vec![bars(source, &e2e_ms, unit), curve(load, &e2e_ms, unit)],
        ),
        caption: format!(
            "Latency of {} successful requests, from when each was due to its last token. Left: the percentiles, by nearest rank, with \
             the SLO lines that lie near. Right: the latency below which a share of the requests ends; where it turns upwards, \
             the tail begins.",
            e2e_ms.count
        ),
        numbers,
    })
}

pub fn bars(source: Source<'_>, e2e_ms: &Summary, unit: TimeUnit) -> Panel {
    let bar = |(name, ms, color): (&str, f64, Color)| BarGroup {
        name: name.to_owned(),
        bars: vec![Bar {
            value: unit.of(ms),
            color,
            label: unit.label(ms),
            tooltip: format!("{name}: {}", time(ms)),
        }],
    };
    let groups = [
        ("P50", e2e_ms.p50, Color::Blue),
        ("P90", e2e_ms.p90, Color::Sky),
        ("P95", e2e_ms.p95, Color::Orange),
        ("P99", e2e_ms.p99, Color::Vermillion),
    ];
    Panel {
        title: "Latency at percentiles".to_owned(),
        span: Span::Half,
        height: 280.0,
        plot: Plot::Bars(BarPlot {
            x_label: "percentile of the requests".to_owned(),
            y: Axis::new(format!("latency ({})", unit.name)).with_levels(source.levels(unit)),
            groups: groups.into_iter().map(bar).collect(),
            stacking: Stacking::SideBySide,
            keys: Vec::new(),
        }),
    }
}

fn curve(load: &Load, e2e_ms: &Summary, unit: TimeUnit) -> Panel {
    let mut latencies = load.latencies_ms();
    latencies.sort_by(f64::total_cmp);
    let count = latencies.len() as f64;
    let points = latencies
        .iter()
        .enumerate()
        .map(|(i, ms)| ((i + 1) as f64 / count * 100.0, unit.of(*ms)))
        .collect();
    let level = |(name, ms): (&str, f64)| Level {
        value: unit.of(ms),
        label: name.to_owned(),
    };
    let levels = [
        ("P50", e2e_ms.p50),
        ("P95", e2e_ms.p95),
        ("P99", e2e_ms.p99),
    ];
    Panel {
        title: "Cumulative distribution".to_owned(),
        span: Span::Half,
        height: 280.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Linear {
                label: "share of the requests that end sooner (%)".to_owned(),
            },
            y: Axis::new(format!("latency ({})", unit.name))
                .with_levels(levels.map(level).to_vec()),
            series: vec![Series {
                name: String::new(),
                color: Color::Blue,
                points,
                line: Line::Solid,
                marker: None,
                whiskers: Vec::new(),
            }],
        }),
    }
}
