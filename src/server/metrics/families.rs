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
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    family(name, help, kind, metric)
}

/// A gauge that is always 1, for the sake of its labels.
pub fn info(name: &str, help: &str, labels: &[(&str, String)]) -> MetricFamily {
    let mut gauge = Gauge::default();
    gauge.set_value(1.0);
    let mut metric = Metric::default();
    metric.set_gauge(gauge);
    let labels = labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value(value.clone());
        label
    });
    metric.set_label(labels.collect());
    family(name, help, MetricType::GAUGE, metric)
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
    family(name, help, MetricType::HISTOGRAM, metric)
}

fn family(name: &str, help: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}
