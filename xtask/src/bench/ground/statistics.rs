//! Medians and slopes.

/// Repeated measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(in crate::bench) struct Samples(Vec<f64>);

impl Samples {
    pub(in crate::bench) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(in crate::bench) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// NaN when nothing was measured.
    pub(in crate::bench) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// Infinite when nothing was measured.
    pub(in crate::bench) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// `median (least–most)`
    pub(in crate::bench) fn text(&self, decimals: usize) -> String {
        if self.is_empty() {
            return "—".to_owned();
        }
        let least = self.least();
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let median = self.median();
        if self.0.len() == 1 {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({least:.decimals$}–{most:.decimals$})")
    }
}

/// The slope of the line through the points by least squares.
pub(in crate::bench) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let over: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let under: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    over / under
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_counts() {
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(Samples::default().median().is_nan());
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).text(1), "2.0 (1.0–3.0)");
    }

    #[test]
    fn the_slope_of_a_line_is_found() {
        let points = [1.0, 2.0, 4.0, 8.0].map(|x| (x, 5.0 + 0.6 * x));
        assert!((slope(&points) - 0.6).abs() < 1e-9);
    }
}
