//! Rings that are polled: what the driver is asked, and what ends a poll.

use std::sync::mpsc::channel;
use std::time::Duration;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::rig::{Rig, SIZE, USED};
use super::worker::{event, start, wait_until, worker};
use crate::blk::mailbox::Command;
use crate::blk::queue::Turn;

/// A limit of which the first polls last longer than any test waits.
const LONG: Duration = Duration::from_secs(800);

/// Whether the driver is told not to kick, without VIRTIO_F_EVENT_IDX.
fn is_told_to_be_quiet(rig: &Rig) -> bool {
    let flags: u16 = rig.map.shared().memory().read_obj(GuestAddress(USED)).unwrap();
    u32::from(flags) == VRING_USED_F_NO_NOTIFY
}

/// The index at which it is to kick, with VIRTIO_F_EVENT_IDX.
fn avail_event(rig: &Rig) -> u16 {
    let addr = GuestAddress(USED + 4 + 8 * u64::from(SIZE));
    rig.map.shared().memory().read_obj(addr).unwrap()
}

#[test]
fn a_driver_is_asked_for_kicks_only_when_its_ring_is_polled_no_more() {
    for event_idx in [false, true] {
        let rig = Rig::new();
        rig.vring.set_queue_event_idx(event_idx);
        let (mut server, mut context) = (rig.server(), rig.worker_context());
        let memory = rig.map.shared().memory().clone();
        server.set_polled(true);
        // Kicks of a ring that was not used yet are needed to tell whether its memory is shared.
        assert_eq!(server.serve(&mut context), Turn::Idle);
        assert!(!server.has_news(&memory));
        for n in 0..3 {
            rig.write(n, n.into(), 4096);
            assert_eq!(server.has_news(&memory), n > 0, "an unused ring waits for its kick");
            assert_eq!(server.serve(&mut context), Turn::Poll);
            assert_eq!(rig.used().len(), usize::from(n) + 1);
            assert!(!server.has_news(&memory));
            let asked = if event_idx { avail_event(&rig) > 0 } else { !is_told_to_be_quiet(&rig) };
            assert!(!asked, "request {n}, event index {event_idx}");
        }
        server.set_polled(false);
        assert_eq!(server.serve(&mut context), Turn::Idle);
        assert_eq!(if event_idx { avail_event(&rig) } else { 3 }, 3);
        assert!(!is_told_to_be_quiet(&rig));
    }
}

#[test]
fn a_ring_that_may_not_be_served_has_no_news() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    let memory = rig.map.shared().memory().clone();
    rig.write(0, 0, 4096);
    server.serve(&mut context);
    rig.write(1, 1, 4096);
    assert!(server.has_news(&memory));
    rig.vring.set_enabled(false);
    assert!(!server.has_news(&memory));
    rig.vring.set_enabled(true);
    rig.vring.set_queue_ready(false);
    assert!(!server.has_news(&memory));
    rig.vring.set_queue_ready(true);
    assert!(server.has_news(&memory));
    server.stop();
    assert!(!server.has_news(&memory));
}

/// None of the requests but the first comes with a kick, or anything else that wakes the thread.
#[test]
fn a_thread_that_polls_serves_requests_without_kicks_and_obeys_at_once() {
    let rig = Rig::polled(LONG);
    let mut worker = worker(&rig);
    for times in 0..2 {
        rig.write(times * 10, 0, 4096);
        start(&worker, event());
        for n in 1..10 {
            let done = usize::from(times * 10 + n);
            wait_until("a request without a kick", || rig.used().len() == done);
            if n < 9 {
                rig.write(times * 10 + n, u64::from(n), 4096);
            }
        }
        let (stopped, wait) = channel();
        worker.send(Command::Stop { ring: 0, stopped });
        wait.recv_timeout(Duration::from_secs(60)).expect("the poll is not ended by a command");
        rig.vring.set_queue_ready(true);
        // The next round continues where this one ended.
        rig.write(times * 10 + 9, 0, 4096);
    }
    start(&worker, event());
    wait_until("the last request", || rig.used().len() == 20);
    wait_until("a poll", || is_told_to_be_quiet(&rig));
    worker.send(Command::Quit);
    let ended = std::thread::spawn(move || worker.join());
    wait_until("the end", || ended.is_finished());
    assert!(ended.join().unwrap());
    let report = rig.shared.device.report();
    assert!(report.poll_hits >= 16, "{report}");
    assert_eq!(report.poll_misses, 0, "{report}");
}

#[test]
fn a_poll_in_vain_ends_with_a_driver_that_kicks() {
    let rig = Rig::polled(Duration::from_micros(100));
    let mut worker = worker(&rig);
    let kick = event();
    rig.write(0, 0, 4096);
    start(&worker, kick.try_clone().unwrap());
    for n in 1..20 {
        wait_until("the request before", || rig.used().len() == usize::from(n));
        wait_until("the thread sleeps", || !is_told_to_be_quiet(&rig));
        if n == 1 {
            assert_eq!(rig.shared.device.report().poll_misses, 1, "one poll before each sleep");
        }
        rig.write(n, u64::from(n), 4096);
        kick_once(&kick);
    }
    wait_until("the last request", || rig.used().len() == 20);
    worker.send(Command::Quit);
    assert!(worker.join());
}

fn kick_once(mut kick: &std::fs::File) {
    use std::io::Write;
    #[expect(clippy::disallowed_methods, reason = "the kernel counts in its own byte order")]
    kick.write_all(&1_u64.to_ne_bytes()).unwrap();
}
