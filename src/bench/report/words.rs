//! Numbers as readers want them: three significant digits, with the unit that suits.

use super::chart::grouped;

/// The unit of an axis of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeUnit {
    pub name: &'static str,
    pub ms: f64,
}

impl TimeUnit {
    /// The one in which the largest value reads best.
    pub fn for_max_ms(max_ms: f64) -> Self {
        match max_ms >= 2000.0 {
            true => Self { name: "s", ms: 1e3 },
            false => Self {
                name: "ms",
                ms: 1.0,
            },
        }
    }

    pub fn of(&self, ms: f64) -> f64 {
        ms / self.ms
    }

    /// Without the unit's name.
    pub fn label(&self, ms: f64) -> String {
        number(self.of(ms))
    }
}

/// A time with its unit.
pub fn time(ms: f64) -> String {
    match ms.abs() >= 1000.0 {
        true => format!("{} s", number(ms / 1e3)),
        false => format!("{} ms", number(ms)),
    }
}

/// Three significant digits.
pub fn number(x: f64) -> String {
    let decimals = match x.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    grouped(&format!("{x:.decimals$}"))
}

pub fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.0005 {
        return "< 0.1 %".to_owned();
    }
    let decimals = usize::from(share.abs() < 0.0995 && share != 0.0);
    format!("{:.decimals$} %", share * 100.0)
}

/// A ratio, as people speak of speed-ups.
pub fn times(ratio: f64) -> String {
    format!("{}×", number(ratio))
}

/// A count, with its noun in the right number.
pub fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(&count.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits_at_most() {
        for (x, expected) in [
            (0.0, "0.00"),
            (0.414, "0.41"),
            (6.725, "6.72"),
            (9.999, "10.0"),
            (48.25, "48.2"),
            (99.97, "100"),
            (949.4, "949"),
            (397_440.0, "397,440"),
        ] {
            assert_eq!(number(x), expected);
        }
    }

    #[test]
    fn times_change_their_unit_at_one_second() {
        assert_eq!(time(999.0), "999 ms");
        assert_eq!(time(4396.0), "4.40 s");
        assert_eq!(TimeUnit::for_max_ms(4396.0).label(850.0), "0.85");
        assert_eq!(TimeUnit::for_max_ms(850.0).label(850.0), "850");
    }

    #[test]
    fn shares_below_a_tenth_show_one_decimal() {
        assert_eq!(percent(0.853), "85 %");
        assert_eq!(percent(0.0041), "0.4 %");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.0002), "< 0.1 %");
    }
}
