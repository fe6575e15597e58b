//! Atomics, locks and waiting, from `std` or, under `--cfg loom` or `--cfg shuttle`, from those.
//!
//! Whatever is shared between threads and has to be model-checked takes its primitives from here,
//! so the code that they explore is the code that ships.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use crate::checker::{Bound, Class, Waits};

#[cfg(loom)]
pub use loom::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};
#[cfg(shuttle)]
pub use shuttle::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};
#[cfg(not(any(loom, shuttle)))]
pub use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// Locks `mutex`, also when a thread panicked while it held it.
///
/// Every critical section of this crate leaves its data whole at each step that may panic, and a
/// queue thread that dies must not take the disk with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits on `condition`, with the same view of panics as [`lock`].
#[cfg(not(shuttle))]
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Locks `mutex` as a lock of `class`, in the eyes of the lock checker.
pub fn lock_as<'a, T>(class: &'static Class, mutex: &'a Mutex<T>) -> Locked<'a, T> {
    let mut bound = Bound::wants(class, mutex);
    let guard = lock(mutex);
    bound.taken();
    Locked { guard, _bound: bound }
}

/// Locks `mutex` as a lock of `class` if no thread has it.
pub fn try_lock_as<'a, T>(class: &'static Class, mutex: &'a Mutex<T>) -> Option<Locked<'a, T>> {
    let guard = match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(Locked { guard, _bound: Bound::tried(class, mutex) })
}

/// The guard of a mutex that the lock checker knows of.
pub struct Locked<'a, T> {
    guard: MutexGuard<'a, T>,
    _bound: Bound,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A waker that unparks one thread.
struct ThreadWaker(thread::Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Sleeps the calling thread until `step` is ready.
///
/// `step` is called again whenever its waker fires; spurious calls are harmless. This is how a
/// plain thread (start-up, upkeep, tests) waits for what a queue thread would wait for as a task.
pub fn block_on<T>(mut step: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let _waits = Waits::begin();
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match step(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
