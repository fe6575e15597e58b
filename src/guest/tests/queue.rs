//! A queue that is driven by hand: turns, requests that wait, and bounds.

use std::sync::Arc;
use std::time::Duration;

use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::super::config::GuestOptions;
use super::super::mailbox::Mailbox;
use super::super::memory::{MemoryMap, for_tests};
use super::super::parked::Bound;
use super::super::queue::{QueueServer, Shared, Turn, Vring};
use super::{NEXT, TABLE, WRITE, desc, put};
use crate::device::{Device, DeviceConfig, Lane, MemoryKind};
use crate::engine::EngineConfig;

const AVAIL: u64 = 0x10000;
const USED: u64 = 0x20000;
const SIZE: u16 = 64;
/// Headers and status bytes, 32 bytes a request.
const HEADERS: u64 = 0x30000;
/// Data buffers, one after another.
const DATA: u64 = 0x10_0000;
/// Bytes of each buffer.
const ROOM: u64 = 1 << 20;

/// A disk and guest memory with room for rings and requests.
struct Rig {
    map: MemoryMap,
    shared: Shared,
    mailbox: Arc<Mailbox>,
    vring: Vring,
}

impl Rig {
    fn new() -> Self {
        let map = for_tests(0, DATA + 32 * ROOM);
        let options = GuestOptions {
            num_queues: 1,
            max_queue_size: SIZE,
            threads: 1,
            serial: String::new(),
            read_only: false,
        };
        let codec = "lz4".parse().unwrap();
        let memory = MemoryKind::default();
        let config = DeviceConfig {
            size: 64 << 20,
            codec,
            mem_limit: 0,
            memory,
            engine: EngineConfig::default(),
        };
        let device = Arc::new(Device::new(&config).unwrap());
        let vring = Vring::new(map.shared(), SIZE).unwrap();
        vring.set_queue_size(SIZE);
        vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        let shared = Shared { device, memory: map.shared(), options };
        Self { map, shared, mailbox: Mailbox::new().unwrap(), vring }
    }

    fn server(&self) -> QueueServer<'_> {
        let mailbox = Arc::clone(&self.mailbox);
        let mut server = QueueServer::new(0, self.vring.clone(), &self.shared, mailbox);
        server.start(None);
        server
    }

    fn lane(&self) -> Lane {
        self.shared.device.lane().unwrap()
    }

    /// Lays out request `n`, whose head is 3 `n`, and makes it available.
    fn offer(&self, n: u16, kind: u32, sector: u64, bytes: u64) {
        let memory = self.map.shared().memory().clone();
        let header = HEADERS + u64::from(n) * 32;
        let data = DATA + u64::from(n) * ROOM;
        memory.write_obj(kind, GuestAddress(header)).unwrap();
        memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
        memory.write_obj(0xff_u8, GuestAddress(header + 16)).unwrap();
        let head = n * 3;
        let way = if kind == VIRTIO_BLK_T_IN { WRITE } else { 0 };
        let chain = [
            desc(header, 16, NEXT, head + 1),
            desc(data, bytes as u32, NEXT | way, head + 2),
            desc(header + 16, 1, WRITE, 0),
        ];
        put(&memory, TABLE + u64::from(head) * 16, &chain);
        let index: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap();
        let slot = u64::from(index % SIZE);
        memory.write_obj(head, GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
        memory.write_obj(index.wrapping_add(1), GuestAddress(AVAIL + 2)).unwrap();
    }

    fn write(&self, n: u16, page: u64, bytes: u64) {
        // Something that takes an object, so that the slot is one that requests wait for.
        let data: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8 ^ n as u8).collect();
        let memory = self.map.shared().memory().clone();
        memory.write_slice(&data, GuestAddress(DATA + u64::from(n) * ROOM)).unwrap();
        self.offer(n, VIRTIO_BLK_T_OUT, page * 8, bytes);
    }

    fn status(&self, n: u16) -> u8 {
        let memory = self.map.shared().memory().clone();
        memory.read_obj(GuestAddress(HEADERS + u64::from(n) * 32 + 16)).unwrap()
    }

    /// Numbers of the requests in the used ring, in order.
    fn used(&self) -> Vec<u16> {
        let memory = self.map.shared().memory().clone();
        let index: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let element = |at: u16| -> u32 {
            let slot = u64::from(at % SIZE);
            memory.read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap()
        };
        (0..index).map(|at| element(at) as u16 / 3).collect()
    }

    fn next_avail(&self) -> u16 {
        self.vring.get_ref().get_queue().next_avail()
    }

    /// Tells the server of all requests that woke up.
    fn pass_on(&self, server: &mut QueueServer<'_>) {
        let (mut commands, mut woken) = (Vec::new(), Vec::new());
        self.mailbox.take(&mut commands, &mut woken);
        woken.into_iter().for_each(|(_, head)| server.wake(head));
    }

    /// Serves as a queue thread does, until nothing is left to be done without waiting.
    fn settle(&self, server: &mut QueueServer<'_>, lane: &mut Lane) {
        loop {
            self.pass_on(server);
            if server.serve(lane) == Turn::Idle && !server.has_woken() {
                let before = self.used().len();
                self.pass_on(server);
                if !server.has_woken() && self.used().len() == before {
                    return;
                }
            }
        }
    }
}

