//! Queues that publish in order, and queues that resume what another process left.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::rig::{Rig, SIZE, USED};
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Command;
use crate::blk::parked::Bound;
use crate::blk::queue::Turn;
use crate::blk::watchdog::{Checks, Watch};
use crate::blk::worker::Worker;
use crate::clock;
use crate::virtq::inflight::Inflight;
use crate::virtq::inflight::tests::{overwrite, region, watch_stores};
use crate::virtq::inflight_log::{InflightLog, Record};
use crate::virtq::order::Order;
use crate::virtq::part::Contents;
use crate::virtq::position;

const SECOND: Duration = Duration::from_secs(1);

fn ordered() -> InflightLog {
    InflightLog::Order(Order::new(SIZE))
}

#[test]
fn without_a_region_requests_are_published_in_the_order_in_which_they_were_taken() {
    let rig = Rig::new();
    let mut held = rig.offer_to_held(4);
    let (mut server, mut context) = (rig.server_on(ordered()), rig.worker_context());
    // One that waits for nothing, behind four that wait.
    rig.write(4, 9, 4096);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), rig.status(4)), (4, 0), "done, and not published");
    // Pages 3, 1 and 2.
    for place in [3, 1, 1] {
        drop(held.remove(place));
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used().len(), server.is_drained()), (4, false));
    }
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used()[4..], [0, 1, 2, 3, 4]);
    assert!(server.is_drained());
}

#[test]
fn a_full_queue_puts_back_and_stops_in_order() {
    for count in [1, 2, 3] {
        let rig = Rig::new();
        let mut held = rig.offer_to_held(5);
        let (mut server, mut context) = (rig.server_on(ordered()), rig.worker_context());
        server.set_bound(Bound { bytes: u64::MAX, count, ..Bound::default() });
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(rig.next_avail(), 5 + count as u16);
        // The last one that was taken is done first; its room is taken by the next one.
        drop(held.remove(count - 1));
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(rig.next_avail(), 5 + count as u16 + 1);
        server.stop();
        drop(held);
        rig.run_until_idle(&mut server, &mut context);
        assert!(server.is_drained());
        let taken = count as u16 + 1;
        assert_eq!(rig.used()[5..], Vec::from_iter(0..taken), "all that was taken, in order");
    }
}

/// Before memory changes, a thread finishes what it began, and takes nothing.
#[test]
fn a_pause_publishes_all_that_was_begun_in_order() {
    let rig = Rig::new();
    let mut held = rig.offer_to_held(3);
    let (mut server, mut context) = (rig.server_on(ordered()), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    rig.write(3, 9, 4096);
    while let Some(guard) = held.pop() {
        drop(guard);
        rig.pass_on(&mut server);
        while server.has_woken() {
            server.resume_woken(&mut context);
            rig.pass_on(&mut server);
        }
        assert_eq!(server.is_at_rest(), held.is_empty());
        assert_eq!(rig.used().len(), if held.is_empty() { 6 } else { 3 });
    }
    assert_eq!((&rig.used()[3..], rig.next_avail()), (&[0, 1, 2][..], 6));
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used()[3..], [0, 1, 2, 3]);
}

#[test]
fn a_request_that_is_given_up_lets_those_behind_it_pass() {
    let rig = Rig::new();
    let mut held = rig.offer_to_held(3);
    let (mut server, mut context) = (rig.server_on(ordered()), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    held.truncate(1);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used().len(), 3, "the first one holds the others up");
    let mut checks = Checks::new(Duration::MAX);
    let stall_limits = StallLimits { report: SECOND, fail: 2 * SECOND };
    assert!(server.check_parked(checks.at(clock::coarse() + 2 * SECOND), &stall_limits));
    assert_eq!(rig.used()[3..], [0, 1, 2]);
    assert_eq!([rig.status(0), rig.status(1), rig.status(2)], [1, 0, 0]);
    assert!(server.is_drained());
}

