//! The report as one HTML page that needs nothing from anywhere: figures, styles and fonts are in
//! it, and its own policy forbids to load anything.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::chart::palette::stylesheet;
use super::chart::{BOLD, REGULAR, Width, escape};
use super::document::Document;
use super::figures::{Exhibit, Missing, Table};
use super::reading::Finding;

const PAGE_CSS: &str = include_str!("page.css");

pub fn render(document: &Document) -> String {
    let title = escape(&document.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; font-src data:\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}{}{PAGE_CSS}{}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n{}",
        font(REGULAR, "normal"),
        font(BOLD, "bold"),
        stylesheet(),
        table(&document.loads)
    );
    page.push_str("<h2 id=\"reading\">Reading</h2>\n<dl class=\"reading\">\n");
    for Finding { topic, claim, rule } in &document.findings {
        let _ = writeln!(
            page,
            "<div><dt>{topic}</dt><dd>{}<details><summary>rule</summary>{}</details></dd></div>",
            escape(claim),
            escape(rule)
        );
    }
    page.push_str("</dl>\n<p class=\"note\">A rule that lacks its data says nothing.</p>\n<h2 id=\"figures\">Figures</h2>\n");
    for exhibit in &document.exhibits {
        page.push_str(&section(exhibit));
    }
    if !document.missing.is_empty() {
        page.push_str("<h3 id=\"missing\">Not drawn</h3>\n<ul>\n");
        for Missing { title, needs } in &document.missing {
            let _ = writeln!(
                page,
                "<li>{}: it takes {}.</li>",
                escape(title),
                code(needs)
            );
        }
        page.push_str("</ul>\n");
    }
    page.push_str("<h2 id=\"loads\">Every load in full</h2>\n");
    for (name, details) in &document.details {
        let _ = writeln!(
            page,
            "<details><summary>{}</summary>\n{}</details>",
            escape(name),
            table(details)
        );
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Wide and narrow; the style sheet shows the one that fits.
fn section(exhibit: &Exhibit) -> String {
    let numbers = match exhibit.numbers.rows.is_empty() {
        true => String::new(),
        false => format!(
            "<details><summary>Numbers</summary>\n{}</details>\n",
            table(&exhibit.numbers)
        ),
    };
    format!(
        "<section id=\"{}\">\n<h3>{}</h3>\n<p class=\"note\">{}</p>\n<figure>\n<div class=\"wide\">{}</div>\n<div class=\"narrow\">{}</div>\n\
         <figcaption>{}</figcaption>\n</figure>\n{numbers}</section>\n",
        exhibit.id,
        escape(&exhibit.figure.title),
        escape(&exhibit.figure.subtitle),
        exhibit.figure.to_inline(Width::Wide),
        exhibit.figure.to_inline(Width::Narrow),
        escape(&exhibit.caption)
    )
}

fn font(file: &[u8], weight: &str) -> String {
    format!(
        "@font-face{{font-family:'DejaVu Sans';font-weight:{weight};src:url(data:font/ttf;base64,{}) format('truetype')}}\n",
        STANDARD.encode(file)
    )
}

fn table(table: &Table) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells
            .iter()
            .enumerate()
            .map(|(column, cell)| {
                let is_numeric = column > 0 && cell.starts_with(|c: char| c.is_ascii_digit());
                let class = if tag == "td" && is_numeric {
                    " class=\"number\""
                } else {
                    ""
                };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            })
            .collect()
    };
    let mut text = String::from("<div class=\"table\"><table>\n");
    if table.head.iter().any(|name| !name.is_empty()) {
        let _ = writeln!(text, "<tr>{}</tr>", cells("th", &table.head));
    }
    for row in &table.rows {
        let _ = writeln!(text, "<tr>{}</tr>", cells("td", row));
    }
    text.push_str("</table></div>\n");
    text
}

/// Escapes, and sets what stands in backquotes as code.
fn code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(|(i, part)| match i % 2 {
            0 => escape(part),
            _ => format!("<code>{}</code>", escape(part)),
        })
        .collect()
}
