//! The flags of `bench report`.

use std::path::PathBuf;

use clap::Args;

/// Write recorded runs as Markdown and as one HTML page, with figures and a reading
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Raw records that bench has written; each figure is drawn from the run that has most to say
    /// about it
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Where report.md, report.html and figures/ go [default: a folder beside the first run, named
    /// after it]
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// Times in which 95 % of the requests of a class should end; drawn as lines, and judged
    #[arg(long, value_name = "TIME", num_args = 1.., value_parser = parse_time, default_values = ["1s", "2s", "5s"])]
    pub slo: Vec<Milliseconds>,
}

/// A time as the flag takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Milliseconds(pub f64);

impl ReportArgs {
    /// Ascending, each once.
    pub fn objectives_ms(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self.slo.iter().map(|time| time.0).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }

    pub fn output_folder(&self) -> PathBuf {
        let of_first_run = || {
            let first = self.runs.first().cloned().unwrap_or_default();
            let stem = first.file_stem().unwrap_or_default().to_string_lossy();
            first.with_file_name(format!("{stem}-report"))
        };
        self.output.clone().unwrap_or_else(of_first_run)
    }
}

fn parse_time(text: &str) -> Result<Milliseconds, String> {
    let (number, factor) = match text.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1e3),
    };
    let ms = number
        .trim()
        .parse::<f64>()
        .map_err(|_| "expected a time such as 500ms or 2s".to_owned())?
        * factor;
    (0.001..=86_400_000.0)
        .contains(&ms)
        .then_some(Milliseconds(ms))
        .ok_or_else(|| "a time lies between 1 µs and one day".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units_and_bare_ones_are_seconds() {
        for (text, ms) in [("500ms", 500.0), ("2s", 2000.0), ("1.5", 1500.0)] {
            assert_eq!(parse_time(text), Ok(Milliseconds(ms)), "{text}");
        }
        for text in ["", "fast", "0", "-1s", "inf", "nan"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_report_lies_beside_its_first_run() {
        let args = ReportArgs {
            runs: vec!["results/a.json".into(), "b.json".into()],
            output: None,
            slo: [5000.0, 1000.0, 1000.0].map(Milliseconds).to_vec(),
        };
        assert_eq!(args.output_folder(), PathBuf::from("results/a-report"));
        assert_eq!(args.objectives_ms(), [1000.0, 5000.0]);
    }
}
