//! Names of colours and markers, in as many rows as they need.

use super::svg::{Anchor, Svg};
use super::text::Style;
use super::xy::{Series, draw_sample};
use super::{Color, Rect};

/// What stands before a name.
pub enum Sample<'a> {
    Box(Color),
    Line(&'a Series),
}

const BOX: f64 = 12.0;
const GAP: f64 = 14.0;

impl Sample<'_> {
    fn width(&self) -> f64 {
        match self {
            Self::Box(_) => BOX,
            Self::Line(_) => 22.0,
        }
    }
}

/// Draws the entries at the top of `area` and returns what is left of it.
pub fn draw(svg: &mut Svg, area: Rect, entries: &[(&str, Sample<'_>)]) -> Rect {
    if entries.is_empty() {
        return area;
    }
    let line = Style::Label.line_height() + 2.0;
    let (mut x, mut y) = (area.x, area.y);
    for (name, sample) in entries {
        let sample_width = sample.width();
        let width = sample_width + 6.0 + Style::Label.width(name);
        if x > area.x && x + width > area.right() {
            x = area.x;
            y += line;
        }
        let middle = y + Style::Label.size() / 2.0 + 1.0;
        match sample {
            Sample::Box(color) => svg.rect(
                &format!("bar {}", color.class()),
                Rect {
                    x,
                    y: middle - BOX / 2.0,
                    width: BOX,
                    height: BOX,
                },
                None,
            ),
            Sample::Line(series) => draw_sample(svg, series, (x, middle), sample_width),
        }
        let at = (x + sample_width + 6.0, y + Style::Label.size());
        svg.text(Style::Label, Anchor::Start, at, name);
        x += width + GAP;
    }
    let used = y + line + 6.0 - area.y;
    Rect {
        y: area.y + used,
        height: area.height - used,
        ..area
    }
}
