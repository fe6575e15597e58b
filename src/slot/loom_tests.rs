//! The slot lock, model-checked: each test explores all interleavings of two or three threads.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --lib --release slot::loom_tests`.

use std::sync::Arc;
use std::task::Poll;

use loom::cell::UnsafeCell;
use loom::thread;

use super::claims::Claims;
use super::lock::{Slot, SlotGuard, Waiter};
use super::parking::ParkingLot;
use super::unverified::Unverified;
use super::word::{Content, LOCKED, WAITERS, Word};
use crate::sync::{self, AtomicU64, Ordering};

/// A slot and something that its lock protects; loom reports any two accesses that race.
struct Shared {
    word: AtomicU64,
    lot: ParkingLot,
    value: UnsafeCell<u32>,
}

impl Shared {
    fn new() -> Arc<Self> {
        let lot = ParkingLot::new();
        Arc::new(Self { word: AtomicU64::new(0), lot, value: UnsafeCell::new(0) })
    }

    fn slot(&self) -> Slot<'_> {
        Slot { word: &self.word, lot: &self.lot, index: 0 }
    }

    fn lock(&self) -> SlotGuard<'_> {
        let mut place = None;
        sync::block_on(|cx| self.slot().poll_lock(&mut place, cx))
    }

    /// To be called with the lock held.
    #[allow(unsafe_code)]
    fn add_one(&self) {
        // SAFETY: loom checks that no two threads are here at once; that is what is tested.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    /// To be called when all threads are done: the lock is free and no task is queued.
    #[allow(unsafe_code)]
    fn finish(&self) -> u32 {
        let word = self.word.load(Ordering::Relaxed);
        assert_eq!(word & (LOCKED | WAITERS), 0, "a lock bit is left at the end");
        let guard = self.slot().try_lock().expect("the lock is free at the end");
        drop(guard);
        assert!(!self.lot.bucket(0).waits(0), "no task waits at the end");
        // SAFETY: as above.
        self.value.with(|value| unsafe { *value })
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Enough to find every bug of this kind that is known, and to end.
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn two_threads_exclude_each_other_and_both_wake_up() {
    model(|| {
        let shared = Shared::new();
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let guard = other.lock();
            other.add_one();
            drop(guard);
        });
        let guard = shared.lock();
        shared.add_one();
        drop(guard);
        thread.join().unwrap();
        assert_eq!(shared.finish(), 2);
    });
}

#[test]
fn three_threads_are_all_served() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let shared = Shared::new();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let other = Arc::clone(&shared);
                thread::spawn(move || {
                    let guard = other.lock();
                    other.add_one();
                    drop(guard);
                })
            })
            .collect();
        let guard = shared.lock();
        shared.add_one();
        drop(guard);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.finish(), 3);
    });
}

#[test]
fn what_is_published_by_release_is_seen_by_the_next_owner() {
    model(|| {
        let shared = Shared::new();
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let guard = other.lock();
            other.add_one();
            guard.release(Word::new(Content::Same(1)));
        });
        let guard = shared.lock();
        if guard.word().content() == Content::Same(1) {
            // The word was published after the bytes that belong to it.
            shared.add_one();
        }
        drop(guard);
        thread.join().unwrap();
        shared.finish();
        assert_eq!(Word(shared.word.load(Ordering::Relaxed)).content(), Content::Same(1));
    });
}

#[test]
fn a_guard_released_by_another_thread_wakes_the_waiter() {
    model(|| {
        let shared = Shared::new();
        // The guard borrows the slot, so the thread that gets it keeps the slot alive.
        let owner: &'static Shared = Box::leak(Box::new(Shared {
            word: AtomicU64::new(0),
            lot: ParkingLot::new(),
            value: UnsafeCell::new(0),
        }));
        let guard = owner.slot().try_lock().unwrap();
        let thread = thread::spawn(move || {
            owner.add_one();
            drop(guard);
        });
        let guard = owner.lock();
        owner.add_one();
        drop(guard);
        thread.join().unwrap();
        assert_eq!(owner.finish(), 2);
        drop(shared);
    });
}

#[test]
fn a_waiter_that_leaves_takes_no_turn_of_others_with_it() {
    model(|| {
        let shared = Shared::new();
        let held = shared.slot().try_lock().unwrap();
        // Leaves at any moment: queued, woken, or not even queued.
        let quitter = {
            let other = Arc::clone(&shared);
            thread::spawn(move || {
                let mut place: Option<Waiter<'_>> = None;
                let waker = std::task::Waker::noop();
                let cx = std::task::Context::from_waker(waker);
                if let Poll::Ready(guard) = other.slot().poll_lock(&mut place, &cx) {
                    drop(guard);
                }
            })
        };
        let waiter = {
            let other = Arc::clone(&shared);
            thread::spawn(move || {
                let guard = other.lock();
                other.add_one();
                drop(guard);
            })
        };
        drop(held);
        quitter.join().unwrap();
        waiter.join().unwrap();
        assert_eq!(shared.finish(), 1);
    });
}

