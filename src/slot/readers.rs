//! Which threads read slot words at this moment: what has to be known before a page of them goes.
//!
//! A word is found in two steps: its page's bit says that the page exists, then the word is loaded. A
//! thread may stop for long in between, and a load from a page that was given back makes the page exist
//! again, uncounted. So a page is *hidden* first, by clearing its bit, and given back when all threads
//! that may have seen the bit have *left*. Threads that come later do not see it.
//!
//! Coming and leaving are a store each to a cache line of the thread's own. The order of that store and
//! the load of the bit is ensured by a barrier that is paid for by the thread that takes pages away.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
#[cfg(all(debug_assertions, not(loom)))]
use std::sync::atomic::AtomicBool;

#[cfg(not(loom))]
use crate::store::Barrier;
use crate::sync::{self, AtomicU64, Mutex, Ordering};

/// All readers of the slots of one table.
pub(super) struct Readers {
    seats: Mutex<Vec<Arc<Seat>>>,
    barrier: Barrier,
    /// Whether there ever was a reader.
    #[cfg(all(debug_assertions, not(loom)))]
    any: AtomicBool,
}

#[cfg(all(debug_assertions, not(loom)))]
thread_local! {
    /// Readers that this thread is inside of.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// One reader.
#[repr(align(64))]
struct Seat {
    /// Times that it came or left: odd while it is there. Only its own thread stores it.
    turns: AtomicU64,
}

/// What a thread needs to read the slots of a table while others take pages of it away.
///
/// Between [`Reader::enter`] and [`Reader::leave`] a slot that was found stays where it is. A held
/// guard keeps its slot in any case, and so does a place in its queue.
pub struct Reader {
    seat: Arc<Seat>,
    barrier: Barrier,
    /// One thread at a time.
    _not_sync: PhantomData<Cell<()>>,
}

impl Readers {
    pub(super) fn new() -> Self {
        Self {
            seats: Mutex::default(),
            barrier: Barrier::new(),
            #[cfg(all(debug_assertions, not(loom)))]
            any: AtomicBool::new(false),
        }
    }

    /// The calling thread reads a slot, and has to be inside of a reader if the table has any.
    #[inline(always)]
    #[cfg(not(loom))]
    pub(super) fn assert_inside(&self) {
        #[cfg(debug_assertions)]
        assert!(
            INSIDE.get() > 0 || !self.any.load(Ordering::Relaxed),
            "a slot is read outside of a reader"
        );
    }

    pub(super) fn reader(&self) -> Reader {
        let seat = Arc::new(Seat { turns: AtomicU64::new(0) });
        #[cfg(all(debug_assertions, not(loom)))]
        self.any.store(true, Ordering::Relaxed);
        let mut seats = sync::lock(&self.seats);
        // Those whose reader is gone.
        seats.retain(|seat| Arc::strong_count(seat) > 1);
        seats.push(Arc::clone(&seat));
        Reader { seat, barrier: self.barrier, _not_sync: PhantomData }
    }

    /// Waits until all readers that may have seen what was cleared before this call have left, at least
    /// once. `wait` is called between two checks, and says whether there is to be another one. False
    /// if a reader is still there.
    pub(super) fn all_left(&self, mut wait: impl FnMut() -> bool) -> bool {
        self.barrier.rarely();
        let seats = sync::lock(&self.seats).clone();
        let there = seats.into_iter().map(|seat| (seat.turns.load(Ordering::Acquire), seat));
        let mut there: Vec<_> = there.filter(|(turns, _)| turns % 2 == 1).collect();
        loop {
            there.retain(|(turns, seat)| seat.turns.load(Ordering::Acquire) == *turns);
            if there.is_empty() || !wait() {
                return there.is_empty();
            }
        }
    }
}

impl Reader {
    /// From now on slots may be read.
    #[inline]
    pub fn enter(&self) {
        let turns = self.seat.turns.load(Ordering::Relaxed);
        debug_assert!(turns.is_multiple_of(2), "it is there already");
        // Release: a thread that sees this sees that it had left before.
        self.seat.turns.store(turns + 1, Ordering::Release);
        self.barrier.often();
        #[cfg(all(debug_assertions, not(loom)))]
        INSIDE.set(INSIDE.get() + 1);
    }

    /// No slot that was found is used any more.
    #[inline]
    pub fn leave(&self) {
        let turns = self.seat.turns.load(Ordering::Relaxed);
        debug_assert!(!turns.is_multiple_of(2), "it is not there");
        #[cfg(all(debug_assertions, not(loom)))]
        INSIDE.set(INSIDE.get().saturating_sub(1));
        self.seat.turns.store(turns + 1, Ordering::Release);
    }

    /// Reads slots in `look` only.
    pub fn inside<T>(&self, look: impl FnOnce() -> T) -> T {
        self.enter();
        let found = look();
        self.leave();
        found
    }

    /// Reads no slot in `work`, which may take long, and keeps none that it found before.
    #[cfg(not(loom))]
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.leave();
        let done = work();
        self.enter();
        done
    }
}

impl Drop for Reader {
    /// Its thread may have died while it was there.
    fn drop(&mut self) {
        if !self.seat.turns.load(Ordering::Relaxed).is_multiple_of(2) {
            self.leave();
        }
    }
}

/// Fences on both sides, which loom knows: the kernel's barrier is a fence on the one side that
/// counts as one on the other.
#[cfg(loom)]
#[derive(Clone, Copy)]
struct Barrier;

#[cfg(loom)]
impl Barrier {
    fn new() -> Self {
        Self
    }

    fn often(self) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }

    fn rarely(self) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}
