//! Rate limits: how many operations and bytes a second the queues of a disk may begin.
//!
//! * `bucket`: the tokens of one limit
//! * `gate`: what queues share, and how
//!
//! Policy alone: what time it is, which requests there are, and how a thread sleeps, the caller says. A queue
//! asks before it begins a request. It is told when to ask again, and is woken before that if the limits change:
//! what asks after a change sees the new limits, and what asked before is woken.
//!
//! With no limit set a queue asks nothing; [`Throttle::version`] is one relaxed load.

mod bucket;
mod gate;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::fmt;
use std::task::Waker;
use std::time::Duration;

use self::gate::Gate;
use crate::sync::{self, AtomicU64, Mutex, Ordering};

/// What one kind of operations may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Operations a second; 0 is no limit.
    pub operations_per_second: u64,
    /// Bytes a second; 0 is no limit.
    pub bytes_per_second: u64,
    /// What may be saved up for a burst, as milliseconds of the limits, at least 1.
    pub burst_ms: u32,
}

impl Rate {
    /// The burst if nothing else is said: a tenth of a second, as QEMU has it for its disks.
    pub const DEFAULT_BURST_MS: u32 = 100;

    /// Whether there is a limit.
    fn is_limited(&self) -> bool {
        self.operations_per_second > 0 || self.bytes_per_second > 0
    }
}

impl Default for Rate {
    /// No limit.
    fn default() -> Self {
        Self { operations_per_second: 0, bytes_per_second: 0, burst_ms: Self::DEFAULT_BURST_MS }
    }
}

/// The rate limits of a disk: of all its queues together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of reads.
    pub read: Rate,
    /// Of what changes the disk: writes, discards, write-zeroes. The last two have no bytes.
    pub write: Rate,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.operations_per_second, self.bytes_per_second) {
            (0, 0) => write!(f, "unlimited"),
            (operations, 0) => write!(f, "{operations}/s"),
            (0, bytes) => write!(f, "{bytes} B/s"),
            (operations, bytes) => write!(f, "{operations}/s {bytes} B/s"),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {}, write {}", self.read, self.write)
    }
}

/// What a request takes of the limits: one operation, and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// A read of so many bytes.
    Read(u64),
    /// A change that takes so many bytes of data with it.
    Write(u64),
}

/// That a queue has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    /// When it is to ask again.
    pub(crate) until: Duration,
    /// [`Throttle::version`] at the time.
    pub(crate) version: u64,
}

/// The limits, and what the queues of a disk have used of them. Times are those of one clock.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Number of the last change, or 0 if there is no limit. Written with the lock held.
    version: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rates: Rates,
    changes: u64,
    read: Gate,
    write: Gate,
}

impl State {
    /// The gate of this kind of requests, with its bytes, and the other gate.
    fn gates(&mut self, demand: Demand) -> (&mut Gate, u64, &mut Gate) {
        match demand {
            Demand::Read(bytes) => (&mut self.read, bytes, &mut self.write),
            Demand::Write(bytes) => (&mut self.write, bytes, &mut self.read),
        }
    }
}

impl Throttle {
    /// 0 if there is no limit, else a number that changes with the limits. A thread that was woken because
    /// they changed sees the new one; another one may see it late.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// The limits.
    pub(crate) fn rates(&self) -> Rates {
        sync::lock(&self.state).rates
    }

    /// Changes the limits, and wakes the queues that wait. A new limit begins with a whole burst. One that is
    /// changed keeps what it has or is owed, but what is owed is never owed for longer than before.
    pub(crate) fn set(&self, rates: &Rates, now: Duration) {
        let mut waiting = Vec::new();
        let mut state = sync::lock(&self.state);
        if state.rates == *rates {
            return;
        }
        state.rates = *rates;
        state.changes += 1;
        state.read.change(&rates.read, nanos(now), &mut waiting);
        state.write.change(&rates.write, nanos(now), &mut waiting);
        let limited = rates.read.is_limited() || rates.write.is_limited();
        self.version.store(if limited { state.changes } else { 0 }, Ordering::Relaxed);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Takes what a request of queue `queue` needs, which begins now. It may be more than is there: what comes
    /// next waits for that.
    ///
    /// # Errors
    /// The queue has to wait; `waker` wakes it if the limits change before.
    pub(crate) fn take(
        &self,
        queue: usize,
        demand: Demand,
        now: Duration,
        waker: impl FnOnce() -> Waker,
    ) -> Result<(), Wait> {
        self.pass(queue, demand, now, waker, true)
    }

    /// Whether [`Self::take`] would succeed. Takes nothing.
    ///
    /// # Errors
    /// As those of `take`.
    pub(crate) fn ask(
        &self,
        queue: usize,
        demand: Demand,
        now: Duration,
        waker: impl FnOnce() -> Waker,
    ) -> Result<(), Wait> {
        self.pass(queue, demand, now, waker, false)
    }

    /// Queue `queue` does not wait any more: the others need not wait for it.
    pub(crate) fn leave(&self, queue: usize) {
        let mut state = sync::lock(&self.state);
        state.read.leave(queue);
        state.write.leave(queue);
    }

    fn pass(
        &self,
        queue: usize,
        demand: Demand,
        now: Duration,
        waker: impl FnOnce() -> Waker,
        take: bool,
    ) -> Result<(), Wait> {
        let mut state = sync::lock(&self.state);
        let version = state.changes;
        let (gate, bytes, other) = state.gates(demand);
        // A queue waits with one request, the first of its ring, which may be another one than before.
        other.leave(queue);
        match gate.ask(queue, nanos(now), waker) {
            Ok(()) if take => gate.take(queue, bytes),
            Ok(()) => {}
            Err(until) => return Err(Wait { until: Duration::from_nanos(until), version }),
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
