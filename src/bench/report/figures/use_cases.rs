//! Latency by what requests are for, with the lines that it should stay below.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::analysis::classes::{Class, by_use_case};
use crate::bench::report::chart::{
    Axis, Bar, BarGroup, BarPlot, Color, Panel, Plot, Span, Stacking,
};
use crate::bench::report::words::{TimeUnit, number, time};

pub const TITLE: &str = "Use cases";

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.busiest(|load| by_use_case(&load.answers).len() >= 2)?;
    let classes = by_use_case(&load.answers);
    let mut numbers = Table::new([
        "use case",
        "requests",
        "P50",
        "P95",
        "P99",
        "output tokens, mean",
        "tokens/s of one request",
    ]);
    for class in &classes {
        let or_none = |value: Option<f64>| value.map_or("n/a".to_owned(), number);
        numbers.row([
            class.name.clone(),
            class.e2e_ms.count.to_string(),
            time(class.e2e_ms.p50),
            time(class.e2e_ms.p95),
            time(class.e2e_ms.p99),
            or_none(class.mean_output_tokens),
            or_none(
                class
                    .mean_output_tokens
                    .map(|tokens| tokens / class.e2e_ms.mean * 1e3),
            ),
        ]);
    }
    Some(Exhibit {
        id: "use-cases",
        figure: figure(TITLE, load, vec![panel(source, &classes)]),
        caption: "Latency of each use case at three percentiles. A use case keeps an SLO where its P95 bar ends below the line; with fewer \
                  than 20 requests the P95 is the slowest of them."
            .to_owned(),
        numbers,
    })
}

pub fn panel(source: Source<'_>, classes: &[Class]) -> Panel {
    let slowest = classes
        .iter()
        .map(|class| class.e2e_ms.p99)
        .fold(0.0, f64::max);
    let unit = TimeUnit::for_max_ms(slowest);
    let columns = [
        ("P50", Color::Blue),
        ("P95", Color::Orange),
        ("P99", Color::Vermillion),
    ];
    let group = |class: &Class| {
        let e2e_ms = class.e2e_ms;
        let bars = columns.iter().zip([e2e_ms.p50, e2e_ms.p95, e2e_ms.p99]);
        BarGroup {
            name: class.name.clone(),
            bars: bars
                .map(|((name, color), ms)| Bar {
                    value: unit.of(ms),
                    color: *color,
                    label: unit.label(ms),
                    tooltip: format!("{}, {name}: {}", class.name, time(ms)),
                })
                .collect(),
        }
    };
    Panel {
        title: "Latency by use case".to_owned(),
        span: Span::Full,
        height: 320.0,
        plot: Plot::Bars(BarPlot {
            x_label: "use case, by median latency".to_owned(),
            y: Axis::new(format!("latency ({})", unit.name)).with_levels(source.levels(unit)),
            groups: classes.iter().map(group).collect(),
            stacking: Stacking::SideBySide,
            keys: columns
                .map(|(name, color)| (name.to_owned(), color))
                .to_vec(),
        }),
    }
}