/// A region in which the first `heads` are in flight, in this order, of a ring that has published
/// `used`.
pub(crate) fn left(heads: &[u16], used: u16) -> Inflight {
    let region = region(1, SIZE);
    let part = region.part(0).unwrap();
    part.begin(SIZE, used);
    let mut contents = contents(&region);
    for (counter, head) in (10..).zip(heads) {
        let entry = &mut contents.entries[usize::from(*head)];
        (entry.in_flight, entry.counter) = (1, counter);
    }
    overwrite(&part, &contents);
    region
}

pub(crate) fn contents(region: &Inflight) -> Contents {
    region.part(0).unwrap().read(0).unwrap()
}

pub(crate) fn marked(region: &Inflight) -> Vec<u16> {
    let contents = contents(region);
    let heads = (0..SIZE).filter(|head| contents.entries[usize::from(*head)].in_flight != 0);
    heads.collect()
}

/// What a session does with a ring that is started.
pub(crate) fn inflight_log(rig: &Rig, region: &Inflight) -> InflightLog {
    let shared = rig.map.shared();
    let shown = {
        let state = rig.vring.get_ref();
        position::read(state.get_queue(), &shared.memory(), region.parts(0)).unwrap()
    };
    let found = shown.begin(Record::Region).unwrap();
    rig.vring.set_queue_next_avail(found.next_avail);
    rig.vring.set_queue_next_used(found.next_used);
    found.inflight_log
}

/// Five writes to pages 0 to 4, of which 3, 0 and 2 are in flight: the heads are 3 a request.
fn crashed(rig: &Rig) -> Inflight {
    for n in [3, 0, 2, 1, 4] {
        rig.write(n, n.into(), 4096);
    }
    left(&[9, 0, 6], 0)
}

#[test]
fn what_was_in_flight_is_done_first_and_once() {
    let rig = Rig::new();
    let region = crashed(&rig);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    assert_eq!(rig.next_avail(), 3);
    assert!(!server.is_drained() && server.is_at_rest());
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used(), [3, 0, 2, 1, 4]);
    assert_eq!((marked(&region), server.is_drained()), (vec![], true));
    let contents = contents(&region);
    assert_eq!(contents.used_index, 5);
    // Those that were taken now count on from the greatest there was.
    assert_eq!([contents.entries[3].counter, contents.entries[12].counter], [13, 14]);
    assert!(rig.shared.device.has_served());
}

/// A process that finds a request in a region, and a disk that never served, takes the disk for another
/// guest's. So the disk records that it serves before the region, or anything else, shows that it was used.
#[test]
fn the_disk_has_served_before_the_region_or_the_used_ring_says_so() {
    let rig = Rig::new();
    let region = left(&[], 0);
    let inflight_log = inflight_log(&rig, &region);
    let (mut server, mut context) = (rig.server_on(inflight_log), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    assert!(!rig.shared.device.has_served(), "nothing was asked for yet");
    rig.write(0, 0, 4096);
    let (device, calls) = (Arc::clone(&rig.shared.device), Rc::new(Cell::new(0)));
    let seen = Rc::clone(&calls);
    watch_stores(Some(Box::new(move || {
        assert!(device.has_served(), "store {} of the region came first", seen.get());
        seen.set(seen.get() + 1);
    })));
    rig.run_until_idle(&mut server, &mut context);
    watch_stores(None);
    assert!(calls.get() > 0);
    // Without a region, what a request that still waits did may be on the disk already.
    let rig = Rig::new();
    let held = rig.offer_to_held(1);
    rig.shared.device.forget_served();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    assert!(rig.shared.device.has_served() && !server.is_drained());
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
}

#[test]
fn requests_that_are_taken_again_have_no_more_room_than_others() {
    let rig = Rig::new();
    let held = rig.offer_to_held(5);
    // They are at 5 to 9 in the available ring.
    let region = left(&[0, 3, 6], 5);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    server.set_bound(Bound { bytes: u64::MAX, count: 2, ..Bound::default() });
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.next_avail(), rig.used().len()), (8, 5));
    assert_eq!(marked(&region), [0, 3, 6], "the third waits for room, and is in flight");
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used()[5..], [0, 1, 2, 3, 4]);
    assert_eq!((marked(&region), rig.next_avail()), (vec![], 10));
}

