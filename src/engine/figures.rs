//! What the engine counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of the service times: up to 4, 8, 16 ... us, and the rest.
const BUCKETS: usize = 16;
/// Upper end of the first bucket, in microseconds.
const FIRST_US: u64 = 4;

/// Counters of one engine. Jobs are few beside what they cost, so all threads share them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) jobs: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) fallbacks: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) corruptions: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) deaths: AtomicU64,
    service: [AtomicU64; BUCKETS],
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn served(&self, time: Duration) {
        add(&self.completed, 1);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = us.div_ceil(FIRST_US).next_power_of_two().ilog2() as usize;
        add(&self.service[bucket.min(BUCKETS - 1)], 1);
    }

    pub(super) fn report(&self, (depth, deepest): (usize, usize)) -> EngineReport {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineReport {
            jobs: value(&self.jobs),
            batches: value(&self.batches),
            completed: value(&self.completed),
            refusals: value(&self.refusals),
            fallbacks: value(&self.fallbacks),
            failures: value(&self.failures),
            corruptions: value(&self.corruptions),
            timeouts: value(&self.timeouts),
            deaths: value(&self.deaths),
            depth: depth as u64,
            deepest: deepest as u64,
            service: self.service.each_ref().map(value),
        }
    }
}

/// What an engine did since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineReport {
    /// Jobs that were submitted.
    pub jobs: u64,
    /// Submissions, of one or more jobs each.
    pub batches: u64,
    /// Jobs that came back with a result.
    pub completed: u64,
    /// Submissions that were not taken, by a model's decision. One job of each is done inline then,
    /// and the rest submitted again.
    pub refusals: u64,
    /// Jobs whose work the request did itself: refused, failed, or more than fit.
    pub fallbacks: u64,
    /// Jobs that failed in the engine.
    pub failures: u64,
    /// Outputs that did not have their checksum.
    pub corruptions: u64,
    /// Jobs that did not come back in time.
    pub timeouts: u64,
    /// Workers that ended and were replaced.
    pub deaths: u64,
    /// Jobs in the queue now.
    pub depth: u64,
    /// Most jobs there ever were in the queue.
    pub deepest: u64,
    /// Jobs by time from their start to their end: up to 4 us, 8 us, 16 us, ... and the rest.
    pub service: [u64; BUCKETS],
}

impl EngineReport {
    /// The histogram of service times as `upper-end-in-us:jobs`, those buckets that are not empty;
    /// the last one has no end.
    pub fn histogram(&self) -> String {
        let mut text = String::new();
        for (bucket, count) in self.service.iter().enumerate().filter(|(_, count)| **count > 0) {
            let end = match bucket {
                last if last == BUCKETS - 1 => "inf".to_owned(),
                bucket => (FIRST_US << bucket).to_string(),
            };
            let slash = if text.is_empty() { "" } else { "/" };
            text.push_str(&format!("{slash}{end}:{count}"));
        }
        if text.is_empty() { "-".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_times_fall_into_their_buckets() {
        let counters = Counters::default();
        for us in [0, 4, 5, 8, 9, 1_000_000_000] {
            counters.served(Duration::from_micros(us));
        }
        let report = counters.report((0, 0));
        assert_eq!(report.histogram(), "4:2/8:2/16:1/inf:1");
        assert_eq!(EngineReport::default().histogram(), "-");
    }
}
