//! Charts as SVG: knows numbers, words and colours, and nothing of requests or runs.
//!
//! The walk: a [`Figure`] is laid out as [`Panel`]s; each holds one plot, which draws itself into a
//! rectangle of an [`svg::Svg`]. Shapes carry classes and no colours: a [`palette`] gives the
//! colours, for a file of its own or for a page that is light or dark. [`png`] renders such a file.

mod axes;
mod bars;
mod donut;
mod figure;
mod legend;
pub mod palette;
mod panel;
pub mod png;
mod scale;
mod svg;
mod text;
mod tiles;
mod xy;

pub use bars::{Bar, BarGroup, BarPlot, Stacking};
pub use donut::{Donut, Slice};
pub use figure::{Figure, Width};
pub use palette::Color;
pub use panel::{Panel, Plot, Span};
pub use scale::{Axis, Level, XAxis, grouped};
pub use svg::escape;
pub use text::{BOLD, REGULAR};
pub use tiles::Tile;
pub use xy::{Line, Marker, Series, XyPlot};

/// Where something is drawn, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rect {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Rect {
    fn right(&self) -> f64 {
        self.x + self.width
    }

    fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// A name with its colour.
type Key = (String, Color);
