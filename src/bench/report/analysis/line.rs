//! A straight line through points, by least squares.

/// y = intercept + slope x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LineFit {
    pub slope: f64,
    pub intercept: f64,
    /// The part of the variance of y that the line explains, in [0, 1].
    pub r_squared: f64,
}

impl LineFit {
    /// `None` of fewer than three points, or where x or y does not vary.
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        if points.len() < 3 {
            return None;
        }
        let count = points.len() as f64;
        let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let sum = |term: fn(f64, f64) -> f64| -> f64 {
            points
                .iter()
                .map(|(x, y)| term(x - mean_x, y - mean_y))
                .sum()
        };
        let (xx, yy, xy) = (sum(|x, _| x * x), sum(|_, y| y * y), sum(|x, y| x * y));
        (xx > 0.0 && yy > 0.0).then(|| Self {
            slope: xy / xx,
            intercept: mean_y - xy / xx * mean_x,
            r_squared: xy * xy / (xx * yy),
        })
    }

    pub fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_a_line_give_that_line() {
        let fit = LineFit::of(&[(10.0, 105.0), (20.0, 205.0), (50.0, 505.0)]).expect("a line");
        assert!((fit.slope - 10.0).abs() < 1e-9 && (fit.intercept - 5.0).abs() < 1e-9);
        assert!((fit.r_squared - 1.0).abs() < 1e-9);
        assert!((fit.at(100.0) - 1005.0).abs() < 1e-9);
    }

    #[test]
    fn points_beside_a_line_are_explained_in_part() {
        // Sums of squares, by hand: 5 of x, 4.75 of y, 1.5 of both.
        let fit = LineFit::of(&[(0.0, 1.0), (1.0, 0.0), (2.0, 3.0), (3.0, 1.0)]).expect("a line");
        assert!((fit.slope - 0.3).abs() < 1e-9, "{fit:?}");
        assert!((fit.r_squared - 0.45 / 4.75).abs() < 1e-9, "{fit:?}");
    }

    #[test]
    fn too_few_points_and_points_that_do_not_vary_give_none() {
        assert_eq!(LineFit::of(&[(1.0, 1.0), (2.0, 2.0)]), None);
        assert_eq!(LineFit::of(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(LineFit::of(&[(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]), None);
    }
}
