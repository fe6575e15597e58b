//! Jobs: background work that was asked for, with a number, its progress, and a way to cancel it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::device::{Compaction, Recompression};
use crate::events::{Bus, Event};
use crate::sync;

/// Jobs that are over and still listed, the last ones.
const REMEMBERED: usize = 32;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Compacts all of the disk's memory.
    Compact,
    /// Compresses pages again, by a slower algorithm.
    Recompress,
}

/// What has become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its thread.
    Queued,
    /// It is under way.
    Running,
    /// It is done.
    Done,
    /// It ended before it was done. What it did stays.
    Cancelled,
}

impl JobState {
    /// Whether it goes no further.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// A job at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobReport {
    /// Its number, from 1 on; no other job of the disk has it.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// What has become of it.
    pub state: JobState,
    /// How far it is, 0 to 100. It is 100 when it is done, and not before.
    pub percent: u8,
    /// How long it ran so far.
    pub running: Duration,
    /// What it did so far, if it compacts.
    pub done: Compaction,
    /// What it did so far, if it recompresses.
    pub recompressed: Recompression,
}

/// A job, shared by the thread that does it and those that look at it.
#[derive(Debug)]
pub(super) struct Job {
    id: u64,
    kind: JobKind,
    cancelled: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    state: JobState,
    began: Option<Instant>,
    took: Option<Duration>,
    done: Compaction,
    recompressed: Recompression,
}

impl Job {
    /// Its number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is to end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// It did so much so far.
    pub(super) fn advance(&self, done: &Compaction) {
        sync::lock(&self.progress).done = *done;
    }

    /// It recompressed so much so far.
    pub(super) fn advance_recompression(&self, done: &Recompression) {
        sync::lock(&self.progress).recompressed = *done;
    }

    /// Whether it goes no further.
    pub(super) fn is_over(&self) -> bool {
        sync::lock(&self.progress).state.is_over()
    }

    fn report(&self) -> JobReport {
        let progress = sync::lock(&self.progress);
        let running = progress.took.or_else(|| progress.began.map(|began| began.elapsed()));
        let (done, recompressed) = (progress.done, progress.recompressed);
        let (part, all) = match self.kind {
            JobKind::Compact => (done.pages, done.excess),
            JobKind::Recompress => (recompressed.tried, recompressed.found),
        };
        let part = (part * 100).checked_div(all).unwrap_or(0).min(99);
        let percent = if progress.state == JobState::Done { 100 } else { part as u8 };
        JobReport {
            id: self.id,
            kind: self.kind,
            state: progress.state,
            percent,
            running: running.unwrap_or_default(),
            done,
            recompressed,
        }
    }
}

/// The jobs of one disk: those that are not over, and the last ones that are.
#[derive(Debug)]
pub struct Jobs {
    list: Mutex<List>,
    events: Arc<Bus>,
}

#[derive(Debug, Default)]
struct List {
    last: u64,
    jobs: VecDeque<Arc<Job>>,
}

impl Jobs {
    /// No job yet; their begin and end are told to `events`.
    pub(super) fn new(events: Arc<Bus>) -> Self {
        Self { list: Mutex::default(), events }
    }

    /// A new job, which waits.
    pub(super) fn add(&self, kind: JobKind) -> Arc<Job> {
        let mut list = sync::lock(&self.list);
        list.last += 1;
        let progress = Progress {
            state: JobState::Queued,
            began: None,
            took: None,
            done: Compaction::default(),
            recompressed: Recompression::default(),
        };
        let job = Arc::new(Job {
            id: list.last,
            kind,
            cancelled: AtomicBool::new(false),
            progress: Mutex::new(progress),
        });
        list.jobs.push_back(Arc::clone(&job));
        job
    }

    /// It begins.
    pub(super) fn begin(&self, job: &Job) {
        let mut progress = sync::lock(&job.progress);
        progress.state = JobState::Running;
        progress.began = Some(Instant::now());
        drop(progress);
        self.events.tell(|| Event::JobBegun { job: job.id });
    }

