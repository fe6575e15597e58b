//! How long things took: counts by time, in buckets whose ends are powers of two.

use std::fmt;
use std::time::Duration;

use super::{Counter, Sharded};

/// Buckets: up to 1 us, 2 us, 4 us, ... 8.4 s, and the rest.
const BUCKETS: usize = 25;

/// Events by the time that they took. Prints as `upper-end-in-us:events/...`, those buckets that are not empty; the
/// last one has no end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    counts: [u64; BUCKETS],
    sum_ns: u64,
}

impl Latency {
    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that all of them took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Each bucket: the longest time that is in it, in microseconds (none for the last one), and the events that
    /// are in it and in no bucket before it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let end = |bucket: usize| (bucket < BUCKETS - 1).then(|| 1_u64 << bucket);
        self.counts.iter().enumerate().map(move |(bucket, count)| (end(bucket), *count))
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slash = "";
        for (end, count) in self.buckets().filter(|(_, count)| *count > 0) {
            match end {
                Some(end) => write!(f, "{slash}{end}:{count}")?,
                None => write!(f, "{slash}inf:{count}")?,
            }
            slash = "/";
        }
        if slash.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

/// The counters of one shard behind a [`Latency`].
#[derive(Debug, Default)]
pub struct LatencyCounters {
    counts: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl LatencyCounters {
    /// Begins anew from 0.
    pub fn restart(&self) {
        self.counts.iter().chain([&self.sum_ns]).for_each(Counter::restart);
    }

    /// Counts `count` events, each of which took `time`.
    pub fn add(&self, time: Duration, count: u32) {
        let us = u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX >> 1);
        let bucket = us.max(1).next_power_of_two().ilog2() as usize;
        self.counts[bucket.min(BUCKETS - 1)].add(count.into());
        let sum = time.as_nanos().saturating_mul(count.into());
        self.sum_ns.add(i64::try_from(sum).unwrap_or(i64::MAX));
    }
}

impl<T> Sharded<T> {
    /// What one set of such counters says, of all shards together.
    pub fn latency(&self, counters: impl Fn(&T) -> &LatencyCounters) -> Latency {
        Latency {
            counts: std::array::from_fn(|bucket| {
                self.total(|shard| &counters(shard).counts[bucket])
            }),
            sum_ns: self.total(|shard| &counters(shard).sum_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let times = Sharded::<LatencyCounters>::default();
        assert_eq!(times.latency(|all| all).to_string(), "-");
        for (ns, count) in [(0, 1), (1, 2), (1000, 3), (1001, 4), (4000, 5), (4001, 6)] {
            times.local().add(Duration::from_nanos(ns), count);
        }
        times.local().add(Duration::from_micros(1 << 23), 7);
        times.local().add(Duration::from_nanos((1000 << 23) + 1), 8);
        let found = times.latency(|all| all);
        assert_eq!(found.to_string(), "1:6/2:4/4:5/8:6/8388608:7/inf:8");
        assert_eq!(found.count(), 36);
        let sum = 2 + 3000 + 4 * 1001 + 5 * 4000 + 6 * 4001 + 15 * (1000 << 23) + 8;
        assert_eq!(found.sum(), Duration::from_nanos(sum));
        assert_eq!(found.buckets().last(), Some((None, 8)));
    }

    #[test]
    fn the_longest_time_is_no_overflow() {
        let times = Sharded::<LatencyCounters>::default();
        times.local().add(Duration::MAX, u32::MAX);
        assert_eq!(times.latency(|all| all).to_string(), format!("inf:{}", u32::MAX));
    }
}
