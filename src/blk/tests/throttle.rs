//! Queues that wait for rate limits: nothing is in flight meanwhile, nothing waits for them, and they are let go.

use std::sync::mpsc::channel;
use std::time::Duration;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::rig::{DATA, ROOM, Rig};
use super::worker::{event, start, wait_until, worker};
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Command;
use crate::blk::queue::Turn;
use crate::blk::watchdog::Checks;
use crate::clock;
use crate::rates::{Rate, Rates};

/// More than an hour for each page, and less for nothing.
const A_BYTE: Rate = Rate { operations_per_second: 0, bytes_per_second: 1, burst_ms: 1 };
/// One, and the next one a second later.
const AN_OPERATION: Rate = Rate { operations_per_second: 1, bytes_per_second: 0, burst_ms: 1 };
/// No limit.
const NONE: Rate = Rate { operations_per_second: 0, bytes_per_second: 0, burst_ms: 1 };

fn limit(rig: &Rig, rates: Rates) {
    rig.shared.throttle.set(&rates, clock::since_start());
}

/// Lays out a discard or write-zeroes of `sectors` sectors.
fn offer_free(rig: &Rig, n: u16, kind: u32, sectors: u32) {
    let memory = rig.map.shared().memory().clone();
    let segment = u128::from(sectors) << 64;
    memory.write_slice(&segment.to_le_bytes(), GuestAddress(DATA + u64::from(n) * ROOM)).unwrap();
    rig.offer(n, kind, 0, 16);
}

#[test]
fn a_queue_that_waits_leaves_its_requests_in_the_ring() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    limit(&rig, Rates { write: A_BYTE, read: NONE });
    for n in 0..4 {
        rig.write(n, n.into(), 4096);
    }
    // One request may owe.
    assert_eq!(server.serve(&mut context), Turn::Idle);
    for _ in 0..3 {
        assert_eq!((rig.used(), rig.next_avail()), (vec![0], 1));
        assert!(server.is_drained());
        assert!(server.waits_until().unwrap() > clock::since_start() + Duration::from_secs(3600));
        // A kick changes nothing.
        server.kicked();
        assert_eq!(server.serve(&mut context), Turn::Idle);
    }
    let report = rig.shared.device.report();
    assert_eq!((report.throttled_requests, report.throttled_us), (1, 0));
    // However long that takes, no request is late.
    let (stall_limits, second) = (StallLimits::default(), Duration::from_secs(1));
    let stall_limits = StallLimits { fail: 20 * second, ..stall_limits };
    let mut checks = Checks::new(Duration::MAX);
    assert!(!server.check_parked(checks.at(clock::coarse() + 1_000_000 * second), &stall_limits));
    limit(&rig, Rates::default());
    assert_eq!(server.serve(&mut context), Turn::Idle);
    assert_eq!((rig.used(), server.waits_until()), (vec![0, 1, 2, 3], None));
    assert_eq!(rig.shared.device.report().stalled_requests, 0);
    assert_eq!(rig.shared.device.report().throttled_requests, 1);
}

#[test]
fn what_changes_the_disk_is_a_write_and_what_moves_no_data_has_no_bytes() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    limit(&rig, Rates { write: A_BYTE, read: NONE });
    for n in 0..3 {
        offer_free(&rig, n, VIRTIO_BLK_T_DISCARD, 1 << 16);
        offer_free(&rig, n + 3, VIRTIO_BLK_T_WRITE_ZEROES, 1 << 16);
    }
    server.serve(&mut context);
    assert_eq!(rig.used().len(), 6);
    let mut done = 6;
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        limit(&rig, Rates { write: AN_OPERATION, read: NONE });
        offer_free(&rig, 0, kind, 8);
        server.serve(&mut context);
        // What is no write does not wait.
        rig.offer(1, VIRTIO_BLK_T_IN, 0, 4096);
        rig.offer(2, VIRTIO_BLK_T_FLUSH, 0, 512);
        server.serve(&mut context);
        assert_eq!(rig.used().len(), done + 3);
        limit(&rig, Rates::default());
        limit(&rig, Rates { write: AN_OPERATION, read: NONE });
        offer_free(&rig, 0, kind, 8);
        offer_free(&rig, 1, kind, 8);
        server.serve(&mut context);
        assert_eq!(rig.used().len(), done + 4);
        limit(&rig, Rates::default());
        server.serve(&mut context);
        done += 5;
        assert_eq!(rig.used().len(), done);
    }
}

#[test]
fn a_limit_that_is_met_in_time_is_waited_for_and_no_longer() {
    let rig = Rig::new();
    let mut worker = worker(&rig);
    limit(&rig, Rates { write: Rate { operations_per_second: 100, ..NONE }, read: NONE });
    for n in 0..10 {
        rig.write(n, n.into(), 4096);
    }
    start(&worker, event());
    wait_until("all requests", || rig.used().len() == 10);
    let report = rig.shared.device.report();
    assert!((1..=9).contains(&report.throttled_requests), "{report}");
    assert!(report.throttled_us > 0, "{report}");
    worker.send(Command::Quit);
    assert!(worker.join());
}

/// The thread sleeps for an hour if nothing wakes it.
#[test]
fn commands_and_changes_wake_a_queue_that_waits() {
    let rig = Rig::new();
    let mut worker = worker(&rig);
    let throttled = || rig.shared.device.report().throttled_requests;
    for times in 1..=3 {
        limit(&rig, Rates { write: A_BYTE, read: NONE });
        let done = rig.used().len();
        for n in 0..4 {
            rig.write(n, n.into(), 4096);
        }
        start(&worker, event());
        wait_until("a queue that waits", || throttled() == 2 * times - 1);
        assert_eq!(rig.used().len(), done + 1);
        let (stopped, wait) = channel();
        worker.send(Command::Stop { ring: 0, stopped });
        wait.recv_timeout(Duration::from_secs(60)).expect("a stop waits for tokens");
        assert_eq!((usize::from(rig.next_avail()), rig.used().len()), (done + 1, done + 1));
        rig.vring_ready();
        start(&worker, event());
        wait_until("a queue that waits again", || throttled() == 2 * times);
        limit(&rig, Rates { write: Rate { bytes_per_second: 1 << 40, ..A_BYTE }, read: NONE });
        wait_until("the rest", || rig.used().len() == done + 4);
        let (stopped, wait) = channel();
        worker.send(Command::Stop { ring: 0, stopped });
        wait.recv_timeout(Duration::from_secs(60)).unwrap();
        rig.vring_ready();
        limit(&rig, Rates::default());
    }
    limit(&rig, Rates { write: A_BYTE, read: NONE });
    for n in 0..2 {
        rig.write(n, n.into(), 4096);
    }
    start(&worker, event());
    wait_until("a queue that waits", || throttled() == 7);
    worker.send(Command::Quit);
    let ended = std::thread::spawn(move || worker.join());
    wait_until("the end", || ended.is_finished());
    assert!(ended.join().unwrap());
    assert_eq!(rig.next_avail(), 13);
}
