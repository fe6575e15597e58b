//! How long the requests of guests took, by what they did. Counted only if something wants to know.

use std::time::Duration;

use super::{Device, Op};
use crate::stats::{Figure, Kind, Latency, LatencyCounters, Sharded, Unit};

/// What a request does, as far as its time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It discards.
    Discard,
    /// It writes zeroes.
    WriteZeroes,
    /// It makes writes stable.
    Flush,
}

impl From<Op> for Timed {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write => Self::Write,
            Op::Discard => Self::Discard,
            Op::WriteZeroes => Self::WriteZeroes,
        }
    }
}

/// The counters of one shard of threads, by [`Timed`].
#[derive(Debug, Default)]
pub(super) struct Times([LatencyCounters; 5]);

/// Requests that were begun, ended well or not, by the time from the taking of their heads to the publishing of their
/// completions. All are zero if that is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Reads.
    pub read: Latency,
    /// Writes.
    pub write: Latency,
    /// Discards.
    pub discard: Latency,
    /// Write-zeroes.
    pub write_zeroes: Latency,
    /// Flushes.
    pub flush: Latency,
}

impl Latencies {
    /// What the fields are, in their order.
    pub const FIGURES: &'static [Figure] = &[
        figure(
            "read_latency_us",
            "read",
            "Read requests by time from taking to completion; this and the next four are counted only if something asks for them.",
        ),
        figure("write_latency_us", "write", "Write requests by time from taking to completion."),
        figure(
            "discard_latency_us",
            "discard",
            "Discard requests by time from taking to completion.",
        ),
        figure(
            "write_zeroes_latency_us",
            "write_zeroes",
            "Write-zeroes requests by time from taking to completion.",
        ),
        figure("flush_latency_us", "flush", "Flush requests by time from taking to completion."),
    ];

    /// The fields, in their order.
    pub fn values(&self) -> [Latency; 5] {
        [self.read, self.write, self.discard, self.write_zeroes, self.flush]
    }
}

const fn figure(name: &'static str, operation: &'static str, help: &'static str) -> Figure {
    Figure {
        name,
        kind: Kind::Histogram,
        unit: Unit::Microseconds,
        stem: "request_latency",
        label: Some(("operation", operation)),
        help,
    }
}

impl Device {
    /// From now on [`Self::took`] counts.
    pub fn count_latencies(&self) {
        self.times.get_or_init(Sharded::default);
    }

    /// Counts `count` requests that took `time` each, if that is counted.
    pub fn took(&self, timed: Timed, time: Duration, count: u32) {
        if let Some(times) = self.times.get() {
            times.local().0[timed as usize].add(time, count);
        }
    }

    pub(super) fn restart_latencies(&self) {
        if let Some(times) = self.times.get() {
            times.each(|shard| shard.0.iter().for_each(LatencyCounters::restart));
        }
    }

    pub(super) fn latencies(&self) -> Latencies {
        let Some(times) = self.times.get() else { return Latencies::default() };
        let latency = |timed: Timed| times.latency(|shard| &shard.0[timed as usize]);
        Latencies {
            read: latency(Timed::Read),
            write: latency(Timed::Write),
            discard: latency(Timed::Discard),
            write_zeroes: latency(Timed::WriteZeroes),
            flush: latency(Timed::Flush),
        }
    }
}
