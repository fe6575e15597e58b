//! A wake-up that many threads may ask for and one thread answers.

use std::task::Waker;

use crate::sync::{self, AtomicBool, Mutex, Ordering};

/// Rings once for any number of calls, until it is answered.
pub(super) struct Bell {
    rung: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { rung: AtomicBool::new(false), waker: Mutex::new(None) }
    }

    /// Something is to be done. Cheap when the bell has rung already.
    pub(super) fn ring(&self) {
        // Not only a swap: this is called for every refill and flush of a cache, and a line that
        // is only read stays in all caches.
        if self.rung.load(Ordering::Relaxed) || self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(waker) = &*sync::lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// Who answers from now on. The bell counts as rung, so nothing that was to be done before is
    /// missed.
    pub(super) fn set_waker(&self, waker: Waker) {
        let mut current = sync::lock(&self.waker);
        waker.wake_by_ref();
        *current = Some(waker);
        self.rung.store(true, Ordering::Release);
    }

    /// Whether it rang since the last answer. What was done before the ring is visible then.
    pub(super) fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }
}
