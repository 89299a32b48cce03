//! The flags of `bench ab`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::criterion::Criterion;
use crate::bench::args::LoadArgs;
use crate::bench::statistics::interval::SAMPLES_MIN;

const BLOCKS_MAX: usize = 1000;

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Each block starts a server of its own, so that one runs at a time and each block begins with an \
    empty cache. The two blocks of a pair send the same prompts, the next pair others.\n\n    \
    candlepower bench ab --name 'Request batching' --a ENABLE_BATCHING=false \\\n        \
    --b ENABLE_BATCHING=true,MAX_BATCH_SIZE=16 --target 'throughput>100' --target 'error_rate<0.05'\n\n\
    Figures that --target takes: ttft_p50, ttft_p95, tpot_p50, itl_p99, e2e_p50, e2e_p95 (ms), throughput (output \
    tokens/s), request_throughput (requests/s), error_rate (0 to 1), peak_ram (MiB)."
)]
pub struct AbArgs {
    /// What the difference between A and B is called
    #[arg(long, value_parser = parse_name)]
    pub name: String,
    /// Settings of server A, the one before: VARIABLE=VALUE,… on top of the environment; may be empty
    #[arg(long, value_name = "SETTINGS")]
    pub a: Settings,
    /// Settings of server B, the one after
    #[arg(long, value_name = "SETTINGS")]
    pub b: Settings,
    /// Blocks of each side, an even number: more of them make the intervals narrower
    #[arg(long, default_value_t = 6, value_parser = parse_blocks)]
    pub blocks: usize,
    /// What B has to reach, such as 'ttft_p95<500'; may be given several times
    #[arg(long = "target", value_name = "TARGET")]
    pub targets: Vec<Criterion>,
    /// What was changed: text, or @FILE
    #[arg(long, value_name = "TEXT", value_parser = parse_prose, allow_hyphen_values = true)]
    pub changes: Option<String>,
    /// What the gains cost, and whether they are worth it: text, or @FILE
    #[arg(long, value_name = "TEXT", value_parser = parse_prose, allow_hyphen_values = true)]
    pub tradeoff: Option<String>,
    /// What is to be done next: text, or @FILE
    #[arg(long, value_name = "TEXT", value_parser = parse_prose, allow_hyphen_values = true)]
    pub next: Option<String>,
    /// Write these three with the editor of VISUAL or EDITOR, before anything is measured
    #[arg(long)]
    pub edit: bool,
    /// Raw records, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
    #[command(flatten, next_help_heading = "Load of each block")]
    pub load: LoadArgs,
}

/// Environment variables of a server, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub BTreeMap<String, String>);

impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut settings = BTreeMap::new();
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not of the form VARIABLE=VALUE"))?;
            let is_variable = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(is_variable) {
                return Err(format!(
                    "{name:?} is not the name of a variable, such as MAX_BATCH_SIZE"
                ));
            }
            if ["HOST", "PORT"].contains(&name) {
                return Err(format!("{name} is chosen by bench"));
            }
            if settings.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(format!("{name} is set twice"));
            }
        }
        Ok(Self(settings))
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no settings of its own");
        }
        let pairs: Vec<String> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        f.write_str(&pairs.join(" "))
    }
}

pub fn parse_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    match name.is_empty() || name.contains(['\n', '`']) {
        true => Err("a name is one line of words".to_owned()),
        false => Ok(name.to_owned()),
    }
}

pub fn parse_blocks(text: &str) -> Result<usize, String> {
    // Whole turns A B B A: what drifts steadily over the run then weighs on both sides alike.
    text.parse()
        .ok()
        .filter(|blocks| (SAMPLES_MIN..=BLOCKS_MAX).contains(blocks) && blocks % 2 == 0)
        .ok_or_else(|| format!("expected an even number from {SAMPLES_MIN} to {BLOCKS_MAX}"))
}

/// Text for the page. A heading in it would end the part that it stands in, or the record.
fn parse_prose(text: &str) -> Result<String, String> {
    let prose = match text.strip_prefix('@') {
        Some(file) => {
            std::fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?
        }
        None => text.to_owned(),
    };
    parse_prose_text(&prose)
}

pub(super) fn parse_prose_text(prose: &str) -> Result<String, String> {
    let lines: Vec<&str> = prose.trim().lines().map(str::trim_end).collect();
    if lines.iter().all(|line| line.is_empty()) {
        return Err("the text is empty: leave the flag away".to_owned());
    }
    match lines.iter().find(|line| line.trim_start().starts_with('#')) {
        Some(heading) => Err(format!("headings do not fit into a record: {heading}")),
        None => Ok(lines.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_pairs_and_written_in_order() {
        for (text, written) in [
            ("ENABLE_BATCHING=false", "ENABLE_BATCHING=false"),
            ("MAX_BATCH_SIZE=16, A=b=c", "A=b=c MAX_BATCH_SIZE=16"),
            ("", "no settings of its own"),
        ] {
            let settings: Settings = text.parse().expect(text);
            assert_eq!(settings.to_string(), written, "{text}");
        }
        for (text, word) in [
            ("A", "VARIABLE=VALUE"),
            ("a=1", "not the name"),
            ("=1", "not the name"),
            ("PORT=1", "chosen by bench"),
            ("A=1,A=2", "twice"),
        ] {
            let message = text.parse::<Settings>().expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn blocks_are_whole_turns_and_enough_for_an_interval() {
        assert_eq!(parse_blocks("4"), Ok(4));
        for text in ["", "2", "5", "-4", "1002"] {
            assert!(parse_blocks(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prose_is_text_or_a_file_without_headings() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("next.txt");
        std::fs::write(&file, "- one \n- two\n\n").expect("a writable folder");
        let from_file = parse_prose(&format!("@{}", file.display()));
        assert_eq!(from_file.as_deref(), Ok("- one\n- two"));
        assert_eq!(parse_prose(" one ").as_deref(), Ok("one"));
        for text in ["", " \n", "one\n## two", "@no/such/file"] {
            assert!(parse_prose(text).is_err(), "{text:?}");
        }
    }
}
