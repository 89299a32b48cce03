//! Lines and points over a horizontal axis.

use super::axes::{Extent, Frame};
use super::legend::{self, Sample};
use super::scale::{Axis, XAxis};
use super::svg::{Svg, coordinate, polyline};
use super::{Color, Rect};

#[derive(Clone, Debug, PartialEq)]
pub struct XyPlot {
    pub x: XAxis,
    pub y: Axis,
    pub series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub color: Color,
    /// In the order of x.
    pub points: Vec<(f64, f64)>,
    pub line: Line,
    pub marker: Option<Marker>,
    /// Half the length of the whisker at each point; none if empty.
    pub whiskers: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    None,
    Solid,
    Dashed,
    /// Solid, and shaded down to the axis.
    Area,
}

/// So that series differ without their colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
}

impl Marker {
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Diamond];
}

/// Half of a marker's size.
const MARKER_RADIUS: f64 = 4.0;

impl XyPlot {
    pub(super) fn draw(&self, svg: &mut Svg, area: Rect) {
        let entries: Vec<(&str, Sample<'_>)> = self
            .series
            .iter()
            .filter(|series| !series.name.is_empty())
            .map(|series| (series.name.as_str(), Sample::Line(series)))
            .collect();
        let area = legend::draw(svg, area, &entries);
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let tops = self.series.iter().flat_map(|series| {
            let whiskers = series
                .whiskers
                .iter()
                .copied()
                .chain(std::iter::repeat(0.0));
            series
                .points
                .iter()
                .zip(whiskers)
                .map(|((_, y), half)| y + half)
        });
        let extent = Extent {
            x: points().map(|(x, _)| *x).fold(0.0, f64::max),
            y: tops.fold(0.0, f64::max),
            headroom: 4.0,
        };
        let frame = Frame::draw(svg, area, &self.x, &self.y, extent);
        frame.draw_levels(svg);
        for series in &self.series {
            series.draw(svg, &frame);
        }
    }
}

impl Series {
    fn draw(&self, svg: &mut Svg, frame: &Frame) {
        let color = self.color.class();
        let at: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|(x, y)| (frame.x_at(*x), frame.y_at(*y)))
            .collect();
        if let (Line::Area, Some(first), Some(last)) = (self.line, at.first(), at.last()) {
            let bottom = frame.plot.bottom();
            let outline = [&[(first.0, bottom)], &at[..], &[(last.0, bottom)]].concat();
            svg.path(
                &format!("area {color}"),
                &format!("{}Z", polyline(&outline)),
                None,
            );
        }
        if self.line != Line::None && at.len() > 1 {
            svg.path(&self.curve_class(), &polyline(&at), None);
        }
        for ((x, y), half) in self.points.iter().zip(&self.whiskers) {
            let x = frame.x_at(*x);
            let (top, bottom) = (frame.y_at(y + half), frame.y_at((y - half).max(0.0)));
            let data = [
                polyline(&[(x, top), (x, bottom)]),
                polyline(&[(x - 5.0, top), (x + 5.0, top)]),
                polyline(&[(x - 5.0, bottom), (x + 5.0, bottom)]),
            ];
            svg.path(&format!("whisker {color}"), &data.concat(), None);
        }
        if let Some(marker) = self.marker {
            for at in at {
                draw_marker(svg, marker, self.color, at);
            }
        }
    }

    fn curve_class(&self) -> String {
        let dashed = if self.line == Line::Dashed {
            " dashed"
        } else {
            ""
        };
        format!("curve {}{dashed}", self.color.class())
    }
}

/// How a series looks, for a legend.
pub fn draw_sample(svg: &mut Svg, series: &Series, at: (f64, f64), width: f64) {
    let end = (at.0 + width, at.1);
    if series.line != Line::None {
        svg.path(&series.curve_class(), &polyline(&[at, end]), None);
    }
    if let Some(marker) = series.marker {
        draw_marker(svg, marker, series.color, (at.0 + width / 2.0, at.1));
    }
}

fn draw_marker(svg: &mut Svg, marker: Marker, color: Color, (x, y): (f64, f64)) {
    let r = MARKER_RADIUS;
    let data = match marker {
        Marker::Circle => format!(
            "M{} {y}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z",
            coordinate(x - r),
            y = coordinate(y),
            d = 2.0 * r
        ),
        Marker::Square => {
            let r = r * 0.9;
            corners(&[
                (x - r, y - r),
                (x + r, y - r),
                (x + r, y + r),
                (x - r, y + r),
            ])
        }
        Marker::Triangle => corners(&[
            (x, y - r * 1.2),
            (x + r * 1.1, y + r * 0.8),
            (x - r * 1.1, y + r * 0.8),
        ]),
        Marker::Diamond => {
            let r = r * 1.25;
            corners(&[(x, y - r), (x + r, y), (x, y + r), (x - r, y)])
        }
    };
    svg.path(&format!("mark {}", color.class()), &data, None);
}

fn corners(points: &[(f64, f64)]) -> String {
    format!("{}Z", polyline(points))
}
