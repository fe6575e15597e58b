//! The sleepable slot lock.
//!
//! 1. Exclusive: one owner at a time, readers included.
//! 2. `poll_lock` may sleep; the sleeper is a task (or a thread parked as one).
//! 3. The owner may sleep while it holds the lock, and may be another thread when it lets go.
//! 4. Who may not sleep uses `try_lock`, whose result must be looked at.
//! 5. Two slots are taken in ascending order of their index; all other locks come after a slot's.
//!
//! The lock is one bit of the slot word, so taking and releasing it uncontended is one atomic
//! instruction each, and releasing publishes the new content in the same instruction (invariant
//! J5: a process killed anywhere leaves a table that is true).
//!
//! # Waiting
//! A waiter queues itself and sets the WAITERS bit under its bucket's mutex, having seen LOCKED
//! under that mutex. The owner releases with a compare-exchange that expects WAITERS clear; where
//! it is set the release happens under the mutex as well. So a waiter is either seen by the
//! release, or sees it: no wake-up is lost.
//!
//! # Fairness
//! A newcomer may take a free lock before a woken waiter gets to it (barging keeps the lock busy
//! while the waiter's thread is being scheduled). A waiter that lost [`MAX_LOST_RACES`] times is
//! handed the lock instead: the bit is never cleared, so nobody can come between.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::parking::{Fate, ParkingLot, Sleeper};
use super::word::{LOCKED, WAITERS, Word};
use crate::checker::{self, Class, Lock, Stopwatch};
use crate::sync::{AtomicU64, Ordering};

/// Races a woken waiter may lose before the lock is handed to it.
#[cfg(not(loom))]
const MAX_LOST_RACES: u32 = 3;
/// Few, so that the model gets to the hand-over.
#[cfg(loom)]
const MAX_LOST_RACES: u32 = 1;

/// The slots of all disks, to the lock checker.
static SLOT: Class = Class::sleepable("slot");

/// A slot's word and where its waiters sleep.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) word: &'a AtomicU64,
    pub(super) lot: &'a ParkingLot,
    pub(super) index: u64,
}

/// The held lock of one slot: who has it may read the slot's object and decides its next content.
///
/// `Send`: a completion on another thread may release it. Dropping it releases the slot with its
/// content unchanged.
#[must_use = "dropping the ticket releases the slot unchanged"]
pub struct Ticket<'a> {
    slot: Slot<'a>,
    /// Content and flags at the time of locking. Nobody else can change them.
    data: Word,
}

/// A place in the queue for one slot's lock; dropping it leaves the queue.
pub struct Waiter<'a> {
    slot: Slot<'a>,
    /// None once the turn was used.
    sleeper: Option<Arc<Sleeper>>,
    lost: u32,
    since: Stopwatch,
}

impl<'a> Slot<'a> {
    /// What the lock checker knows the lock by.
    fn checked(self) -> Lock {
        Lock::new(&SLOT, self.lot.domain(), self.word, self.index)
    }

