//! Jobs and the queue, explored by loom.

use std::collections::VecDeque;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Arc;
use loom::thread;

use super::job::{Job, Output, Spares};
use super::queue::{Queue, Taken};
use super::{JobError, Pending};
use crate::sync::{self, AtomicUsize, Ordering};
use crate::units::PAGE_SIZE;

fn job() -> StdArc<Job> {
    Job::compress(Box::new([7; PAGE_SIZE]), 0, PAGE_SIZE, &mut Spares::default())
}

fn output() -> Result<Output, JobError> {
    Ok(Output::new(Box::new([1; PAGE_SIZE]), Some(5)))
}

/// A result that comes while the request looks is seen by it, or wakes it.
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

/// A request that goes away while its job is finished disturbs nobody.
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

/// Counts wake-ups.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two requests meet a full queue of one place, from which a worker takes. The first one goes away,
/// whether it had its turn or not: the other one's comes all the same.
#[test]
fn a_turn_is_passed_on() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(1));
        queue.put(&mut VecDeque::from([job()]), &mut None);
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut jobs = Vec::new();
                assert_eq!(queue.take(1, true, &mut jobs), Taken::Some);
            })
        };
        let woken =
            [StdArc::new(Woken(AtomicUsize::new(0))), StdArc::new(Woken(AtomicUsize::new(0)))];
        let mut places = [None, None];
        let waits: Vec<bool> = (0..2)
            .map(|lane| {
                let waker = Waker::from(StdArc::clone(&woken[lane]));
                queue.wait_for_room(lane, &waker, &mut places[lane])
            })
            .collect();
        if let Some(place) = places[0].take() {
            queue.leave(place);
        }
        worker.join().unwrap();
        if waits[1] {
            assert_eq!(woken[1].0.load(Ordering::SeqCst), 1, "asleep beside an empty queue");
        }
        // The room is this one's, and nobody else's.
        if waits[1] {
            assert_eq!(queue.put(&mut VecDeque::from([job()]), &mut None), 0);
        }
        assert_eq!(queue.put(&mut VecDeque::from([job()]), &mut places[1]), 1);
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
                while queue.take(1, true, &mut jobs) == Taken::Some {
                    count += jobs.drain(..).count();
                }
                count
            })
        };
        queue.put(&mut VecDeque::from([job()]), &mut None);
        queue.put(&mut VecDeque::from([job()]), &mut None);
        queue.close();
        assert_eq!(worker.join().unwrap(), 2);
    });
}
