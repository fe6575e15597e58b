//! An inbox: many threads put something in, one thread takes all of it, and sees without a lock whether
//! there is anything.

use crate::sync::{self, AtomicBool, Mutex, Ordering};

/// What was put in and not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox<T> {
    /// Something was put in since the last take. Written with the lock held.
    full: AtomicBool,
    content: Mutex<Content<T>>,
}

#[derive(Debug, Default)]
struct Content<T> {
    inner: T,
    closed: bool,
}

impl<T> Inbox<T> {
    /// Puts something in, unless the inbox is closed. Returns true if there was nothing before, so the
    /// reader has to be woken if it sleeps.
    pub(crate) fn put(&self, change: impl FnOnce(&mut T)) -> bool {
        let mut content = sync::lock(&self.content);
        if content.closed {
            return false;
        }
        change(&mut content.inner);
        !self.full.swap(true, Ordering::Release)
    }

    /// Whether there may be something. What was put in before is taken by a take that follows a `true`.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Takes what is in, all of it.
    pub(crate) fn take<R>(&self, take: impl FnOnce(&mut T) -> R) -> R {
        let mut content = sync::lock(&self.content);
        self.full.store(false, Ordering::Relaxed);
        take(&mut content.inner)
    }

    /// Whatever is put in from now on is dropped. `clear` drops what is in.
    pub(crate) fn close(&self, clear: impl FnOnce(&mut T)) {
        let mut content = sync::lock(&self.content);
        content.closed = true;
        clear(&mut content.inner);
    }
}

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::Inbox;

    fn inbox() -> Arc<Inbox<Vec<u32>>> {
        Arc::new(Inbox::default())
    }

    /// A reader that only reads the flag until it is set gets all that is put in.
    #[test]
    fn a_reader_that_polls_misses_nothing() {
        loom::model(|| {
            let inbox = inbox();
            let writers: Vec<_> = (1..=2)
                .map(|n| {
                    let inbox = Arc::clone(&inbox);
                    thread::spawn(move || inbox.put(|all| all.push(n)))
                })
                .collect();
            let mut got = Vec::new();
            while got.len() < 2 {
                if inbox.is_full() {
                    inbox.take(|all| got.append(all));
                } else {
                    thread::yield_now();
                }
            }
            let woken = writers.into_iter().map(|w| w.join().unwrap());
            assert!(woken.filter(|first| *first).count() >= 1);
            assert!(!inbox.is_full());
        });
    }

    /// A reader that takes once for each wake-up that is asked for gets all that is put in.
    #[test]
    fn a_reader_that_sleeps_is_woken_for_all() {
        loom::model(|| {
            let (inbox, signals) = (inbox(), Arc::new(AtomicUsize::new(0)));
            let writers: Vec<_> = (1..=2)
                .map(|n| {
                    let (inbox, signals) = (Arc::clone(&inbox), Arc::clone(&signals));
                    thread::spawn(move || {
                        if inbox.put(|all| all.push(n)) {
                            signals.fetch_add(1, Ordering::Release);
                        }
                    })
                })
                .collect();
            let mut got = Vec::new();
            // The event is reset before what it stands for is taken.
            if signals.swap(0, Ordering::Acquire) > 0 {
                inbox.take(|all| got.append(all));
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            if signals.swap(0, Ordering::Acquire) > 0 {
                inbox.take(|all| got.append(all));
            }
            got.sort_unstable();
            assert_eq!(got, [1, 2]);
        });
    }
}
