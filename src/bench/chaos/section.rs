//! A storm's record as text, and as a section of BENCHMARKS.md.

use std::fmt::Write as _;

use super::record::ChaosRecord;
use crate::bench::drill::{self, Row};

pub struct ChaosSection<'a> {
    record: &'a ChaosRecord,
    raw: &'a str,
}

impl<'a> ChaosSection<'a> {
    pub fn new(record: &'a ChaosRecord, raw: &'a str) -> Self {
        Self { record, raw }
    }

    fn title(&self) -> String {
        let plan = &self.record.chaos;
        format!(
            "Chaos: {} s at {} times capacity",
            plan.duration_s, plan.overload
        )
    }

    pub fn to_text(&self) -> String {
        let results: Vec<Row> = [self.books(), self.results()].concat();
        drill::text(&self.title(), &results, self.raw)
    }

    pub fn to_markdown(&self) -> String {
        let mut tables = String::from(
            "A storm of clients that hang up, hurry, read slowly or send nonsense, bursts past the queue, and a server replaced \
             by another on its port. Both sides' books must agree request by request, and each server's memory may grow by 5 % at most \
             from the second third of its time to the end.\n\n",
        );
        let _ = writeln!(tables, "{}", drill::table("books", &self.books()));
        tables.push_str(
            "| client | sent | completed | left | shed | timed out | refused | failed |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for (kind, counts) in &self.record.balance.by_kind {
            let _ = writeln!(
                tables,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                kind.name(),
                counts.sent,
                counts.completed,
                counts.cancelled,
                counts.shed,
                counts.timed_out,
                counts.refused,
                counts.failed
            );
        }
        let _ = writeln!(tables, "\n{}", drill::table("result", &self.results()));
        drill::markdown(&self.title(), &self.record.about, &tables, self.raw)
    }

    fn books(&self) -> Vec<Row> {
        let (client, server) = (&self.record.balance.client, &self.record.balance.server);
        vec![
            (
                "clients",
                format!(
                    "{} sent = {} completed + {} left + {} shed (429) + {} timed out (408) + {} refused (4xx) + {} failed",
                    client.sent,
                    client.completed,
                    client.cancelled,
                    client.shed,
                    client.timed_out,
                    client.refused,
                    client.failed
                ),
            ),
            (
                "servers",
                format!(
                    "{} never arrived + {} completed + {} aborted + {} shed + {} timed out + {} refused + {} failed",
                    server.never_arrived,
                    server.completed,
                    server.cancelled,
                    server.shed,
                    server.timed_out,
                    server.refused,
                    server.failed
                ),
            ),
            (
                "tokens",
                format!(
                    "{} generated, {} of them in completed answers, as counted by clients, usage and log",
                    server.generated_tokens, client.completed_tokens
                ),
            ),
        ]
    }

    fn results(&self) -> Vec<Row> {
        let record = self.record;
        let (plan, times) = (&record.chaos, &record.replacement);
        vec![
            (
                "arrivals",
                format!(
                    "{:.1} requests/s, {} times the {:.1} requests/s carried before; bursts of {}",
                    plan.arrivals_per_s, plan.overload, plan.capacity_per_s, plan.burst
                ),
            ),
            ("preemptions", record.balance.server.preemptions.to_string()),
            (
                "replacement",
                format!(
                    "successor ready after {:.0} ms, predecessor drained in {:.0} ms",
                    times.start_up_ms, times.drain_ms
                ),
            ),
            ("memory", record.memory.summary()),
            (
                "faults",
                match record.faults.is_empty() {
                    true => "none".to_owned(),
                    false => record.faults.join("; "),
                },
            ),
        ]
    }
}
