//! What all queues pass that do the same kind of work, and how they share it.
//!
//! Each request takes time: that in which the tokens that it needs come. A queue's *account* is the time that its
//! requests have taken. Of the queues that wait, the one whose account is the lowest goes first; the others may be
//! ahead of it by a [`LEAD`], so that threads need not take turns for each request. So queues that have enough
//! to do get the same share, whatever the sizes of their requests.
//!
//! A queue that had nothing to do saves nothing up: its account is raised to what the others had.
//!
//! A queue that does not come when the gate opens holds up the others only for a moment: its thread has other
//! work to do, or died.

use std::task::Waker;

use super::Rate;
use super::bucket::Bucket;

/// Time of requests by which a queue may be ahead of one that waits, in nanoseconds.
pub(super) const LEAD: u128 = 10_000_000;
/// How long others wait for a queue that may continue and does not come, in nanoseconds.
pub(super) const PATIENCE: u64 = 20_000_000;
/// The least time until a queue that waits for another one asks again, in nanoseconds.
const RETRY: u64 = 1_000_000;

/// One queue's part.
#[derive(Debug, Default)]
struct Queue {
    /// The time that its requests have taken.
    account: u128,
    waiting: Option<Waiting>,
}

/// A queue that has something to do and waits.
#[derive(Debug)]
struct Waiting {
    account: u128,
    /// The others wait for it until then.
    counts_until: u64,
    /// What wakes its thread.
    waker: Waker,
}

/// Buckets of operations and of bytes, and the queues that take from them.
#[derive(Debug, Default)]
pub(super) struct Gate {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    queues: Vec<Queue>,
    /// No account that counts is lower.
    floor: u128,
}

impl Gate {
    /// Changes the limits. All accounts are the same again. Adds to `waiting` those that wait, to be woken.
    pub(super) fn change(&mut self, rate: &Rate, now: u64, waiting: &mut Vec<Waker>) {
        let Rate { operations_per_second, bytes_per_second, burst_ms } = *rate;
        self.operations = Bucket::instead_of(self.operations, operations_per_second, burst_ms, now);
        self.bytes = Bucket::instead_of(self.bytes, bytes_per_second, burst_ms, now);
        waiting.extend(self.queues.drain(..).filter_map(|queue| Some(queue.waiting?.waker)));
        self.floor = 0;
    }

    /// Whether queue `queue` may begin a request now; when it is to ask again if not. It counts as waiting until
    /// its request is [taken](Self::take) or it [leaves](Self::leave).
    pub(super) fn ask(
        &mut self,
        queue: usize,
        now: u64,
        waker: impl FnOnce() -> Waker,
    ) -> Result<(), u64> {
        if !self.is_limited() {
            return Ok(());
        }
        let opens = self.buckets().filter_map(|bucket| {
            bucket.refill(now);
            bucket.opens_at()
        });
        let opens = opens.max();
        let account = self.account(queue);
        let Some(until) = opens.or_else(|| self.others_first(queue, account, now)) else {
            return Ok(());
        };
        let counts_until = until.saturating_add(PATIENCE);
        let waiting = &mut self.queues[queue].waiting;
        let waker = waiting.take().map_or_else(waker, |waiting| waiting.waker);
        *waiting = Some(Waiting { account, counts_until, waker });
        Err(until)
    }

    /// Queue `queue` begins a request that moves `bytes`.
    pub(super) fn take(&mut self, queue: usize, bytes: u64) {
        if !self.is_limited() {
            return;
        }
        let mut time = 0;
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
            time = bucket.time_of(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
            time = bucket.time_of(bytes).max(time);
        }
        let account = self.account(queue);
        self.floor = self.floor.max(account.saturating_sub(LEAD));
        self.queues[queue] = Queue { account: account.saturating_add(time), waiting: None };
    }

    /// Queue `queue` does not wait any more.
    pub(super) fn leave(&mut self, queue: usize) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.waiting = None;
        }
    }

    fn is_limited(&self) -> bool {
        self.operations.is_some() || self.bytes.is_some()
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.operations.iter_mut().chain(&mut self.bytes)
    }

    /// The account of a queue that has something to do.
    fn account(&mut self, queue: usize) -> u128 {
        if self.queues.len() <= queue {
            self.queues.resize_with(queue + 1, Queue::default);
        }
        self.queues[queue].account.max(self.floor)
    }

    /// Until when a queue of this account has to wait for one whose account is lower, if there is one.
    fn others_first(&self, queue: usize, account: u128, now: u64) -> Option<u64> {
        let others = self.queues.iter().enumerate().filter(|(number, _)| *number != queue);
        let waiting = others.filter_map(|(_, other)| other.waiting.as_ref());
        let first = waiting.filter(|other| other.counts_until >= now).min_by_key(|w| w.account)?;
        // What the other one takes meanwhile takes this long at least, but for what the buckets have.
        let ahead = account.checked_sub(first.account.saturating_add(LEAD)).filter(|t| *t > 0)?;
        let ahead = now.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX));
        Some(ahead.min(first.counts_until.saturating_add(1)).max(now.saturating_add(RETRY)))
    }
}
