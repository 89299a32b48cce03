//! Key numbers, each large with its name and unit below.

use super::Rect;
use super::svg::{Anchor, Svg};
use super::text::Style;

#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    pub value: String,
    pub name: String,
}

const COLUMNS: usize = 2;
const GAP: f64 = 10.0;

pub fn draw(svg: &mut Svg, area: Rect, tiles: &[Tile]) {
    let rows = tiles.len().div_ceil(COLUMNS).max(1) as f64;
    let width = (area.width - GAP) / COLUMNS as f64;
    let height = (area.height - GAP * rows) / rows;
    for (i, tile) in tiles.iter().enumerate() {
        let (column, row) = (i % COLUMNS, i / COLUMNS);
        let tile_area = Rect {
            x: area.x + column as f64 * (width + GAP),
            y: area.y + row as f64 * (height + GAP),
            width,
            height,
        };
        svg.rect("tile", tile_area, None);
        let middle = tile_area.y + height / 2.0;
        let x = tile_area.x + width / 2.0;
        svg.text(
            Style::Big,
            Anchor::Middle,
            (x, middle + 2.0),
            &Style::Big.shorten(&tile.value, width - 8.0),
        );
        let name = Style::Small.shorten(&tile.name, width - 8.0);
        svg.text(Style::Small, Anchor::Middle, (x, middle + 20.0), &name);
    }
}
