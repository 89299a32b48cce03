//! Writes SVG elements. Coordinates have two decimals at most, so that equal drawings are equal
//! bytes.

use std::fmt::Write as _;

use super::Rect;
use super::text::Style;

/// The inside of an SVG document.
#[derive(Debug, Default)]
pub struct Svg {
    body: String,
}

/// Which end of a text its position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// The document, `style` being its style sheet. Without one it takes that of the page around it.
    pub fn document(&self, width: f64, height: f64, label: &str, style: Option<&str>) -> String {
        let style = style.map_or_else(String::new, |css| format!("<style>{css}</style>\n"));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
             role=\"img\" aria-label=\"{}\">\n{style}{}</svg>\n",
            escape(label),
            self.body,
            w = coordinate(width),
            h = coordinate(height),
        )
    }

    pub(super) fn rect(&mut self, class: &str, area: Rect, tooltip: Option<&str>) {
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"",
            coordinate(area.x),
            coordinate(area.y),
            coordinate(area.width),
            coordinate(area.height)
        );
        self.close("rect", tooltip);
    }

    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            coordinate(from.0),
            coordinate(from.1),
            coordinate(to.0),
            coordinate(to.1)
        );
    }

    pub fn path(&mut self, class: &str, data: &str, tooltip: Option<&str>) {
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{data}\"");
        self.close("path", tooltip);
    }

    pub fn text(&mut self, style: Style, anchor: Anchor, at: (f64, f64), text: &str) {
        self.text_with(style, anchor, at, text, "");
    }

    /// Text that reads upwards.
    pub fn text_upwards(&mut self, style: Style, anchor: Anchor, at: (f64, f64), text: &str) {
        let turn = format!(
            " transform=\"rotate(-90 {} {})\"",
            coordinate(at.0),
            coordinate(at.1)
        );
        self.text_with(style, anchor, at, text, &turn);
    }

    fn text_with(
        &mut self,
        style: Style,
        anchor: Anchor,
        at: (f64, f64),
        text: &str,
        attributes: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let _ = writeln!(
            self.body,
            "<text class=\"{}\" x=\"{}\" y=\"{}\"{anchor}{attributes}>{}</text>",
            style.class(),
            coordinate(at.0),
            coordinate(at.1),
            escape(text)
        );
    }

    fn close(&mut self, element: &str, tooltip: Option<&str>) {
        let _ = match tooltip {
            Some(text) => writeln!(self.body, "><title>{}</title></{element}>", escape(text)),
            None => writeln!(self.body, "/>"),
        };
    }
}

/// Path data of straight lines through all points.
pub fn polyline(points: &[(f64, f64)]) -> String {
    let mut data = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        let _ = write!(data, "{command}{} {}", coordinate(*x), coordinate(*y));
    }
    data
}

/// At most two decimals, without a sign for 0.
pub fn coordinate(x: f64) -> String {
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".to_owned(),
        text => text.to_owned(),
    }
}

/// Text for XML and HTML, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short_and_never_minus_zero() {
        for (x, expected) in [
            (1.0, "1"),
            (1.255, "1.25"),
            (-0.001, "0"),
            (10.5, "10.5"),
            (100.0, "100"),
        ] {
            assert_eq!(coordinate(x), expected);
        }
    }

    #[test]
    fn text_cannot_leave_its_element() {
        assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
    }
}
