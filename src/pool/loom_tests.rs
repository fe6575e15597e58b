//! What threads share without a mutex, explored by loom.

use std::sync::Arc as StdArc;
use std::task::{Wake, Waker};

use loom::sync::Arc;
use loom::thread;

use super::budget::Budget;
use crate::notifier::Notifier;
use crate::sync::{self, AtomicUsize, Mutex, Ordering};

#[test]
fn a_limit_is_never_exceeded_and_a_refusal_leaves_nothing_reserved() {
    loom::model(|| {
        let budget = Arc::new(Budget::new(3));
        let taken = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (budget, taken) = (Arc::clone(&budget), Arc::clone(&taken));
                thread::spawn(move || {
                    if budget.reserve(2).is_ok() {
                        let now = taken.fetch_add(2, Ordering::Relaxed) + 2;
                        assert!(now <= 3, "{now} taken of 3");
                        taken.fetch_sub(2, Ordering::Relaxed);
                        budget.release(2);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!((budget.total(), budget.arena()), (0, 0));
        assert!(budget.arena_max() <= 3);
    });
}

/// The limit and what the host can spare are about arena and table together.
#[test]
fn arena_and_table_cannot_both_have_the_last_page() {
    for by_the_host in [false, true] {
        loom::model(move || {
            let budget = Budget::new(if by_the_host { 0 } else { 3 });
            if by_the_host {
                budget.allow_more(3);
            }
            let (budget, taken) = (Arc::new(budget), Arc::new(AtomicUsize::new(0)));
            let (its, its_taken) = (Arc::clone(&budget), Arc::clone(&taken));
            let table = thread::spawn(move || {
                let done = its.reserve_table(2).is_ok();
                its_taken.fetch_add(2 * usize::from(done), Ordering::Relaxed);
            });
            let done = budget.reserve(2).is_ok();
            taken.fetch_add(2 * usize::from(done), Ordering::Relaxed);
            table.join().unwrap();
            let taken = taken.load(Ordering::Relaxed) as u64;
            // Both may be refused: each finds the other one's bytes, which are taken back then.
            assert!(taken <= 3, "{taken} taken of 3");
            assert_eq!(budget.total(), taken);
            assert_eq!(budget.arena(), if done { 2 } else { 0 });
        });
    }
}

/// Counts wake-ups.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Work that is done before a ring is either seen by the answer that comes next, or wakes again.
#[test]
fn no_work_is_left_without_a_wake_up() {
    loom::model(|| {
        let woken = StdArc::new(Woken(AtomicUsize::new(0)));
        let notifier = Notifier::new();
        notifier.set_waker(Waker::from(StdArc::clone(&woken)));
        let shared = Arc::new((notifier, Mutex::new(0_u32)));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    *sync::lock(&shared.1) += 1;
                    shared.0.notify();
                })
            })
            .collect();
        let (notifier, work) = &*shared;
        // Woken by the setting of the waker: answer, check.
        assert!(notifier.answer());
        let seen = *sync::lock(work);
        let before = woken.0.load(Ordering::SeqCst);
        for worker in workers {
            worker.join().unwrap();
        }
        let rung_since = woken.0.load(Ordering::SeqCst) > 1 || before > 1;
        assert!(seen == 2 || rung_since, "{seen} of 2 seen, and no thread woke the answerer");
        assert!(seen == 2 || notifier.answer());
    });
}