#[test]
fn a_turn_ends_when_its_time_is_up_and_leaves_the_rest_in_the_ring() {
    let rig = Rig::new();
    let (mut server, mut lane) = (rig.server(), rig.lane());
    server.set_share(Duration::ZERO);
    for n in 0..5 {
        rig.write(n, n.into(), 4096);
    }
    for done in 1..=5 {
        assert_eq!(server.serve(&mut lane), Turn::More);
        // Published at once, and nothing taken that was not begun.
        assert_eq!(rig.used(), Vec::from_iter(0..done));
        assert_eq!(rig.next_avail(), done);
        assert!(server.is_drained());
    }
    assert_eq!(server.serve(&mut lane), Turn::Idle);
    assert!((0..5).all(|n| rig.status(n) == 0));
}

#[test]
fn a_broken_ring_is_found_behind_what_is_in_order_before_it() {
    let rig = Rig::new();
    let (mut server, mut lane) = (rig.server(), rig.lane());
    server.set_share(Duration::ZERO);
    for n in 0..3 {
        rig.write(n, n.into(), 4096);
    }
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 4 + 3 * 2)).unwrap();
    memory.write_obj(4_u16, GuestAddress(AVAIL + 2)).unwrap();
    for done in 1..=2 {
        assert_eq!(server.serve(&mut lane), Turn::More);
        assert_eq!(rig.used().len(), done);
    }
    // The third one is the last of its batch; the error is known then.
    assert_eq!(server.serve(&mut lane), Turn::Idle);
    assert_eq!(rig.used(), [0, 1, 2]);
    rig.write(3, 3, 4096);
    assert_eq!(server.serve(&mut lane), Turn::Idle, "it is stopped");
    assert_eq!(rig.used(), [0, 1, 2]);
}

#[test]
fn requests_that_wake_up_and_new_ones_share_a_turn() {
    let rig = Rig::new();
    let (mut server, mut lane) = (rig.server(), rig.lane());
    for n in 0..4 {
        rig.write(n, n.into(), 4096);
    }
    rig.settle(&mut server, &mut lane);
    let held: Vec<_> = (0..4).map(|page| rig.shared.device.hold(page).unwrap()).collect();
    for n in 4..8 {
        rig.offer(n, VIRTIO_BLK_T_IN, u64::from(n - 4) * 8, 4096);
    }
    rig.settle(&mut server, &mut lane);
    assert_eq!((rig.used(), server.is_drained()), (vec![0, 1, 2, 3], false));
    server.set_share(Duration::ZERO);
    for n in 8..12 {
        rig.write(n, n.into(), 4096);
    }
    // All wake up at once. In a turn of no time there is one of each kind, so neither waits for
    // all of the other.
    drop(held);
    rig.pass_on(&mut server);
    for turn in 1..=4 {
        assert_eq!(server.serve(&mut lane), Turn::More);
        assert_eq!(rig.used().len(), 4 + 2 * turn, "{:?}", rig.used());
    }
    assert_eq!(rig.used()[4..], [4, 8, 5, 9, 6, 10, 7, 11]);
    assert_eq!(server.serve(&mut lane), Turn::Idle);
}

