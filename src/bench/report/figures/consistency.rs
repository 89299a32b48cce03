//! How alike the latencies of equal requests are.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::analysis::cases::{Case, cases};
use crate::bench::report::chart::{
    Axis, Bar, BarGroup, BarPlot, Color, Level, Line, Marker, Panel, Plot, Series, Span, Stacking,
    XAxis, XyPlot,
};
use crate::bench::report::words::{TimeUnit, number, percent, time};

pub const TITLE: &str = "Consistency";

const X_LABEL: &str = "tokens of the request: prompt → output";

/// Coefficients of variation below which a case counts as excellent, and as good.
pub const EXCELLENT_BELOW: f64 = 0.05;
pub const GOOD_BELOW: f64 = 0.10;

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.calmest(|load| cases(&load.answers).len() >= 2)?;
    let cases = cases(&load.answers);
    let mut numbers = Table::new([
        "tokens in → out",
        "runs",
        "mean",
        "standard deviation",
        "coefficient of variation",
    ]);
    for case in &cases {
        numbers.row([
            case.name(),
            case.e2e_ms.count.to_string(),
            time(case.e2e_ms.mean),
            time(case.e2e_ms.std),
            percent(case.coefficient_of_variation()),
        ]);
    }
    Some(Exhibit {
        id: "consistency",
        figure: figure(TITLE, load, vec![means(&cases), variations(&cases)]),
        caption: "Requests of exactly the same number of tokens, in and out, five of each or more. Top: mean latency, with one standard deviation \
                  to both sides. Bottom: the coefficient of variation, which is standard deviation / mean, so that short and long \
                  requests compare. It does not tell noise of the server from noise of the machine."
            .to_owned(),
        numbers,
    })
}

fn means(cases: &[Case]) -> Panel {
    let slowest = cases
        .iter()
        .map(|case| case.e2e_ms.mean)
        .fold(0.0, f64::max);
    let unit = TimeUnit::for_max_ms(slowest);
    Panel {
        title: "Latency of equal requests, mean ± standard deviation".to_owned(),
        span: Span::Full,
        height: 270.0,
        plot: Plot::Xy(XyPlot {
            x: XAxis::Categories {
                label: X_LABEL.to_owned(),
                names: cases.iter().map(Case::name).collect(),
            },
            y: Axis::new(format!("latency ({})", unit.name)),
            series: vec![Series {
                name: String::new(),
                color: Color::Blue,
                points: cases
                    .iter()
                    .enumerate()
                    .map(|(i, case)| (i as f64, unit.of(case.e2e_ms.mean)))
                    .collect(),
                line: Line::None,
                marker: Some(Marker::Circle),
                whiskers: cases.iter().map(|case| unit.of(case.e2e_ms.std)).collect(),
            }],
        }),
    }
}

fn variations(cases: &[Case]) -> Panel {
    let group = |case: &Case| {
        let variation = case.coefficient_of_variation();
        BarGroup {
            name: case.name(),
            bars: vec![Bar {
                value: variation * 100.0,
                color: match variation {
                    x if x < EXCELLENT_BELOW => Color::Green,
                    x if x < GOOD_BELOW => Color::Orange,
                    _ => Color::Vermillion,
                },
                label: number(variation * 100.0),
                tooltip: format!("{}: {}", case.name(), percent(variation)),
            }],
        }
    };
    let level = |(share, name): (f64, &str)| Level {
        value: share * 100.0,
        label: name.to_owned(),
    };
    let levels = [(EXCELLENT_BELOW, "5 %"), (GOOD_BELOW, "10 %")];
    let keys = [
        ("excellent (< 5 %)", Color::Green),
        ("good (5–10 %)", Color::Orange),
        ("poor (≥ 10 %)", Color::Vermillion),
    ];
    Panel {
        title: "Coefficient of variation".to_owned(),
        span: Span::Full,
        height: 270.0,
        plot: Plot::Bars(BarPlot {
            x_label: X_LABEL.to_owned(),
            y: Axis::new("standard deviation / mean (%)").with_levels(levels.map(level).to_vec()),
            groups: cases.iter().map(group).collect(),
            stacking: Stacking::SideBySide,
            keys: keys.map(|(name, color)| (name.to_owned(), color)).to_vec(),
        }),
    }
}
