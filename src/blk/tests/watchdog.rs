//! Requests that do not end: reported, counted, and abandoned.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rig::Rig;
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Command;
use crate::blk::parked::Bound;
use crate::blk::queue::QueueServer;
use crate::blk::watchdog::{Checks, Pulse, Watch, Watchdog};
use crate::blk::worker::Worker;
use crate::clock;
use crate::device::Extent;
use crate::device::{Op, Report};
use crate::virtq::inflight_log::InflightLog;

const SECOND: Duration = Duration::from_secs(1);
const IOERR: u8 = 1;

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < 60 * SECOND, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(1));
    }
}

fn figures(rig: &Rig) -> Report {
    rig.shared.device.report()
}

#[test]
fn a_request_that_waits_too_long_is_reported_once_and_may_still_end() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let held = rig.offer_to_held(3);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    let before = clock::coarse();
    rig.run_until_idle(&mut server, &mut context);
    let stall_limits = StallLimits { report: 10 * SECOND, fail: Duration::ZERO };
    assert!(!server.check_parked(checks.at(before + 9 * SECOND), &stall_limits));
    assert_eq!(figures(&rig).stalled_requests, 0);
    let later = clock::coarse() + 10 * SECOND;
    for times in 0..3 {
        assert!(!server.check_parked(checks.at(later + times * 100 * SECOND), &stall_limits));
        assert_eq!(figures(&rig).stalled_requests, 3);
    }
    // Woken and parked again it is the same request.
    server.wake(0);
    rig.run_until_idle(&mut server, &mut context);
    server.check_parked(checks.at(later + 100 * SECOND), &stall_limits);
    assert_eq!(figures(&rig).stalled_requests, 3);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert!(server.is_drained());
    assert!((0..3).all(|n| rig.status(n) == 0));
    assert_eq!((figures(&rig).expired_requests, figures(&rig).failed_reads), (0, 0));
    // A request that takes the same head later has its own time.
    let mut checks = Checks::new(Duration::MAX);
    let held = rig.shared.device.hold(0);
    rig.offer(0, VIRTIO_BLK_T_IN, 0, 4096);
    rig.run_until_idle(&mut server, &mut context);
    server.check_parked(checks.at(clock::coarse() + 9 * SECOND), &stall_limits);
    assert_eq!(figures(&rig).stalled_requests, 3);
    server.check_parked(checks.at(clock::coarse() + 10 * SECOND), &stall_limits);
    assert_eq!(figures(&rig).stalled_requests, 4);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
}

#[test]
fn the_time_of_a_request_continues_when_it_is_parked_again() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let held = rig.offer_to_held(1);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    let parked = clock::coarse();
    wait_until("the clock advances", || clock::coarse() > parked);
    server.wake(0);
    rig.run_until_idle(&mut server, &mut context);
    let stall_limits = StallLimits { report: 10 * SECOND, fail: Duration::ZERO };
    server.check_parked(checks.at(parked + 10 * SECOND), &stall_limits);
    assert_eq!(figures(&rig).stalled_requests, 1);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
}

#[test]
fn a_request_that_waits_far_too_long_fails_and_leaves_nothing_behind() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let stall_limits = StallLimits { report: 10 * SECOND, fail: 20 * SECOND };
    let mut held = rig.offer_to_held(4);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    server.set_bound(Bound { bytes: u64::MAX, count: 2, ..Bound::default() });
    rig.run_until_idle(&mut server, &mut context);
    assert!(!server.check_parked(checks.at(clock::coarse() + 19 * SECOND), &stall_limits));
    assert_eq!(rig.used().len(), 4);
    // The two that are parked fail, are published, and make room: the queue is to have a turn.
    assert!(server.check_parked(checks.at(clock::coarse() + 20 * SECOND), &stall_limits));
    assert_eq!(rig.used()[4..], [0, 1]);
    assert_eq!([rig.status(0), rig.status(1)], [IOERR; 2]);
    assert_eq!(figures(&rig).expired_requests, 2);
    assert_eq!(figures(&rig).failed_reads, 2);
    assert!(server.is_drained());
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.next_avail(), 8);
    // No request waits for their slots any more, so the next request gets them.
    drop(held.drain(..));
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), server.is_drained()), (8, true));
    assert_eq!([rig.status(2), rig.status(3)], [0; 2]);
    assert!(rig.shared.device.hold(0).is_some());
}

