//! A wake-up that many threads may ask for and one thread answers.

use std::task::Waker;

use crate::sync::{self, AtomicBool, Mutex, Ordering};

/// Wakes once for any number of notifications, until the wake-up is answered.
pub(crate) struct Notifier {
    notified: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Notifier {
    pub(crate) fn new() -> Self {
        Self { notified: AtomicBool::new(false), waker: Mutex::new(None) }
    }

    /// Something is to be done. Cheap when no thread has answered the last notification yet.
    pub(crate) fn notify(&self) {
        // Not only a swap: this is called for every refill and flush of a cache, and a line that
        // is only read stays in all caches.
        if self.notified.load(Ordering::Relaxed) || self.notified.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(waker) = &*sync::lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// Sets what is woken from now on, and wakes it, so nothing that was to be done before is missed.
    pub(crate) fn set_waker(&self, waker: Waker) {
        let mut current = sync::lock(&self.waker);
        waker.wake_by_ref();
        *current = Some(waker);
        self.notified.store(true, Ordering::Release);
    }

    /// Whether anything was notified since the last answer. What was done before a notification is visible
    /// then.
    pub(crate) fn answer(&self) -> bool {
        self.notified.swap(false, Ordering::AcqRel)
    }
}
