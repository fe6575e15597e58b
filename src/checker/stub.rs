//! The checker where it is off: the same calls, nothing in them, and nothing kept.

use std::marker::PhantomData;

use super::ClassFigures;

// What is put into guards, requests and guards adds nothing to them.
const _: () = {
    assert!(size_of::<Lock>() == 0 && size_of::<Stopwatch>() == 0);
    assert!(size_of::<Task>() == 0 && size_of::<Turn>() == 0);
    assert!(size_of::<Bound>() == 0 && size_of::<Waits>() == 0 && size_of::<Class>() == 0);
};

/// A class of locks.
#[derive(Debug)]
pub struct Class;

impl Class {
    /// A class whose locks are held by threads that do not sleep meanwhile.
    pub const fn mutex(_name: &'static str) -> Self {
        Class
    }

    /// A class whose owners may sleep.
    pub const fn sleepable(_name: &'static str) -> Self {
        Class
    }
}

/// One lock, by name.
#[derive(Debug, Clone, Copy)]
pub struct Lock;

impl Lock {
    /// The lock at `object`.
    #[inline(always)]
    pub fn new<T>(_class: &'static Class, _domain: usize, _object: &T, _number: u64) -> Self {
        Lock
    }
}

/// When a wait began.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch;

impl Stopwatch {
    /// Now.
    #[inline(always)]
    pub fn start() -> Self {
        Stopwatch
    }
}

/// Something that is polled.
#[derive(Debug, Default)]
pub struct Task;

impl Task {
    /// The calling thread polls it, until what is returned is dropped.
    #[inline(always)]
    pub fn enter(&self) -> Turn {
        Turn(PhantomData)
    }
}

/// A task's turn on a thread.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(PhantomData<*const ()>);

/// A lock held by a thread.
#[derive(Debug)]
#[must_use = "the lock counts as released when this is dropped"]
pub struct Bound(PhantomData<*const ()>);

impl Bound {
    /// The calling thread is about to lock the mutex.
    #[inline(always)]
    pub fn wants<T>(_class: &'static Class, _mutex: &T) -> Self {
        Bound(PhantomData)
    }

    /// The calling thread tried to lock the mutex, and did.
    #[inline(always)]
    pub fn tried<T>(_class: &'static Class, _mutex: &T) -> Self {
        Bound(PhantomData)
    }

    /// The mutex is locked.
    #[inline(always)]
    pub fn taken(&mut self) {}
}

/// A thread that sleeps until a task is done.
#[derive(Debug)]
#[must_use = "the thread waits until this is dropped"]
pub struct Waits(PhantomData<*const ()>);

impl Waits {
    /// The calling thread does nothing else until this is dropped.
    #[inline(always)]
    pub fn begin() -> Self {
        Waits(PhantomData)
    }
}

/// The current task is about to wait for a lock.
#[inline(always)]
pub fn wants(_lock: Lock) {}

/// The current task has taken a lock.
#[inline(always)]
pub fn taken(_lock: Lock, _since: Stopwatch) {}

/// The lock is about to be released.
#[inline(always)]
pub fn released(_lock: Lock) {}

/// What the locks of this domain guard is gone.
#[inline(always)]
pub fn closed(_domain: usize) {}

/// The calling thread may sleep here.
#[inline(always)]
pub fn might_sleep(_what: &'static str) {}

/// Here nothing may be held.
#[inline(always)]
pub fn may_not_hold(_what: &'static str) {}

/// Nothing is known.
#[inline(always)]
pub fn figures() -> Vec<ClassFigures> {
    Vec::new()
}
