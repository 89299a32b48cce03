//! From numbers to pixels: ranges, round ticks, and how ticks are written.

use std::ops::Range;

/// A vertical axis, from 0 to a round number above its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// Levels drawn across the plot.
    pub levels: Vec<Level>,
}

impl Axis {
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            levels: Vec::new(),
        }
    }

    pub fn with_levels(self, levels: Vec<Level>) -> Self {
        Self { levels, ..self }
    }
}

/// A value with a name, for example a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    pub value: f64,
    pub label: String,
}

/// A horizontal axis.
#[derive(Clone, Debug, PartialEq)]
pub enum XAxis {
    Linear {
        label: String,
    },
    /// Each category at a whole number, from 0.
    Categories {
        label: String,
        names: Vec<String>,
    },
}

impl XAxis {
    pub fn label(&self) -> &str {
        match self {
            Self::Linear { label } | Self::Categories { label, .. } => label,
        }
    }
}

/// A linear map of values onto pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    domain: Range<f64>,
    pixels: Range<f64>,
}

impl Scale {
    pub fn new(domain: Range<f64>, pixels: Range<f64>) -> Self {
        Self { domain, pixels }
    }

    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.domain.start) / (self.domain.end - self.domain.start);
        self.pixels.start + share * (self.pixels.end - self.pixels.start)
    }
}

/// Round values from 0 that cover `max`: about `count` steps of 1, 2 or 5 times a power of ten.
pub fn ticks(max: f64, count: usize) -> Vec<f64> {
    let max = if max > 0.0 { max } else { 1.0 };
    let rough = max / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999_999)
        .unwrap_or(10.0 * power);
    let steps = (max / step * 0.999_999).ceil().max(1.0) as usize;
    (0..=steps).map(|i| i as f64 * step).collect()
}

/// Ticks with as many decimals as their step needs.
pub fn tick_labels(ticks: &[f64]) -> Vec<String> {
    let step = ticks.get(1).copied().unwrap_or(1.0);
    let decimals = (-step.log10()).ceil().max(0.0) as usize;
    ticks
        .iter()
        .map(|tick| grouped(&format!("{tick:.decimals$}")))
        .collect()
}

/// Thousands apart, with the decimals left alone.
pub fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    let digits = whole.trim_start_matches('-');
    if digits.len() < 5 {
        return number.to_owned();
    }
    let mut text = whole[..whole.len() - digits.len()].to_owned();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_begin_at_0_and_cover_the_data() {
        for (max, expected) in [
            (4.4, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            (100.0, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (0.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ] {
            let found = ticks(max, 5);
            assert_eq!(found.len(), expected.len(), "{max}: {found:?}");
            for (tick, expected) in found.iter().zip(&expected) {
                assert!((tick - expected).abs() < 1e-9, "{max}: {found:?}");
            }
        }
        for max in [0.003, 7.0, 12.34, 949.0, 1e7] {
            let found = ticks(max, 5);
            assert!(found.last().is_some_and(|last| *last >= max), "{max}");
            assert!((3..=8).contains(&found.len()), "{max}: {found:?}");
        }
    }

    #[test]
    fn tick_labels_have_the_decimals_of_their_step() {
        assert_eq!(tick_labels(&[0.0, 0.5, 1.0]), ["0.0", "0.5", "1.0"]);
        assert_eq!(tick_labels(&[0.0, 20_000.0]), ["0", "20,000"]);
        assert_eq!(tick_labels(&[0.0, 0.02]), ["0.00", "0.02"]);
    }

    #[test]
    fn thousands_stand_apart_from_five_digits_on() {
        for (number, expected) in [
            ("1234", "1234"),
            ("12345", "12,345"),
            ("-1234567.5", "-1,234,567.5"),
        ] {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn a_scale_maps_ends_to_ends() {
        let scale = Scale::new(0.0..10.0, 200.0..100.0);
        assert_eq!(
            (scale.at(0.0), scale.at(10.0), scale.at(5.0)),
            (200.0, 100.0, 150.0)
        );
    }
}
