//! Requests sorted into classes: by the use that the workload names, or by their length.

use crate::bench::report::loads::Answer;
use crate::bench::statistics::Summary;

/// The requests of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    pub name: String,
    pub e2e_ms: Summary,
    /// `None` where the server does not count tokens.
    pub mean_output_tokens: Option<f64>,
    pub mean_total_tokens: Option<f64>,
}

impl Class {
    fn of(name: String, answers: &[&Answer]) -> Option<Self> {
        let latencies: Vec<f64> = answers.iter().map(|answer| answer.e2e_ms).collect();
        let mean = |tokens: fn(&Answer) -> Option<u64>| {
            let sum: Option<u64> = answers.iter().map(|answer| tokens(answer)).sum();
            sum.map(|sum| sum as f64 / answers.len() as f64)
        };
        Some(Self {
            name,
            e2e_ms: Summary::of_ms(&latencies)?,
            mean_output_tokens: mean(|answer| answer.output_tokens),
            mean_total_tokens: mean(Answer::total_tokens),
        })
    }
}

/// By the name that the workload gives, the fastest class first; empty where it names none.
pub fn by_use_case(answers: &[Answer]) -> Vec<Class> {
    let mut names: Vec<&String> = answers
        .iter()
        .filter_map(|answer| answer.class.as_ref())
        .collect();
    names.sort();
    names.dedup();
    let mut classes: Vec<Class> = names
        .into_iter()
        .filter_map(|name| {
            let of_class: Vec<&Answer> = answers
                .iter()
                .filter(|a| a.class.as_ref() == Some(name))
                .collect();
            Class::of(name.clone(), &of_class)
        })
        .collect();
    classes.sort_by(|a, b| a.e2e_ms.p50.total_cmp(&b.e2e_ms.p50));
    classes
}

/// Length classes by prompt and output tokens together: name, and the first count above it.
const LENGTHS: [(&str, u64); 5] = [
    ("tiny <50", 50),
    ("short 50–149", 150),
    ("medium 150–299", 300),
    ("long 300–499", 500),
    ("very long 500+", u64::MAX),
];

/// Fewest requests of a length class from which its percentiles are shown.
pub const LENGTH_REQUESTS_MIN: usize = 5;

/// By total tokens, the shortest first; classes with too few requests are left out.
pub fn by_length(answers: &[Answer]) -> Vec<Class> {
    let mut start = 0;
    let mut classes = Vec::new();
    for (name, end) in LENGTHS {
        let of_class: Vec<&Answer> = answers
            .iter()
            .filter(|answer| {
                answer
                    .total_tokens()
                    .is_some_and(|n| (start..end).contains(&n))
            })
            .collect();
        start = end;
        if of_class.len() >= LENGTH_REQUESTS_MIN {
            classes.extend(Class::of(name.to_owned(), &of_class));
        }
    }
    classes
}

/// How latency grows with length from the shortest class to the longest: the exponent k of
/// `P95 ~ tokens^k`. 1 is in proportion, less is better. `None` of fewer than two classes.
pub fn growth_exponent(classes: &[Class]) -> Option<f64> {
    let (first, last) = (classes.first()?, classes.last()?);
    let tokens = last.mean_total_tokens? / first.mean_total_tokens?;
    let latency = last.e2e_ms.p95 / first.e2e_ms.p95;
    (tokens > 1.0 && latency > 0.0).then(|| latency.ln() / tokens.ln())
}
