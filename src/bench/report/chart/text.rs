//! How wide a text is, so that labels can be placed without meeting. Measured with the font that
//! the PNG files are drawn with; it is the widest of those that the style sheet names, so a
//! browser that has another needs less room and never more.

use std::sync::LazyLock;

use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider as _};

/// DejaVu Sans, see font/LICENSE.
pub const REGULAR: &[u8] = include_bytes!("../font/DejaVuSans.ttf");
pub const BOLD: &[u8] = include_bytes!("../font/DejaVuSans-Bold.ttf");

/// What a text is for; its size and weight follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The title of a figure in a file of its own.
    Title,
    /// The title of a panel.
    Panel,
    /// Axis titles, legends, categories.
    Label,
    /// Ticks.
    Small,
    /// Values at bars.
    Value,
    /// Values in coloured parts.
    OnBar,
    /// The number of a tile.
    Big,
}

impl Style {
    pub const ALL: [Self; 7] = [
        Self::Title,
        Self::Panel,
        Self::Label,
        Self::Small,
        Self::Value,
        Self::OnBar,
        Self::Big,
    ];

    /// In pixels.
    pub fn size(self) -> f64 {
        match self {
            Self::Title => 17.0,
            Self::Panel => 13.5,
            Self::Label => 12.0,
            Self::Small | Self::Value | Self::OnBar => 11.0,
            Self::Big => 24.0,
        }
    }

    pub fn is_bold(self) -> bool {
        matches!(self, Self::Title | Self::Panel | Self::Big)
    }

    pub fn class(self) -> &'static str {
        match self {
            Self::Title => "t-title",
            Self::Panel => "t-panel",
            Self::Label => "t-label",
            Self::Small => "t-small",
            Self::Value => "t-value",
            Self::OnBar => "t-on-bar",
            Self::Big => "t-big",
        }
    }

    /// From the baseline of one line to that of the next.
    pub fn line_height(self) -> f64 {
        self.size() * 1.25
    }

    pub fn width(self, text: &str) -> f64 {
        let advances = if self.is_bold() {
            &*BOLD_ADVANCES
        } else {
            &*REGULAR_ADVANCES
        };
        text.chars().map(|c| advances.of(c)).sum::<f64>() * self.size()
    }

    /// Breaks a text at spaces into lines of at most `width`, as far as its words allow.
    pub fn wrap(self, text: &str, width: f64) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match lines.last_mut() {
                Some(line) if self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }

    /// The text, or as much of its beginning as fits.
    pub fn shorten(self, text: &str, width: f64) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut short = text.to_owned();
        while short.pop().is_some() && self.width(&format!("{short}…")) > width {}
        format!("{}…", short.trim_end())
    }
}

/// Advance widths in em, of the characters that the font has.
struct Advances {
    by_char: Vec<f64>,
    of_others: f64,
}

static REGULAR_ADVANCES: LazyLock<Advances> = LazyLock::new(|| Advances::of_font(REGULAR));
static BOLD_ADVANCES: LazyLock<Advances> = LazyLock::new(|| Advances::of_font(BOLD));

impl Advances {
    fn of_font(file: &[u8]) -> Self {
        let font = FontRef::new(file).expect("bug: the font in the program is sound");
        let glyphs = font.glyph_metrics(Size::unscaled(), LocationRef::default());
        let em = f64::from(
            font.metrics(Size::unscaled(), LocationRef::default())
                .units_per_em,
        );
        let charmap = font.charmap();
        let advance = |c: u32| {
            let glyph = charmap.map(c)?;
            glyphs
                .advance_width(glyph)
                .map(|units| f64::from(units) / em)
        };
        let of_others = advance(u32::from('m')).unwrap_or(1.0);
        let by_char = (0..0x2800)
            .map(|c| advance(c).unwrap_or(of_others))
            .collect();
        Self { by_char, of_others }
    }

    fn of(&self, c: char) -> f64 {
        self.by_char
            .get(c as usize)
            .copied()
            .unwrap_or(self.of_others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_texts_measure_wider_and_bold_ones_wider_still() {
        let width = |text| Style::Small.width(text);
        assert!(width("iii") < width("mmm"));
        assert!(width("mmm") < width("mmmm"));
        // 0.636 em a digit is what the font says.
        assert!((width("0") / Style::Small.size() - 0.636).abs() < 0.001);
        let per_em = |style: Style| style.width("latency") / style.size();
        assert!(per_em(Style::Panel) > per_em(Style::Label));
    }

    #[test]
    fn lines_are_no_wider_than_asked_unless_a_word_is() {
        let lines = Style::Label.wrap("a long text of short words", 60.0);
        assert!(lines.len() > 1);
        assert!(
            lines.iter().all(|line| Style::Label.width(line) <= 60.0),
            "{lines:?}"
        );
        assert_eq!(
            Style::Label.wrap("incompressible", 10.0),
            ["incompressible"]
        );
    }

    #[test]
    fn a_shortened_text_fits_and_says_that_it_was() {
        let short = Style::Label.shorten("long-form content", 60.0);
        assert!(
            short.ends_with('…') && Style::Label.width(&short) <= 60.0,
            "{short}"
        );
        assert_eq!(Style::Label.shorten("code", 60.0), "code");
    }
}
