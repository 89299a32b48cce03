//! What a person at a terminal sees while a run takes its time.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shown on a terminal only; without a length, a spinner.
pub fn progress_bar(length: Option<usize>, message: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length as u64),
            "{bar:30} {pos}/{len} {elapsed} {msg}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}"),
    };
    let style = ProgressStyle::with_template(template).expect("bug: a fixed template is sound");
    bar.set_style(style);
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
