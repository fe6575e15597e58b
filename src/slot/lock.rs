//! The sleepable slot lock.
//!
//! 1. Exclusive: one owner at a time, readers included.
//! 2. `poll_lock` may sleep; the sleeper is a task (or a thread parked as one).
//! 3. The owner may sleep while it holds the lock, and may be another thread when it lets go.
//! 4. A caller that may not sleep uses `try_lock`, and must check its result.
//! 5. Two slots are taken in ascending order of their index; all other locks come after a slot's.
//!
//! The lock is one bit of the slot word, so taking and releasing it uncontended is one atomic
//! instruction each, and releasing publishes the new content in the same instruction (so
//! a process killed anywhere leaves a table that is true).
//!
//! # Waiting
//! A waiter queues itself and sets the WAITERS bit under its bucket's mutex, having seen LOCKED
//! under that mutex. The owner releases with a compare-exchange that expects WAITERS clear; where
//! it is set the release happens under the mutex as well. So a waiter is either seen by the
//! release, or sees it: no wake-up is lost.
//!
//! # Fairness
//! Waiters are served in the order in which they queued: only the first one is ever woken, and it
//! stays in the queue until it has the lock. A newcomer may take a free lock before the woken
//! waiter gets to it (barging keeps the lock busy while the waiter's thread is being scheduled).
//! A waiter that was passed by [`MAX_PASSED`] of them is handed the lock instead: the bit is never
//! cleared, so no newcomer can come between. `docs/locking.md` has the reasons why all this holds.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::parking::{Fate, ParkingLot, Sleeper};
use super::word::{LOCKED, WAITERS, Word};
use crate::checker::{self, Class, Lock, Stopwatch};
use crate::sync::{AtomicU64, Ordering};

/// Newcomers that may pass a woken waiter before the lock is handed to it.
#[cfg(not(loom))]
pub(super) const MAX_PASSED: u32 = 3;
/// Few, so that the model gets to the hand-over.
#[cfg(loom)]
pub(super) const MAX_PASSED: u32 = 1;

/// The slots of all disks, to the lock checker.
static SLOT: Class = Class::sleepable("slot");

/// A slot's word and where its waiters sleep.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) word: &'a AtomicU64,
    pub(super) lot: &'a ParkingLot,
    pub(super) index: u64,
}

/// The held lock of one slot: its owner may read the slot's object and decides its next content.
///
/// `Send`: a completion on another thread may release it. Dropping it releases the slot with its
/// content unchanged; a page that a request had is not idle any more.
#[must_use = "dropping the guard releases the slot unchanged"]
pub struct SlotGuard<'a> {
    slot: Slot<'a>,
    /// Content and flags at the time of locking. No other thread can change them.
    data: Word,
    /// A request has it, and not upkeep: the page is not idle any more.
    is_access: bool,
}

/// A place in the queue for one slot's lock; dropping it leaves the queue.
pub struct Waiter<'a> {
    slot: Slot<'a>,
    /// None once the turn was used.
    sleeper: Option<Arc<Sleeper>>,
    since: Stopwatch,
}

impl<'a> Slot<'a> {
    /// What the lock checker knows the lock by.
    fn checked(self) -> Lock {
        Lock::new(&SLOT, self.lot.domain(), self.word, self.index)
    }

