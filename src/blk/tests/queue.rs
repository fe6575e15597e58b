//! Turns of a queue, requests that wait, and the bound of what may wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::rig::{AVAIL, Rig, SIZE, USED};
use crate::blk::parked::Bound;
use crate::blk::queue::Turn;

#[test]
fn a_turn_ends_when_its_time_is_up_and_leaves_the_rest_in_the_ring() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    server.set_time_slice(Duration::ZERO);
    for n in 0..5 {
        rig.write(n, n.into(), 4096);
    }
    for done in 1..=5 {
        assert_eq!(server.serve(&mut context), Turn::More);
        // Published at once, and nothing taken that was not begun.
        assert_eq!(rig.used(), Vec::from_iter(0..done));
        assert_eq!(rig.next_avail(), done);
        assert!(server.is_drained());
    }
    assert_eq!(server.serve(&mut context), Turn::Idle);
    assert!((0..5).all(|n| rig.status(n) == 0));
}

#[test]
fn a_broken_ring_is_found_behind_what_is_in_order_before_it() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    server.set_time_slice(Duration::ZERO);
    for n in 0..3 {
        rig.write(n, n.into(), 4096);
    }
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 4 + 3 * 2)).unwrap();
    memory.write_obj(4_u16, GuestAddress(AVAIL + 2)).unwrap();
    for done in 1..=2 {
        assert_eq!(server.serve(&mut context), Turn::More);
        assert_eq!(rig.used().len(), done);
    }
    // The third one is the last of its batch; the error is known then.
    assert_eq!(server.serve(&mut context), Turn::Idle);
    assert_eq!(rig.used(), [0, 1, 2]);
    rig.write(3, 3, 4096);
    assert_eq!(server.serve(&mut context), Turn::Idle, "it is stopped");
    assert_eq!(rig.used(), [0, 1, 2]);
}

#[test]
fn requests_that_wake_up_and_new_ones_share_a_turn() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    for n in 0..4 {
        rig.write(n, n.into(), 4096);
    }
    rig.run_until_idle(&mut server, &mut context);
    let held: Vec<_> = (0..4).map(|page| rig.shared.device.hold(page).unwrap()).collect();
    for n in 4..8 {
        rig.offer(n, VIRTIO_BLK_T_IN, u64::from(n - 4) * 8, 4096);
    }
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used(), server.is_drained()), (vec![0, 1, 2, 3], false));
    server.set_time_slice(Duration::ZERO);
    for n in 8..12 {
        rig.write(n, n.into(), 4096);
    }
    // All wake up at once. In a turn of no time there is one of each kind, so neither waits for
    // all of the other.
    drop(held);
    rig.pass_on(&mut server);
    for turn in 1..=4 {
        assert_eq!(server.serve(&mut context), Turn::More);
        assert_eq!(rig.used().len(), 4 + 2 * turn, "{:?}", rig.used());
    }
    assert_eq!(rig.used()[4..], [4, 8, 5, 9, 6, 10, 7, 11]);
    assert_eq!(server.serve(&mut context), Turn::Idle);
}

#[test]
fn a_queue_takes_no_more_than_its_bound_and_continues_without_a_kick() {
    const COUNT: u16 = 16;
    for event_idx in [false, true] {
        for bound in [
            Bound { bytes: u64::MAX, count: 3, ..Bound::default() },
            Bound { bytes: 9000, count: 1000, ..Bound::default() },
        ] {
            let rig = Rig::new();
            rig.vring.set_queue_event_idx(event_idx);
            let mut held = rig.offer_to_held(COUNT);
            let (mut server, mut context) = (rig.server(), rig.worker_context());
            server.set_bound(bound);
            rig.run_until_idle(&mut server, &mut context);
            // Three of 4 KiB: the third is begun while fewer bytes than the bound are in flight.
            assert_eq!(rig.next_avail(), COUNT + 3);
            // A kick changes nothing, and does not make the thread spin.
            assert_eq!(server.serve(&mut context), Turn::Idle);
            assert_eq!(rig.next_avail(), COUNT + 3);
            for done in 1..=COUNT {
                drop(held.remove(0));
                // The queue receives only the wake-up.
                rig.pass_on(&mut server);
                while server.serve(&mut context) == Turn::More {}
                assert_eq!(rig.used().len(), usize::from(COUNT + done), "{bound:?}");
                assert_eq!(rig.next_avail(), COUNT + (done + 3).min(COUNT), "{bound:?}");
            }
            assert!(server.is_drained());
            // Now that all is taken, kicks are asked for again.
            let memory = rig.map.shared().memory().clone();
            let (flags, event): (u16, u16) = (
                memory.read_obj(GuestAddress(USED)).unwrap(),
                memory.read_obj(GuestAddress(USED + 4 + 8 * u64::from(SIZE))).unwrap(),
            );
            if event_idx {
                assert_eq!(event, 2 * COUNT);
            } else {
                assert_eq!(flags, 0);
            }
        }
    }
}

