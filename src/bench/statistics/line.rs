//! The straight line through points: ordinary least squares.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Line {
    pub slope: f64,
    pub intercept: f64,
    /// Share of the spread that the line explains; 1 where the points do not spread at all.
    pub r_squared: f64,
}

/// `None` where the points do not lie at two places at least.
pub fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        points.iter().map(|(x, y)| of(x - mean_x, y - mean_y)).sum()
    };
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    if points.is_empty() || xx == 0.0 {
        return None;
    }
    let slope = xy / xx;
    Some(Line {
        slope,
        intercept: mean_y - slope * mean_x,
        r_squared: if yy == 0.0 { 1.0 } else { xy * xy / (xx * yy) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_a_line_give_that_line() {
        let line = fit(&[(10.0, 25.0), (20.0, 45.0), (50.0, 105.0)]).expect("two places");
        assert!((line.slope - 2.0).abs() < 1e-12);
        assert!((line.intercept - 5.0).abs() < 1e-12);
        assert!((line.r_squared - 1.0).abs() < 1e-12);
    }

    #[test]
    fn spread_about_the_line_lowers_what_it_explains() {
        let line = fit(&[(0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (3.0, 3.0)]).expect("four places");
        assert!((line.slope - 0.8).abs() < 1e-12, "{line:?}");
        assert!((line.r_squared - 0.64).abs() < 1e-12, "{line:?}");
    }

    #[test]
    fn one_place_has_no_line() {
        assert_eq!(fit(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(fit(&[]), None);
    }
}
