//! A named workload: a data file that says what is sent, when, and what must come of it.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bench::cache_state::CacheState;
use crate::bench::compare::aligned;
use crate::bench::layouts::Layout;
use crate::bench::load::Arrivals;

/// Those that come with the program.
const BUILT_IN: [(&str, &str); 9] = [
    ("demo", include_str!("../../../benches/workloads/demo.toml")),
    (
        "prefill",
        include_str!("../../../benches/workloads/prefill.toml"),
    ),
    (
        "decode",
        include_str!("../../../benches/workloads/decode.toml"),
    ),
    (
        "latency",
        include_str!("../../../benches/workloads/latency.toml"),
    ),
    (
        "production",
        include_str!("../../../benches/workloads/production.toml"),
    ),
    (
        "sequence-length",
        include_str!("../../../benches/workloads/sequence-length.toml"),
    ),
    (
        "cache",
        include_str!("../../../benches/workloads/cache.toml"),
    ),
    (
        "burst",
        include_str!("../../../benches/workloads/burst.toml"),
    ),
    ("rate", include_str!("../../../benches/workloads/rate.toml")),
];

/// The text of a workload, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: String,
    /// SHA-256 of the text.
    pub sha256: String,
    pub body: Body,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// What it is for, in a line or two.
    pub description: String,
    /// Requests that are sent before and discarded.
    #[serde(default)]
    pub warmup: usize,
    pub cache_state: Option<CacheState>,
    /// How its result is printed.
    #[serde(default)]
    pub layout: Layout,
    pub phases: Vec<PhaseBody>,
    pub expected: Option<Expected>,
}

/// What a run of the whole, unscaled workload must add up to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub requests: usize,
    /// Left out where it depends on the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    pub output_tokens: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PhaseBody {
    pub name: String,
    pub arrivals: Arrivals,
    #[serde(default)]
    pub order: Order,
    pub classes: Vec<Class>,
}

/// In which order the requests of several classes are sent.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    #[default]
    Shuffled,
    /// One of each class, again and again: what drifts over the run weighs on all alike.
    RoundRobin,
}

/// Requests of one kind.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub name: Option<String>,
    pub requests: usize,
    /// Without what they share and without the earlier turns.
    pub prompt_tokens: Range,
    pub output_tokens: Range,
    /// Share of the requests that repeat an earlier prompt of the class exactly.
    #[serde(default)]
    pub repeat_ratio: f64,
    /// What the prompts of a group begin with.
    pub shared_prefix: Option<SharedPrefix>,
    /// Requests of a conversation; each prompt begins with the whole of the one before.
    #[serde(default = "one")]
    pub turns: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefix {
    pub tokens: usize,
    pub groups: usize,
}

fn one() -> usize {
    1
}

/// A number, or the ends of a range over which the numbers are spread evenly: `64` or `[20, 120]`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(from = "NumberOrEnds")]
pub struct Range {
    pub min: usize,
    pub max: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrEnds {
    Number(usize),
    Ends([usize; 2]),
}

impl From<NumberOrEnds> for Range {
    fn from(value: NumberOrEnds) -> Self {
        let [min, max] = match value {
            NumberOrEnds::Number(number) => [number, number],
            NumberOrEnds::Ends(ends) => ends,
        };
        Self { min, max }
    }
}

impl Range {
    /// So many numbers, evenly from one end to the other: their sum depends on no seed.
    pub fn spread(self, count: usize) -> impl Iterator<Item = usize> {
        let steps = count.max(2) - 1;
        (0..count).map(move |i| self.min + ((self.max - self.min) * i + steps / 2) / steps)
    }
}

impl Definition {
    /// A built-in one by its name, or a file.
    ///
    /// # Errors
    /// There is none, or it says something that cannot be done: which field and why.
    pub fn find(name_or_file: &str) -> anyhow::Result<Self> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_file) {
            return Self::parse(name, text);
        }
        let path = Path::new(name_or_file);
        ensure!(
            path.extension().is_some(),
            "there is no workload {name_or_file:?}: it is one of {}, or a .toml file",
            BUILT_IN.map(|(name, _)| name).join(", ")
        );
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the workload {name_or_file}"))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).with_context(|| format!("the workload {name_or_file}"))
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let body: Body = toml::from_str(text)?;
        body.check()?;
        let digest = Sha256::digest(text.as_bytes());
        Ok(Self {
            name: name.to_owned(),
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            body,
        })
    }

    /// The built-in ones with what they are for.
    ///
    /// # Errors
    /// One of them is unsound.
    pub fn list() -> anyhow::Result<String> {
        let rows = BUILT_IN
            .iter()
            .map(|(name, text)| {
                let body = Self::parse(name, text)?.body;
                let requests = body.expected.map_or(0, |expected| expected.requests);
                Ok(vec![
                    format!("{name}: {}", body.description),
                    requests.to_string(),
                ])
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let heading = vec![vec!["workload".to_owned(), "requests".to_owned()]];
        Ok(aligned(&[heading, rows].concat()))
    }

    /// The names of those that come with the program.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }
}

impl Body {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.phases.is_empty(), "it has no [[phases]]");
        for phase in &self.phases {
            phase
                .check()
                .with_context(|| format!("phase {:?}", phase.name))?;
        }
        Ok(())
    }
}

