//! What the records of all drills have in common: where, when and on what they were held.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::benchmarks_md::raw_records_row;
use super::figures::or_na;
use super::machine::{Commit, Machine};
use super::measurement::{TOOL, utc};
use super::provenance::{command_line, settings_from_environment};
use super::server_stats::ServerStats;

/// A name and its value, as a table has them.
pub type Row = (&'static str, String);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Circumstances {
    /// Program and version.
    pub tool: String,
    /// UTC, RFC 3339, to the second.
    pub started: String,
    pub command: String,
    /// What the first server was started with, beside what the environment says.
    pub settings: BTreeMap<String, String>,
    pub commit: Option<Commit>,
    pub machine: Machine,
    pub model: Option<String>,
    pub model_sha256: Option<String>,
}

impl Circumstances {
    /// Those of a drill that begins now; `stats` are its server's.
    pub fn now(root: &Path, settings: &BTreeMap<String, String>, stats: &Value) -> Self {
        let stats = ServerStats::of(stats);
        let inherited = settings_from_environment(&stats.settings)
            .into_iter()
            .filter(|(name, _)| !settings.contains_key(name))
            .collect();
        Self {
            tool: TOOL.to_owned(),
            started: utc(Timestamp::now()),
            command: command_line(&inherited),
            settings: settings.clone(),
            commit: Commit::of(root),
            machine: Machine::this(),
            model: stats.model.name,
            model_sha256: stats.model.sha256,
        }
    }

    pub fn date(&self) -> &str {
        self.started.get(..10).unwrap_or(&self.started)
    }

    fn rows(&self) -> Vec<Row> {
        let commit = self.commit.as_ref().map(|commit| match commit.dirty {
            true => format!("{} + uncommitted changes", commit.id),
            false => commit.id.clone(),
        });
        let model = [self.model.clone(), self.model_sha256.clone()];
        let model: Vec<String> = model.into_iter().flatten().collect();
        let settings = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let machine = &self.machine;
        vec![
            ("commit", or_na(commit)),
            ("program", self.tool.clone()),
            ("model", model.join(", sha256 ")),
            ("server settings", settings.collect::<Vec<_>>().join(" ")),
            (
                "machine",
                format!(
                    "{}, {} cores, {}, load average {:.2}",
                    machine.cpu, machine.cores, machine.os, machine.load_average_1m
                ),
            ),
        ]
    }
}

/// For the terminal.
pub fn text(title: &str, results: &[Row], raw: &str) -> String {
    let mut text = format!("{title}\n\n");
    for (name, value) in results {
        let _ = writeln!(text, "{name:<34}{value}");
    }
    let _ = writeln!(text, "{:<34}{raw}", "raw records");
    text
}

/// A dated section of BENCHMARKS.md. `tables` stand before the circumstances.
pub fn markdown(title: &str, about: &Circumstances, tables: &str, raw: &str) -> String {
    let mut text = format!(
        "## {title} - {}\n\n    {}\n\n{}\n\n",
        about.date(),
        about.command,
        tables.trim_end()
    );
    let _ = writeln!(text, "| run | |\n|---|---|");
    for (name, value) in about.rows() {
        let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
    }
    let _ = writeln!(text, "{}", raw_records_row(raw));
    text
}

/// Names and values as a table of Markdown.
pub fn table(heading: &str, rows: &[Row]) -> String {
    let mut text = format!("| {heading} | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}
