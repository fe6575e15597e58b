//! A limit on how long a call of the stock front end may take.
//!
//! `vhost::vhost_user::Frontend` reads its answers without a deadline and retries over `SO_RCVTIMEO`, so
//! a back end that never answers would hang a test for ever. Shutting the socket down from beside it
//! ends the read.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    fired: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shuts a socket down when a guarded call outlasts its time.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches over `sock`.
    pub(crate) fn new(sock: UnixStream) -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || watch(&theirs, &sock));
        Self { shared, thread: Some(thread) }
    }

    /// Runs `call`; returns its value and whether the time ran out under it.
    pub(crate) fn guard<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> (T, bool) {
        self.shared.lock().deadline = Some(Instant::now() + limit);
        self.shared.changed.notify_one();
        let value = call();
        let mut state = self.shared.lock();
        state.deadline = None;
        (value, state.fired)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and there would be nothing to do about it here.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, sock: &UnixStream) {
    let mut state = shared.lock();
    while !state.ended {
        state = match state.deadline {
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.fired = true;
                    state.deadline = None;
                    // The socket may be gone already: then the call has ended by itself.
                    let _ = sock.shutdown(Shutdown::Both);
                    continue;
                }
                let waited = shared.changed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}
