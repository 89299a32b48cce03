//! The colours: those of Okabe and Ito, which people with any colour vision tell apart. Nothing is
//! said by colour alone: lines differ in their markers, bars in their place and value.

use std::fmt::Write as _;

use super::text::Style;

/// What a colour stands for; the same in all figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    Blue,
    Sky,
    Orange,
    Vermillion,
    Green,
    Purple,
    Grey,
}

impl Color {
    /// In the order in which series take them.
    pub const SERIES: [Self; 6] = [
        Self::Blue,
        Self::Orange,
        Self::Green,
        Self::Purple,
        Self::Sky,
        Self::Vermillion,
    ];

    const ALL: [Self; 7] = [
        Self::Blue,
        Self::Sky,
        Self::Orange,
        Self::Vermillion,
        Self::Green,
        Self::Purple,
        Self::Grey,
    ];

    pub fn class(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Sky => "sky",
            Self::Orange => "orange",
            Self::Vermillion => "vermillion",
            Self::Green => "green",
            Self::Purple => "purple",
            Self::Grey => "grey",
        }
    }

    fn rgb(self) -> &'static str {
        match self {
            Self::Blue => "#0072b2",
            Self::Sky => "#56b4e9",
            Self::Orange => "#e69f00",
            Self::Vermillion => "#d55e00",
            Self::Green => "#009e73",
            Self::Purple => "#cc79a7",
            Self::Grey => "#8c8c8c",
        }
    }
}

/// Colours of everything that is no data.
struct Theme {
    paper: &'static str,
    ink: &'static str,
    muted: &'static str,
    grid: &'static str,
}

const LIGHT: Theme = Theme {
    paper: "#ffffff",
    ink: "#1b1b1b",
    muted: "#555555",
    grid: "#dddddd",
};

const DARK: Theme = Theme {
    paper: "#16181d",
    ink: "#ececec",
    muted: "#b0b3b8",
    grid: "#3a3d44",
};

/// The style sheet of figures: light, and dark where the reader wants it so.
pub fn stylesheet() -> String {
    let mut css = String::from(
        "text{font-family:'DejaVu Sans',Verdana,'Segoe UI',Helvetica,Arial,sans-serif}\n",
    );
    for style in Style::ALL {
        let weight = if style.is_bold() {
            ";font-weight:bold"
        } else {
            ""
        };
        let _ = writeln!(
            css,
            ".{}{{font-size:{}px{weight}}}",
            style.class(),
            style.size()
        );
    }
    css.push_str(
        ".grid{stroke-width:1}\n.axis{stroke-width:1;fill:none}\n.level{stroke-width:1.5;stroke-dasharray:6 4}\n\
         .curve{fill:none;stroke-width:2;stroke-linejoin:round}\n.dashed{stroke-dasharray:7 4}\n.whisker{stroke-width:1.5;fill:none}\n\
         .area{stroke:none;fill-opacity:0.25}\n.bar{stroke-width:0.5}\n\
         .t-value{paint-order:stroke;stroke-width:5;stroke-linejoin:round}\n",
    );
    for color in Color::ALL {
        let (class, rgb) = (color.class(), color.rgb());
        let _ = writeln!(
            css,
            ".bar.{class},.mark.{class},.area.{class}{{fill:{rgb}}}\n.curve.{class},.whisker.{class}{{stroke:{rgb}}}"
        );
    }
    css.push_str(&theme(&LIGHT));
    let _ = write!(
        css,
        "@media (prefers-color-scheme:dark){{\n{}}}\n",
        theme(&DARK)
    );
    css
}

fn theme(theme: &Theme) -> String {
    let Theme {
        paper,
        ink,
        muted,
        grid,
    } = theme;
    format!(
        ".paper{{fill:{paper}}}\ntext{{fill:{ink}}}\n.t-small{{fill:{muted}}}\n.t-on-bar{{fill:#000000}}\n.t-value{{stroke:{paper}}}\n.grid{{stroke:{grid}}}\n\
         .axis{{stroke:{muted}}}\n.level{{stroke:{ink}}}\n.bar{{stroke:{paper}}}\n.tile{{fill:none;stroke:{grid}}}\n"
    )
}
