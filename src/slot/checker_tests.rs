//! Each kind of fault is found, and legal uses are not.
//!
//! Every test has classes of its own: what one test does with them says nothing to another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::checker::*;
use crate::slot::{SlotGuard, SlotTable};
use crate::store::{MemoryKind, Words};
use crate::sync::{self, Mutex};

/// What the checker says about `with`, which breaks a rule.
fn fault(with: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(with)).expect_err("the checker saw nothing");
    let text = panic.downcast::<String>().expect("a panic of the checker's");
    assert!(text.starts_with("lock checker: "), "{text}");
    *text
}

fn table(slots: u64) -> SlotTable {
    let table = SlotTable::new(Words::new(slots, &MemoryKind::default()).unwrap());
    for index in 0..slots {
        table.make(index);
    }
    table
}

/// Polls for a slot, which has to be free, as the task that has the turn.
fn take(table: &SlotTable, index: u64) -> SlotGuard<'_> {
    let mut place = None;
    match table.poll_lock(index, &mut place, &Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(guard)) => guard,
        _ => panic!("slot {index} is not free"),
    }
}

/// Polls once for a slot that is held, and leaves.
fn queue(table: &SlotTable, index: u64) {
    let mut place = None;
    let poll = table.poll_lock(index, &mut place, &Context::from_waker(Waker::noop()));
    assert!(poll.is_pending());
}

#[test]
fn two_orders_of_two_mutexes_are_found_though_nothing_deadlocks() {
    static A: Class = Class::mutex("inversion a");
    static B: Class = Class::mutex("inversion b");
    let (a, b) = (Mutex::new(()), Mutex::new(()));
    // In one order, on another thread, and long over.
    thread::scope(|scope| {
        scope.spawn(|| {
            let _a = sync::lock_as(&A, &a);
            let _b = sync::lock_as(&B, &b);
        });
    });
    let _b = sync::lock_as(&B, &b);
    let said = fault(|| drop(sync::lock_as(&A, &a)));
    assert!(said.contains("inversion: 'inversion a' is taken with 'inversion b'"), "{said}");
    assert!(said.contains("inversion a > inversion b"), "{said}");
}

#[test]
fn an_order_that_closes_a_circle_of_three_is_found() {
    static A: Class = Class::mutex("circle a");
    static B: Class = Class::mutex("circle b");
    static C: Class = Class::mutex("circle c");
    let [a, b, c] = [(); 3].map(|()| Mutex::new(()));
    drop((sync::lock_as(&A, &a), sync::lock_as(&B, &b)));
    drop((sync::lock_as(&B, &b), sync::lock_as(&C, &c)));
    let _c = sync::lock_as(&C, &c);
    let said = fault(|| drop(sync::lock_as(&A, &a)));
    assert!(said.contains("circle a > circle b > circle c"), "{said}");
}

#[test]
fn a_slot_after_a_mutex_that_came_after_a_slot_is_found() {
    static MUTEX: Class = Class::mutex("after slots");
    let (table, mutex) = (table(1), Mutex::new(()));
    let guard = take(&table, 0);
    drop(sync::lock_as(&MUTEX, &mutex));
    drop(guard);
    let _locked = sync::lock_as(&MUTEX, &mutex);
    let said = fault(|| drop(take(&table, 0)));
    assert!(said.contains("inversion: 'slot' 0 is taken with 'after slots'"), "{said}");
}

#[test]
fn two_slots_against_their_order_are_found() {
    let table = table(8);
    let task = Task::default();
    let _turn = task.enter();
    let up = (take(&table, 2), take(&table, 5));
    drop(up);
    let upper = take(&table, 5);
    let said = fault(|| drop(take(&table, 2)));
    assert!(said.contains("'slot' 2 is taken with 'slot' 5"), "{said}");
    drop(upper);
}

#[test]
fn a_trial_has_no_order() {
    static A: Class = Class::mutex("trial a");
    static B: Class = Class::mutex("trial b");
    let (a, b, table) = (Mutex::new(()), Mutex::new(()), table(8));
    drop((sync::lock_as(&A, &a), sync::lock_as(&B, &b)));
    let locked = sync::lock_as(&B, &b);
    let tried = sync::try_lock_as(&A, &a).expect("it is free");
    assert!(sync::try_lock_as(&A, &a).is_none());
    drop((locked, tried));
    // Compaction tries slots with others held, and even the one that is held.
    let task = Task::default();
    let _turn = task.enter();
    let upper = take(&table, 5);
    assert!(table.try_lock(2).is_some());
    assert!(table.try_lock(5).is_none());
    drop(upper);
}

#[test]
fn a_task_that_waits_for_its_own_slot_is_found() {
    let table = table(2);
    let task = Task::default();
    let _turn = task.enter();
    let guard = take(&table, 1);
    let said = fault(|| queue(&table, 1));
    assert!(said.contains("recursion: the owner of 'slot' 1 wants it again"), "{said}");
    drop(guard);
}

#[test]
fn a_thread_that_waits_for_its_own_lock_is_found() {
    static MUTEX: Class = Class::mutex("own mutex");
    let (table, mutex) = (table(1), Mutex::new(()));
    let _locked = sync::lock_as(&MUTEX, &mutex);
    let said = fault(|| drop(sync::lock_as(&MUTEX, &mutex)));
    assert!(said.contains("recursion"), "{said}");
    drop(_locked);
    let guard = take(&table, 0);
    let said = fault(|| drop(sync::block_on(|cx| table.poll_lock(0, &mut None, cx))));
    assert!(said.contains("recursion"), "{said}");
    // Not so if the thread continues, for others to wait.
    queue(&table, 0);
    drop(guard);
}

