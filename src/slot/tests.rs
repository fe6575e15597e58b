use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use vhost_user_zram_frontend::Random;

use super::word::Word;
use super::*;
use crate::checker;
use crate::store::{MemoryKind, Place, Words};
use crate::sync;

fn table(slots: u64) -> SlotTable {
    let table = SlotTable::new(Words::new(slots, &MemoryKind::default()).unwrap());
    for index in 0..slots {
        table.make(index);
    }
    table
}

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn bell() -> (Arc<Bell>, Waker) {
    let bell = Arc::new(Bell::default());
    (Arc::clone(&bell), Waker::from(bell))
}

fn rings(bell: &Bell) -> usize {
    bell.0.load(Ordering::SeqCst)
}

fn object(units: u64) -> Word {
    let object = Object { place: Place::from_units(units), length: 100 };
    Word::new(Content::Object(0, object))
}

#[test]
fn a_slot_that_does_not_exist_is_empty_and_cannot_be_locked() {
    let table = SlotTable::new(Words::new(1024, &MemoryKind::default()).unwrap());
    assert_eq!(table.peek(7), Some(Content::Empty));
    assert!(table.try_lock(7).is_none());
    let (_, waker) = bell();
    let cx = Context::from_waker(&waker);
    assert!(matches!(table.poll_lock(7, &mut None, &cx), Poll::Ready(None)));
    assert_eq!(table.next_existing(0), 1024);
}

#[test]
fn the_lock_is_exclusive_and_release_publishes() {
    let table = table(4);
    let guard = table.try_lock(1).unwrap();
    assert!(table.try_lock(1).is_none());
    assert!(table.try_lock(2).is_some(), "another slot is free");
    guard.release(object(5));
    let guard = table.try_lock(1).unwrap();
    assert_eq!(guard.word(), object(5));
    drop(guard);
    assert_eq!(table.try_lock(1).unwrap().word(), object(5), "dropping changes nothing");
}

#[test]
fn content_without_an_object_is_seen_without_the_lock() {
    let table = table(4);
    let held = table.try_lock(0).unwrap();
    assert_eq!(table.peek(0), Some(Content::Empty));
    held.release(Word::new(Content::Same(9)));
    assert_eq!(table.peek(0), Some(Content::Same(9)));
    table.try_lock(0).unwrap().release(object(1));
    assert_eq!(table.peek(0), None);
}

#[test]
fn a_waiter_is_woken_by_release_and_once() {
    let table = table(1);
    let held = table.try_lock(0).unwrap();
    let (bell, waker) = bell();
    let cx = Context::from_waker(&waker);
    let mut place = None;
    assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    assert_eq!(rings(&bell), 0);
    held.release(object(3));
    assert_eq!(rings(&bell), 1);
    let Poll::Ready(Some(guard)) = table.poll_lock(0, &mut place, &cx) else { panic!() };
    assert_eq!(guard.word(), object(3));
    assert!(place.is_none());
    drop(guard);
    assert_eq!(rings(&bell), 1);
}

#[test]
fn the_waker_of_the_last_poll_is_the_one_that_fires() {
    let table = table(1);
    let held = table.try_lock(0).unwrap();
    let (first, first_waker) = bell();
    let (second, second_waker) = bell();
    let mut place = None;
    assert!(table.poll_lock(0, &mut place, &Context::from_waker(&first_waker)).is_pending());
    assert!(table.poll_lock(0, &mut place, &Context::from_waker(&second_waker)).is_pending());
    drop(held);
    assert_eq!((rings(&first), rings(&second)), (0, 1));
}

#[test]
fn a_waiter_that_leaves_is_no_ghost() {
    let table = table(1);
    let held = table.try_lock(0).unwrap();
    let (gone, gone_waker) = bell();
    let (stays, stays_waker) = bell();
    let (mut a, mut b) = (None, None);
    assert!(table.poll_lock(0, &mut a, &Context::from_waker(&gone_waker)).is_pending());
    let cx = Context::from_waker(&stays_waker);
    assert!(table.poll_lock(0, &mut b, &cx).is_pending());
    drop(a);
    drop(held);
    assert_eq!((rings(&gone), rings(&stays)), (0, 1));
    assert!(table.poll_lock(0, &mut b, &cx).is_ready());
}

#[test]
fn a_woken_waiter_that_leaves_passes_its_turn_on() {
    let table = table(1);
    let held = table.try_lock(0).unwrap();
    let (_, first_waker) = bell();
    let (second, second_waker) = bell();
    let (mut a, mut b) = (None, None);
    assert!(table.poll_lock(0, &mut a, &Context::from_waker(&first_waker)).is_pending());
    let cx = Context::from_waker(&second_waker);
    assert!(table.poll_lock(0, &mut b, &cx).is_pending());
    drop(held);
    assert_eq!(rings(&second), 0, "the first one's turn");
    drop(a);
    assert_eq!(rings(&second), 1);
    assert!(table.poll_lock(0, &mut b, &cx).is_ready());
}

