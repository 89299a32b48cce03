//! `bench report`: recorded runs as Markdown and as one page, with figures and a reading.
//!
//! The walk: [`loads`] (what was measured) > [`analysis`] (what follows) > [`figures`] (drawn with
//! [`chart`]) and [`reading`] (said in words) > [`document`] > [`markdown`] and [`html`]. Nothing in
//! it depends on anything but the records: the same files give the same bytes.

mod analysis;
pub mod args;
mod chart;
mod document;
mod figures;
mod html;
mod loads;
mod markdown;
mod reading;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use self::args::ReportArgs;
use self::chart::{Width, png};
use self::document::Document;
use self::loads::Load;

/// The folder of the figures, beside the text.
const FIGURES: &str = "figures";

/// Writes the report on some runs; returns what it says in words and where it is.
///
/// # Errors
/// A file is no record or cannot be written, or no request in them succeeded.
pub fn write(folder: &Path, args: &ReportArgs) -> anyhow::Result<String> {
    let runs: Vec<Vec<Load>> = args
        .runs
        .iter()
        .map(|run| Load::read(&folder.join(run)))
        .collect::<anyhow::Result<_>>()?;
    let loads: Vec<Load> = runs.into_iter().flatten().collect();
    ensure!(
        loads.iter().any(|load| !load.answers.is_empty()),
        "no request succeeded in these runs: there is nothing to report"
    );
    let document = Document::of(&loads, &args.objectives_ms());
    let output = folder.join(args.output_folder());
    let figures = output.join(FIGURES);
    fs::create_dir_all(&figures).with_context(|| format!("cannot create {}", figures.display()))?;
    for exhibit in &document.exhibits {
        let svg = exhibit.figure.to_file(Width::Wide);
        let picture = png::render(&svg)?;
        save(figures.join(format!("{}.svg", exhibit.id)), svg.as_bytes())?;
        save(figures.join(format!("{}.png", exhibit.id)), &picture)?;
    }
    save(
        output.join("report.md"),
        markdown::render(&document).as_bytes(),
    )?;
    save(
        output.join("report.html"),
        html::render(&document).as_bytes(),
    )?;
    Ok(document.to_text(&args.output_folder()))
}

fn save(path: PathBuf, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