/// The process was stopped, frozen or asleep: it could not have served any request.
#[test]
fn time_in_which_the_daemon_was_not_there_does_not_count() {
    const HOUR: Duration = Duration::from_secs(3600);
    let rig = Rig::new();
    let stall_limits = StallLimits { report: 10 * SECOND, fail: 20 * SECOND };
    let (interval, mut checks) = (stall_limits.interval().unwrap(), Checks::of(&stall_limits));
    assert_eq!(interval, SECOND * 5 / 2);
    let held = rig.offer_to_held(2);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    let mut now = clock::coarse();
    let mut check = |server: &mut QueueServer<'_>, after| {
        now += after;
        server.check_parked(checks.at(now), &stall_limits)
    };
    // A request that is already there at the first check is as old as a check may be late.
    assert!(!check(&mut server, HOUR));
    for _ in 0..2 {
        assert!(!check(&mut server, HOUR));
        assert!(!check(&mut server, Duration::ZERO));
    }
    // Three absences of two intervals each: 15 seconds.
    assert_eq!((figures(&rig).stalled_requests, figures(&rig).expired_requests), (2, 0));
    assert!(!check(&mut server, interval));
    assert!(check(&mut server, interval));
    assert_eq!((figures(&rig).stalled_requests, figures(&rig).expired_requests), (2, 2));
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
}

#[test]
fn time_counts_from_check_to_check_and_no_more_than_a_check_may_be_late() {
    let mut checks = Checks::new(4 * SECOND);
    assert_eq!(checks.at(100 * SECOND).counted(99 * SECOND), SECOND);
    let check = checks.at(103 * SECOND);
    assert_eq!(check.counted(99 * SECOND), 3 * SECOND);
    assert_eq!(check.counted(102 * SECOND), SECOND);
    assert_eq!(check.counted(104 * SECOND), Duration::ZERO);
    let check = checks.at(1000 * SECOND);
    assert_eq!(check.counted(99 * SECOND), 4 * SECOND);
    assert_eq!(check.counted(998 * SECOND), 2 * SECOND);
    assert!(
        checks.are_due(1002 * SECOND, 2 * SECOND) && !checks.are_due(1001 * SECOND, 2 * SECOND)
    );
}

#[test]
fn a_write_that_was_given_up_leaves_what_was_there() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.write(0, 5, 4096);
    rig.run_until_idle(&mut server, &mut context);
    let held = rig.shared.device.hold(5);
    rig.write(1, 5, 4096);
    rig.run_until_idle(&mut server, &mut context);
    let stored = figures(&rig).compr_data_size;
    let stall_limits = StallLimits { report: SECOND, fail: 2 * SECOND };
    assert!(server.check_parked(checks.at(clock::coarse() + 2 * SECOND), &stall_limits));
    assert_eq!((rig.status(1), figures(&rig).failed_writes), (IOERR, 1));
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    rig.offer(2, VIRTIO_BLK_T_IN, 5 * 8, 4096);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.status(2), figures(&rig).compr_data_size), (0, stored));
    assert!(rig.data(2) == rig.data(0), "another page than the one that was there");
}

/// A queue thread with the rig's queue, started.
fn worker(rig: &Rig, stall_limits: StallLimits) -> (Worker, Arc<Watch>) {
    let watch = Watch::new(1, stall_limits);
    let trouble = EventFd::new(EFD_NONBLOCK).unwrap();
    let vrings = vec![(0, rig.vring.clone())];
    let shared = Arc::clone(&rig.shared);
    let worker =
        Worker::spawn(0, vrings, shared, rig.worker_context(), trouble, Arc::clone(&watch));
    let worker = worker.unwrap();
    let kick = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK);
    let kick = File::from(OwnedFd::from(kick.unwrap()));
    worker.send(Command::Start {
        ring: 0,
        kick,
        error_event: None,
        inflight_log: InflightLog::default(),
    });
    (worker, watch)
}

#[test]
fn a_thread_looks_after_what_it_has_parked_without_being_woken() {
    let rig = Rig::new();
    let held = rig.offer_to_held(3);
    let stall_limits = StallLimits { report: SECOND / 10, fail: SECOND / 5 };
    let (mut worker, watch) = worker(&rig, stall_limits);
    let dog = Watchdog::start(Arc::clone(&watch), Arc::clone(&rig.shared.device), Arc::default())
        .unwrap();
    // Dropped first: otherwise the test would wait for a thread that waits for this.
    let held = held;
    wait_until("the failure of all three", || rig.used().len() == 6);
    assert!((0..3).all(|n| rig.status(n) == IOERR));
    let report = figures(&rig);
    assert_eq!((report.stalled_requests, report.expired_requests), (3, 3));
    wait_until("sleep without a timer", || !watch.is_armed());
    drop(dog);
    worker.send(Command::Quit);
    assert!(worker.join());
    drop(held);
}

#[test]
fn a_thread_continues_with_what_wakes_up_without_a_kick() {
    let rig = Rig::new();
    let held = rig.offer_to_held(8);
    let (mut worker, _watch) = worker(&rig, StallLimits::default());
    let mut held = held;
    wait_until("the requests are parked", || rig.next_avail() == 16);
    for done in 1..=8 {
        drop(held.pop());
        wait_until("the request whose slot is free", || rig.used().len() == 8 + done);
    }
    worker.send(Command::Quit);
    assert!(worker.join());
    assert_eq!(figures(&rig).stalled_requests, 0);
}

