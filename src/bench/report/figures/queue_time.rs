//! How much of the latency is waiting, and how much is work.

use super::{Exhibit, Source, Table, figure};
use crate::bench::report::analysis::breakdown::{Breakdown, Part};
use crate::bench::report::chart::{
    Axis, Bar, BarGroup, BarPlot, Color, Donut, Panel, Plot, Slice, Span, Stacking,
};
use crate::bench::report::loads::Load;
use crate::bench::report::words::{TimeUnit, percent, time};

pub const TITLE: &str = "Where the time goes";

const PERCENTILES: [(&str, f64); 4] = [("P50", 0.5), ("P90", 0.9), ("P95", 0.95), ("P99", 0.99)];

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.busiest(|load| Breakdown::mean(&load.answers).is_some())?;
    let mean = Breakdown::mean(&load.answers)?;
    let near: Vec<(&str, Breakdown)> = PERCENTILES
        .iter()
        .filter_map(|(name, percentile)| {
            Some((
                *name,
                Breakdown::near_percentile(&load.answers, *percentile)?,
            ))
        })
        .collect();
    let mut numbers = Table::new([
        "requests",
        "queue",
        "prefill",
        "decode",
        "outside the server",
        "queue share",
    ]);
    for (name, parts) in near
        .iter()
        .map(|(name, parts)| (format!("near {name}"), parts))
        .chain([("all, mean".to_owned(), &mean)])
    {
        numbers.row([
            name,
            time(parts.queue_ms),
            time(parts.prefill_ms),
            time(parts.decode_ms),
            time(parts.outside_ms),
            percent(parts.share(Part::Queue)),
        ]);
    }
    Some(Exhibit {
        id: "queue-time",
        figure: figure(TITLE, load, vec![stacks(&near), donut(load)?]),
        caption: "By the server's own account: queue is from arrival to the first prefill chunk, prefill to the first token, decode to the \
                  last; what is left of the latency passes outside of that. Left: the mean parts of the requests within 2.5 percentage \
                  points of each percentile of the latency (percentiles of the parts themselves would not add up). Right: all requests."
            .to_owned(),
        numbers,
    })
}

/// All time of all requests.
pub fn donut(load: &Load) -> Option<Panel> {
    let mean = Breakdown::mean(&load.answers)?;
    let slice = |(part, ms): (Part, f64)| Slice {
        name: part.name().to_owned(),
        color: color(part),
        share: mean.share(part),
        label: format!("{}, {}", percent(mean.share(part)), time(ms)),
    };
    Some(Panel {
        title: "Share of the time of all requests".to_owned(),
        span: Span::Half,
        height: 280.0,
        plot: Plot::Donut(Donut {
            whole: vec![time(mean.total_ms()), "mean latency".to_owned()],
            slices: mean.parts().into_iter().map(slice).collect(),
        }),
    })
}

fn stacks(near: &[(&str, Breakdown)]) -> Panel {
    let slowest = near
        .iter()
        .map(|(_, parts)| parts.total_ms())
        .fold(0.0, f64::max);
    let unit = TimeUnit::for_max_ms(slowest);
    let group = |(name, parts): &(&str, Breakdown)| BarGroup {
        name: (*name).to_owned(),
        bars: parts
            .parts()
            .into_iter()
            .map(|(part, ms)| Bar {
                value: unit.of(ms),
                color: color(part),
                label: percent(parts.share(part)),
                tooltip: format!(
                    "{name}, {}: {}, {}",
                    part.name(),
                    time(ms),
                    percent(parts.share(part))
                ),
            })
            .collect(),
    };
    let keys = [Part::Queue, Part::Prefill, Part::Decode, Part::Outside];
    Panel {
        title: "Waiting and working, near percentiles of the latency".to_owned(),
        span: Span::Half,
        height: 280.0,
        plot: Plot::Bars(BarPlot {
            x_label: "requests near this percentile".to_owned(),
            y: Axis::new(format!("time ({})", unit.name)),
            groups: near.iter().map(group).collect(),
            stacking: Stacking::Stacked,
            keys: keys
                .map(|part| (part.name().to_owned(), color(part)))
                .to_vec(),
        }),
    }
}

fn color(part: Part) -> Color {
    match part {
        Part::Queue => Color::Vermillion,
        Part::Prefill => Color::Sky,
        Part::Decode => Color::Green,
        Part::Outside => Color::Grey,
    }
}