#[test]
fn a_full_queue_is_not_kicked() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    let memory = rig.map.shared().memory().clone();
    let no_kicks = || -> u16 { memory.read_obj(GuestAddress(USED)).unwrap() };
    rig.write(0, 0, 4096);
    rig.run_until_idle(&mut server, &mut context);
    server.set_bound(Bound { bytes: u64::MAX, count: 1, ..Bound::default() });
    for _ in 0..3 {
        assert_eq!(no_kicks(), 0);
        let held = rig.shared.device.hold(0);
        rig.offer(1, VIRTIO_BLK_T_IN, 0, 4096);
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(no_kicks(), 1);
        drop(held);
        rig.run_until_idle(&mut server, &mut context);
    }
}

#[test]
fn one_request_is_begun_whatever_its_size() {
    let rig = Rig::new();
    let held = rig.offer_to_held(2);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    server.set_bound(Bound { bytes: 0, count: 0, ..Bound::default() });
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.next_avail(), 3);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), server.is_drained()), (4, true));
}

#[test]
fn a_full_queue_that_is_stopped_leaves_the_rest_in_the_ring() {
    let rig = Rig::new();
    let held = rig.offer_to_held(5);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    server.set_bound(Bound { bytes: u64::MAX, count: 2, ..Bound::default() });
    rig.run_until_idle(&mut server, &mut context);
    server.stop();
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert!(server.is_drained());
    assert_eq!((rig.used().len(), rig.next_avail()), (7, 7));
}

#[test]
fn a_stopped_queue_finishes_what_waits_and_takes_nothing() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.write(0, 1, 4096);
    rig.run_until_idle(&mut server, &mut context);
    let held = rig.shared.device.hold(1).unwrap();
    rig.offer(1, VIRTIO_BLK_T_IN, 8, 4096);
    rig.run_until_idle(&mut server, &mut context);
    server.stop();
    rig.offer(2, VIRTIO_BLK_T_IN, 8, 4096);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used(), server.is_drained()), (vec![0], false));
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used(), server.is_drained()), (vec![0, 1], true));
    assert_eq!((rig.status(1), rig.status(2)), (0, 0xff));
    assert_eq!(rig.next_avail(), 2);
}

/// A guest whose memory is not shared kicks, and its ring shows nothing here.
#[test]
fn kicks_that_never_show_a_request_are_told_of_once() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    // The front end's own, with which those from before the start add up.
    server.kicked();
    rig.run_until_idle(&mut server, &mut context);
    // A read of the ring without a kick proves nothing.
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.printed.take(), [""; 0]);
    // The driver's only one: it waits for its first request.
    server.kicked();
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.shared.device.report().blind_queues, 1);
    for _ in 0..5 {
        server.kicked();
        rig.run_until_idle(&mut server, &mut context);
    }
    let printed = rig.printed.take();
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert!(printed[0].contains("share=on") && printed[0].contains("<access mode='shared'/>"));
    assert_eq!(rig.shared.device.report().blind_queues, 1);
}

/// A kick often arrives after its request was found, and kicks are common while a queue is full.
#[test]
fn kicks_that_come_late_are_no_reason_to_worry() {
    let rig = Rig::new();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    // The front end's own.
    server.kicked();
    rig.run_until_idle(&mut server, &mut context);
    for n in 0..5 {
        rig.write(n, n.into(), 4096);
        rig.run_until_idle(&mut server, &mut context);
        for _ in 0..5 {
            server.kicked();
            rig.run_until_idle(&mut server, &mut context);
        }
    }
    // A ring that was in use is seen, however often a new server of it is kicked for nothing.
    for _ in 0..3 {
        let mut server = rig.server();
        for _ in 0..5 {
            server.kicked();
            rig.run_until_idle(&mut server, &mut context);
        }
    }
    assert_eq!(rig.printed.take(), [""; 0]);
    assert_eq!(rig.shared.device.report().blind_queues, 0);
}

/// A front end kicks queues that its guest does not use. Another queue shows that the memory is here.
#[test]
fn kicks_of_an_unused_queue_beside_one_in_use_are_no_reason_to_worry() {
    let rig = Rig::new();
    let mut context = rig.worker_context();
    rig.write(0, 0, 4096);
    rig.run_until_idle(&mut rig.server(), &mut context);
    // The rig has one ring: from here on it is the one that is not used.
    let memory = rig.map.shared().memory().clone();
    for ring in [AVAIL, USED] {
        memory.write_obj(0_u16, GuestAddress(ring + 2)).unwrap();
    }
    rig.vring.set_queue_next_avail(0);
    rig.vring.set_queue_next_used(0);
    let mut server = rig.server();
    for _ in 0..5 {
        server.kicked();
        rig.run_until_idle(&mut server, &mut context);
    }
    assert_eq!(rig.printed.take(), [""; 0]);
    assert_eq!(rig.shared.device.report().blind_queues, 0);
}

/// Once for a disk, whatever else its process does.
#[test]
fn the_first_request_to_a_disk_is_logged_once() {
    for _ in 0..2 {
        let rig = Rig::new();
        rig.shared.announced.store(false, Ordering::Relaxed);
        let (mut server, mut context) = (rig.server(), rig.worker_context());
        server.serve(&mut context);
        assert_eq!(rig.printed.take(), [""; 0]);
        for n in 0..2 {
            rig.write(n, n.into(), 4096);
            server.serve(&mut context);
        }
        let printed = rig.printed.take();
        assert!(printed.len() == 1 && printed[0].starts_with("the first request"), "{printed:?}");
    }
}