/// A queue in which a request to each of the first `count` pages, which are held, was offered.
fn offer_to_held(rig: &Rig, count: u16) -> Vec<crate::slot::Ticket<'_>> {
    let (mut server, mut lane) = (rig.server(), rig.lane());
    for n in 0..count {
        rig.write(n, n.into(), 4096);
    }
    rig.settle(&mut server, &mut lane);
    assert_eq!(rig.used().len(), usize::from(count));
    let held = (0..count).map(|page| rig.shared.device.hold(page.into()).unwrap()).collect();
    for n in 0..count {
        rig.offer(n, VIRTIO_BLK_T_IN, u64::from(n) * 8, 4096);
    }
    held
}

#[test]
fn a_queue_takes_no_more_than_its_bound_and_goes_on_without_a_kick() {
    const COUNT: u16 = 16;
    for event_idx in [false, true] {
        for bound in [Bound { bytes: u64::MAX, count: 3 }, Bound { bytes: 9000, count: 1000 }] {
            let rig = Rig::new();
            rig.vring.set_queue_event_idx(event_idx);
            let mut held = offer_to_held(&rig, COUNT);
            let (mut server, mut lane) = (rig.server(), rig.lane());
            server.set_bound(bound);
            rig.settle(&mut server, &mut lane);
            // Three of 4 KiB: the third is begun while fewer bytes than the bound are in flight.
            assert_eq!(rig.next_avail(), COUNT + 3);
            // A kick changes nothing, and is no reason to spin.
            assert_eq!(server.serve(&mut lane), Turn::Idle);
            assert_eq!(rig.next_avail(), COUNT + 3);
            for done in 1..=COUNT {
                drop(held.remove(0));
                // The wake-up is all that the queue is told.
                rig.pass_on(&mut server);
                while server.serve(&mut lane) == Turn::More {}
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
fn one_request_is_let_in_whatever_its_size() {
    let rig = Rig::new();
    let held = offer_to_held(&rig, 2);
    let (mut server, mut lane) = (rig.server(), rig.lane());
    server.set_bound(Bound { bytes: 0, count: 0 });
    rig.settle(&mut server, &mut lane);
    assert_eq!(rig.next_avail(), 3);
    drop(held);
    rig.settle(&mut server, &mut lane);
    assert_eq!((rig.used().len(), server.is_drained()), (4, true));
}

#[test]
fn a_full_queue_that_is_stopped_leaves_the_rest_in_the_ring() {
    let rig = Rig::new();
    let held = offer_to_held(&rig, 5);
    let (mut server, mut lane) = (rig.server(), rig.lane());
    server.set_bound(Bound { bytes: u64::MAX, count: 2 });
    rig.settle(&mut server, &mut lane);
    server.stop();
    drop(held);
    rig.settle(&mut server, &mut lane);
    assert!(server.is_drained());
    assert_eq!((rig.used().len(), rig.next_avail()), (7, 7));
}

#[test]
fn a_stopped_queue_finishes_what_waits_and_takes_nothing() {
    let rig = Rig::new();
    let (mut server, mut lane) = (rig.server(), rig.lane());
    rig.write(0, 1, 4096);
    rig.settle(&mut server, &mut lane);
    let held = rig.shared.device.hold(1).unwrap();
    rig.offer(1, VIRTIO_BLK_T_IN, 8, 4096);
    rig.settle(&mut server, &mut lane);
    server.stop();
    rig.offer(2, VIRTIO_BLK_T_IN, 8, 4096);
    rig.settle(&mut server, &mut lane);
    assert_eq!((rig.used(), server.is_drained()), (vec![0], false));
    drop(held);
    rig.settle(&mut server, &mut lane);
    assert_eq!((rig.used(), server.is_drained()), (vec![0, 1], true));
    assert_eq!((rig.status(1), rig.status(2)), (0, 0xff));
    assert_eq!(rig.next_avail(), 2);
}