    /// Takes the lock if it is free.
    pub(super) fn try_lock(self) -> Option<Ticket<'a>> {
        let seen = self.word.load(Ordering::Relaxed);
        if seen & LOCKED != 0 {
            return None;
        }
        self.take(seen, Stopwatch::start())
    }

    /// Takes the lock unless somebody has it; `seen` is what the word was, with LOCKED clear.
    fn take(self, mut seen: u64, since: Stopwatch) -> Option<Ticket<'a>> {
        while seen & LOCKED == 0 {
            match self.word.compare_exchange_weak(
                seen,
                seen | LOCKED,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(self.ticket(seen, since)),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// The ticket of the lock, which the caller just took, or was handed.
    fn ticket(self, word: u64, since: Stopwatch) -> Ticket<'a> {
        checker::taken(self.checked(), since);
        Ticket { slot: self, data: Word(word).data() }
    }

    /// Takes the lock or queues up for it.
    ///
    /// `waiter` is the caller's place in the queue: `None` before the first call and again once
    /// the lock is held. The waker of `cx` fires when it is worth calling again.
    pub(super) fn poll_lock(
        self,
        waiter: &mut Option<Waiter<'a>>,
        cx: &Context<'_>,
    ) -> Poll<Ticket<'a>> {
        checker::wants(self.checked());
        let mut lost = 0;
        let mut since = Stopwatch::start();
        if let Some(place) = waiter.as_mut() {
            match place.look(cx) {
                Fate::Queued => return Poll::Pending,
                Fate::Granted => {
                    since = place.since;
                    place.use_up();
                    *waiter = None;
                    let word = self.word.load(Ordering::Acquire);
                    debug_assert!(word & LOCKED != 0, "a granted lock is held");
                    return Poll::Ready(self.ticket(word, since));
                }
                Fate::Woken => {
                    (lost, since) = (place.lost + 1, place.since);
                    place.use_up();
                    *waiter = None;
                }
            }
        }
        let seen = self.word.load(Ordering::Relaxed);
        if let Some(ticket) = self.take(seen, since) {
            return Poll::Ready(ticket);
        }
        let mut bucket = self.lot.bucket(self.index);
        // Under the mutex: either the lock is free now, or its owner will see WAITERS.
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            if seen & LOCKED == 0 {
                match self.take(seen, since) {
                    Some(ticket) => return Poll::Ready(ticket),
                    None => seen = self.word.load(Ordering::Relaxed),
                }
                continue;
            }
            match self.word.compare_exchange_weak(
                seen,
                seen | WAITERS,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        let sleeper = Sleeper::new(cx.waker());
        bucket.push(self.index, lost, Arc::clone(&sleeper));
        *waiter = Some(Waiter { slot: self, sleeper: Some(sleeper), lost, since });
        Poll::Pending
    }

    /// Publishes `data` and lets go of the lock.
    fn unlock(self, held: Word, data: Word) {
        checker::released(self.checked());
        let expected = held.0 | LOCKED;
        let free = data.data().0;
        // Release: the object's bytes are visible to whoever sees the word that names it.
        if self.word.compare_exchange(expected, free, Ordering::Release, Ordering::Relaxed).is_err()
        {
            self.unlock_to_waiter(free);
        }
    }

    /// Releases a lock whose WAITERS bit is set: wakes the first waiter, or hands the lock over.
    #[cold]
    fn unlock_to_waiter(self, free: u64) {
        let mut bucket = self.lot.bucket(self.index);
        let next = bucket.pop(self.index);
        let (word, fate) = match &next {
            // All waiters left the queue.
            None => (free, Fate::Woken),
            Some((_, lost, more)) => {
                let waiters = if *more { WAITERS } else { 0 };
                if *lost >= MAX_LOST_RACES {
                    (free | waiters | LOCKED, Fate::Granted)
                } else {
                    (free | waiters, Fate::Woken)
                }
            }
        };
        self.word.store(word, Ordering::Release);
        if let Some((sleeper, ..)) = next {
            sleeper.settle(fate);
            drop(bucket);
            sleeper.wake();
        }
    }

    /// Wakes the first waiter of a slot that is free; used when a woken waiter gives up its turn.
    fn pass_turn_on(self) {
        let mut bucket = self.lot.bucket(self.index);
        if self.word.load(Ordering::Relaxed) & LOCKED != 0 {
            // The owner finds the queue when it releases: WAITERS is set whenever it is not empty.
            return;
        }
        if let Some((sleeper, ..)) = bucket.pop(self.index) {
            // WAITERS may stay set with nobody queued; the next release clears it.
            sleeper.settle(Fate::Woken);
            drop(bucket);
            sleeper.wake();
        }
    }
}

impl Ticket<'_> {
    /// Content and flags of the slot, as they were when it was locked.
    pub fn word(&self) -> Word {
        self.data
    }

    /// Says that the ticket is given to somebody else, who may be anywhere. Only the lock checker
    /// hears it: whoever took the lock no longer counts as its holder.
    pub fn detach(self) -> Self {
        checker::detached(self.slot.checked());
        self
    }

    /// Publishes a new word and releases the slot, in one atomic step. The lock bits of `word`
    /// are ignored.
    pub fn release(self, word: Word) {
        let this = std::mem::ManuallyDrop::new(self);
        this.slot.unlock(this.data, word);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.slot.unlock(self.data, self.data);
    }
}

impl Waiter<'_> {
    /// How the waiter stands; if it is still queued, `cx` is who will be woken.
    fn look(&self, cx: &Context<'_>) -> Fate {
        let Some(sleeper) = &self.sleeper else { return Fate::Woken };
        if sleeper.fate() == Fate::Queued {
            sleeper.set_waker(cx.waker());
        }
        // Again: settled between look and change, the old waker was the one that fired.
        sleeper.fate()
    }

    /// The turn was taken; nothing is left to pass on.
    fn use_up(&mut self) {
        self.sleeper = None;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Some(sleeper) = self.sleeper.take() else { return };
        if self.slot.lot.bucket(self.slot.index).remove(&sleeper) {
            return;
        }
        // Taken off the queue by somebody who counts on this waiter to carry on.
        match sleeper.fate() {
            Fate::Granted => {
                let word = self.slot.word.load(Ordering::Acquire);
                drop(self.slot.ticket(word, self.since));
            }
            Fate::Woken | Fate::Queued => self.slot.pass_turn_on(),
        }
    }
}
