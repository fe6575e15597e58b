//! Where waiters for slot locks sleep: a table of queues, hashed by slot.
//!
//! A waiter is whatever can be woken, so a queue holds wakers: a plain thread waits with a waker
//! that unparks it, a request with one that puts it back on its queue thread's list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::checker::{self, Class};
use crate::sync::{self, AtomicU8, Locked, Mutex, Ordering};

/// Queues of the table; a power of two. Two slots that share one only share its mutex.
#[cfg(not(any(loom, shuttle)))]
const BUCKETS: usize = 64;
/// One, so that all slots of a model meet there.
#[cfg(any(loom, shuttle))]
const BUCKETS: usize = 1;

/// The queues of all tables, to the lock checker.
static QUEUE: Class = Class::mutex("slot queue");

/// State of a waiter, written under its bucket's mutex and only by the waker's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fate {
    /// In the queue.
    Queued = 0,
    /// The first in the queue, and told to try.
    Woken = 1,
    /// Taken off the queue, and the lock was handed to it.
    Granted = 2,
    /// Taken off the queue, since the slot does not exist any more.
    Dismissed = 3,
}

/// One sleeper, shared between its task and the queue.
#[derive(Debug)]
pub(super) struct Sleeper {
    fate: AtomicU8,
    waker: Mutex<Waker>,
}

impl Sleeper {
    pub(super) fn new(waker: &Waker) -> Arc<Self> {
        let fate = AtomicU8::new(Fate::Queued as u8);
        Arc::new(Self { fate, waker: Mutex::new(waker.clone()) })
    }

    pub(super) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Queued,
            1 => Fate::Woken,
            2 => Fate::Granted,
            _ => Fate::Dismissed,
        }
    }

    /// Replaces the waker of a sleeper that is polled by another task than the one before.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut current = sync::lock(&self.waker);
        if !current.will_wake(waker) {
            current.clone_from(waker);
        }
    }

    pub(super) fn set_fate(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        let waker = sync::lock(&self.waker).clone();
        waker.wake();
    }
}

/// A place in a queue.
pub(super) struct Entry {
    slot: u64,
    /// Newcomers that had the lock since this waiter was first woken.
    pub(super) passed: u32,
    pub(super) sleeper: Arc<Sleeper>,
}

/// The queue of one bucket. Everything that changes which tasks wait for a slot, or that releases a
/// slot with waiters, happens under its mutex.
///
/// The waiters of one slot stand in the order in which they came. All but the first are
/// [`Fate::Queued`], and while the slot is free the first is [`Fate::Woken`].
#[derive(Default)]
pub(super) struct Bucket {
    queue: VecDeque<Entry>,
}

impl Bucket {
    /// Queues a new waiter.
    pub(super) fn push(&mut self, slot: u64, sleeper: Arc<Sleeper>) {
        self.queue.push_back(Entry { slot, passed: 0, sleeper });
    }

    /// The waiter of a slot that has waited longest.
    pub(super) fn first(&mut self, slot: u64) -> Option<&mut Entry> {
        self.queue.iter_mut().find(|entry| entry.slot == slot)
    }

    /// Whether the slot has waiters.
    pub(super) fn waits(&self, slot: u64) -> bool {
        self.queue.iter().any(|entry| entry.slot == slot)
    }

    /// A waiter that was woken found the lock taken, and waits again where it stood.
    pub(super) fn requeue(&mut self, sleeper: &Arc<Sleeper>) {
        if let Some(at) = self.position(sleeper) {
            self.queue[at].passed += 1;
            sleeper.set_fate(Fate::Queued);
        }
    }

    /// Takes a waiter off the queue, if it is there.
    pub(super) fn remove(&mut self, sleeper: &Arc<Sleeper>) {
        if let Some(at) = self.position(sleeper) {
            self.queue.remove(at);
        }
    }

    fn position(&self, sleeper: &Arc<Sleeper>) -> Option<usize> {
        self.queue.iter().position(|entry| Arc::ptr_eq(&entry.sleeper, sleeper))
    }
}

/// All the queues of one slot table.
pub(super) struct ParkingLot {
    buckets: Box<[Mutex<Bucket>]>,
}

impl ParkingLot {
    pub(super) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Mutex::new(Bucket::default())).collect() }
    }

    pub(super) fn bucket(&self, slot: u64) -> Locked<'_, Bucket> {
        // Fibonacci hashing: neighbours, which are used together, land in different buckets.
        let hash = slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        sync::lock_as(&QUEUE, &self.buckets[hash as usize % BUCKETS])
    }

    /// Takes all waiters of some slots off their queues. No task can queue for these slots any
    /// more. The waiters are returned to be woken, and find their slots anew.
    #[cfg(not(shuttle))]
    pub(super) fn dismiss(&self, of_these: impl Fn(u64) -> bool) -> Vec<Arc<Sleeper>> {
        let mut dismissed = Vec::new();
        for bucket in &self.buckets {
            let mut bucket = sync::lock_as(&QUEUE, bucket);
            bucket.queue.retain(|entry| {
                let goes = of_these(entry.slot);
                if goes {
                    entry.sleeper.set_fate(Fate::Dismissed);
                    dismissed.push(Arc::clone(&entry.sleeper));
                }
                !goes
            });
        }
        dismissed
    }

    /// What the lock checker knows the table by.
    pub(super) fn domain(&self) -> usize {
        self.buckets.as_ptr().addr()
    }
}

impl Drop for ParkingLot {
    /// No slot of the table can be held any more, unless its guard was forgotten.
    fn drop(&mut self) {
        checker::closed(self.domain());
    }
}
