//! The raw record of a rollback drill: every request, and when what was done.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::section::RollbackSection;
use crate::bench::ab::args::Settings;
use crate::bench::drill::Circumstances;
use crate::bench::raw_record::{RawRecord, Rendering};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollbackRecord {
    pub rollback: Plan,
    pub about: Circumstances,
    pub times: Times,
    pub answers: Vec<Answer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub to: Settings,
    pub concurrency: usize,
    pub prompts: usize,
    pub max_tokens: usize,
    /// As the servers report them.
    pub settings_before: Value,
    pub settings_after: Value,
}

/// Milliseconds since the load began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The command to roll back.
    pub told_ms: f64,
    /// The new server has its model loaded and takes all new connections.
    pub ready_ms: f64,
    /// The old server has ended.
    pub alone_ms: f64,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub prompt: usize,
    pub sent_ms: f64,
    pub end_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl RollbackRecord {
    /// From the command to a server on which all requests run that were sent after it.
    pub fn recovery_ms(&self) -> f64 {
        self.times.alone_ms - self.times.told_ms
    }

    /// Requests answered before the command, and those sent when the new server was alone.
    pub fn before(&self) -> impl Iterator<Item = &Answer> {
        let times = self.times;
        self.answers
            .iter()
            .filter(move |a| a.end_ms < times.told_ms)
    }

    pub fn after(&self) -> impl Iterator<Item = &Answer> {
        let times = self.times;
        self.answers
            .iter()
            .filter(move |a| a.sent_ms > times.alone_ms)
    }

    /// The longest wait of a request that was in flight between command and the old server's end.
    pub fn slowest_during_ms(&self) -> f64 {
        let times = self.times;
        let during = self
            .answers
            .iter()
            .filter(|a| a.end_ms >= times.told_ms && a.sent_ms <= times.alone_ms);
        during.map(|a| a.end_ms - a.sent_ms).fold(0.0, f64::max)
    }

    pub fn num_failed(&self) -> usize {
        self.answers.iter().filter(|a| a.failure.is_some()).count()
    }

    /// Why the drill is not passed; empty if it is.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self
            .answers
            .iter()
            .filter_map(|answer| {
                Some(format!(
                    "prompt {}: {}",
                    answer.prompt,
                    answer.failure.as_ref()?
                ))
            })
            .collect();
        let mut texts: BTreeMap<usize, &str> = BTreeMap::new();
        for answer in &self.answers {
            let Some(text) = &answer.text else {
                continue;
            };
            if *texts.entry(answer.prompt).or_insert(text) != text {
                faults.push(format!("prompt {}: its text has changed", answer.prompt));
            }
        }
        for (when, answers) in [
            ("before", self.before().collect::<Vec<_>>()),
            ("after", self.after().collect()),
        ] {
            let missing = (0..self.rollback.prompts)
                .filter(|prompt| answers.iter().all(|answer| answer.prompt != *prompt))
                .count();
            if missing > 0 {
                faults.push(format!("{missing} prompts have no answer {when}"));
            }
        }
        if self.rollback.settings_before == self.rollback.settings_after {
            faults.push("the settings are the same before and after".to_owned());
        }
        faults
    }
}

impl RawRecord for RollbackRecord {
    const COMMAND: &'static str = "bench rollback";

    /// One request a line.
    fn to_json(&self) -> anyhow::Result<String> {
        let head = serde_json::to_string_pretty(&self.rollback)?;
        let about = serde_json::to_string_pretty(&self.about)?;
        let times = serde_json::to_string(&self.times)?;
        let answers = self
            .answers
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(format!(
            "{{\n\"rollback\": {head},\n\"about\": {about},\n\"times\": {times},\n\"answers\": [\n{}\n]\n}}\n",
            answers.join(",\n")
        ))
    }

    fn render(&self, raw: &str) -> Rendering {
        let section = RollbackSection::new(self, raw);
        Rendering {
            text: section.to_text(),
            row: None,
            section: section.to_markdown(),
        }
    }

    fn judge(&self, raw: &str) -> anyhow::Result<()> {
        let faults = self.faults();
        ensure!(
            faults.is_empty(),
            "the drill is not passed; the record is {raw}:\n{}",
            faults.join("\n")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> RollbackRecord {
        let answer = |prompt, sent_ms| Answer {
            prompt,
            sent_ms,
            end_ms: sent_ms + 10.0,
            text: Some(format!("text {prompt}")),
            failure: None,
        };
        let answers = [0.0, 100.0, 300.0].into_iter();
        RollbackRecord {
            rollback: Plan {
                to: "ENABLE_BATCHING=false".parse().expect("settings"),
                concurrency: 1,
                prompts: 2,
                max_tokens: 4,
                settings_before: json!({"enable_batching": true}),
                settings_after: json!({"enable_batching": false}),
            },
            about: Circumstances::default(),
            times: Times {
                told_ms: 90.0,
                ready_ms: 150.0,
                alone_ms: 200.0,
            },
            answers: answers
                .flat_map(|at| [answer(0, at), answer(1, at + 20.0)])
                .collect(),
        }
    }

    #[test]
    fn equal_texts_without_a_failure_pass() {
        let record = record();
        assert_eq!(record.faults(), Vec::<String>::new());
        assert_eq!((record.before().count(), record.after().count()), (2, 2));
        assert!((record.recovery_ms() - 110.0).abs() < 1e-9);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), record.to_json().expect("JSON")).expect("it is written");
        assert_eq!(RollbackRecord::read(file.path()).expect("a record"), record);
    }

    #[test]
    fn whatever_somebody_would_notice_fails_the_drill() {
        type Change = fn(&mut RollbackRecord);
        let changes: [(&str, Change); 4] = [
            ("has changed", |record| {
                record.answers[5].text = Some("other".to_owned())
            }),
            ("reset", |record| {
                record.answers[2].text = None;
                record.answers[2].failure = Some("reset".to_owned());
            }),
            ("no answer after", |record| record.answers.truncate(5)),
            ("the same", |record| {
                record.rollback.settings_after = record.rollback.settings_before.clone();
            }),
        ];
        for (word, change) in changes {
            let mut record = record();
            change(&mut record);
            let faults = record.faults();
            assert!(
                faults.iter().any(|fault| fault.contains(word)),
                "{word}: {faults:?}"
            );
        }
    }
}
