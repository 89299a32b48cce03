//! The frame of a plot: axes, grid, ticks and levels, and where a value lies in it.

use super::Rect;
use super::scale::{Axis, Level, Scale, XAxis, tick_labels, ticks};
use super::svg::{Anchor, Svg};
use super::text::Style;

/// Levels further above the data than this would press it flat; they are left out.
const LEVEL_OVER_DATA_MAX: f64 = 1.6;

const GAP: f64 = 5.0;
/// Longest category that is written upwards, in pixels.
const UPWARDS_MAX: f64 = 100.0;

/// The axes of a plot, drawn.
pub struct Frame {
    pub plot: Rect,
    x: XPositions,
    y: Scale,
    levels: Vec<Level>,
}

enum XPositions {
    Linear(Scale),
    Slots { start: f64, width: f64 },
}

/// The largest values that the frame must hold.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub x: f64,
    pub y: f64,
    /// Pixels above the highest value, for what is written there.
    pub headroom: f64,
}

impl Frame {
    pub fn draw(svg: &mut Svg, area: Rect, x_axis: &XAxis, axis: &Axis, extent: Extent) -> Self {
        let levels: Vec<Level> = axis
            .levels
            .iter()
            .filter(|level| level.value <= extent.y * LEVEL_OVER_DATA_MAX)
            .cloned()
            .collect();
        let y_max = levels
            .iter()
            .map(|level| level.value)
            .fold(extent.y, f64::max);
        let y_ticks = ticks(y_max, 7);
        let y_labels = tick_labels(&y_ticks);
        let left = widest(&y_labels, Style::Small) + GAP + 2.0;
        let level_labels: Vec<String> = levels.iter().map(|level| level.label.clone()).collect();
        let right = match levels.is_empty() {
            true => GAP + 7.0,
            false => widest(&level_labels, Style::Small) + GAP + 4.0,
        };
        let top = Style::Small.line_height() + 6.0 + extent.headroom;
        let width = area.width - left - right;
        let ticks_below = TicksBelow::of(x_axis, width);
        let bottom = ticks_below.height() + Style::Small.line_height() + 2.0 * GAP;
        let plot = Rect {
            x: area.x + left,
            y: area.y + top,
            width,
            height: area.height - top - bottom,
        };
        let y_end = y_ticks.last().copied().unwrap_or(1.0);
        let y = Scale::new(0.0..y_end, plot.bottom()..plot.y);
        for (tick, label) in y_ticks.iter().zip(&y_labels) {
            let at = y.at(*tick);
            svg.line("grid", (plot.x, at), (plot.right(), at));
            svg.text(Style::Small, Anchor::End, (plot.x - GAP, at + 4.0), label);
        }
        let above = area.y + Style::Small.size();
        svg.text(Style::Small, Anchor::Start, (area.x, above), &axis.label);
        let x = ticks_below.draw(svg, plot, extent.x);
        svg.line(
            "axis",
            (plot.x, plot.bottom()),
            (plot.right(), plot.bottom()),
        );
        let middle = (plot.x + plot.width / 2.0, area.bottom() - GAP);
        svg.text(Style::Small, Anchor::Middle, middle, x_axis.label());
        Self { plot, x, y, levels }
    }

    pub fn x_at(&self, value: f64) -> f64 {
        match &self.x {
            XPositions::Linear(scale) => scale.at(value),
            XPositions::Slots { start, width } => start + (value + 0.5) * width,
        }
    }

    pub fn y_at(&self, value: f64) -> f64 {
        self.y.at(value)
    }

    /// Over the data, so that a bar does not hide them.
    pub fn draw_levels(&self, svg: &mut Svg) {
        let mut levels: Vec<&Level> = self.levels.iter().collect();
        levels.sort_by(|a, b| a.value.total_cmp(&b.value));
        let mut above = f64::INFINITY;
        for level in levels {
            let at = self.y_at(level.value);
            svg.line("level", (self.plot.x, at), (self.plot.right(), at));
            let label_at = (at + 4.0).min(above - Style::Small.size() - 1.0);
            let position = (self.plot.right() + GAP, label_at);
            svg.text(Style::Small, Anchor::Start, position, &level.label);
            above = label_at;
        }
    }
}

/// What is written below a plot, once its width is known.
enum TicksBelow<'a> {
    Linear,
    /// Each name in lines.
    Lines(Vec<Vec<String>>),
    Upwards(&'a [String]),
}

impl<'a> TicksBelow<'a> {
    fn of(axis: &'a XAxis, width: f64) -> Self {
        let XAxis::Categories { names, .. } = axis else {
            return Self::Linear;
        };
        let room = width / names.len().max(1) as f64 - 4.0;
        let lines: Vec<Vec<String>> = names
            .iter()
            .map(|name| Style::Small.wrap(name, room))
            .collect();
        let fits = lines
            .iter()
            .flatten()
            .all(|line| Style::Small.width(line) <= room);
        match fits && lines.iter().all(|lines| lines.len() <= 3) {
            true => Self::Lines(lines),
            false => Self::Upwards(names),
        }
    }

    fn height(&self) -> f64 {
        let line = Style::Small.line_height();
        match self {
            Self::Linear => line,
            Self::Lines(names) => names.iter().map(Vec::len).max().unwrap_or(1) as f64 * line,
            Self::Upwards(names) => widest(names, Style::Small).min(UPWARDS_MAX) + GAP,
        }
    }

    fn draw(&self, svg: &mut Svg, plot: Rect, x_max: f64) -> XPositions {
        let line = Style::Small.line_height();
        let first_line = plot.bottom() + line;
        match self {
            Self::Linear => {
                let mut ticks = ticks(x_max, (plot.width / 60.0).clamp(3.0, 8.0) as usize);
                // The axis ends where the data does.
                ticks.retain(|tick| *tick <= x_max);
                let end = if x_max > 0.0 { x_max } else { 1.0 };
                let scale = Scale::new(0.0..end, plot.x..plot.right());
                for (tick, label) in ticks.iter().zip(tick_labels(&ticks)) {
                    let at = scale.at(*tick);
                    svg.line("axis", (at, plot.bottom()), (at, plot.bottom() + 3.0));
                    svg.text(Style::Small, Anchor::Middle, (at, first_line + 1.0), &label);
                }
                XPositions::Linear(scale)
            }
            Self::Lines(names) => {
                let width = plot.width / names.len().max(1) as f64;
                for (slot, lines) in names.iter().enumerate() {
                    let middle = plot.x + (slot as f64 + 0.5) * width;
                    for (i, text) in lines.iter().enumerate() {
                        let at = (middle, first_line + i as f64 * line);
                        svg.text(Style::Small, Anchor::Middle, at, text);
                    }
                }
                XPositions::Slots {
                    start: plot.x,
                    width,
                }
            }
            Self::Upwards(names) => {
                let width = plot.width / names.len().max(1) as f64;
                // Where they would meet, some stand for their neighbours.
                let every = (Style::Small.line_height() / width).ceil().max(1.0) as usize;
                for (slot, name) in names.iter().enumerate().step_by(every) {
                    let middle = plot.x + (slot as f64 + 0.5) * width;
                    let at = (middle + 4.0, plot.bottom() + GAP);
                    let name = Style::Small.shorten(name, UPWARDS_MAX);
                    svg.text_upwards(Style::Small, Anchor::End, at, &name);
                }
                XPositions::Slots {
                    start: plot.x,
                    width,
                }
            }
        }
    }
}

fn widest(texts: &[String], style: Style) -> f64 {
    texts
        .iter()
        .map(|text| style.width(text))
        .fold(0.0, f64::max)
}