#[test]
fn a_turn_of_no_time_takes_up_one_request() {
    let rig = Rig::new();
    let region = crashed(&rig);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    server.set_time_slice(Duration::ZERO);
    for done in 1..=5 {
        assert_eq!(server.serve(&mut context), Turn::More);
        assert_eq!(rig.used(), [3, 0, 2, 1, 4][..done]);
        assert_eq!(marked(&region), [vec![0, 6], vec![6], vec![], vec![], vec![]][done - 1]);
    }
}

#[test]
fn a_stop_finishes_what_was_in_flight_unless_the_ring_is_disabled() {
    for enabled in [true, false] {
        let rig = Rig::new();
        let region = crashed(&rig);
        let (mut server, mut context) =
            (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
        rig.vring.set_enabled(enabled);
        server.stop();
        assert_eq!(server.is_drained(), !enabled);
        rig.run_until_idle(&mut server, &mut context);
        assert!(server.is_drained());
        if enabled {
            assert_eq!((rig.used(), marked(&region)), (vec![3, 0, 2], vec![]));
        } else {
            assert_eq!((rig.used(), marked(&region)), (vec![], vec![0, 6, 9]));
        }
        // The next start of the ring does what is left, once.
        rig.vring.set_enabled(true);
        let mut server = rig.server_on(inflight_log(&rig, &region));
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(rig.used(), [3, 0, 2, 1, 4]);
    }
}

#[test]
fn a_ring_that_breaks_leaves_the_rest_in_the_region() {
    let rig = Rig::new();
    let region = crashed(&rig);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    server.set_time_slice(Duration::ZERO);
    // The used ring lies outside guest memory.
    rig.vring.set_queue_info(super::TABLE, super::rig::AVAIL, 1 << 40).unwrap();
    assert_eq!(server.serve(&mut context), Turn::Idle);
    assert!(server.is_drained());
    assert_eq!(marked(&region), [0, 6, 9]);
    rig.vring.set_queue_info(super::TABLE, super::rig::AVAIL, USED).unwrap();
    let mut server = rig.server_on(inflight_log(&rig, &region));
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used(), [3, 0, 2, 1, 4]);
}

#[test]
fn a_head_that_is_in_flight_cannot_be_offered_again() {
    let rig = Rig::new();
    let held = rig.offer_to_held(2);
    let region = left(&[0], 2);
    // What was made available second has the head that is in flight.
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(0_u16, GuestAddress(super::rig::AVAIL + 4 + 3 * 2)).unwrap();
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    rig.offer(2, VIRTIO_BLK_T_IN, 0, 4096);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used(), [0, 1, 0], "the ring is stopped");
}

/// A ring may be started while the driver is about to clear it: it is taken from where it begins.
#[test]
fn a_ring_that_is_cleared_after_its_start_begins_anew() {
    for tracked in [false, true] {
        for stale in [2, 5, 40_000] {
            let rig = Rig::new();
            let held = rig.offer_to_held(2);
            let region = region(1, SIZE);
            let memory = rig.map.shared().memory().clone();
            let set = |used: u16, available: u16| {
                memory.write_obj(used, GuestAddress(USED + 2)).unwrap();
                memory.write_obj(available, GuestAddress(super::rig::AVAIL + 2)).unwrap();
            };
            set(stale, stale);
            let inflight_log = match tracked {
                true => inflight_log(&rig, &region),
                false => {
                    rig.vring.set_queue_next_avail(stale);
                    rig.vring.set_queue_next_used(stale);
                    ordered()
                }
            };
            let (mut server, mut context) = (rig.server_on(inflight_log), rig.worker_context());
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!(rig.next_avail(), stale);
            set(0, 0);
            // As many as make the available index what it was.
            (0..2).for_each(|n| rig.write(n, n.into(), 4096));
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!((rig.used(), rig.next_avail()), (vec![], 2));
            if tracked {
                // A process that dies now leaves a region that matches the cleared ring.
                assert_eq!((contents(&region).used_index, marked(&region)), (0, vec![0, 3]));
            }
            drop(held);
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!((rig.used(), rig.next_avail()), (vec![0, 1], 2));
            if tracked {
                assert_eq!((contents(&region).used_index, marked(&region)), (2, vec![]));
            }
            // From here on the used index is the device's own.
            memory.write_obj(0_u16, GuestAddress(USED + 2)).unwrap();
            rig.write(2, 2, 4096);
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!((rig.used(), rig.next_avail()), (vec![0, 1, 2], 3));
        }
    }
}

