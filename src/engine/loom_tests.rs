//! Jobs and the queue, explored by loom.

use std::collections::VecDeque;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Waker};

use loom::sync::Arc;
use loom::thread;

use super::job::{Job, Output, Spares};
use super::queue::{Queue, TakeResult};
use super::{JobError, Pending};
use crate::sync;
use crate::units::PAGE_SIZE;

fn job() -> StdArc<Job> {
    Job::compress(Box::new([7; PAGE_SIZE]), 0, PAGE_SIZE, &mut Spares::default())
}

fn output() -> Result<Output, JobError> {
    Ok(Output::new(Box::new([1; PAGE_SIZE]), Some(5)))
}

/// A result that comes while the request polls is seen by it, or wakes it.
#[test]
fn a_result_is_never_missed_and_counts_once() {
    loom::model(|| {
        let job = job();
        let mut pending = Pending::new(StdArc::clone(&job));
        let workers: Vec<_> = [output(), Err(JobError::TimedOut)]
            .into_iter()
            .map(|result| {
                let job = StdArc::clone(&job);
                thread::spawn(move || job.complete(result))
            })
            .collect();
        let result = sync::block_on(|cx| pending.poll(cx));
        assert!(matches!(result, Ok(_) | Err(JobError::TimedOut)));
        let firsts = workers.into_iter().map(|w| w.join().unwrap());
        assert_eq!(firsts.filter(|first| *first).count(), 1);
    });
}

/// A request that goes away while its job is finished does not disturb the worker.
#[test]
fn a_request_may_leave_its_job() {
    loom::model(|| {
        let job = job();
        let mut pending = Pending::new(StdArc::clone(&job));
        let worker = thread::spawn(move || job.complete(output()));
        let cx = Context::from_waker(Waker::noop());
        let _ = matches!(pending.poll(&cx), Poll::Ready(Ok(_)));
        drop(pending);
        assert!(worker.join().unwrap());
    });
}

/// Two requests submit to a queue of one place, from which a worker takes: what is not put in stays
/// with its request, and what is put in is taken.
#[test]
fn a_full_queue_loses_no_job() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(1));
        let submitters: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut jobs = VecDeque::from([job(), job()]);
                    let count = queue.put(&mut jobs);
                    assert_eq!(count + jobs.len(), 2);
                    assert!(count <= 1, "more than fit");
                    count
                })
            })
            .collect();
        let mut taken = Vec::new();
        assert_eq!(queue.take(1, true, &mut taken), TakeResult::Jobs);
        let put: usize = submitters.into_iter().map(|submitter| submitter.join().unwrap()).sum();
        queue.close();
        while queue.take(1, true, &mut taken) == TakeResult::Jobs {}
        assert_eq!(taken.len(), put);
    });
}

/// A job that is put in while the worker goes to sleep is taken all the same, and a closed queue
/// lets its worker go.
#[test]
fn a_worker_sleeps_through_nothing() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(4));
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let (mut jobs, mut count) = (Vec::new(), 0);
                while queue.take(1, true, &mut jobs) == TakeResult::Jobs {
                    count += jobs.drain(..).count();
                }
                count
            })
        };
        queue.put(&mut VecDeque::from([job()]));
        queue.put(&mut VecDeque::from([job()]));
        queue.close();
        assert_eq!(worker.join().unwrap(), 2);
    });
}
