//! Service-level objectives of a request, and which requests met them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most that a good request takes, in milliseconds; what is `None` may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
}

/// What one successful request took; a figure it does not have is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Took {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    pub e2e_ms: f64,
}

impl Slo {
    /// A request without a first token of its own meets no bound on it; one of a single token has
    /// no time per further token, and meets any bound on that.
    pub fn is_met_by(&self, took: &Took) -> bool {
        let ttft = self
            .ttft_ms
            .is_none_or(|most| took.ttft_ms.is_some_and(|ms| ms <= most));
        let tpot = self
            .tpot_ms
            .is_none_or(|most| took.tpot_ms.is_none_or(|ms| ms <= most));
        ttft && tpot && self.e2e_ms.is_none_or(|most| took.e2e_ms <= most)
    }

    /// Of the bounds given on the command line.
    ///
    /// # Errors
    /// A figure is bounded twice.
    pub fn of_bounds(bounds: &[Bound]) -> Result<Option<Self>, String> {
        let mut slo = Self::default();
        for bound in bounds {
            let place = match bound.figure {
                Figure::Ttft => &mut slo.ttft_ms,
                Figure::Tpot => &mut slo.tpot_ms,
                Figure::E2e => &mut slo.e2e_ms,
            };
            if place.replace(bound.most_ms).is_some() {
                return Err(format!("--goodput bounds {} twice", bound.figure.name()));
            }
        }
        Ok((!bounds.is_empty()).then_some(slo))
    }

    fn bounds(&self) -> impl Iterator<Item = Bound> {
        let figures = [
            (Figure::Ttft, self.ttft_ms),
            (Figure::Tpot, self.tpot_ms),
            (Figure::E2e, self.e2e_ms),
        ];
        figures.into_iter().filter_map(|(figure, most_ms)| {
            let most_ms = most_ms?;
            Some(Bound { figure, most_ms })
        })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<String> = self.bounds().map(|bound| bound.to_string()).collect();
        f.write_str(&bounds.join(" "))
    }
}

/// One part of `--goodput`: `ttft:500`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    figure: Figure,
    most_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Ttft,
    Tpot,
    E2e,
}

impl Figure {
    const ALL: [Self; 3] = [Self::Ttft, Self::Tpot, Self::E2e];

    fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2e => "e2e",
        }
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text:?} is not a bound in milliseconds on ttft, tpot or e2e, such as ttft:500"
            )
        };
        let (name, most) = text.split_once(':').ok_or_else(expected)?;
        // vllm bench serve calls it e2el.
        let name = if name == "e2el" { "e2e" } else { name };
        let figure = Figure::ALL.into_iter().find(|figure| figure.name() == name);
        let most_ms: f64 = most.parse().map_err(|_| expected())?;
        if !most_ms.is_finite() || most_ms <= 0.0 {
            return Err(expected());
        }
        Ok(Self {
            figure: figure.ok_or_else(expected)?,
            most_ms,
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.figure.name(), self.most_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slo(text: &str) -> Slo {
        let bounds: Result<Vec<Bound>, String> = text.split_whitespace().map(str::parse).collect();
        let slo = Slo::of_bounds(&bounds.expect(text));
        slo.expect(text).expect("a bound")
    }

    #[test]
    fn bounds_are_read_and_written_alike() {
        for text in ["ttft:500", "ttft:500 tpot:50", "tpot:12.5 e2e:3000"] {
            assert_eq!(slo(text).to_string(), text);
        }
        assert_eq!(slo("e2el:3000"), slo("e2e:3000"));
        for text in ["ttft", "ttft:", "ttft:0", "ttft:nan", "itl:5", ""] {
            assert!(text.parse::<Bound>().is_err(), "{text:?}");
        }
        let twice = ["ttft:1", "ttft:2"].map(|text| text.parse().expect(text));
        assert!(Slo::of_bounds(&twice).is_err());
        assert_eq!(Slo::of_bounds(&[]), Ok(None));
    }

    #[test]
    fn a_request_is_good_if_it_meets_every_bound() {
        let took = Took {
            ttft_ms: Some(400.0),
            tpot_ms: Some(50.0),
            e2e_ms: 900.0,
        };
        assert!(slo("ttft:500 tpot:50 e2e:900").is_met_by(&took));
        for text in ["ttft:399", "tpot:49", "e2e:899", "ttft:500 tpot:10"] {
            assert!(!slo(text).is_met_by(&took), "{text}");
        }
        let one_token = Took {
            tpot_ms: None,
            ..took
        };
        assert!(slo("tpot:1").is_met_by(&one_token));
        let not_streamed = Took {
            ttft_ms: None,
            ..took
        };
        assert!(!slo("ttft:500").is_met_by(&not_streamed));
    }
}