    /// Takes the lock if it is free, which is no access to the page: its idle mark stays.
    pub(super) fn try_lock(self) -> Option<SlotGuard<'a>> {
        let seen = self.word.load(Ordering::Relaxed);
        if seen & LOCKED != 0 {
            return None;
        }
        let mut guard = self.take(seen, Stopwatch::start())?;
        guard.is_access = false;
        Some(guard)
    }

    /// Takes the lock unless it is held; `seen` is what the word was, with LOCKED clear.
    fn take(self, mut seen: u64, since: Stopwatch) -> Option<SlotGuard<'a>> {
        while seen & LOCKED == 0 {
            match self.word.compare_exchange_weak(
                seen,
                seen | LOCKED,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(self.guard(seen, since)),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// The guard of the lock, which the caller just took, or was handed.
    fn guard(self, word: u64, since: Stopwatch) -> SlotGuard<'a> {
        checker::taken(self.checked(), since);
        SlotGuard { slot: self, data: Word(word).data(), is_access: true }
    }

    /// Takes the lock or queues up for it.
    ///
    /// `waiter` is the caller's place in the queue: `None` before the first call and again once
    /// the lock is held. The waker of `cx` fires when it is worth calling again.
    pub(super) fn poll_lock(
        self,
        waiter: &mut Option<Waiter<'a>>,
        cx: &Context<'_>,
    ) -> Poll<SlotGuard<'a>> {
        checker::wants(self.checked());
        // A place in another slot's queue would end in another slot's guard.
        if waiter.as_ref().is_some_and(|place| place.slot.index != self.index) {
            *waiter = None;
        }
        // The slot was gone meanwhile, and this is one that was made since.
        if waiter.as_ref().is_some_and(Waiter::is_dismissed) {
            *waiter = None;
        }
        if let Some(place) = waiter.as_mut() {
            let Some(guard) = place.poll(cx) else { return Poll::Pending };
            *waiter = None;
            return Poll::Ready(guard);
        }
        let since = Stopwatch::start();
        let seen = self.word.load(Ordering::Relaxed);
        if let Some(guard) = self.take(seen, since) {
            return Poll::Ready(guard);
        }
        let mut bucket = self.lot.bucket(self.index);
        if let Some(guard) = self.take_or_announce(since) {
            return Poll::Ready(guard);
        }
        let sleeper = Sleeper::new(cx.waker());
        bucket.push(self.index, Arc::clone(&sleeper));
        *waiter = Some(Waiter { slot: self, sleeper: Some(sleeper), since });
        Poll::Pending
    }

    /// Takes the lock, or makes sure that its owner checks the queue when it releases. The
    /// caller has the bucket's mutex.
    fn take_or_announce(self, since: Stopwatch) -> Option<SlotGuard<'a>> {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            if seen & LOCKED == 0 {
                let guard = self.take(seen, since);
                if guard.is_some() {
                    return guard;
                }
                seen = self.word.load(Ordering::Relaxed);
                continue;
            }
            match self.word.compare_exchange_weak(
                seen,
                seen | WAITERS,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return None,
                Err(now) => seen = now,
            }
        }
    }

    /// Clears the WAITERS bit of a free slot, which was `seen`, since it has no waiters any more.
    /// The caller has the bucket's mutex. A newcomer that is faster clears it at its release.
    fn withdraw(self, seen: u64) {
        let _ =
            self.word.compare_exchange(seen, seen & !WAITERS, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the slot holds anything.
    #[cfg(not(shuttle))]
    pub(super) fn has_content(self) -> bool {
        Word(self.word.load(Ordering::Relaxed)).data() != Word::EMPTY
    }

    /// Takes the lock, if the slot is empty and free and has no waiters, to take the slot away
    /// with the page it lies in. Without a guard: a thread that needs the page may put the slot back.
    #[cfg(not(shuttle))]
    pub(super) fn take_away(self) -> bool {
        let taken = self.word.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }

    /// Releases a slot that was to be taken away.
    #[cfg(not(shuttle))]
    pub(super) fn put_back(self) {
        self.release(Word::EMPTY, Word::EMPTY);
    }

    /// Publishes `data` and lets go of the lock.
    fn unlock(self, held: Word, data: Word) {
        checker::released(self.checked());
        self.release(held, data);
    }

    fn release(self, held: Word, data: Word) {
        let expected = held.0 | LOCKED;
        let free = data.data().0;
        // Release: the object's bytes are visible to a thread that sees the word that names it.
        if self.word.compare_exchange(expected, free, Ordering::Release, Ordering::Relaxed).is_err()
        {
            self.unlock_to_waiter(free);
        }
    }

    /// Releases a lock whose WAITERS bit is set: wakes the first waiter, or hands the lock over.
    #[cold]
    fn unlock_to_waiter(self, free: u64) {
        let mut bucket = self.lot.bucket(self.index);
        let Some(first) = bucket.first(self.index) else {
            // All waiters left the queue.
            self.word.store(free, Ordering::Release);
            return;
        };
        // Woken and still there: it was our owner that came before it.
        let was_woken = first.sleeper.fate() == Fate::Woken;
        first.passed += u32::from(was_woken);
        let passed = first.passed;
        let sleeper = Arc::clone(&first.sleeper);
        if passed >= MAX_PASSED {
            bucket.remove(&sleeper);
            let waiters = if bucket.waits(self.index) { WAITERS } else { 0 };
            self.word.store(free | waiters | LOCKED, Ordering::Release);
            sleeper.set_fate(Fate::Granted);
        } else {
            self.word.store(free | WAITERS, Ordering::Release);
            sleeper.set_fate(Fate::Woken);
        }
        drop(bucket);
        // One that was woken before has yet to be polled, and will see what it got.
        if !was_woken {
            sleeper.wake();
        }
    }
}

impl SlotGuard<'_> {
    /// Content and flags of the slot, as they were when it was locked.
    pub fn word(&self) -> Word {
        self.data
    }

    /// Number of the slot.
    #[cfg(not(shuttle))]
    pub fn index(&self) -> u64 {
        self.slot.index
    }

    /// Whether the slot is one of the table whose waiters sleep in `lot`.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn is_of(&self, lot: &ParkingLot) -> bool {
        std::ptr::eq(self.slot.lot, lot)
    }

    /// Publishes a new word and releases the slot, in one atomic step. The lock bits of `word`
    /// are ignored.
    pub(super) fn release(self, word: Word) {
        let this = std::mem::ManuallyDrop::new(self);
        this.slot.unlock(this.data, word);
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let kept = self.data.with_idle(self.data.is_idle() && !self.is_access);
        self.slot.unlock(self.data, kept);
    }
}

