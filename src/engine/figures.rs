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
pub(super) struct ServiceTimes {
    jobs: [AtomicU64; BUCKETS],
    /// All times together, in nanoseconds.
    total_ns: AtomicU64,
}

impl ServiceTimes {
    pub(super) fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = us.div_ceil(FIRST_US).next_power_of_two().ilog2() as usize;
        add(&self.jobs[bucket.min(BUCKETS - 1)], 1);
        add(&self.total_ns, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts anew from here.
    pub(super) fn restart(&self) {
        let all = self.jobs.iter().chain([&self.total_ns]);
        all.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    pub(super) fn histogram(&self) -> Histogram {
        let jobs = self.jobs.each_ref().map(|count| count.load(Ordering::Relaxed));
        Histogram { jobs, total_ns: self.total_ns.load(Ordering::Relaxed) }
    }
}

/// Jobs by the time that they took. Prints as `upper-end-in-us:jobs/...`, those buckets that are not
/// empty; the last one has no end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    jobs: [u64; BUCKETS],
    total_ns: u64,
}

impl Histogram {
    /// What it is as a figure.
    pub const FIGURE: Figure = Figure {
        name: "engine_service_us",
        kind: Kind::Histogram,
        unit: Unit::Microseconds,
        stem: "engine_service",
        label: None,
        help: "Jobs by time from their start to their end: up to 4 us, 8 us, 16 us, ... and the rest.",
    };

    /// The upper end of each bucket in microseconds, `None` of the last one, and the jobs in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let end = |bucket| (bucket < BUCKETS - 1).then(|| FIRST_US << bucket);
        self.jobs.into_iter().enumerate().map(move |(bucket, jobs)| (end(bucket), jobs))
    }

    /// What all jobs together took.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slash = "";
        for (end, count) in self.buckets().filter(|(_, count)| *count > 0) {
            match end {
                None => write!(f, "{slash}inf:{count}")?,
                Some(us) => write!(f, "{slash}{us}:{count}")?,
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
        let histogram = times.histogram();
        assert_eq!(histogram.to_string(), "4:2/8:2/16:1/inf:1");
        assert_eq!(histogram.total(), Duration::from_micros(1_000_000_026));
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(
            (buckets[0], buckets[14], buckets[15]),
            ((Some(4), 2), (Some(65536), 0), (None, 1))
        );
        assert_eq!(buckets.len(), BUCKETS);
    }
}
