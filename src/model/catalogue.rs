//! The models that have a name of their own: `models/catalogue.json`, part of the binary.
//!
//! An entry pins a file by size and SHA-256. `scripts/fetch-model` reads the same catalogue.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::source::ModelPlaces;

/// One model of the catalogue: a GGUF file on the hub.
#[derive(Clone, Debug, Deserialize)]
pub struct CatalogueEntry {
    pub name: String,
    pub family: String,
    pub quantisation: String,
    pub licence: String,
    /// `org/name` on the hub.
    pub hub_id: String,
    pub revision: String,
    pub file: String,
    pub size_bytes: u64,
    /// In hexadecimal, lower case.
    pub sha256: String,
}

/// The named models, in the order in which they are listed.
#[derive(Clone, Debug)]
pub struct Catalogue {
    entries: Vec<CatalogueEntry>,
}

impl Catalogue {
    /// The catalogue of this build.
    pub fn embedded() -> Self {
        Self::parse(include_str!("../../models/catalogue.json"))
            .expect("bug: models/catalogue.json does not parse")
    }

    /// Reads a catalogue: a JSON array of entries.
    ///
    /// # Errors
    /// Where the text is not such an array.
    pub fn parse(json: &str) -> anyhow::Result<Self> {
        let entries = serde_json::from_str(json).context("cannot read the model catalogue")?;
        Ok(Self { entries })
    }

    pub fn entries(&self) -> &[CatalogueEntry] {
        &self.entries
    }

    /// The entry of that name; upper and lower case are the same.
    pub fn find(&self, name: &str) -> Option<&CatalogueEntry> {
        self.entries
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    /// The name that was probably meant, for a name that is not there.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        let name = name.to_lowercase();
        let is_near = |entry: &&CatalogueEntry| {
            let starts_alike = name.len() >= 3 && entry.name.starts_with(&name);
            starts_alike || edit_distance(&name, &entry.name) <= 1 + entry.name.len() / 5
        };
        self.entries
            .iter()
            .filter(is_near)
            .min_by_key(|entry| edit_distance(&name, &entry.name))
            .map(|entry| entry.name.as_str())
    }
}

/// Writes the catalogue as a table, with what is present on this machine and where.
///
/// # Errors
/// Where `out` cannot be written.
pub fn list(out: &mut impl Write) -> anyhow::Result<()> {
    write_table(&ModelPlaces::from_env(), out)
}

/// Writes the table for the given places.
///
/// # Errors
/// Where `out` cannot be written.
pub fn write_table(places: &ModelPlaces, out: &mut impl Write) -> anyhow::Result<()> {
    let entries = places.catalogue.entries();
    let mut rows = vec![
        [
            "NAME",
            "FAMILY",
            "QUANTISATION",
            "SIZE",
            "LICENCE",
            "PRESENT",
        ]
        .map(String::from),
    ];
    for entry in entries {
        let present = match places.find_present(entry) {
            Ok(Some(path)) => shown(&path),
            Ok(None) => "no".to_owned(),
            Err(error) => format!("damaged: {error}"),
        };
        rows.push([
            entry.name.clone(),
            entry.family.clone(),
            entry.quantisation.clone(),
            format!("{:.0} MB", entry.size_bytes as f64 / 1e6),
            entry.licence.clone(),
            present,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "{cell:<width$}  ")?;
        }
        writeln!(out, "{}", row[5])?;
    }
    writeln!(out, "\nOn the hub:")?;
    for entry in entries {
        let width = widths[0];
        writeln!(
            out,
            "  {:<width$}  {}:{}",
            entry.name, entry.hub_id, entry.file
        )?;
    }
    writeln!(
        out,
        "\nA model that is not present is downloaded at its first use, or by scripts/fetch-model NAME."
    )?;
    Ok(())
}

/// A path as the user would type it: relative where it lies under the current directory.
fn shown(path: &Path) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&current)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Levenshtein distance, in bytes: catalogue names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_pins_one_gguf_file() {
        for entry in Catalogue::embedded().entries() {
            let name = &entry.name;
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(
                entry.sha256.len() == 64 && entry.sha256.chars().all(is_hex),
                "{name}"
            );
            assert!(entry.file.ends_with(".gguf"), "{name}");
            assert!(entry.size_bytes > 0, "{name}");
            assert_eq!(entry.hub_id.matches('/').count(), 1, "{name}");
        }
    }

    #[test]
    fn near_misses_are_guessed_and_others_are_not() {
        let catalogue = Catalogue::embedded();
        for (typed, meant) in [
            ("smolm2-135m", Some("smollm2-135m")),
            ("SmolLM2_135M", Some("smollm2-135m")),
            ("smollm2", Some("smollm2-135m")),
            ("qwen2.5-coder-0.5", Some("qwen2.5-coder-0.5b")),
            ("qwen2.5-coder-05b", Some("qwen2.5-coder-0.5b")),
            ("llama-3-70b", None),
            ("", None),
        ] {
            assert_eq!(catalogue.nearest(typed), meant, "{typed}");
        }
    }

    #[test]
    fn edit_distance_counts_single_changes() {
        for (a, b, distance) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "axc", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
