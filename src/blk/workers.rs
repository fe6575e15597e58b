//! The queue threads of a session. A thread starts when the first of its queues does, so queues that
//! are offered and not used cost no thread.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::blk::mailbox::Command;
use crate::blk::queue::{Shared, Vring};
use crate::blk::watchdog::{Watch, Watchdog};
use crate::blk::worker::Worker;
use crate::device::DeviceError;

/// Why a queue thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkersError {
    #[error("its thread cannot be started")]
    Thread(#[source] io::Error),
    #[error("its thread cannot allocate its codecs")]
    Context(#[source] DeviceError),
    #[error("the queue does not exist")]
    NoQueue,
}

/// The queue threads, of which thread `n % count` serves queue `n`, and their watchdog.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    vrings: Vec<Vring>,
    /// Signalled if a thread dies.
    trouble: EventFd,
    watch: Arc<Watch>,
    threads: Vec<Option<Worker>>,
    /// Declared after the threads: it outlives them.
    watchdog: Option<Watchdog>,
}

impl Workers {
    /// As many threads as the options name. No thread runs yet.
    pub(crate) fn new(shared: Arc<Shared>, vrings: Vec<Vring>, trouble: EventFd) -> Self {
        let options = &shared.options;
        let count = usize::from(options.threads.clamp(1, options.num_queues.max(1)));
        let watch = Watch::new(count, options.stall_limits);
        let threads = (0..count).map(|_| None).collect();
        Self { shared, vrings, trouble, watch, threads, watchdog: None }
    }

    /// The thread of queue `ring`, which runs from now on.
    pub(crate) fn of(&mut self, ring: usize) -> Result<&Worker, WorkersError> {
        let count = self.threads.len();
        let number = ring % count;
        if self.threads[number].is_none() {
            if self.watchdog.is_none() {
                let device = Arc::clone(&self.shared.device);
                let log = Arc::clone(&self.shared.log);
                let started = Watchdog::start(Arc::clone(&self.watch), device, log);
                self.watchdog = Some(started.map_err(WorkersError::Thread)?);
            }
            let own = self.vrings.iter().enumerate().skip(number).step_by(count);
            let own = own.map(|(index, vring)| (index, vring.clone())).collect();
            let context = self.shared.device.worker_context().map_err(WorkersError::Context)?;
            let trouble = self.trouble.try_clone().map_err(WorkersError::Thread)?;
            let (shared, watch) = (Arc::clone(&self.shared), Arc::clone(&self.watch));
            let worker = Worker::spawn(number, own, shared, context, trouble, watch);
            self.threads[number] = Some(worker.map_err(WorkersError::Thread)?);
        }
        self.running_for(ring).ok_or(WorkersError::NoQueue)
    }

    /// The thread of queue `ring`, if it runs.
    pub(crate) fn running_for(&self, ring: usize) -> Option<&Worker> {
        self.threads[ring % self.threads.len()].as_ref()
    }

    /// All threads that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Worker> {
        self.threads.iter().flatten()
    }

    /// Makes all threads finish and publish what they took, and end. Returns false if one of them had died.
    pub(crate) fn shut_down(&mut self) -> bool {
        for worker in self.running() {
            worker.send(Command::Quit);
        }
        let threads = self.threads.iter_mut().filter_map(Option::take);
        threads.fold(true, |healthy, mut worker| healthy & worker.join())
    }
}
