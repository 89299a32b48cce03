//! Controlled runs: each combination of prompt and output length several times. How long it takes,
//! how much it varies, and the line that latency follows over the number of output tokens.

use std::fmt::Write as _;

use crate::bench::compare::aligned;
use crate::bench::figures::{NOT_AVAILABLE, or_na};
use crate::bench::record::{Record, RequestRecord};
use crate::bench::statistics::Summary;
use crate::bench::statistics::line::{Line, fit};

const HEADING: [&str; 9] = [
    "combination",
    "runs",
    "prompt (tokens)",
    "output (tokens)",
    "mean (s)",
    "std (s)",
    "CoV (%)",
    "per token (ms)",
    "scaling",
];

pub fn render(record: &Record) -> String {
    let combinations: Vec<Combination> = record
        .classes()
        .into_iter()
        .map(|class| Combination::of(class, record))
        .collect();
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    rows.extend(combinations.iter().map(|c| c.row(&combinations)));
    let mut text = format!("Latency, one request at a time\n\n{}\n", aligned(&rows));

    let points = |wanted: &dyn Fn(&Combination) -> bool| -> Vec<(f64, f64)> {
        let wanted = combinations.iter().filter(|c| wanted(c));
        wanted.flat_map(|c| c.points.iter().copied()).collect()
    };
    text.push_str("Linear fit: latency = intercept + output tokens x slope\n\n");
    let mut fits = vec![
        ["prompts", "slope (ms/token)", "intercept (ms)", "R squared"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut groups: Vec<&str> = combinations.iter().map(Combination::prompt).collect();
    groups.dedup();
    for group in groups {
        fits.push(fit_row(group, fit(&points(&|c| c.prompt() == group))));
    }
    fits.push(fit_row("all", fit(&points(&|_| true))));
    text.push_str(&aligned(&fits));

    let covs = combinations.iter().filter_map(Combination::cov_percent);
    let worst = covs.fold(None, |worst: Option<f64>, cov| {
        Some(worst.map_or(cov, |worst| worst.max(cov)))
    });
    let _ = writeln!(
        text,
        "\nLargest coefficient of variation: {}",
        or_na(worst.map(|cov| format!("{cov:.2} %")))
    );
    text
}

struct Combination<'a> {
    name: &'a str,
    runs: usize,
    prompt_tokens: Option<f64>,
    output_tokens: Option<f64>,
    latency_ms: Option<Summary>,
    /// Output tokens and latency in milliseconds of each run.
    points: Vec<(f64, f64)>,
}

impl<'a> Combination<'a> {
    fn of(name: &'a str, record: &Record) -> Self {
        let of_class = |request: &&RequestRecord| {
            request.is_success() && request.class.as_deref() == Some(name)
        };
        let requests: Vec<&RequestRecord> = record.requests.iter().filter(of_class).collect();
        let mean = |values: Vec<u64>| {
            let sum: u64 = values.iter().sum();
            (!values.is_empty()).then(|| sum as f64 / values.len() as f64)
        };
        let usages = || requests.iter().filter_map(|request| request.usage);
        let latencies: Vec<f64> = requests.iter().map(|request| request.e2e_ms()).collect();
        Self {
            name,
            runs: requests.len(),
            prompt_tokens: mean(usages().map(|usage| usage.prompt_tokens).collect()),
            output_tokens: mean(usages().map(|usage| usage.completion_tokens).collect()),
            latency_ms: Summary::of_ms(&latencies),
            points: requests
                .iter()
                .filter_map(|request| Some((request.output_tokens()? as f64, request.e2e_ms())))
                .collect(),
        }
    }

    /// The part of its name that says what prompts it has.
    fn prompt(&self) -> &'a str {
        self.name.split(',').next().unwrap_or(self.name)
    }

    fn cov_percent(&self) -> Option<f64> {
        self.latency_ms.map(|s| s.std / s.mean * 100.0)
    }

    fn row(&self, all: &[Self]) -> Vec<String> {
        let Some((latency, output)) = self.latency_ms.zip(self.output_tokens) else {
            let mut row = vec![self.name.to_owned(), self.runs.to_string()];
            row.extend([NOT_AVAILABLE; 7].map(str::to_owned));
            return row;
        };
        // To the first combination with the same prompts.
        let base = all.iter().find(|c| c.prompt() == self.prompt());
        let base = base.and_then(|c| c.latency_ms).map(|s| s.mean);
        vec![
            self.name.to_owned(),
            self.runs.to_string(),
            or_na(self.prompt_tokens.map(|n| format!("{n:.0}"))),
            format!("{output:.0}"),
            format!("{:.4}", latency.mean / 1e3),
            format!("{:.4}", latency.std / 1e3),
            or_na(self.cov_percent().map(|cov| format!("{cov:.2}"))),
            format!("{:.2}", latency.mean / output),
            or_na(base.map(|base| format!("{:.2}x", latency.mean / base))),
        ]
    }
}

fn fit_row(name: &str, line: Option<Line>) -> Vec<String> {
    let cell = |of: fn(Line) -> f64, decimals: usize| {
        or_na(line.map(|line| format!("{:.decimals$}", of(line))))
    };
    vec![
        name.to_owned(),
        cell(|line| line.slope, 3),
        cell(|line| line.intercept, 2),
        cell(|line| line.r_squared, 4),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{record, request};

    #[test]
    fn a_constant_time_a_token_is_found_as_the_slope() {
        let of_class = |index, tokens, class: &str| {
            let mut request = request(index, tokens);
            request.class = Some(class.to_owned());
            request
        };
        // 50 ms to the first token, then 10 ms each: 40 + 10 n.
        let run = record(vec![
            of_class(0, 10, "short prompt, 10 tokens"),
            of_class(1, 20, "short prompt, 20 tokens"),
            of_class(2, 10, "short prompt, 10 tokens"),
        ]);
        let text = render(&run);
        let line = text
            .lines()
            .find(|line| line.starts_with("short prompt, 20"));
        let cells: Vec<&str> = line.expect("a row").split_whitespace().skip(4).collect();
        // 240 ms over 20 tokens, against 140 ms.
        let expected = [
            "1", "20", "20", "0.2400", "0.0000", "0.00", "12.00", "1.71x",
        ];
        assert_eq!(cells, expected, "{text}");
        assert!(text.contains("10.000"), "{text}");
    }
}
