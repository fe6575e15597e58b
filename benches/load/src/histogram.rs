//! Latency histogram: logarithmic, 64 steps per power of two, so that no value is off by more than 1.6 %.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
const BUCKETS: usize = (u64::BITS - SUB_BITS + 1) as usize * SUB;

/// Counts of durations, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn record(&mut self, value: Duration) {
        let nanos = value.as_nanos() as u64;
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The longest duration in microseconds.
    pub fn max_us(&self) -> f64 {
        self.max as f64 / 1e3
    }

    /// The duration in microseconds that a `fraction` (0 to 1) of all do not exceed.
    pub fn quantile_us(&self, fraction: f64) -> f64 {
        let rank = (self.total as f64 * fraction).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return (middle(index) as f64).min(self.max as f64) / 1e3;
            }
        }
        0.0
    }
}

fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    // Below 2 * SUB every value has a bucket of its own; above, the top SUB_BITS + 1 bits name it.
    (shift as usize * SUB) + (value >> shift) as usize
}

fn middle(index: usize) -> u64 {
    let shift = (index / SUB).saturating_sub(1) as u32;
    let low = ((index - shift as usize * SUB) as u64) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_the_promised_error() {
        let mut value = 1_u64;
        while value < u64::MAX / 6 {
            let back = middle(bucket(value));
            assert!(back.abs_diff(value) as f64 <= value as f64 * 0.016, "{value} {back}");
            value = value * 5 / 4 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_are_in_order() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert!((histogram.quantile_us(0.5) - 500.0).abs() < 8.0);
        assert!((histogram.quantile_us(0.99) - 990.0).abs() < 16.0);
        assert!((histogram.max_us() - 1000.0).abs() < 0.1);
        assert_eq!(histogram.total, 1000);
    }
}
