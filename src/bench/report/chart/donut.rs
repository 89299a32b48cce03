//! Shares of a whole as a ring, each named beside it.

use std::f64::consts::TAU;

use super::svg::{Anchor, Svg, coordinate};
use super::text::Style;
use super::{Color, Rect};

#[derive(Clone, Debug, PartialEq)]
pub struct Donut {
    /// What the whole is, written in the ring, in lines.
    pub whole: Vec<String>,
    pub slices: Vec<Slice>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub name: String,
    pub color: Color,
    /// Of the whole, in [0, 1].
    pub share: f64,
    /// The share in words.
    pub label: String,
}

const RADIUS_MAX: f64 = 92.0;
/// Of the hole, to that of the ring.
const HOLE: f64 = 0.62;

impl Donut {
    pub(super) fn draw(&self, svg: &mut Svg, area: Rect) {
        let radius = (area.width * 0.24)
            .min(area.height / 2.0 - 6.0)
            .min(RADIUS_MAX);
        let center = (area.x + radius + 6.0, area.y + area.height / 2.0);
        let mut from = 0.0;
        for slice in &self.slices {
            let tooltip = format!("{}: {}", slice.name, slice.label);
            let class = format!("bar {}", slice.color.class());
            svg.path(
                &class,
                &ring(center, radius, from, from + slice.share),
                Some(&tooltip),
            );
            from += slice.share;
        }
        let line = Style::Label.line_height();
        let first = center.1 - line * (self.whole.len() as f64 - 1.0) / 2.0 + 4.0;
        for (i, text) in self.whole.iter().enumerate() {
            let at = (center.0, first + i as f64 * line);
            svg.text(Style::Label, Anchor::Middle, at, text);
        }
        self.draw_names(svg, area, center.0 + radius + 18.0);
    }

    fn draw_names(&self, svg: &mut Svg, area: Rect, x: f64) {
        let room = area.right() - x - 20.0;
        let row = 2.0 * Style::Label.line_height() + 8.0;
        let mut y = area.y + (area.height - row * self.slices.len() as f64) / 2.0;
        for slice in &self.slices {
            let sample = Rect {
                x,
                y: y + 2.0,
                width: 12.0,
                height: 12.0,
            };
            svg.rect(&format!("bar {}", slice.color.class()), sample, None);
            let text = x + 20.0;
            let name = Style::Label.shorten(&slice.name, room);
            svg.text(
                Style::Label,
                Anchor::Start,
                (text, y + Style::Label.size()),
                &name,
            );
            let second = y + Style::Label.size() + Style::Label.line_height();
            svg.text(
                Style::Small,
                Anchor::Start,
                (text, second),
                &Style::Small.shorten(&slice.label, room),
            );
            y += row;
        }
    }
}

/// The part of a ring between two shares of a turn, clockwise from the top.
fn ring(center: (f64, f64), radius: f64, from: f64, to: f64) -> String {
    // A whole turn begins where it ends, which an arc cannot express.
    let to = to.min(from + 0.9999);
    let at = |share: f64, radius: f64| {
        let angle = share * TAU;
        let (x, y) = (
            center.0 + radius * angle.sin(),
            center.1 - radius * angle.cos(),
        );
        format!("{} {}", coordinate(x), coordinate(y))
    };
    let large = u8::from(to - from > 0.5);
    let (outer, inner) = (coordinate(radius), coordinate(radius * HOLE));
    format!(
        "M{}A{outer} {outer} 0 {large} 1 {}L{}A{inner} {inner} 0 {large} 0 {}Z",
        at(from, radius),
        at(to, radius),
        at(to, radius * HOLE),
        at(from, radius * HOLE)
    )
}