/// The last waiter leaves, at any moment, beside an owner that comes and goes.
#[test]
fn a_waiter_that_leaves_does_not_leave_its_bit() {
    model(|| {
        let shared = Shared::new();
        let held = shared.slot().try_lock().unwrap();
        let quitter = {
            let other = Arc::clone(&shared);
            thread::spawn(move || {
                let mut place: Option<Waiter<'_>> = None;
                let cx = std::task::Context::from_waker(std::task::Waker::noop());
                if let Poll::Ready(guard) = other.slot().poll_lock(&mut place, &cx) {
                    drop(guard);
                }
            })
        };
        let newcomer = {
            let other = Arc::clone(&shared);
            thread::spawn(move || {
                if let Some(guard) = other.slot().try_lock() {
                    other.add_one();
                    guard.release(Word::new(Content::Same(1)));
                }
            })
        };
        drop(held);
        quitter.join().unwrap();
        newcomer.join().unwrap();
        let content = Word(shared.word.load(Ordering::Relaxed)).content();
        let came = shared.finish() == 1;
        assert_eq!(content, if came { Content::Same(1) } else { Content::Empty });
    });
}

#[test]
fn a_waiter_that_lost_its_races_is_handed_the_lock() {
    model(|| {
        let shared = Shared::new();
        let other = Arc::clone(&shared);
        // Barges in again and again.
        let thread = thread::spawn(move || {
            for _ in 0..2 {
                if let Some(guard) = other.slot().try_lock() {
                    other.add_one();
                    drop(guard);
                }
            }
        });
        let guard = shared.lock();
        shared.add_one();
        drop(guard);
        thread.join().unwrap();
        assert!(shared.finish() >= 1);
    });
}

/// A thread that finds a slot verified reads its word without the lock: not the one that was not
/// verified.
#[test]
fn a_slot_that_counts_as_verified_has_what_made_it_so() {
    loom::model(|| {
        let unverified = Unverified::new([0].into_iter(), |index| index < 2);
        let shared = Arc::new((AtomicU64::new(0), unverified));
        let its = Arc::clone(&shared);
        let owner = thread::spawn(move || {
            its.0.store(1, Ordering::Release);
            its.1.mark_verified(0);
        });
        let other = Arc::clone(&shared);
        let second = thread::spawn(move || other.1.mark_verified(1));
        if !shared.1.has(0) {
            assert_eq!(shared.0.load(Ordering::Acquire), 1);
        }
        owner.join().unwrap();
        second.join().unwrap();
        assert!(!shared.1.has(0) && !shared.1.has(1));
    });
}

/// A job that copied `from` and claimed it, until it has another content to put in its place; returns whether it
/// did that.
fn recompress(shared: &Shared, claims: &Claims, from: Content, to: Content) -> bool {
    let Some(guard) = shared.slot().try_lock() else { return false };
    if guard.word().content() != from {
        return false;
    }
    let Some(claim) = claims.claim(guard) else { return false };
    let guard = shared.lock();
    let holds = claims.holds(&guard, &claim);
    if holds {
        assert_eq!(guard.word().content(), from, "the content is another one");
        guard.release(Word::new(to));
        claims.end(claim, None, |word| word);
    } else {
        claims.end(claim, Some(guard), |word| word);
    }
    holds
}

/// The guest writes what was there before: the word looks the same, and is not.
#[test]
fn a_claim_ends_with_any_change_though_the_word_looks_the_same() {
    model(|| {
        let (shared, claims) = (Shared::new(), Arc::new(Claims::default()));
        let old = Content::Same(1);
        shared.lock().release(Word::new(old));
        let guest = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let guard = shared.lock();
                // By its word, what is there now is what the job made, or what it was made of.
                let was_replaced = guard.word().content() == Content::Same(2);
                shared.add_one();
                guard.release(Word::new(Content::Same(1)));
                was_replaced
            })
        };
        let replaced = recompress(&shared, &claims, old, Content::Same(2));
        let before = guest.join().unwrap();
        let content = Word(shared.word.load(Ordering::Relaxed)).content();
        // If the guest came last, what it wrote is there; if the job did, it was of what the guest wrote.
        let job_last = replaced && !before;
        assert_eq!(content, Content::Same(if job_last { 2 } else { 1 }));
        assert_eq!(claims.count(), 0);
        shared.finish();
    });
}

/// Two jobs and a write in between: the bit is set again, by the other one.
#[test]
fn a_claim_of_another_job_is_not_taken_for_ones_own() {
    model(|| {
        let (shared, claims) = (Shared::new(), Arc::new(Claims::default()));
        shared.lock().release(Word::new(Content::Same(1)));
        let claim = claims.claim(shared.lock()).expect("the first claim");
        let other = {
            let (shared, claims) = (Arc::clone(&shared), Arc::clone(&claims));
            thread::spawn(move || {
                shared.lock().release(Word::new(Content::Same(3)));
                recompress(&shared, &claims, Content::Same(3), Content::Same(4))
            })
        };
        let guard = shared.lock();
        let holds = claims.holds(&guard, &claim);
        assert_eq!(holds, guard.word().content() == Content::Same(1));
        claims.end(claim, Some(guard), |word| word);
        other.join().unwrap();
        assert_eq!(claims.count(), 0);
        assert!(!Word(shared.word.load(Ordering::Relaxed)).is_claimed());
        shared.finish();
    });
}

/// Requests clear the mark, jobs and compaction do not.
#[test]
fn a_page_that_was_read_beside_a_job_is_not_idle() {
    model(|| {
        let shared = Shared::new();
        shared.lock().release(Word::new(Content::Same(1)).with_idle(true));
        let reader = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || drop(shared.lock()))
        };
        if let Some(guard) = shared.slot().try_lock() {
            drop(guard);
        }
        reader.join().unwrap();
        assert!(!Word(shared.word.load(Ordering::Relaxed)).is_idle());
        shared.word.fetch_or(1 << 4, Ordering::Relaxed);
        drop(shared.slot().try_lock());
        assert!(Word(shared.word.load(Ordering::Relaxed)).is_idle());
        shared.finish();
    });
}