#[test]
fn what_is_given_up_lets_a_thread_come_to_rest() {
    let rig = Rig::new();
    let held = rig.offer_to_held(3);
    let stall_limits = StallLimits { report: SECOND / 10, fail: SECOND / 5 };
    let (mut worker, _watch) = worker(&rig, stall_limits);
    let held = held;
    wait_until("the requests are parked", || rig.next_avail() == 6);
    let (paused, wait) = channel();
    let (keep, resume) = channel();
    worker.send(Command::Pause { finish: false, paused, resume });
    wait.recv_timeout(60 * SECOND).unwrap();
    drop(keep);
    let (stopped, wait) = channel();
    worker.send(Command::Stop { ring: 0, stopped });
    wait.recv_timeout(60 * SECOND).unwrap();
    worker.send(Command::Quit);
    assert!(worker.join());
    drop(held);
}

#[test]
fn a_thread_that_does_not_leave_a_poll_is_reported_once() {
    let rig = Rig::new();
    let watch = Watch::new(2, StallLimits { report: SECOND / 20, fail: Duration::ZERO });
    let device = Arc::clone(&rig.shared.device);
    let dog = Watchdog::start(Arc::clone(&watch), device, Arc::default()).unwrap();
    let (idle, busy) = (watch.pulse(0), watch.pulse(1));
    let extent = Extent { op: Op::Write, sector: 7, bytes: 4096 };
    watch.rouse(&idle);
    for number in 1..=2 {
        watch.rouse(&busy);
        // It ignores polls that end, however many there are.
        for _ in 0..1000 {
            busy.enter(3, 5, &extent, false);
            busy.leave();
        }
        assert!(!busy.was_reported());
        busy.enter(3, 5, &extent, false);
        wait_until("a report", || figures(&rig).stalled_requests == number);
        thread::sleep(SECOND / 5);
        assert_eq!(figures(&rig).stalled_requests, number);
        busy.leave();
        assert!(busy.was_reported());
        busy.rest();
    }
    drop(dog);
}

#[test]
fn each_poll_is_to_be_seen_by_the_watchdog_and_reported_requests_stay_reported() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let held = rig.offer_to_held(2);
    let pulse = Arc::<Pulse>::default();
    let (mut server, mut context) = (rig.server_with(Arc::clone(&pulse)), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(pulse.last(), (2, "0 3 read of 4096 bytes from sector 8 false".into()));
    // One of the two is reported while it is polled, and then parked.
    pulse.report_next();
    server.wake(0);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(pulse.last(), (3, "0 0 read of 4096 bytes from sector 0 false".into()));
    let stall_limits = StallLimits { report: 10 * SECOND, fail: Duration::ZERO };
    server.check_parked(checks.at(clock::coarse() + 10 * SECOND), &stall_limits);
    assert_eq!(figures(&rig).stalled_requests, 1, "one was counted by the watchdog");
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(pulse.last(), (5, "0 3 read of 4096 bytes from sector 8 true".into()));
}

#[test]
fn the_watchdog_sleeps_while_the_threads_do_and_wakes_up_with_them() {
    let rig = Rig::new();
    let watch = Watch::new(1, StallLimits { report: SECOND / 50, fail: Duration::ZERO });
    let device = Arc::clone(&rig.shared.device);
    let dog = Watchdog::start(Arc::clone(&watch), device, Arc::default()).unwrap();
    let pulse = watch.pulse(0);
    let extent = Extent { op: Op::Read, sector: 0, bytes: 512 };
    for number in 1..=5 {
        watch.rouse(&pulse);
        wait_until("the watchdog is up", || watch.is_armed());
        pulse.enter(0, 0, &extent, false);
        wait_until("a report", || figures(&rig).stalled_requests == number);
        assert!(watch.is_armed(), "a thread is awake");
        pulse.leave();
        pulse.rest();
        wait_until("sleep without a timer", || !watch.is_armed());
    }
    drop(dog);
    // One that is off is never woken.
    let watch = Watch::new(1, StallLimits { report: Duration::ZERO, fail: Duration::ZERO });
    let dog = Watchdog::start(Arc::clone(&watch), Arc::clone(&rig.shared.device), Arc::default())
        .unwrap();
    watch.rouse(&watch.pulse(0));
    drop(dog);
}

#[test]
fn a_watchdog_that_is_off_says_nothing() {
    let rig = Rig::new();
    let mut checks = Checks::new(Duration::MAX);
    let held = rig.offer_to_held(1);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    let off = StallLimits { report: Duration::ZERO, fail: Duration::ZERO };
    assert_eq!(off.interval(), None);
    assert!(!server.check_parked(checks.at(clock::coarse() + 1_000_000 * SECOND), &off));
    assert_eq!(figures(&rig).stalled_requests, 0);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
}
