//! Bars, side by side or stacked.

use super::axes::{Extent, Frame};
use super::legend::{self, Sample};
use super::scale::{Axis, XAxis};
use super::svg::{Anchor, Svg};
use super::text::Style;
use super::{Color, Key, Rect};

#[derive(Clone, Debug, PartialEq)]
pub struct BarPlot {
    pub x_label: String,
    pub y: Axis,
    pub groups: Vec<BarGroup>,
    pub stacking: Stacking,
    /// What the colours stand for, where the categories do not say it.
    pub keys: Vec<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacking {
    SideBySide,
    Stacked,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BarGroup {
    pub name: String,
    pub bars: Vec<Bar>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub value: f64,
    pub color: Color,
    /// Written at the bar.
    pub label: String,
    /// Shown when pointed at.
    pub tooltip: String,
}

/// Share of a slot that bars take.
const BARS_SHARE: f64 = 0.8;
const BAR_WIDTH_MAX: f64 = 64.0;
const LABEL_GAP: f64 = 3.0;

impl BarPlot {
    pub(super) fn draw(&self, svg: &mut Svg, area: Rect) {
        let keys: Vec<(&str, Sample<'_>)> = self
            .keys
            .iter()
            .map(|(name, color)| (name.as_str(), Sample::Box(*color)))
            .collect();
        let area = legend::draw(svg, area, &keys);
        let columns = match self.stacking {
            Stacking::SideBySide => self
                .groups
                .iter()
                .map(|group| group.bars.len())
                .max()
                .unwrap_or(1),
            Stacking::Stacked => 1,
        };
        // The frame is narrower than the area by its ticks and levels, about as wide as this.
        let slot = (area.width - 90.0) / self.groups.len().max(1) as f64;
        let column = slot * BARS_SHARE / columns.max(1) as f64;
        let longest = self
            .bars()
            .map(|bar| Style::Small.width(&bar.label))
            .fold(0.0, f64::max);
        let is_upwards = self.stacking == Stacking::SideBySide && longest > column;
        let has_labels = !is_upwards || column >= Style::Value.size();
        let extent = Extent {
            x: 0.0,
            y: self
                .groups
                .iter()
                .map(|group| self.top(group))
                .fold(0.0, f64::max),
            headroom: match is_upwards {
                true if has_labels => longest + LABEL_GAP,
                true => 0.0,
                false => Style::Small.line_height(),
            },
        };
        let names = self.groups.iter().map(|group| group.name.clone()).collect();
        let x = XAxis::Categories {
            label: self.x_label.clone(),
            names,
        };
        let frame = Frame::draw(svg, area, &x, &self.y, extent);
        let slot = frame.plot.width / self.groups.len().max(1) as f64;
        let width = (slot * BARS_SHARE / columns.max(1) as f64).min(BAR_WIDTH_MAX);
        let start = |i: usize, columns: usize| frame.x_at(i as f64) - width * columns as f64 / 2.0;
        for (i, group) in self.groups.iter().enumerate() {
            match self.stacking {
                Stacking::SideBySide => {
                    for (j, bar) in group.bars.iter().enumerate() {
                        let x = start(i, group.bars.len()) + j as f64 * width;
                        draw_bar(svg, &frame, bar, (x, width), 0.0);
                    }
                }
                Stacking::Stacked => draw_stack(svg, &frame, &group.bars, (start(i, 1), width)),
            }
        }
        frame.draw_levels(svg);
        if self.stacking == Stacking::SideBySide && has_labels {
            // Over the levels, which would strike them through.
            for (i, group) in self.groups.iter().enumerate() {
                for (j, bar) in group.bars.iter().enumerate() {
                    let middle = start(i, group.bars.len()) + (j as f64 + 0.5) * width;
                    label_bar(svg, &frame, bar, middle, is_upwards);
                }
            }
        }
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.groups.iter().flat_map(|group| group.bars.iter())
    }

    fn top(&self, group: &BarGroup) -> f64 {
        let values = group.bars.iter().map(|bar| bar.value);
        match self.stacking {
            Stacking::SideBySide => values.fold(0.0, f64::max),
            Stacking::Stacked => values.sum(),
        }
    }
}

fn draw_bar(svg: &mut Svg, frame: &Frame, bar: &Bar, (x, width): (f64, f64), base: f64) {
    let (top, bottom) = (frame.y_at(base + bar.value), frame.y_at(base));
    let area = Rect {
        x,
        y: top,
        width,
        height: bottom - top,
    };
    svg.rect(
        &format!("bar {}", bar.color.class()),
        area,
        Some(&bar.tooltip),
    );
}

fn label_bar(svg: &mut Svg, frame: &Frame, bar: &Bar, middle: f64, is_upwards: bool) {
    let top = frame.y_at(bar.value) - LABEL_GAP;
    match is_upwards {
        true => svg.text_upwards(Style::Value, Anchor::Start, (middle + 4.0, top), &bar.label),
        false => svg.text(Style::Value, Anchor::Middle, (middle, top), &bar.label),
    }
}

/// A part that is too flat for its label has none.
fn draw_stack(svg: &mut Svg, frame: &Frame, bars: &[Bar], (x, width): (f64, f64)) {
    let mut base = 0.0;
    for bar in bars {
        draw_bar(svg, frame, bar, (x, width), base);
        let (top, bottom) = (frame.y_at(base + bar.value), frame.y_at(base));
        let fits = bottom - top >= Style::Small.line_height()
            && Style::Small.width(&bar.label) <= width - 4.0;
        if fits {
            let at = (x + width / 2.0, f64::midpoint(top, bottom) + 4.0);
            svg.text(Style::OnBar, Anchor::Middle, at, &bar.label);
        }
        base += bar.value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(num_groups: usize) -> String {
        let group = |i: usize| BarGroup {
            name: format!("group {i}"),
            bars: vec![Bar {
                value: i as f64,
                color: Color::Blue,
                label: "12.3".to_owned(),
                tooltip: String::new(),
            }],
        };
        let plot = BarPlot {
            x_label: "x".to_owned(),
            y: Axis::new("y"),
            groups: (0..num_groups).map(group).collect(),
            stacking: Stacking::SideBySide,
            keys: Vec::new(),
        };
        let mut svg = Svg::default();
        let area = Rect {
            x: 0.0,
            y: 0.0,
            width: 320.0,
            height: 250.0,
        };
        plot.draw(&mut svg, area);
        svg.document(320.0, 250.0, "a plot", None)
    }

    #[test]
    fn labels_turn_and_then_give_way_as_bars_get_narrow() {
        for (num_groups, values, turned, names) in [(3, 3, 0, 3), (12, 12, 24, 12), (60, 0, 20, 20)]
        {
            let svg = plot(num_groups);
            assert_eq!(svg.matches("<rect").count(), num_groups);
            assert_eq!(
                svg.matches("t-value").count(),
                values,
                "{num_groups}: values"
            );
            assert_eq!(
                svg.matches("rotate(-90").count(),
                turned,
                "{num_groups}: turned"
            );
            assert_eq!(svg.matches("group ").count(), names, "{num_groups}: names");
        }
    }
}