    /// It is over. Those that ended first are forgotten.
    pub(super) fn end(&self, job: &Job, cancelled: bool) {
        let mut progress = sync::lock(&job.progress);
        progress.state = if cancelled { JobState::Cancelled } else { JobState::Done };
        progress.took = Some(progress.began.map_or(Duration::ZERO, |began| began.elapsed()));
        drop(progress);
        self.events.tell(|| Event::JobEnded { job: job.id, cancelled });
        let mut list = sync::lock(&self.list);
        let over = list.jobs.iter().filter(|job| job.report().state.is_over()).count();
        for _ in REMEMBERED..over {
            let first = list.jobs.iter().position(|job| job.report().state.is_over());
            if let Some(first) = first {
                list.jobs.remove(first);
            }
        }
    }

    /// All that are listed, oldest first.
    pub fn list(&self) -> Vec<JobReport> {
        sync::lock(&self.list).jobs.iter().map(|job| job.report()).collect()
    }

    /// The one with this number.
    pub fn get(&self, id: u64) -> Option<JobReport> {
        self.find(id).map(|job| job.report())
    }

    /// Cancels a job, which ends soon; one that is over is not listed any more. `None` if there is no such job.
    pub fn cancel(&self, id: u64) -> Option<JobReport> {
        let job = self.find(id)?;
        job.cancelled.store(true, Ordering::Relaxed);
        let report = job.report();
        if report.state.is_over() {
            sync::lock(&self.list).jobs.retain(|job| job.id != id);
        }
        Some(report)
    }

    fn find(&self, id: u64) -> Option<Arc<Job>> {
        sync::lock(&self.list).jobs.iter().find(|job| job.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Jobs {
        Jobs::new(Arc::default())
    }

    #[test]
    fn a_job_says_how_far_it_is() {
        let jobs = jobs();
        let job = jobs.add(JobKind::Compact);
        assert_eq!(jobs.get(1).unwrap().state, JobState::Queued);
        jobs.begin(&job);
        let done = Compaction { pages: 50, excess: 200, moves: 3, ..Compaction::default() };
        job.advance(&done);
        let report = jobs.get(1).unwrap();
        assert_eq!((report.state, report.percent, report.done.moves), (JobState::Running, 25, 3));
        // More was bare than it knew at its begin; it is not done for that.
        job.advance(&Compaction { pages: 300, ..done });
        assert_eq!(jobs.get(1).unwrap().percent, 99);
        jobs.end(&job, false);
        let report = jobs.get(1).unwrap();
        assert_eq!((report.state, report.percent), (JobState::Done, 100));
        assert_eq!(jobs.get(2), None);
    }

    #[test]
    fn a_job_that_is_cancelled_ends_and_then_it_can_be_forgotten() {
        let jobs = jobs();
        let job = jobs.add(JobKind::Compact);
        jobs.begin(&job);
        assert!(!job.is_cancelled());
        assert_eq!(jobs.cancel(1).unwrap().state, JobState::Running);
        assert!(job.is_cancelled());
        jobs.end(&job, true);
        assert_eq!(jobs.get(1).unwrap().state, JobState::Cancelled);
        assert!(jobs.get(1).unwrap().percent < 100);
        jobs.cancel(1).unwrap();
        assert_eq!((jobs.get(1), jobs.cancel(1)), (None, None));
    }

    #[test]
    fn the_last_ones_that_are_over_are_listed() {
        let jobs = jobs();
        let waits = jobs.add(JobKind::Compact);
        for _ in 0..2 * REMEMBERED {
            let job = jobs.add(JobKind::Compact);
            jobs.end(&job, false);
        }
        let ids: Vec<u64> = jobs.list().iter().map(|job| job.id).collect();
        let last = 2 * REMEMBERED as u64 + 1;
        let expected: Vec<u64> =
            [1].into_iter().chain(last + 1 - REMEMBERED as u64..=last).collect();
        assert_eq!(ids, expected);
        jobs.end(&waits, false);
        assert_eq!(jobs.list().len(), REMEMBERED);
    }
}
