//! What the engine counts.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::{Figure, Kind, Unit, report};

/// Buckets of the service times: up to 4, 8, 16 ... us, and the rest.
const BUCKETS: usize = 16;
/// Upper end of the first bucket, in microseconds.
const FIRST_US: u64 = 4;

report! {
    /// What an engine did since the start.
    pub struct EngineReport from source: &Source<'_>;
    /// Counters of one engine. Jobs are few beside what they cost, so all threads share them.
    pub(super) struct Counters of AtomicU64 { }
    prefix "engine_";
    /// Jobs that were submitted.
    jobs: Counter Jobs "engine_submitted" counted(pub(super));
    /// Submissions, of one or more jobs each.
    batches: Counter Submissions "engine" counted(pub(super));
    /// Jobs that came back with a result.
    completed: Counter Jobs "engine_completed" counted(pub(super));
    /// Submissions that were not taken, by a model's decision. One job of each is done inline then,
    /// and the rest submitted again.
    refusals: Counter Submissions "engine_refused" counted(pub(super));
    /// Jobs whose work the request did itself: refused, failed, or more than fit.
    fallbacks: Counter Jobs "engine_fallback" counted(pub(super));
    /// Jobs that failed in the engine.
    failures: Counter Jobs "engine_failed" counted(pub(super));
    /// Outputs that did not have their checksum.
    corruptions: Counter Jobs "engine_corrupt" counted(pub(super));
    /// Jobs that did not come back in time.
    timeouts: Counter Jobs "engine_timed_out" counted(pub(super));
    /// Workers that ended and were replaced.
    deaths: Counter Workers "engine_replaced" counted(pub(super));
    /// Jobs in the queue now.
    depth: Gauge Jobs "engine_queued" = source.depth as u64;
    /// Most jobs there ever were in the queue.
    depth_max: Gauge Jobs "engine_queued_max" = source.deepest as u64;
}

/// What a report is made from.
struct Source<'s> {
    counters: &'s Counters,
    depth: usize,
    deepest: usize,
}

impl EngineReport {
    pub(super) fn new(counters: &Counters, (depth, deepest): (usize, usize)) -> Self {
        Self::collect(&Source { counters, depth, deepest })
    }
}

impl Source<'_> {
    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        counter(self.counters).load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Counts anew from here.
    pub(super) fn restart(&self) {
        self.growing().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Jobs by time from their start to their end, since the start of the engine.
#[derive(Debug, Default)]
pub(super) struct ServiceTimes([AtomicU64; BUCKETS]);

impl ServiceTimes {
    pub(super) fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = us.div_ceil(FIRST_US).next_power_of_two().ilog2() as usize;
        add(&self.0[bucket.min(BUCKETS - 1)], 1);
    }

    /// Counts anew from here.
    pub(super) fn restart(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    pub(super) fn histogram(&self) -> Histogram {
        Histogram(self.0.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// Jobs by the time that they took. Prints as `upper-end-in-us:jobs/...`, those buckets that are not
/// empty; the last one has no end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram([u64; BUCKETS]);

impl Histogram {
    /// What it is as a figure.
    pub const FIGURE: Figure = Figure {
        name: "engine_service_us",
        kind: Kind::Histogram,
        unit: Unit::Microseconds,
        stem: "engine_service",
        help: "Jobs by time from their start to their end: up to 4 us, 8 us, 16 us, ... and the rest.",
    };
}

impl Histogram {
    /// The buckets, lowest first: the upper end in microseconds, which the last one does not have, and the
    /// jobs in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let end = |bucket: usize| (bucket < BUCKETS - 1).then_some(FIRST_US << bucket);
        self.0.into_iter().enumerate().map(move |(bucket, count)| (end(bucket), count))
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slash = "";
        for (bucket, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            match bucket {
                last if last == BUCKETS - 1 => write!(f, "{slash}inf:{count}")?,
                bucket => write!(f, "{slash}{}:{count}", FIRST_US << bucket)?,
            }
            slash = "/";
        }
        if slash.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_times_fall_into_their_buckets() {
        let times = ServiceTimes::default();
        assert_eq!(times.histogram().to_string(), "-");
        for us in [0, 4, 5, 8, 9, 1_000_000_000] {
            times.add(Duration::from_micros(us));
        }
        assert_eq!(times.histogram().to_string(), "4:2/8:2/16:1/inf:1");
    }
}
