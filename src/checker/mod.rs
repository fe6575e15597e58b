//! The lock checker: what lockdep is to the kernel.
//!
//! Locks belong to *classes*. For each pair of classes the checker remembers in which order they
//! were ever taken, so a wrong order is found the first time that both orders were seen, on
//! whatever threads and however long ago, and not only on the day when it deadlocks. It finds
//!
//! * **inversion**: two classes taken in both orders, or two locks of one class against the order
//!   of their addresses (which for slots is the order of their index);
//! * **recursion**: a holder waits for what it holds;
//! * **leaks**: a guard that is not released when its task, or the slot table, comes to its end;
//! * **two owners** of one lock, and a release of a lock that is not held;
//! * a lock held **where the thread may sleep** ([`might_sleep`]), or where nothing may be held at
//!   all ([`may_not_hold`]);
//!
//! and it measures the longest wait and hold of each class ([`figures`]). A fault is a panic, so
//! that tests fail; while a thread unwinds anyway it is an error in the log.
//!
//! # Owners
//! A mutex guard belongs to its *thread*. A slot's guard is `Send`, so it belongs to the *task*
//! whose turn it was when the lock was taken (the request that a queue thread polled, see
//! [`Task`]), or to the thread if no task had the turn. The task keeps it while it sleeps, and
//! while another thread polls it; whichever thread releases the guard, the task's is released.
//!
//! # Waits
//! A thread that locks a mutex waits with all that it and its task hold. A task that polls for a
//! slot waits with its own guards only: the thread continues with other tasks. A plain thread that
//! sleeps until a task is done ([`Waits`]) waits with both.
//!
//! # What it costs
//! It is on where `debug_assertions` are, except under loom and shuttle, whose threads are not
//! threads of the system. Else all of this is a stub: the same names, of zero size, that do nothing.
//! So no caller needs a `cfg`.

#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod active;
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod class;
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod fault;
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod graph;
#[cfg(not(all(debug_assertions, not(any(loom, shuttle)))))]
mod stub;

use std::fmt;
use std::time::Duration;

#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
pub use self::active::{
    Bound, Stopwatch, Task, Waits, closed, may_not_hold, might_sleep, released, taken, wants,
};
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
pub use self::class::{Class, Lock};
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
pub use self::graph::figures;
#[cfg(not(all(debug_assertions, not(any(loom, shuttle)))))]
pub use self::stub::{
    Bound, Class, Lock, Stopwatch, Task, Waits, closed, figures, may_not_hold, might_sleep,
    released, taken, wants,
};

/// What is known of all locks of a class that was ever used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassFigures {
    /// The class.
    pub name: &'static str,
    /// Locks taken.
    pub taken: u64,
    /// The longest wait for one.
    pub max_wait: Duration,
    /// The longest that one was held.
    pub max_hold: Duration,
}

impl fmt::Display for ClassFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, taken, max_wait, max_hold } = self;
        write!(f, "'{name}' taken={taken} max_wait={max_wait:?} max_hold={max_hold:?}")
    }
}
