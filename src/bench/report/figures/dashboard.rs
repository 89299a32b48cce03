//! The most telling panels of the other figures in one picture.

use super::{
    Exhibit, Source, Table, figure, latency_scaling, percentiles, queue_time, throughput, use_cases,
};
use crate::bench::report::analysis::classes::by_use_case;
use crate::bench::report::chart::{Panel, Span};
use crate::bench::report::words::{TimeUnit, number, percent, time};

pub const TITLE: &str = "Dashboard";

pub fn draw(source: Source<'_>) -> Option<Exhibit> {
    let load = source.busiest(|load| !load.answers.is_empty())?;
    let e2e_ms = load.metrics.latencies.e2e_ms?;
    let mut panels: Vec<Panel> = Vec::new();
    panels.extend(first_panel(latency_scaling::draw(source)));
    panels.push(percentiles::bars(
        source,
        &e2e_ms,
        TimeUnit::for_max_ms(e2e_ms.max),
    ));
    let classes = by_use_case(&load.answers);
    if classes.len() >= 2 {
        panels.push(use_cases::panel(source, &classes));
    }
    panels.extend(queue_time::donut(load));
    panels.push(Panel {
        span: Span::Half,
        ..throughput::capacity(load)
    });
    let metrics = &load.metrics;
    let mut numbers = Table::new(["metric", "value"]);
    for (name, value) in [
        ("fastest request", Some(time(e2e_ms.min))),
        ("latency P50", Some(time(e2e_ms.p50))),
        ("latency P95", Some(time(e2e_ms.p95))),
        ("latency P99", Some(time(e2e_ms.p99))),
        ("TTFT P50", metrics.latencies.ttft_ms.map(|ms| time(ms.p50))),
        ("TPOT P50", metrics.latencies.tpot_ms.map(|ms| time(ms.p50))),
        (
            "output throughput",
            metrics
                .output_throughput_tokens_per_s
                .map(|x| format!("{} tokens/s", number(x))),
        ),
        (
            "request rate",
            Some(format!(
                "{} requests/s",
                number(metrics.request_throughput_per_s)
            )),
        ),
        ("error rate", Some(percent(metrics.error_rate))),
    ] {
        if let Some(value) = value {
            numbers.row([name.to_owned(), value]);
        }
    }
    Some(Exhibit {
        id: "dashboard",
        figure: figure(TITLE, load, panels),
        caption: "The parts of the figures below that tell most. All but the growth with output length are of the load with the most requests in flight."
            .to_owned(),
        numbers,
    })
}

fn first_panel(exhibit: Option<Exhibit>) -> Option<Panel> {
    exhibit?.figure.panels.into_iter().next()
}
