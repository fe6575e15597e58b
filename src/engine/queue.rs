//! The submission queue: bounded. A queue that is full takes no more, and the request that submits
//! does the work inline; no request waits for room, so none can be kept out of it.

use std::collections::VecDeque;
use std::sync::Arc;
#[cfg(not(loom))]
use std::time::Duration;
use std::time::Instant;

use super::job::Job;
use crate::sync::{self, AtomicUsize, Condvar, Mutex, Ordering};

/// Jobs that a worker takes at a time at most.
const GRAB: usize = 8;

/// Jobs between the requests that submit and the workers.
pub(super) struct Queue {
    depth: usize,
    state: Mutex<QueueState>,
    /// Workers wait here.
    filled: Condvar,
    /// Jobs that are queued; read without the mutex as a hint.
    queued: AtomicUsize,
}

/// What a worker got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakeResult {
    Jobs,
    /// The queue is empty now.
    Empty,
    /// The queue is empty and stays so.
    Closed,
}

#[derive(Default)]
struct QueueState {
    /// Oldest first, each with when it came.
    jobs: VecDeque<(Arc<Job>, Instant)>,
    idle: usize,
    /// Most jobs there ever were.
    deepest: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            depth: depth.max(1),
            state: Mutex::new(QueueState::default()),
            filled: Condvar::new(),
            queued: AtomicUsize::new(0),
        }
    }

    /// Puts jobs in as far as there is room, the first ones first, and takes them out of `jobs`.
    /// Returns how many; none if the queue is closed.
    pub(super) fn put(&self, jobs: &mut VecDeque<Arc<Job>>) -> usize {
        let mut state = sync::lock(&self.state);
        if state.closed {
            return 0;
        }
        let count = jobs.len().min(self.depth.saturating_sub(state.jobs.len()));
        let now = Instant::now();
        state.jobs.extend(jobs.drain(..count).map(|job| (job, now)));
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        state.deepest = state.deepest.max(state.jobs.len());
        // A worker that does not wait checks again by itself, and waking costs a system call.
        let wake = count.min(state.idle);
        drop(state);
        for _ in 0..wake {
            self.filled.notify_one();
        }
        count
    }

    /// Takes some jobs, the oldest first. If the queue is empty it sleeps, or returns at once if
    /// it is not to sleep.
    pub(super) fn take(&self, workers: usize, sleep: bool, into: &mut Vec<Arc<Job>>) -> TakeResult {
        let mut state = sync::lock(&self.state);
        while state.jobs.is_empty() {
            if !sleep {
                return TakeResult::Empty;
            }
            if state.closed {
                return TakeResult::Closed;
            }
            state.idle += 1;
            state = sync::wait(&self.filled, state);
            state.idle -= 1;
        }
        // Few enough that the others have something too.
        let count = (state.jobs.len() / workers.max(1)).clamp(1, GRAB);
        into.extend(state.jobs.drain(..count).map(|(job, _)| job));
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        TakeResult::Jobs
    }

    /// No more jobs come in. Jobs that are in stay.
    pub(super) fn close(&self) {
        let mut state = sync::lock(&self.state);
        state.closed = true;
        drop(state);
        self.filled.notify_all();
    }

    /// Takes out all jobs that no worker will do any more.
    pub(super) fn drain(&self) -> Vec<Arc<Job>> {
        let mut state = sync::lock(&self.state);
        self.queued.store(0, Ordering::Relaxed);
        state.jobs.drain(..).map(|(job, _)| job).collect()
    }

    /// Takes out what has waited for longer than this.
    #[cfg(not(loom))]
    pub(super) fn expire(&self, timeout: Duration) -> Vec<Arc<Job>> {
        let mut state = sync::lock(&self.state);
        let late = state.jobs.iter().take_while(|(_, came)| came.elapsed() >= timeout).count();
        let late = state.jobs.drain(..late).map(|(job, _)| job).collect();
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        late
    }

    /// Jobs in the queue, some moments ago.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// There never were more jobs than now.
    pub(super) fn restart_deepest(&self) {
        let mut state = sync::lock(&self.state);
        state.deepest = state.jobs.len();
    }

    /// Jobs now, and the most there ever were.
    pub(super) fn depths(&self) -> (usize, usize) {
        let state = sync::lock(&self.state);
        (state.jobs.len(), state.deepest)
    }
}
