//! Metric families made at scrape time, from figures that others keep.

use prometheus::core::Desc;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily,
    MetricType,
};

use crate::engine::Histogram;

/// The descriptions that a collector of these families must give.
///
/// # Errors
/// A name is malformed: a bug.
pub fn describe<'a>(
    names: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> prometheus::Result<Vec<Desc>> {
    let descriptions = names.into_iter().map(|(name, help)| {
        Desc::new(name.to_owned(), help.to_owned(), vec![], Default::default())
    });
    descriptions.collect()
}

/// A family of one number.
pub fn number(name: &str, help: &str, kind: MetricType, value: f64) -> MetricFamily {
    let metric = if kind == MetricType::COUNTER {
        counter(value)
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::default();
        metric.set_gauge(gauge);
        metric
    };
    family(name, help, kind, vec![metric])
}

/// A family of counters, of which each has its place among them as a label.
pub fn counts_by(name: &str, help: &str, place: &str, counts: &[u64]) -> MetricFamily {
    let metrics = counts.iter().enumerate().map(|(index, &count)| {
        let mut metric = counter(count as f64);
        metric.set_label(vec![label(place, index.to_string())]);
        metric
    });
    family(name, help, MetricType::COUNTER, metrics.collect())
}

/// A gauge that is always 1, for the sake of its labels.
pub fn info(name: &str, help: &str, labels: &[(&str, String)]) -> MetricFamily {
    let mut gauge = Gauge::default();
    gauge.set_value(1.0);
    let mut metric = Metric::default();
    metric.set_gauge(gauge);
    let labels = labels
        .iter()
        .map(|(name, value)| label(name, value.clone()));
    metric.set_label(labels.collect());
    family(name, help, MetricType::GAUGE, vec![metric])
}

/// A distribution.
pub fn histogram<const N: usize>(name: &str, help: &str, values: &Histogram<N>) -> MetricFamily {
    let mut num_values = 0;
    let buckets = values.bounds.iter().zip(&values.counts);
    let buckets = buckets.map(|(bound, count)| {
        num_values += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(num_values);
        bucket
    });
    let mut value = HistogramValue::default();
    value.set_bucket(buckets.collect());
    value.set_sample_count(num_values + values.num_above);
    value.set_sample_sum(values.sum);
    let mut metric = Metric::default();
    metric.set_histogram(value);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}

fn counter(value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    metric
}

fn label(name: &str, value: String) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value);
    label
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
