//! A queue that is to wait while the limits change, under loom.

use std::sync::Arc as StdArc;
use std::task::{Wake, Waker};
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{Demand, Rate, Rates, Throttle};

/// Stands for a thread's mailbox.
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: StdArc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn slow() -> Rates {
    let read = Rate { operations_per_second: 1, bytes_per_second: 0, burst_ms: 1 };
    Rates { read, write: Rate::default() }
}

/// It is woken, or sees the new limits: it never sleeps until the old ones let it go.
#[test]
fn no_queue_sleeps_through_a_change() {
    loom::model(|| {
        let throttle = Arc::new(Throttle::default());
        throttle.set(&slow(), Duration::ZERO);
        let waker = || Waker::noop().clone();
        throttle.take(0, Demand::Read(0), Duration::ZERO, waker).unwrap();
        let its_throttle = Arc::clone(&throttle);
        let change = thread::spawn(move || its_throttle.set(&Rates::default(), Duration::ZERO));
        let called = StdArc::new(Called(AtomicBool::new(false)));
        let waker = || Waker::from(StdArc::clone(&called));
        let waits = throttle.take(1, Demand::Read(0), Duration::ZERO, waker).is_err();
        change.join().unwrap();
        assert_eq!(called.0.load(Ordering::Acquire), waits);
        if waits {
            assert_eq!(throttle.version(), 0);
        }
        throttle.take(1, Demand::Read(0), Duration::ZERO, || Waker::noop().clone()).unwrap();
    });
}

/// What two queues take at the same time is not more than there is.
#[test]
fn two_queues_do_not_take_the_same_token() {
    loom::model(|| {
        let throttle = Arc::new(Throttle::default());
        throttle.set(&slow(), Duration::ZERO);
        let takes = |throttle: &Throttle, queue| {
            let waker = || Waker::noop().clone();
            throttle.take(queue, Demand::Read(0), Duration::ZERO, waker).is_ok()
        };
        let its_throttle = Arc::clone(&throttle);
        let other = thread::spawn(move || takes(&its_throttle, 1));
        let taken = [takes(&throttle, 0), other.join().unwrap()];
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
    });
}
