//! A rollback drill as text, and as a section of BENCHMARKS.md.

use super::record::{Answer, RollbackRecord};
use crate::bench::drill::{self, Row};

pub struct RollbackSection<'a> {
    record: &'a RollbackRecord,
    raw: &'a str,
}

impl<'a> RollbackSection<'a> {
    pub fn new(record: &'a RollbackRecord, raw: &'a str) -> Self {
        Self { record, raw }
    }

    fn title(&self) -> String {
        format!("Rollback drill: {} under load", self.record.rollback.to)
    }

    pub fn to_text(&self) -> String {
        drill::text(&self.title(), &self.results(), self.raw)
    }

    pub fn to_markdown(&self) -> String {
        let tables = format!(
            "A server without the optimization takes the port of one with it while clients go on asking; the old one drains \
             and ends.\n\n{}",
            drill::table("result", &self.results())
        );
        drill::markdown(&self.title(), &self.record.about, &tables, self.raw)
    }

    fn results(&self) -> Vec<Row> {
        let record = self.record;
        let (plan, times) = (&record.rollback, &record.times);
        let faults = record.faults();
        vec![
            (
                "load",
                format!(
                    "{} clients, {} prompts again and again, {} tokens an answer",
                    plan.concurrency, plan.prompts, plan.max_tokens
                ),
            ),
            (
                "requests",
                format!("{}, {} failed", record.answers.len(), record.num_failed()),
            ),
            (
                "texts",
                match faults.is_empty() {
                    true => "the same for every prompt, before and after".to_owned(),
                    false => faults.join("; "),
                },
            ),
            (
                "recovery time",
                format!(
                    "{:.0} ms from the command until the new server was alone: {:.0} ms to a loaded model with the port, {:.0} ms to drain the old one",
                    record.recovery_ms(),
                    times.ready_ms - times.told_ms,
                    times.alone_ms - times.ready_ms
                ),
            ),
            (
                "slowest answer meanwhile",
                format!("{:.0} ms", record.slowest_during_ms()),
            ),
            (
                "mean answer before and after",
                format!(
                    "{:.0} ms and {:.0} ms",
                    mean_ms(record.before()),
                    mean_ms(record.after())
                ),
            ),
        ]
    }
}

fn mean_ms<'a>(answers: impl Iterator<Item = &'a Answer>) -> f64 {
    let times: Vec<f64> = answers
        .map(|answer| answer.end_ms - answer.sent_ms)
        .collect();
    times.iter().sum::<f64>() / times.len().max(1) as f64
}