#[test]
fn a_ring_of_which_a_part_is_cleared_is_read_again_at_the_drivers_kick() {
    // Used and available index, as the clearing leaves them after a part of it and in the end.
    for (halfway, used_first) in [((1000_u16, 0_u16), false), ((0, 1000), true)] {
        let rig = Rig::new();
        let memory = rig.map.shared().memory().clone();
        let set = |(used, avail): (u16, u16)| {
            memory.write_obj(used, GuestAddress(USED + 2)).unwrap();
            memory.write_obj(avail, GuestAddress(super::rig::AVAIL + 2)).unwrap();
        };
        rig.vring.set_queue_next_avail(1000);
        rig.vring.set_queue_next_used(1000);
        rig.vring.get_mut().get_queue_mut().set_event_idx(true);
        set(halfway);
        let (mut server, mut context) = (rig.server(), rig.worker_context());
        assert_eq!(server.serve(&mut context), Turn::Idle, "used first: {used_first}");
        // The front end's own kick at the start.
        server.kicked();
        assert_eq!(server.serve(&mut context), Turn::Idle);
        assert!(!server.is_broken());
        // Where the used ring is cleared already, what is asked for is not cleared any more.
        let event = GuestAddress(USED + 4 + 8 * u64::from(SIZE));
        let asked: u16 = memory.read_obj(event).unwrap();
        assert_eq!(asked, if used_first { 0 } else { 1000 });
        set((0, 0));
        rig.write(0, 0, 4096);
        server.kicked();
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used(), rig.status(0)), (vec![0], 0), "used first: {used_first}");
    }
    // An index that makes no sense at the driver's kick is a broken ring.
    let rig = Rig::new();
    rig.vring.set_queue_next_avail(7000);
    rig.map.shared().memory().write_obj(1000_u16, GuestAddress(super::rig::AVAIL + 2)).unwrap();
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    for kicks in 1..=2 {
        server.kicked();
        server.serve(&mut context);
        assert_eq!(server.is_broken(), kicks == 2);
    }
}

/// The requests in flight are more than the ring shows.
#[test]
fn a_cleared_ring_does_not_make_a_region_forget() {
    let rig = Rig::new();
    let held = rig.offer_to_held(5);
    let region = left(&[0, 3, 6], 5);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(0_u16, GuestAddress(USED + 2)).unwrap();
    // Those in flight are taken again, and wait; the two behind them follow.
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.next_avail(), server.is_at_rest()), (10, false));
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.next_avail(), rig.used().len(), marked(&region)), (10, 10, vec![]));
}

/// A pause waits for what is being worked on and begins nothing; a quit does all of it.
#[test]
fn a_thread_that_pauses_or_quits_keeps_its_account() {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::sync::mpsc::channel;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let kick = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK);
    let kick = File::from(OwnedFd::from(kick.unwrap()));
    let rig = Rig::new();
    rig.vring.set_enabled(false);
    let region = crashed(&rig);
    let watch = Watch::new(1, StallLimits::default());
    let rings = vec![(0, rig.vring.clone())];
    let shared = Arc::clone(&rig.shared);
    let mut worker = Worker::spawn(0, rings, shared, rig.worker_context(), event(), watch).unwrap();
    let inflight_log = inflight_log(&rig, &region);
    worker.send(Command::Start { ring: 0, kick, error_event: None, inflight_log });
    let (paused, wait) = channel();
    let (keep, resume) = channel();
    worker.send(Command::Pause { finish: false, paused, resume });
    wait.recv().unwrap();
    assert_eq!((rig.used(), marked(&region)), (vec![], vec![0, 6, 9]));
    // The thread is paused. When it resumes it finds the ring enabled, and then that it is to end.
    rig.vring.set_enabled(true);
    worker.send(Command::Quit);
    drop(keep);
    assert!(worker.join());
    assert_eq!((&rig.used()[..3], marked(&region)), (&[3, 0, 2][..], vec![]));
}
