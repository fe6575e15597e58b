//! The engine itself: which jobs it takes, and what keeps the workers honest.

use std::collections::VecDeque;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::JobError;
use super::cost::{self, Costs, Sampler};
use super::figures::{Counters, EngineReport, Histogram, ServiceTimes, add};
use super::job::{Job, Pending, Work};
use super::model::{EngineModel, Fault};
use super::queue::Queue;
use super::threads::{self, Cpus};
use super::trial::Trial;
use super::worker::{self, InService};
use crate::codec::{Codec, CodecError, CodecTable};
use crate::sync;

/// Time-outs that a job may wait in the queue.
const QUEUE_TIMEOUTS: u32 = 4;

/// When work is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// By the measured cost of the codec and the size of the request.
    #[default]
    Auto,
    /// Never.
    Inline,
    /// Always.
    Offload,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "inline" => Ok(Self::Inline),
            "offload" => Ok(Self::Offload),
            _ => Err(format!("'{text}' is not auto, inline or offload")),
        }
    }
}

/// What an engine is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// When work is handed over.
    pub policy: Policy,
    /// Worker threads, at least 1. `None` is one for each processor if the codec is so slow that a
    /// queue's own thread never uses it, and one less if it does.
    pub workers: Option<usize>,
    /// Jobs that the queue holds, at least 1. What one virtqueue moves at most, 4 MiB, has 1024 pages.
    pub depth: usize,
    /// Where the workers may run; anywhere if empty.
    pub cpus: Cpus,
    /// A job that was taken so long ago is abandoned and done inline.
    pub timeout: Duration,
    /// What a page costs, both ways, instead of what it is measured to cost: for benchmarks under
    /// tools that slow everything down.
    pub assumed_cost: Option<Duration>,
    /// Hardware to pretend to be.
    pub model: Option<EngineModel>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            policy: Policy::Auto,
            workers: None,
            depth: 1024,
            cpus: Cpus::default(),
            timeout: Duration::from_secs(5),
            assumed_cost: None,
            model: None,
        }
    }
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The codec cannot be set up.
    #[error("the engine's codec contexts cannot be set up")]
    Codec(#[from] CodecError),
    /// No thread.
    #[error("the engine's threads cannot be started")]
    Thread(#[source] io::Error),
}

/// What workers and submitters share.
pub(super) struct Shared {
    pub(super) codecs: Arc<CodecTable>,
    pub(super) queue: Queue,
    pub(super) workers: usize,
    pub(super) model: Option<EngineModel>,
    pub(super) counters: Counters,
    pub(super) service: ServiceTimes,
    pub(super) costs: Costs,
    /// Of each worker.
    pub(super) in_service: Vec<InService>,
    /// The next job's, for the model's decisions.
    pub(super) number: AtomicU64,
    submissions: AtomicU64,
    /// Jobs that were put in and neither came back nor were abandoned.
    outstanding: AtomicUsize,
    alive: AtomicUsize,
    timeout: Duration,
    supervisor: Mutex<Supervisor>,
    noticed: Condvar,
    /// The supervisor sleeps without a time limit.
    asleep: AtomicBool,
}

/// What the supervisor waits on.
#[derive(Default)]
struct Supervisor {
    stopped: bool,
}

/// A pool of workers that does codec work for others.
pub struct Engine {
    shared: Arc<Shared>,
    policy: Policy,
    /// Workers that can work beside the thread that submits.
    beside: usize,
    /// Of compression and of decompression. None where costs are assumed: nothing that is measured decides there.
    trials: Option<[Mutex<Trial>; 2]>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// An engine for the codecs of one disk. Measures them, and starts the workers.
    ///
    /// # Errors
    /// Contexts cannot be allocated, or threads not be started.
    pub fn start(codecs: &Arc<CodecTable>, config: &EngineConfig) -> Result<Self, EngineError> {
        let policy = config.policy;
        let costs = Costs::new(codecs, config.assumed_cost)?;
        let cpus = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let alone = policy == Policy::Offload
            || cost::is_very_slow(costs.compress(codecs.primary().number()).get());
        let workers = match config.workers {
            _ if policy == Policy::Inline => 0,
            Some(workers) => workers.max(1),
            None if alone => cpus,
            None => (cpus - 1).max(1),
        };
        let shared = Arc::new(Shared {
            codecs: Arc::clone(codecs),
            queue: Queue::new(config.depth),
            workers,
            model: config.model.clone(),
            counters: Counters::default(),
            service: ServiceTimes::default(),
            costs,
            in_service: (0..workers).map(|_| InService::default()).collect(),
            number: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            outstanding: AtomicUsize::new(0),
            alive: AtomicUsize::new(workers),
            timeout: config.model.as_ref().and_then(|m| m.timeout).unwrap_or(config.timeout),
            supervisor: Mutex::default(),
            noticed: Condvar::new(),
            asleep: AtomicBool::new(false),
        });
        let beside = workers.min(cpus - 1);
        // From here on dropping it ends the threads that were started.
        let trials = config.assumed_cost.is_none().then(Default::default);
        let mut engine = Self { shared, policy, beside, trials, threads: Vec::new() };
        for index in 0..workers {
            let workspace = codecs.workspace()?;
            let (shared, cpus) = (Arc::clone(&engine.shared), config.cpus.clone());
            engine.spawn(format!("engine-{index}"), move || {
                threads::run_in_background(&cpus);
                worker::live(&shared, index, workspace);
            })?;
        }
        if workers > 0 {
            let shared = Arc::clone(&engine.shared);
            engine.spawn("engine-watch".into(), move || shared.supervise())?;
        }
        Ok(engine)
    }

    /// Measures a codec that is about to be added to the table. The number of workers stays as it is.
    ///
    /// # Errors
    /// Its contexts cannot be allocated.
    pub fn learn(&self, codec: &Codec) -> Result<(), EngineError> {
        Ok(self.shared.costs.learn(codec)?)
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        let thread = crate::threads::spawn(&name, body).map_err(EngineError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// How many of `pages` pages of one request are to be submitted.
    pub fn share(&self, work: Work, pages: usize) -> usize {
        if self.shared.alive.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        match self.policy {
            Policy::Inline => 0,
            Policy::Offload => pages,
            Policy::Auto => {
                let each = self.shared.costs.of(work).get();
                if cost::is_slow(each) {
                    let backlog = self.shared.queue.queued();
                    return cost::share_of_slow(each, pages, backlog, self.shared.workers);
                }
                if !cost::is_worth_spreading(each, pages) || !self.spreading_pays(work, pages) {
                    return 0;
                }
                let backlog = self.shared.outstanding.load(Ordering::Relaxed);
                cost::share(pages, backlog, self.beside)
            }
        }
    }

    /// Whether the last trial says so. Counts the pages for the next one.
    fn spreading_pays(&self, work: Work, pages: usize) -> bool {
        let Some(trials) = &self.trials else { return true };
        let direction = usize::from(matches!(work, Work::Decompress { .. }));
        sync::lock(&trials[direction]).spreads(pages as u64, Instant::now())
    }

    /// Submits jobs, the first ones first, and takes those out of `jobs` that were accepted; each
    /// has been made [`Pending`] by [`Engine::pending`] before. Those that are left are not accepted,
    /// because the queue is full, a model refuses them, or no worker is there: their work is done
    /// inline.
    pub fn submit(&self, jobs: &mut VecDeque<Arc<Job>>) {
        let shared = &*self.shared;
        if jobs.is_empty() {
            return;
        }
        let refused = shared.model.as_ref().is_some_and(|model| {
            model.strikes(Fault::Refuse, shared.submissions.fetch_add(1, Ordering::Relaxed))
        });
        if refused || shared.alive.load(Ordering::Relaxed) == 0 {
            add(&shared.counters.refusals, 1);
            return;
        }
        // Before they are put in: the worker that finishes a job takes it off again.
        let all = jobs.len();
        shared.outstanding.fetch_add(all, Ordering::SeqCst);
        let count = shared.queue.put(jobs);
        shared.count_returned(all - count);
        if count > 0 {
            add(&shared.counters.jobs, count as u64);
            add(&shared.counters.batches, 1);
            shared.watch();
        }
    }

    /// As [`Engine::submit`], for work that guests do not wait for: it is accepted only while the workers have
    /// nothing else to do, and no more than one job for each, so that what guests submit meanwhile waits for the
    /// end of one at most. What is not accepted is no refusal.
    pub fn submit_behind(&self, jobs: &mut VecDeque<Arc<Job>>) {
        let shared = &*self.shared;
        if shared.outstanding.load(Ordering::Relaxed) > 0 {
            return;
        }
        let mut some: VecDeque<_> = jobs.drain(..jobs.len().min(shared.workers)).collect();
        if some.is_empty() {
            return;
        }
        self.submit(&mut some);
        while let Some(job) = some.pop_back() {
            jobs.push_front(job);
        }
    }

    /// The result of a job that is going to be submitted.
    pub fn pending(job: &Arc<Job>) -> Pending {
        Pending::new(Arc::clone(job))
    }

    /// Counts a job whose work the request does itself, because of this.
    pub fn count_fallback(&self, error: Option<&JobError>) {
        let counters = &self.shared.counters;
        add(&counters.fallbacks, 1);
        match error {
            // A time-out and a death were counted where they were noticed.
            None | Some(JobError::Codec(_) | JobError::TimedOut | JobError::Lost) => {}
            Some(JobError::Failed) => add(&counters.failures, 1),
            Some(JobError::Corrupt) => add(&counters.corruptions, 1),
        }
    }

    /// Does `work` inline by calling `with`, and now and then notes what that costs.
    pub fn inline<T>(&self, work: Work, sampler: &mut Sampler, with: impl FnOnce() -> T) -> T {
        let Some(start) = sampler.start() else { return with() };
        let done = with();
        self.shared.costs.of(work).add(start.elapsed());
        done
    }

    /// Average time to compress a page, lately.
    #[cfg(test)]
    pub(super) fn compress_cost(&self) -> Duration {
        self.shared.costs.compress(0).get()
    }

    /// As on a machine of many processors, with trials that begin, or without any.
    #[cfg(test)]
    pub(super) fn pretend_many_processors(&mut self, trials: bool) {
        self.beside = self.shared.workers;
        self.trials = trials.then(Default::default);
    }

    /// All workers are gone, as if none of them could be replaced.
    #[cfg(test)]
    pub(super) fn lose_workers(&self) {
        for _ in 0..self.shared.workers {
            self.shared.worker_gone();
        }
    }

    /// Its worker threads.
    pub fn workers(&self) -> usize {
        self.shared.workers
    }

    /// What it did so far.
    pub fn report(&self) -> EngineReport {
        EngineReport::new(&self.shared.counters, self.shared.queue.depths())
    }

    /// Counts anew from here.
    pub fn restart_figures(&self) {
        self.shared.counters.restart();
        self.shared.service.restart();
        self.shared.queue.restart_deepest();
    }

    /// How long its jobs took so far.
    pub fn service_times(&self) -> Histogram {
        self.shared.service.histogram()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.queue.close();
        sync::lock(&self.shared.supervisor).stopped = true;
        self.shared.noticed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the engine panicked");
            }
        }
        self.shared.abandon_queue();
    }
}

impl Shared {
    /// A worker ended for good. The last one gives back what is in the queue.
    pub(super) fn worker_gone(&self) {
        if self.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.close();
            self.abandon_queue();
        }
    }

    fn abandon_queue(&self) {
        let lost = self.queue.drain();
        self.count_returned(lost.len());
        for job in lost {
            job.complete(Err(JobError::Lost));
        }
    }

    /// Something is in the queue: the supervisor has to see that it comes back.
    fn watch(&self) {
        // Sequentially consistent with the supervisor's store before it checks for work: either it
        // sees this job, or this sees it asleep.
        if self.asleep.load(Ordering::SeqCst) {
            let _held = sync::lock(&self.supervisor);
            self.noticed.notify_all();
        }
    }

    /// Abandons jobs that take too long, until the engine stops.
    fn supervise(&self) {
        let mut supervisor = sync::lock(&self.supervisor);
        while !supervisor.stopped {
            self.asleep.store(true, Ordering::SeqCst);
            if self.is_quiet() {
                let waited = self.noticed.wait(supervisor);
                supervisor = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            self.asleep.store(false, Ordering::SeqCst);
            if supervisor.stopped {
                return;
            }
            let waited = self.noticed.wait_timeout(supervisor, self.timeout / 4);
            supervisor = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            drop(supervisor);
            self.expire(Instant::now());
            supervisor = sync::lock(&self.supervisor);
        }
    }

    fn is_quiet(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) == 0
    }

    /// So many jobs came back, or are abandoned.
    pub(super) fn count_returned(&self, jobs: usize) {
        self.outstanding.fetch_sub(jobs, Ordering::SeqCst);
    }

    fn expire(&self, now: Instant) {
        // All workers hang: jobs that no worker has taken, or begun, are abandoned too, though not
        // as soon, since a long queue is not a fault.
        let queue_timeout = self.timeout * QUEUE_TIMEOUTS;
        let mut late = self.queue.expire(queue_timeout);
        for jobs in &self.in_service {
            sync::lock(jobs).retain(|entry| {
                let in_time = match entry.begun {
                    Some(begun) => now.duration_since(begun) < self.timeout,
                    None => now.duration_since(entry.taken) < queue_timeout,
                };
                if !in_time {
                    late.push(Arc::clone(&entry.job));
                }
                in_time
            });
        }
        self.count_returned(late.len());
        // Counted first: a request that is woken may read the counter.
        add(&self.counters.timeouts, late.len() as u64);
        for job in late {
            job.complete(Err(JobError::TimedOut));
        }
    }
}
