//! How long requests take, as it is counted.

use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::leave::{Mode, log_of};
use super::resume::left;
use super::rig::{DATA, ROOM, Rig};
use crate::clock;
use crate::device::Latencies;
use crate::rates::{Rate, Rates};

fn counts(rig: &Rig) -> [u64; 5] {
    rig.shared.device.report().latencies.values().map(|latency| latency.count())
}

#[test]
fn each_request_is_counted_once_by_what_it_does() {
    let rig = Rig::timed();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    for n in 0..4 {
        rig.write(n, n.into(), 4096);
    }
    rig.offer(4, VIRTIO_BLK_T_IN, 0, 4096);
    rig.offer(5, VIRTIO_BLK_T_FLUSH, 0, 512);
    // Refused, and out of range: the second one was begun.
    rig.offer(6, 99, 0, 4096);
    rig.offer(7, VIRTIO_BLK_T_IN, 1 << 40, 4096);
    let memory = rig.map.shared().memory().clone();
    for (n, kind) in [(8, VIRTIO_BLK_T_DISCARD), (9, VIRTIO_BLK_T_WRITE_ZEROES)] {
        let segment = 8_u128 << 64;
        memory.write_slice(&segment.to_le_bytes(), GuestAddress(DATA + n * ROOM)).unwrap();
        rig.offer(n as u16, kind, 0, 16);
    }
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used().len(), 10);
    assert_eq!(counts(&rig), [2, 4, 1, 1, 1]);
}

/// From the taking to the publishing, whatever lies in between.
#[test]
fn the_time_of_a_request_ends_when_it_is_published() {
    const WAIT: Duration = Duration::from_millis(20);
    for mode in [Mode::None, Mode::Ordered] {
        let rig = Rig::timed();
        let mut held = rig.offer_to_held(2);
        let mut context = rig.worker_context();
        let mut server = rig.server_on(log_of(&rig, mode, &left(&[], 0)));
        let before = clock::since_start();
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(counts(&rig)[0], 0);
        // The second one ends first. In order, it is published after the first.
        held.pop();
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(counts(&rig)[0], u64::from(mode == Mode::None));
        thread::sleep(WAIT);
        held.pop();
        rig.run_until_idle(&mut server, &mut context);
        let read = rig.shared.device.report().latencies.read;
        assert_eq!(read.count(), 2);
        let slow = if mode == Mode::None { 1 } else { 2 };
        assert!(read.sum() >= WAIT * slow, "{mode:?}: {read}");
        assert!(read.sum() <= (clock::since_start() - before) * 2, "{mode:?}: {read}");
    }
}

#[test]
fn what_goes_back_into_the_ring_is_counted_when_it_is_done() {
    let rig = Rig::timed();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    let slow = Rate { operations_per_second: 0, bytes_per_second: 1, burst_ms: 1 };
    let rates = Rates { write: slow, ..Rates::default() };
    rig.shared.throttle.set(&rates, clock::since_start());
    for n in 0..3 {
        rig.write(n, n.into(), 4096);
    }
    server.serve(&mut context);
    assert_eq!(counts(&rig)[1], 1);
    rig.shared.throttle.set(&Rates::default(), clock::since_start());
    server.serve(&mut context);
    assert_eq!(counts(&rig)[1], 3);
}

#[test]
fn nothing_is_counted_unless_that_is_wanted() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.write(0, 0, 4096);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.shared.device.report().latencies, Latencies::default());
}
