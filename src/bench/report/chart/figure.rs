//! Panels laid out as one picture: in pairs where there is room, one below the other on a phone.

use super::Rect;
use super::palette::stylesheet;
use super::panel::{Panel, Span};
use super::svg::{Anchor, Svg};
use super::text::Style;

#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub title: String,
    /// What was measured, in one line.
    pub subtitle: String,
    pub panels: Vec<Panel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Of a README or a page.
    Wide,
    /// Of a phone.
    Narrow,
}

const MARGIN: f64 = 14.0;
const GAP: f64 = 26.0;

impl Width {
    pub fn pixels(self) -> f64 {
        match self {
            Self::Wide => 860.0,
            Self::Narrow => 350.0,
        }
    }
}

impl Figure {
    /// A file of its own: with its title, its colours and a background.
    pub fn to_file(&self, width: Width) -> String {
        self.to_svg(width, true)
    }

    /// For a page that has the title and the style sheet.
    pub fn to_inline(&self, width: Width) -> String {
        self.to_svg(width, false)
    }

    fn to_svg(&self, width: Width, is_file: bool) -> String {
        let inner = width.pixels() - 2.0 * MARGIN;
        let heading = match is_file {
            true => Style::Title.line_height() + Style::Label.line_height() + 12.0,
            false => 0.0,
        };
        let rows = self.rows(width, inner);
        let heights: Vec<f64> = rows
            .iter()
            .map(|row| {
                row.iter()
                    .map(|(panel, width)| panel.height_in(*width))
                    .fold(0.0, f64::max)
            })
            .collect();
        let gaps = GAP * rows.len().saturating_sub(1) as f64;
        let height = 2.0 * MARGIN + heading + heights.iter().sum::<f64>() + gaps;
        let mut svg = Svg::default();
        if is_file {
            let paper = Rect {
                x: 0.0,
                y: 0.0,
                width: width.pixels(),
                height,
            };
            svg.rect("paper", paper, None);
            let baseline = MARGIN + Style::Title.size();
            svg.text(
                Style::Title,
                Anchor::Start,
                (MARGIN, baseline),
                &Style::Title.shorten(&self.title, inner),
            );
            let below = baseline + Style::Label.line_height() + 4.0;
            svg.text(
                Style::Small,
                Anchor::Start,
                (MARGIN, below),
                &Style::Small.shorten(&self.subtitle, inner),
            );
        }
        let mut y = MARGIN + heading;
        for (row, height) in rows.iter().zip(heights) {
            let mut x = MARGIN;
            for (panel, width) in row {
                let area = Rect {
                    x,
                    y,
                    width: *width,
                    height,
                };
                panel.draw(&mut svg, area);
                x += width + GAP;
            }
            y += height + GAP;
        }
        let css = is_file.then(stylesheet);
        svg.document(width.pixels(), height, &self.title, css.as_deref())
    }

    /// Panels with their widths: two halves share a row, and a half without another fills it.
    fn rows(&self, width: Width, inner: f64) -> Vec<Vec<(&Panel, f64)>> {
        let mut rows: Vec<Vec<(&Panel, f64)>> = Vec::new();
        let half = (inner - GAP) / 2.0;
        let mut open = false;
        for panel in &self.panels {
            let is_half = width == Width::Wide && panel.span == Span::Half;
            match rows.last_mut() {
                Some(row) if open && is_half => {
                    row[0].1 = half;
                    row.push((panel, half));
                    open = false;
                }
                _ => {
                    rows.push(vec![(panel, inner)]);
                    open = is_half;
                }
            }
        }
        rows
    }
}
