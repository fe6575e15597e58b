//! Atomics, locks and waiting, from `std` or, under `--cfg loom`, from loom.
//!
//! Whatever is shared between threads and has to be model-checked takes its primitives from here,
//! so the code that loom explores is the code that ships.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

#[cfg(loom)]
pub use loom::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};
#[cfg(not(loom))]
pub use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
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
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
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
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match step(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
