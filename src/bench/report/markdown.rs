//! The report as Markdown, with its figures beside it.

use std::fmt::Write as _;

use super::FIGURES;
use super::document::Document;
use super::figures::{Missing, Table};
use super::reading::Finding;

pub fn render(document: &Document) -> String {
    let mut text = format!("# {}\n\n{}", document.title, table(&document.loads));
    text.push_str("\n## Reading\n\n");
    for Finding { topic, claim, .. } in &document.findings {
        let _ = writeln!(text, "- **{topic}.** {}", escaped(claim));
    }
    text.push_str("\n## Figures\n");
    for exhibit in &document.exhibits {
        let title = &exhibit.figure.title;
        let _ = write!(
            text,
            "\n### {title}\n\n![{title}]({FIGURES}/{}.svg)\n\n{}\n",
            exhibit.id,
            escaped(&exhibit.caption)
        );
        if !exhibit.numbers.rows.is_empty() {
            let _ = write!(
                text,
                "\n<details><summary>Numbers</summary>\n\n{}\n</details>\n",
                table(&exhibit.numbers)
            );
        }
    }
    if !document.missing.is_empty() {
        text.push_str("\nNot drawn:\n\n");
        for Missing { title, needs } in &document.missing {
            let _ = writeln!(text, "- {title}: it takes {needs}.");
        }
    }
    text.push_str("\n## Rules of the reading\n\nA rule that lacks its data says nothing.\n\n");
    for Finding { topic, rule, .. } in &document.findings {
        let _ = writeln!(text, "- {topic}: {}", escaped(rule));
    }
    text.push_str("\n## Every load in full\n");
    for (name, details) in &document.details {
        let _ = write!(
            text,
            "\n<details><summary>{}</summary>\n\n{}\n</details>\n",
            escaped(name),
            table(details)
        );
    }
    text
}

/// Numbers stand to the right.
fn table(table: &Table) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let is_numeric = |column: usize| {
        if column == 0 {
            return false;
        }
        let mut cells = table.rows.iter().filter_map(|row| row.get(column));
        cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()) || cell == "n/a")
    };
    let rules: Vec<&str> = (0..table.head.len())
        .map(|column| if is_numeric(column) { "---:" } else { "---" })
        .collect();
    let mut text = row(&table.head) + &format!("|{}|\n", rules.join("|"));
    for cells in &table.rows {
        text.push_str(&row(cells));
    }
    text
}

/// Text that is to stand as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('*', "\\*")
        .replace('_', "\\_")
        .replace('`', "\\`")
        .replace('~', "\\~")
        .replace('\n', " ")
}
