//! Percentiles, and ratios of what was measured side by side.

/// The value that `percent` of the samples do not exceed.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Each sample by the one that was taken beside it.
pub fn ratios(samples: &[f64], beside: &[f64]) -> Vec<f64> {
    samples.iter().zip(beside).map(|(sample, beside)| sample / beside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([50.0, 90.0, 99.0, 100.0].map(|p| percentile(&samples, p)), [100.0, 180.0, 198.0, 200.0]);
        assert_eq!(percentile(&[7.0], 50.0), 7.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn ratios_are_of_neighbours() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    }
}
