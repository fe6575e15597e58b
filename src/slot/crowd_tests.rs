//! A thousand tasks at one slot: all are served, in a bounded order, and nothing is lost.
//!
//! The bound: waiters are served in exactly the order in which they queued, and between one and
//! the next there are at most [`MAX_PASSED`] newcomers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use vhost_user_zram_frontend::Random;

use super::lock::MAX_PASSED;
use super::word::Word;
use super::*;
use crate::store::{MemoryKind, Words};

const TASKS: usize = 1000;

fn table() -> SlotTable {
    let table = SlotTable::new(Words::new(1, &MemoryKind::default()).unwrap());
    table.make(0);
    table
}

/// The waker of one task: says its number.
struct Bell(usize, Sender<usize>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // No thread receives for a task that is done.
        let _ = self.1.send(self.0);
    }
}

/// A waker for each task, and where their numbers arrive.
fn bells(count: usize) -> (Vec<Waker>, Receiver<usize>) {
    let (says, hears) = channel();
    let bell = |task| Waker::from(Arc::new(Bell(task, says.clone())));
    ((0..count).map(bell).collect(), hears)
}

/// All waiters queue, and then newcomers take the lock whenever they can, for as long as they like,
/// while woken waiters are polled late, or without a reason, or leave.
#[test]
fn waiters_are_served_in_order_with_few_newcomers_between() {
    for seed in 0..8 {
        let table = table();
        let mut random = Random::new(seed);
        let (wakers, woken) = bells(TASKS);
        let mut newcomer = table.try_lock(0);
        let mut places: Vec<_> = (0..TASKS).map(|_| None).collect();
        for (place, waker) in places.iter_mut().zip(&wakers) {
            assert!(table.poll_lock(0, place, &Context::from_waker(waker)).is_pending());
        }
        let (mut next, mut between, mut most, mut late) = (0, 0, 0, None);
        while next < TASKS {
            match random.below(8) {
                // A newcomer, as often as it can.
                0..=3 => {
                    drop(newcomer.take());
                    newcomer = table.try_lock(0);
                    between += u32::from(newcomer.is_some());
                }
                4 => drop(newcomer.take()),
                // A waiter in the middle polls for no reason, or leaves.
                5 => {
                    let other = next + 1 + random.below(9) as usize;
                    if let Some(place) = places.get_mut(other).filter(|place| place.is_some()) {
                        if random.below(3) == 0 {
                            *place = None;
                        } else {
                            let cx = Context::from_waker(&wakers[other]);
                            assert!(table.poll_lock(0, place, &cx).is_pending(), "out of order");
                        }
                    }
                }
                _ => {
                    late = late.or_else(|| woken.try_recv().ok());
                    // One that left may have been woken before.
                    let Some(task) = late.take_if(|_| random.below(2) == 0) else { continue };
                    if places[task].is_none() {
                        continue;
                    }
                    assert_eq!(task, next, "only the first is woken");
                    let cx = Context::from_waker(&wakers[task]);
                    if let Poll::Ready(guard) = table.poll_lock(0, &mut places[task], &cx) {
                        assert!(newcomer.is_none(), "two owners");
                        most = most.max(between);
                        assert!(between <= MAX_PASSED, "{between} newcomers passed task {task}");
                        between = 0;
                        drop(guard);
                    }
                }
            }
            while next < TASKS && places[next].is_none() {
                // Served, or gone.
                next += 1;
            }
        }
        assert_eq!(most, MAX_PASSED, "no waiter was passed as often as is allowed");
        drop(newcomer);
        assert!(table.try_lock(0).is_some(), "the lock was lost");
    }
}

/// The same with threads: each task takes the lock many times, and says how many acquisitions
/// there were while it stood in the queue.
#[test]
fn a_thousand_tasks_on_four_threads_are_all_served_within_bounds() {
    const THREADS: usize = 4;
    const ROUNDS: u32 = 8;
    // A waiter has at most all others before it, each with its newcomers, and its own newcomers.
    const BOUND: u64 = TASKS as u64 * (1 + MAX_PASSED as u64);
    let table = table();
    let served = AtomicU64::new(0);
    let waited = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (table, served, waited) = (&table, &served, &waited);
            scope.spawn(move || {
                let tasks = TASKS / THREADS;
                let (wakers, woken) = bells(tasks);
                // Rounds to go, the place in the queue, what was served when it was got.
                let mut states: Vec<_> = (0..tasks).map(|_| (ROUNDS, None, 0)).collect();
                wakers.iter().for_each(Waker::wake_by_ref);
                let mut left = tasks;
                while left > 0 {
                    let task = woken.recv().unwrap();
                    let (rounds, place, since) = &mut states[task];
                    if *rounds == 0 {
                        continue;
                    }
                    let was_queued = place.is_some();
                    match table.poll_lock(0, place, &Context::from_waker(&wakers[task])) {
                        Poll::Ready(guard) => {
                            let guard = guard.expect("the slot exists");
                            let Content::Same(count) = guard.word().content() else {
                                // The first of all.
                                guard.release(Word::new(Content::Same(0)));
                                wakers[task].wake_by_ref();
                                continue;
                            };
                            let now = served.fetch_add(1, Ordering::Relaxed) + 1;
                            if was_queued {
                                waited.fetch_add(1, Ordering::Relaxed);
                                assert!(now - *since <= BOUND, "{} came before", now - *since);
                            }
                            // A lock that is not exclusive would lose some.
                            thread::yield_now();
                            guard.release(Word::new(Content::Same(count + 1)));
                            *rounds -= 1;
                            match *rounds {
                                0 => left -= 1,
                                _ => wakers[task].wake_by_ref(),
                            }
                        }
                        Poll::Pending if !was_queued => *since = served.load(Ordering::Relaxed),
                        Poll::Pending => {}
                    }
                }
            });
        }
    });
    let expected = TASKS as u32 * ROUNDS;
    assert_eq!(table.peek(0), Some(Content::Same(expected)));
    assert!(waited.into_inner() > 0, "no task had to wait");
    assert!(table.try_lock(0).is_some());
}
