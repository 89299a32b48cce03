//! Which objective which class keeps.

use super::Finding;
use crate::bench::record::RequestRecord;
use crate::bench::report::analysis::classes::by_use_case;
use crate::bench::report::analysis::objective::{Verdict, judge};
use crate::bench::report::figures::{Source, short_time};
use crate::bench::report::loads::{Load, class_of};
use crate::bench::report::words::{counted, percent};

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let Some(load) = source.busiest(|load| !load.answers.is_empty()) else {
        return Vec::new();
    };
    let mut classes: Vec<String> = by_use_case(&load.answers)
        .into_iter()
        .map(|class| class.name)
        .collect();
    if classes.len() < 2 {
        classes.clear();
    }
    let mut sentences: Vec<String> = classes
        .iter()
        .filter_map(|class| sentence(source, load, Some(class)))
        .collect();
    sentences.extend(sentence(source, load, None));
    vec![Finding {
        topic: "Which SLO holds",
        claim: format!("{}: {}.", load.name, sentences.join("; ")),
        rule: "An SLO of a time holds for a class when 95 % of all its requests, failed ones included, end within that time of when they were due.",
    }]
}

/// Of one class, or of all requests.
fn sentence(source: Source<'_>, load: &Load, class: Option<&str>) -> Option<String> {
    let requests: Vec<&RequestRecord> = load
        .record
        .requests
        .iter()
        .filter(|request| class.is_none() || class_of(request) == class)
        .collect();
    let verdicts: Vec<Verdict> = source
        .objectives_ms
        .iter()
        .filter_map(|ms| judge(&requests, *ms))
        .collect();
    let name = class.unwrap_or("all requests together");
    let tightest = verdicts.iter().find(|verdict| verdict.holds);
    let loosest = verdicts.last()?;
    Some(match tightest {
        Some(verdict) => format!(
            "{name} ({}) keep {} ({} of them within it)",
            counted(requests.len(), "request"),
            short_time(verdict.limit_ms),
            percent(verdict.share_within)
        ),
        None => format!(
            "{name} ({}) do not keep {} ({} of them within it)",
            counted(requests.len(), "request"),
            short_time(loosest.limit_ms),
            percent(loosest.share_within)
        ),
    })
}
