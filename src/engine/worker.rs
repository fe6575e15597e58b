//! The workers: threads that do the jobs, and what a model makes of that.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::figures::add;
use super::job::{Job, Output};
use super::model::Fault;
use super::queue::TakeResult;
use super::{JobError, Shared};
use crate::codec::Workspace;
use crate::sync::{self, Mutex, Ordering};

/// Jobs that a worker has taken and not given back, oldest first.
pub(super) type InService = Mutex<VecDeque<Entry>>;

/// A job in a worker's hands.
pub(super) struct Entry {
    pub(super) job: Arc<Job>,
    pub(super) taken: Instant,
    /// When its work was begun.
    pub(super) begun: Option<Instant>,
}

/// How long a finished job waits for the next one of those that were taken with it.
const MAX_HOLD: Duration = Duration::from_micros(120);

/// A finished job.
struct Finished {
    job: Arc<Job>,
    number: u64,
    result: Result<Output, JobError>,
}

/// The life of worker `index`. A panic in a job ends the worker; its jobs are given back undone and
/// another one takes its place, on the same thread.
pub(super) fn live(shared: &Shared, index: usize, mut workspace: Workspace) {
    loop {
        let run = catch_unwind(AssertUnwindSafe(|| run(shared, index, &mut workspace)));
        if run.is_ok() {
            return;
        }
        add(&shared.counters.deaths, 1);
        log::warn!("engine worker {index} panicked, and another one takes its place");
        abandon_taken(shared, index);
        match shared.codecs.workspace() {
            Ok(fresh) => workspace = fresh,
            Err(error) => {
                log::error!("engine worker {index} cannot be replaced: {error}");
                shared.worker_gone();
                return;
            }
        }
    }
}

/// Gives back undone what a worker had taken.
fn abandon_taken(shared: &Shared, index: usize) {
    let lost = std::mem::take(&mut *sync::lock(&shared.in_service[index]));
    shared.count_returned(lost.len());
    for entry in lost {
        entry.job.complete(Err(JobError::Lost));
    }
}

fn run(shared: &Shared, index: usize, workspace: &mut Workspace) {
    let (mut jobs, mut held) = (Vec::new(), Vec::new());
    let mut ready = Ready::default();
    loop {
        // Nothing is held back while there is nothing else to do.
        let taken = shared.queue.take(shared.workers, held.is_empty(), &mut jobs);
        match taken {
            TakeResult::Jobs => {}
            TakeResult::Empty => {
                ready.0.append(&mut held);
                ready.give_back(shared, index);
                continue;
            }
            TakeResult::Closed => return,
        }
        let now = Instant::now();
        let entry = |job: &Arc<Job>| Entry { job: Arc::clone(job), taken: now, begun: None };
        sync::lock(&shared.in_service[index]).extend(jobs.iter().map(entry));
        for job in jobs.drain(..) {
            let number = shared.number.fetch_add(1, Ordering::Relaxed);
            for entry in &mut *sync::lock(&shared.in_service[index]) {
                if Arc::ptr_eq(&entry.job, &job) {
                    entry.begun = Some(Instant::now());
                }
            }
            let Some(result) = serve(shared, number, &job, workspace) else {
                // It hangs: it stays in service, and the supervisor abandons it in time.
                continue;
            };
            held.push(Finished { job, number, result });
            let most = shared.model.as_ref().map_or(0, |model| model.reorder);
            while held.len() > most {
                let choice = shared.model.as_ref().map_or(0, |m| m.draw(Fault::Order, number));
                ready.0.push(held.swap_remove((choice % held.len() as u64) as usize));
            }
            if now.elapsed() >= MAX_HOLD {
                ready.give_back(shared, index);
            }
        }
        ready.give_back(shared, index);
    }
}

/// Jobs that are to be given back: some at a time, since a request that waits for them wakes up for
/// each time and not for each job.
#[derive(Default)]
struct Ready(Vec<Finished>);

impl Ready {
    fn give_back(&mut self, shared: &Shared, index: usize) {
        for finished in self.0.drain(..) {
            let job = Arc::clone(&finished.job);
            give_back(shared, finished);
            // Afterwards, so that a panic in between leaves it to be abandoned.
            let mut in_service = sync::lock(&shared.in_service[index]);
            let before = in_service.len();
            in_service.retain(|entry| !Arc::ptr_eq(&entry.job, &job));
            shared.count_returned(before - in_service.len());
        }
    }
}

fn give_back(shared: &Shared, finished: Finished) {
    let Finished { job, number, mut result } = finished;
    let strikes = |fault| shared.model.as_ref().is_some_and(|model| model.strikes(fault, number));
    if let Ok(output) = &mut result
        && shared.model.is_some()
    {
        output.seal();
        if strikes(Fault::Corrupt) {
            output.damage(number);
        }
    }
    job.complete(result);
}

/// Does a job, in no less time than the model says. `None` if it is never to be finished.
fn serve(
    shared: &Shared,
    number: u64,
    job: &Job,
    workspace: &mut Workspace,
) -> Option<Result<Output, JobError>> {
    if job.is_unwanted() {
        return Some(Err(JobError::Failed));
    }
    let start = Instant::now();
    let mut result = None;
    if let Some(model) = &shared.model {
        if model.strikes(Fault::Die, number) {
            // Not `panic!`: the message of a planned death is of no use.
            std::panic::resume_unwind(Box::new("the model says so"));
        }
        if model.strikes(Fault::Hang, number) {
            return None;
        }
        if model.strikes(Fault::Fail, number) {
            result = Some(Err(JobError::Failed));
        }
    }
    let result = result.unwrap_or_else(|| job.run(&shared.codecs, workspace));
    if let Some(model) = &shared.model {
        let rest = model.service(job.input().len()).saturating_sub(start.elapsed());
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    }
    let time = start.elapsed();
    add(&shared.counters.completed, 1);
    shared.service.add(time);
    shared.costs.of(job.work()).add(time);
    Some(result)
}