/// A word that says that a task waits keeps its part of the table.
#[test]
fn a_woken_waiter_that_leaves_does_not_keep_its_part_of_the_table() {
    for leaves in [false, true] {
        let table = table(512);
        let held = table.try_lock(3).unwrap();
        let (bell, waker) = bell();
        let mut place = None;
        assert!(table.poll_lock(3, &mut place, &Context::from_waker(&waker)).is_pending());
        drop(held);
        assert_eq!(rings(&bell), 1);
        if !leaves {
            // Its turn is used instead, which is what a request does that continues.
            assert!(table.poll_lock(3, &mut place, &Context::from_waker(&waker)).is_ready());
        }
        drop(place);
        let given = table.give_back(true, || false);
        assert_eq!(given, GivenBack { bytes: 4096, more: false }, "leaves: {leaves}");
        assert_eq!(table.give_back(true, || false), GivenBack::default());
    }
}

#[test]
fn a_waiter_that_loses_too_many_races_is_handed_the_lock() {
    let table = table(1);
    let (bell, waker) = bell();
    let cx = Context::from_waker(&waker);
    let mut place = None;
    let mut held = table.try_lock(0).unwrap();
    assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    let mut barged = 0;
    loop {
        drop(held);
        // A newcomer is faster, if it can.
        let Some(again) = table.try_lock(0) else { break };
        held = again;
        barged += 1;
        assert!(barged < 10, "the waiter starves");
        assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    }
    assert_eq!(barged, 3);
    assert_eq!(rings(&bell), 4);
    assert!(table.poll_lock(0, &mut place, &cx).is_ready(), "no other task can have it");
}

#[test]
fn a_waiter_that_leaves_after_it_was_handed_the_lock_releases_it() {
    let table = table(1);
    let (_, waker) = bell();
    let cx = Context::from_waker(&waker);
    let mut place = None;
    let mut held = table.try_lock(0).unwrap();
    assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    loop {
        held.release(object(8));
        let Some(again) = table.try_lock(0) else { break };
        held = again;
        assert!(table.poll_lock(0, &mut place, &cx).is_pending());
    }
    drop(place);
    assert_eq!(table.try_lock(0).unwrap().word(), object(8));
}

#[test]
fn a_guard_can_be_released_on_another_thread() {
    let table = table(1);
    // A request's, which sleeps: this thread holds nothing and may wait for the slot.
    let task = checker::Task::default();
    let guard = {
        let _turn = task.enter();
        table.try_lock(0).unwrap()
    };
    thread::scope(|scope| {
        scope.spawn(move || guard.release(object(2)));
        let guard = sync::block_on(|cx| table.poll_lock(0, &mut None, cx));
        drop(guard);
    });
    assert_eq!(table.try_lock(0).unwrap().word(), object(2));
}

#[test]
fn threads_on_few_slots_never_share_a_lock_and_lose_no_update() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 5_000;
    let table = table(3);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let table = &table;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..ROUNDS {
                    let index = random.below(2);
                    let mut place = None;
                    let guard = sync::block_on(|cx| table.poll_lock(index, &mut place, cx));
                    let guard = guard.unwrap();
                    let count = match guard.word().content() {
                        Content::Same(count) => count,
                        _ => 0,
                    };
                    // A lock that is not exclusive would lose increments.
                    guard.release(Word::new(Content::Same(count + 1)));
                }
            });
        }
    });
    let total: u64 = (0..2)
        .map(|index| match table.peek(index) {
            Some(Content::Same(count)) => u64::from(count),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(total, THREADS * ROUNDS);
}

/// Slots that a growth makes of the words of a page that is being taken away are neither locked for ever nor
/// released twice.
#[test]
fn a_table_grows_into_a_page_that_is_being_taken_away() {
    for stays in [true, false] {
        let words = Words::with_room(100, 10_000, &MemoryKind::default()).unwrap();
        let table = SlotTable::new(words);
        table.make(5);
        let (reader, mut waits) = (table.reader(), 0);
        // Another thread's, which may have found a slot.
        let (inside, leave) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        let (inside, leave) = (&inside, &leave);
        thread::scope(|scope| {
            scope.spawn(move || {
                reader.enter();
                inside.wait();
                leave.wait();
                reader.leave();
            });
            inside.wait();
            let given = table.give_back(true, || {
                waits += 1;
                if waits == 1 {
                    table.prepare(1000).unwrap();
                    table.grow(1000);
                    if !stays {
                        leave.wait();
                    }
                }
                !stays
            });
            assert_eq!((given.bytes, given.more), if stays { (0, true) } else { (4096, false) });
            if stays {
                leave.wait();
            }
        });
        assert_eq!((table.len(), table.exists(150)), (1000, stays));
        for index in [5, 150, 511, 999] {
            table.make(index);
            let guard = table.try_lock(index).expect("free");
            assert!(table.try_lock(index).is_none());
            drop(guard);
        }
        assert!(table.try_lock(1000).is_none());
    }
}
