//! Latency over the length of prompt and answer together.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::analysis::classes::{Class, by_length};
use crate::bench::report::chart::{
    Axis, Color, Line, Marker, Panel, Plot, Series, Span, XAxis, XyPlot,
};
use crate::bench::report::words::{TimeUnit, number, time, times};
use crate::bench::statistics::Summary;

pub const TITLE: &str = "Latency and sequence length";

type Percentile = (&'static str, Color, Marker, fn(&Summary) -> f64);

const PERCENTILES: [Percentile; 3] = [
    ("P50", Color::Blue, Marker::Circle, |ms| ms.p50),
    ("P95", Color::Orange, Marker::Square, |ms| ms.p95),
    ("P99", Color::Vermillion, Marker::Triangle, |ms| ms.p99),
];

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    // The load with the most length classes; the first of several.
    let candidates = source
        .loads
        .iter()
        .rev()
        .map(|load| (load, by_length(&load.answers)));
    let (load, classes) = candidates.max_by_key(|(_, classes)| classes.len())?;
    let first = classes.first().filter(|_| classes.len() >= 3)?;
    let mut numbers = Table::new([
        "length class (tokens)",
        "requests",
        "tokens, mean",
        "P50",
        "P95",
        "P99",
        "P95, to the first",
    ]);
    for class in &classes {
        numbers.row([
            class.name.clone(),
            class.e2e_ms.count.to_string(),
            class.mean_total_tokens.map_or("n/a".to_owned(), number),
            time(class.e2e_ms.p50),
            time(class.e2e_ms.p95),
            time(class.e2e_ms.p99),
            times(class.e2e_ms.p95 / first.e2e_ms.p95),
        ]);
    }
    Some(Exhibit {
        id: "sequence-length",
        figure: figure(TITLE, load, vec![panel(source, &classes)]),
        caption: "Requests sorted by prompt and output tokens together; a class with fewer than five is left out. The classes are not equally wide, \
                  so that the shape of a curve alone does not tell whether latency grows faster than length: the reading does, from the mean \
                  tokens of each class."
            .to_owned(),
        numbers,
    })
}

fn panel(source: Source<'_>, classes: &[Class]) -> Panel {
    let slowest = classes
        .iter()
        .map(|class| class.e2e_ms.p99)
        .fold(0.0, f64::max);
    let unit = TimeUnit::for_max_ms(slowest);
    let series = |(name, color, marker, of): &Percentile| Series {
        name: (*name).to_owned(),
        color: *color,
        points: classes
            .iter()
            .enumerate()
            .map(|(i, class)| (i as f64, unit.of(of(&class.e2e_ms))))
            .collect(),
        line: Line::Solid,
        marker: Some(*marker),
        whiskers: Vec::new(),
    };
    Panel {
        title: "Latency by sequence length".to_owned(),
        span: Span::Full,
        height: 320.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Categories {
                label: "prompt and output tokens".to_owned(),
                names: classes.iter().map(|class| class.name.clone()).collect(),
            },
            y: Axis::new(format!("latency ({})", unit.name)).with_levels(source.levels(unit)),
            series: PERCENTILES.iter().map(series).collect(),
        }),
    }
}