#[test]
fn a_sleeping_task_keeps_its_guard_and_holds_up_no_other() {
    let table = table(8);
    let (sleeper, other) = (Task::default(), Task::default());
    let turn = sleeper.enter();
    let guard = take(&table, 5);
    drop(turn);
    // On the same thread: neither recursion nor an order.
    let turn = other.enter();
    queue(&table, 5);
    drop(take(&table, 2));
    drop(turn);
    // The sleeper still counts as holder when it is polled again, on whatever thread.
    thread::scope(|scope| {
        let said = scope.spawn(|| {
            let _turn = sleeper.enter();
            fault(|| drop(take(&table, 2)))
        });
        let said = said.join().unwrap();
        assert!(said.contains("'slot' 2 is taken with 'slot' 5"), "{said}");
    });
    // A lock that another thread releases is not held any more.
    thread::scope(|scope| drop(scope.spawn(move || drop(guard))));
    let _turn = sleeper.enter();
    drop(take(&table, 2));
}

#[test]
fn a_task_that_ends_with_a_guard_is_found() {
    let table = table(4);
    let task = Task::default();
    {
        let _turn = task.enter();
        std::mem::forget(take(&table, 3));
    }
    let said = fault(|| drop(task));
    assert!(said.contains("leak: a task is over, and never released 'slot' 3"), "{said}");
}

#[test]
fn a_table_that_ends_with_a_locked_slot_is_found() {
    let table = table(4);
    std::mem::forget(take(&table, 1));
    let said = fault(|| drop(table));
    assert!(said.contains("leak") && said.contains("'slot' 1"), "{said}");
}

#[test]
fn a_mutex_where_the_thread_may_sleep_is_found_and_a_slot_is_not() {
    static MUTEX: Class = Class::mutex("sleepless");
    let (table, mutex) = (table(1), Mutex::new(()));
    let guard = take(&table, 0);
    might_sleep("nothing but a slot");
    let locked = sync::lock_as(&MUTEX, &mutex);
    let said = fault(|| might_sleep("a slow codec"));
    assert!(said.contains("may sleep: a slow codec, with 'sleepless'"), "{said}");
    let said = fault(|| sync::block_on(|_| Poll::Ready(())));
    assert!(said.contains("may sleep: waiting for a task"), "{said}");
    drop(locked);
    sync::block_on(|_| Poll::Ready(()));
    drop(guard);
}

#[test]
fn anything_where_nothing_may_be_held_is_found() {
    let table = table(1);
    may_not_hold("at first");
    let guard = take(&table, 0);
    let said = fault(|| may_not_hold("an idle thread"));
    assert!(said.contains("may not hold: an idle thread, with 'slot' 0"), "{said}");
    // Another thread's locks do not matter.
    thread::scope(|scope| drop(scope.spawn(|| may_not_hold("elsewhere"))));
    drop(guard);
    may_not_hold("at last");
}

#[test]
fn a_mutex_that_is_kept_when_a_turn_ends_is_found() {
    static MUTEX: Class = Class::mutex("kept");
    let (task, before, within) = (Task::default(), Mutex::new(()), Mutex::new(()));
    // What the thread had locked before is its own affair.
    static BEFORE: Class = Class::mutex("kept before");
    let _before = sync::lock_as(&BEFORE, &before);
    drop(task.enter());
    let turn = task.enter();
    let _within = sync::lock_as(&MUTEX, &within);
    let said = fault(|| drop(turn));
    assert!(said.contains("the end of a task's turn, with 'kept'"), "{said}");
}

#[test]
fn two_owners_and_a_release_by_none_are_found() {
    static CLASS: Class = Class::sleepable("broken");
    let place = 0_u8;
    let lock = Lock::new(&CLASS, 0, &place, 7);
    taken(lock, Stopwatch::start());
    let said = fault(|| taken(lock, Stopwatch::start()));
    assert!(said.contains("two owners: 'broken' 7"), "{said}");
    released(lock);
    let said = fault(|| released(lock));
    assert!(said.contains("not held: 'broken' 7"), "{said}");
}

#[test]
fn the_longest_wait_and_hold_of_a_class_are_known() {
    static MUTEX: Class = Class::mutex("measured");
    const TIME: Duration = Duration::from_millis(5);
    let mutex = Mutex::new(());
    let of_class = || figures().into_iter().find(|class| class.name == "measured");
    assert!(of_class().is_none());
    thread::scope(|scope| {
        let locked = sync::lock_as(&MUTEX, &mutex);
        let (says, hears) = std::sync::mpsc::channel();
        let mutex = &mutex;
        scope.spawn(move || {
            let wants = Bound::wants(&MUTEX, mutex);
            says.send(()).unwrap();
            let _guard = sync::lock(mutex);
            let mut wants = wants;
            wants.taken();
        });
        hears.recv().unwrap();
        thread::sleep(TIME);
        drop(locked);
    });
    let figures = of_class().expect("it was used");
    assert_eq!(figures.taken, 2);
    assert!(figures.max_hold >= TIME && figures.max_wait >= TIME, "{figures}");
    assert!(figures.to_string().starts_with("'measured' taken=2 max_wait="), "{figures}");
}

#[test]
fn a_guard_of_any_order_is_forgotten_when_it_is_dropped() {
    static A: Class = Class::mutex("dropped a");
    static B: Class = Class::mutex("dropped b");
    let (a, b) = (Mutex::new(()), Mutex::new(()));
    let first = sync::lock_as(&A, &a);
    let second = sync::lock_as(&B, &b);
    drop(first);
    // With `b` alone held this is the other order.
    let said = fault(|| drop(sync::lock_as(&A, &a)));
    assert!(said.contains("dropped a > dropped b"), "{said}");
    drop(second);
    may_not_hold("the end");
}
