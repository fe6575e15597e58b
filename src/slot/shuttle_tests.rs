//! The slot lock under schedules larger than loom can explore whole: each test runs thousands of
//! random ones, and as many that switch threads seldom but at the worst moments (PCT).
//!
//! Run with `RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --lib
//! shuttle_tests`. A schedule that fails is printed, and can be run again by `shuttle::replay`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Plain, Ordering as Order};
use std::task::{Context, Poll, Wake, Waker};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::mpsc::{Receiver, Sender, channel};
use shuttle::thread;

use super::lock::{MAX_PASSED, Slot, SlotGuard, Waiter};
use super::parking::ParkingLot;
use super::word::{Content, Word};
use crate::sync::{self, AtomicBool, AtomicU64, Ordering};

const SLOTS: usize = 2;
const SCHEDULES: usize = 3_000;

/// Some slots, and for each whether a thread is in its critical section.
struct Shared {
    lot: ParkingLot,
    words: [AtomicU64; SLOTS],
    inside: [AtomicBool; SLOTS],
    /// Not seen by shuttle: an access is not a point where threads are switched.
    served: Plain,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lot: ParkingLot::new(),
            words: [const { AtomicU64::new(0) }; SLOTS],
            inside: [const { AtomicBool::new(false) }; SLOTS],
            served: Plain::new(0),
        })
    }

    fn slot(&self, index: usize) -> Slot<'_> {
        Slot { word: &self.words[index], lot: &self.lot, index: index as u64 }
    }

    fn lock(&self, index: usize) -> SlotGuard<'_> {
        let mut place = None;
        sync::block_on(|cx| self.slot(index).poll_lock(&mut place, cx))
    }

    /// Adds one to what the slot holds, alone, and releases it.
    fn add_one(&self, index: usize, guard: SlotGuard<'_>) {
        assert!(!self.inside[index].swap(true, Ordering::SeqCst), "two owners");
        let count = match guard.word().content() {
            Content::Same(count) => count,
            _ => 0,
        };
        self.served.fetch_add(1, Order::SeqCst);
        thread::yield_now();
        assert!(self.inside[index].swap(false, Ordering::SeqCst), "two owners");
        guard.release(Word::new(Content::Same(count + 1)));
    }

    /// To be called when all threads are done: nothing is locked, waited for or lost.
    fn finish(&self) {
        let mut total = 0;
        for index in 0..SLOTS {
            assert!(!self.lot.bucket(index as u64).waits(index as u64), "a task waits");
            let guard = self.slot(index).try_lock().expect("the lock is free at the end");
            if let Content::Same(count) = guard.word().content() {
                total += u64::from(count);
            }
        }
        assert_eq!(total, self.served.load(Order::SeqCst), "an update is lost");
    }
}

/// Runs `test` under many schedules, of both kinds.
fn explore(test: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(test, SCHEDULES);
    shuttle::check_pct(test, SCHEDULES, 3);
}

fn spawn_all(count: usize, body: impl Fn(usize) + Send + Sync + 'static) {
    let body = Arc::new(body);
    let spawn = |number| {
        let body = Arc::clone(&body);
        thread::spawn(move || body(number))
    };
    let threads: Vec<_> = (0..count).map(spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn five_threads_on_two_slots_exclude_each_other_and_all_wake_up() {
    explore(|| {
        let shared = Shared::new();
        let its = Arc::clone(&shared);
        spawn_all(5, move |_| {
            for _ in 0..3 {
                let index = thread_rng().gen_range(0..SLOTS);
                its.add_one(index, its.lock(index));
            }
        });
        assert_eq!(shared.served.load(Order::SeqCst), 15);
        shared.finish();
    });
}

/// Waits for a slot and leaves at any point: before it queued, while it waits, after it was woken
/// or handed the lock. True if it got the lock, and then it used it.
fn impatient(shared: &Shared, index: usize, polls: usize) -> bool {
    let mut place: Option<Waiter<'_>> = None;
    let cx = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if let Poll::Ready(guard) = shared.slot(index).poll_lock(&mut place, &cx) {
            shared.add_one(index, guard);
            return true;
        }
        thread::yield_now();
    }
    false
}

#[test]
fn waiters_that_leave_take_no_turn_of_others_with_them() {
    explore(|| {
        let shared = Shared::new();
        let its = Arc::clone(&shared);
        spawn_all(5, move |number| {
            for _ in 0..3 {
                let index = thread_rng().gen_range(0..SLOTS);
                if number < 2 || thread_rng().gen_bool(0.5) {
                    its.add_one(index, its.lock(index));
                } else {
                    impatient(&its, index, thread_rng().gen_range(1..5));
                }
            }
        });
        shared.finish();
    });
}

#[test]
fn guards_released_by_other_threads_wake_the_waiters() {
    explore(|| {
        let shared: &'static Shared = Box::leak(Box::new(Arc::into_inner(Shared::new()).unwrap()));
        // Takes guards of others to their end, as a thread that completes their work.
        let (gives, gets): (Sender<(usize, SlotGuard<'static>)>, Receiver<_>) = channel();
        let engine = thread::spawn(move || {
            while let Ok((index, guard)) = gets.recv() {
                shared.add_one(index, guard);
            }
        });
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gives = gives.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let index = thread_rng().gen_range(0..SLOTS);
                        let guard = shared.lock(index);
                        if thread_rng().gen_bool(0.5) {
                            gives.send((index, guard)).unwrap();
                        } else {
                            shared.add_one(index, guard);
                        }
                    }
                })
            })
            .collect();
        drop(gives);
        for thread in threads {
            thread.join().unwrap();
        }
        engine.join().unwrap();
        assert_eq!(shared.served.load(Order::SeqCst), 9);
        shared.finish();
    });
}

/// A waker that counts, for a waiter whose polls the test times itself.
struct Count(AtomicU64);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// However late the first waiter is polled, few newcomers come before it: then the lock waits for
/// it alone.
#[test]
fn a_waiter_is_passed_by_a_bounded_number_of_newcomers() {
    explore(|| {
        let shared = Shared::new();
        let held = shared.slot(0).try_lock().unwrap();
        let mut place = None;
        let woken = Arc::new(Count(AtomicU64::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        assert!(shared.slot(0).poll_lock(&mut place, &cx).is_pending());
        let newcomers: Vec<_> = (0..3)
            .map(|_| {
                let its = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 0..4 {
                        if let Some(guard) = its.slot(0).try_lock() {
                            its.add_one(0, guard);
                        }
                    }
                })
            })
            .collect();
        drop(held);
        for _ in 0..thread_rng().gen_range(0..4) {
            thread::yield_now();
        }
        let guard = loop {
            if let Poll::Ready(guard) = shared.slot(0).poll_lock(&mut place, &cx) {
                break guard;
            }
            thread::yield_now();
        };
        let passed = shared.served.load(Order::SeqCst);
        assert!(passed <= u64::from(MAX_PASSED), "passed by {passed} newcomers");
        assert!(woken.0.load(Ordering::SeqCst) > 0, "it was never woken");
        shared.add_one(0, guard);
        for newcomer in newcomers {
            newcomer.join().unwrap();
        }
        shared.finish();
    });
}