impl<'a> Waiter<'a> {
    /// Whether its slot does not exist any more.
    fn is_dismissed(&self) -> bool {
        self.sleeper.as_ref().is_some_and(|sleeper| sleeper.fate() == Fate::Dismissed)
    }

    /// Takes the lock if it is this waiter's turn and no other was faster; else the task of `cx`
    /// will be woken.
    fn poll(&mut self, cx: &Context<'_>) -> Option<SlotGuard<'a>> {
        let sleeper = self.sleeper.as_ref()?;
        if sleeper.fate() == Fate::Queued {
            sleeper.set_waker(cx.waker());
            // Again: if the fate changed between check and change, the old waker was the one that fired.
            if sleeper.fate() == Fate::Queued {
                return None;
            }
        }
        let mut bucket = self.slot.lot.bucket(self.slot.index);
        debug_assert!(sleeper.fate() != Fate::Dismissed, "its slot exists");
        let guard = if sleeper.fate() == Fate::Granted {
            let word = self.slot.word.load(Ordering::Acquire);
            debug_assert!(word & LOCKED != 0, "a granted lock is held");
            Some(self.slot.guard(word, self.since))
        } else {
            self.slot.take_or_announce(self.since)
        };
        if guard.is_some() {
            bucket.remove(sleeper);
            self.sleeper = None;
        } else {
            sleeper.set_waker(cx.waker());
            bucket.requeue(sleeper);
        }
        guard
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Some(sleeper) = self.sleeper.take() else { return };
        let mut bucket = self.slot.lot.bucket(self.slot.index);
        match sleeper.fate() {
            Fate::Queued => bucket.remove(&sleeper),
            Fate::Dismissed => {}
            Fate::Granted => {
                drop(bucket);
                let word = self.slot.word.load(Ordering::Acquire);
                drop(self.slot.guard(word, self.since));
            }
            Fate::Woken => {
                bucket.remove(&sleeper);
                // The wake must not be lost. The owner, if there is one now, checks the queue at
                // its release; else this waiter has to, as no other thread would.
                let seen = self.slot.word.load(Ordering::Relaxed);
                if seen & LOCKED != 0 {
                    return;
                }
                let Some(next) = bucket.first(self.slot.index) else {
                    self.slot.withdraw(seen);
                    return;
                };
                let next = Arc::clone(&next.sleeper);
                next.set_fate(Fate::Woken);
                drop(bucket);
                next.wake();
            }
        }
    }
}
