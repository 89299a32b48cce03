//! One plot with its title.

use super::svg::{Anchor, Svg};
use super::text::Style;
use super::tiles::{self, Tile};
use super::{BarPlot, Donut, Rect, XyPlot};

#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    pub title: String,
    pub span: Span,
    /// Of the plot, without the title, in pixels.
    pub height: f64,
    pub plot: Plot,
}

/// How much of a wide figure a panel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    Half,
    Full,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Plot {
    Xy(XyPlot),
    Bars(BarPlot),
    Donut(Donut),
    Tiles(Vec<Tile>),
}

impl Panel {
    /// With its title, which may take several lines.
    pub fn height_in(&self, width: f64) -> f64 {
        self.title_height(width) + self.height
    }

    fn title_height(&self, width: f64) -> f64 {
        Style::Panel.wrap(&self.title, width).len() as f64 * Style::Panel.line_height() + 6.0
    }

    pub(super) fn draw(&self, svg: &mut Svg, area: Rect) {
        for (i, line) in Style::Panel
            .wrap(&self.title, area.width)
            .iter()
            .enumerate()
        {
            let y = area.y + Style::Panel.size() + i as f64 * Style::Panel.line_height();
            svg.text(Style::Panel, Anchor::Start, (area.x, y), line);
        }
        let title = self.title_height(area.width);
        let plot = Rect {
            y: area.y + title,
            height: area.height - title,
            ..area
        };
        match &self.plot {
            Plot::Xy(xy) => xy.draw(svg, plot),
            Plot::Bars(bars) => bars.draw(svg, plot),
            Plot::Donut(donut) => donut.draw(svg, plot),
            Plot::Tiles(tiles) => tiles::draw(svg, plot, tiles),
        }
    }
}