impl PhaseBody {
    fn check(&self) -> anyhow::Result<()> {
        self.arrivals.check().map_err(anyhow::Error::msg)?;
        ensure!(!self.classes.is_empty(), "it has no [[phases.classes]]");
        let is_closed = self.arrivals.concurrency().is_some();
        for class in &self.classes {
            class
                .check(is_closed)
                .with_context(|| format!("class {}", class.label()))?;
        }
        Ok(())
    }
}

impl Class {
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("without a name")
    }

    fn check(&self, is_closed: bool) -> anyhow::Result<()> {
        ensure!(self.requests > 0, "requests must be above 0");
        for (name, range) in [
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
        ] {
            ensure!(
                1 <= range.min && range.min <= range.max,
                "{name} must be a number above 0, or [least, most]; it is {range}"
            );
        }
        ensure!(
            (0.0..=1.0).contains(&self.repeat_ratio),
            "repeat_ratio must lie between 0 and 1; it is {}",
            self.repeat_ratio
        );
        if let Some(shared) = self.shared_prefix {
            ensure!(
                shared.tokens > 0 && shared.groups > 0,
                "shared_prefix needs tokens and groups above 0"
            );
        }
        ensure!(self.turns > 0, "turns must be above 0");
        if self.turns > 1 {
            if !is_closed {
                bail!(
                    "turns above 1 need arrivals with loop = \"closed\": a turn follows an answer"
                );
            }
            ensure!(
                self.requests.is_multiple_of(self.turns),
                "requests must be a multiple of turns"
            );
            ensure!(
                self.repeat_ratio == 0.0,
                "repeat_ratio and turns exclude each other"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "[{}, {}]", self.min, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_of_the_project_is_sound() {
        for name in Definition::built_in() {
            Definition::find(name).expect(name);
        }
        let of_a_file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/benches/workloads/shared-prefix.toml"
        );
        Definition::find(of_a_file).expect("the file that README names");
    }

    #[test]
    fn lengths_are_spread_from_end_to_end() {
        let spread = |min, max, count| Range { min, max }.spread(count).collect::<Vec<_>>();
        assert_eq!(spread(10, 20, 3), [10, 15, 20]);
        assert_eq!(spread(7, 7, 2), [7, 7]);
        assert_eq!(spread(7, 9, 1), [7]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let text = |phase: &str, class: &str| {
            format!(
                "description = \"x\"\n[[phases]]\nname = \"p\"\n{phase}\n[[phases.classes]]\n\
                 requests = 4\nprompt_tokens = 8\noutput_tokens = 4\n{class}\n"
            )
        };
        let closed = "arrivals = { loop = \"closed\", concurrency = 1 }";
        let open = "arrivals = { loop = \"open\", request_rate_per_s = 1 }";
        Definition::parse("x", &text(closed, "turns = 2")).expect("sound");
        for (phase, class, word) in [
            (closed, "color = 1", "color"),
            (closed, "repeat_ratio = 2.0", "repeat_ratio"),
            (closed, "turns = 3", "multiple of turns"),
            (open, "turns = 2", "closed"),
            (
                closed,
                "shared_prefix = { tokens = 0, groups = 1 }",
                "shared_prefix",
            ),
            ("arrivals = { loop = \"closed\" }", "", "concurrency"),
            (
                "arrivals = { loop = \"open\", request_rate_per_s = -1 }",
                "",
                "above 0",
            ),
        ] {
            let error = Definition::parse("x", &text(phase, class)).expect_err(word);
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
        let error = Definition::find("nothing").expect_err("no such workload");
        assert!(error.to_string().contains("demo, prefill"), "{error}");
    }
}
