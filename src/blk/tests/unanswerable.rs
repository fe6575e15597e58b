//! Requests that cannot be answered, and guest memory that is truncated under a queue: no request is
//! carried out, none reads as done, and the queue stops visibly for the guest.
//!
//! Status bytes are 0 beforehand, as those of a guest mostly are: a completion without a status is
//! then a success that never was.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::resume::{left, marked};
use super::rig::{DATA, HEADERS, ROOM, Rig, SIZE};
use super::{Desc, INDIRECT_FLAG, NEXT, TABLE, WRITE, desc, put};
use crate::blk::queue::QueueServer;
use crate::virtq::inflight::Inflight;
use crate::virtq::inflight::tests::region;
use crate::virtq::inflight_log::Record;
use crate::virtq::position;

/// Where an indirect table may lie, behind all that the rig uses.
const INDIRECT: u64 = HEADERS + 0x8000;
/// An address that no memory is at.
const NOWHERE: u64 = 1 << 40;

/// How the ring records what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    None,
    Ordered,
    Tracked,
}

const MODES: [Mode; 3] = [Mode::None, Mode::Ordered, Mode::Tracked];

/// A rig whose ring can be started again and again, as the same front end's.
struct Ring {
    rig: Rig,
    mode: Mode,
    region: Inflight,
}

impl Ring {
    fn new(mode: Mode) -> Self {
        Self { rig: Rig::new(), mode, region: region(1, SIZE) }
    }

    /// Starts it as a session does. The file is its error descriptor.
    fn start(&self) -> (QueueServer<'_>, File) {
        let part = (self.mode == Mode::Tracked).then(|| self.region.parts(0)).flatten();
        let record = match self.mode {
            Mode::Tracked => Record::Region,
            Mode::Ordered => Record::Order,
            Mode::None => Record::None,
        };
        let shared = self.rig.map.shared();
        let shown = {
            let state = self.rig.vring.get_ref();
            position::read(state.get_queue(), &shared.memory(), part).unwrap()
        };
        let found = shown.begin(record).unwrap();
        self.rig.vring.set_queue_next_avail(found.next_avail);
        self.rig.vring.set_queue_next_used(found.next_used);
        let error = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let error = File::from(OwnedFd::from(error));
        (self.rig.server_told(found.inflight_log, Some(error.try_clone().unwrap())), error)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.rig.map.shared().memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Makes request `n` one whose chain is `chain`, from head 3 `n` on.
    fn spoil(&self, n: u16, chain: &[Desc]) {
        let memory = self.rig.map.shared().memory().clone();
        put(&memory, TABLE + u64::from(n) * 3 * 16, chain);
    }

    fn preset(&self, n: u16, status: u8) {
        self.put(HEADERS + u64::from(n) * 32 + 16, &[status]);
    }

    fn marked(&self) -> Vec<u16> {
        marked(&self.region)
    }

    fn broken(&self) -> u64 {
        self.rig.shared.device.report().broken_queues
    }
}

/// All ways in which a chain can have no status that could be written.
fn unanswerable(n: u16) -> Vec<(&'static str, Vec<Desc>, Vec<Desc>)> {
    let header = HEADERS + u64::from(n) * 32;
    let (data, status) = (DATA + u64::from(n) * ROOM, header + 16);
    let head = 3 * n;
    let first = desc(header, 16, NEXT, head + 1);
    let middle = desc(data, 4096, NEXT, head + 2);
    let table = |entries: u32, flags| desc(INDIRECT, entries * 16, INDIRECT_FLAG | flags, head + 1);
    let last = desc(status, 1, WRITE, 0);
    let whole = vec![desc(header, 16, NEXT, 1), desc(data, 4096, NEXT, 2), last];
    vec![
        ("no status", vec![first, desc(data, 4096, 0, 0)], vec![]),
        ("a status of length 0", vec![first, middle, desc(status, 0, WRITE, 0)], vec![]),
        ("a status outside", vec![first, middle, desc(NOWHERE, 1, WRITE, 0)], vec![]),
        ("a status at the end of all", vec![first, middle, desc(u64::MAX, 2, WRITE, 0)], vec![]),
        ("a loop", vec![first, middle, desc(status, 1, WRITE | NEXT, head)], vec![]),
        ("a next out of range", vec![first, middle, desc(status, 1, WRITE | NEXT, SIZE)], vec![]),
        ("a table outside", vec![desc(NOWHERE, 48, INDIRECT_FLAG, 0)], vec![]),
        ("a table of odd length", vec![desc(INDIRECT, 47, INDIRECT_FLAG, 0)], whole.clone()),
        ("an empty table", vec![table(0, 0)], whole.clone()),
        ("a table that is too long", vec![table(1025, 0)], whole.clone()),
        ("a table with a next", vec![table(3, NEXT), last], whole.clone()),
        (
            "a table in a table",
            vec![table(2, 0)],
            vec![whole[0], desc(INDIRECT, 48, INDIRECT_FLAG, 0)],
        ),
        (
            "a loop in a table",
            vec![table(3, 0)],
            vec![whole[0], whole[1], desc(status, 1, WRITE | NEXT, 0)],
        ),
        (
            "a next out of a table",
            vec![table(3, 0)],
            vec![whole[0], whole[1], desc(status, 1, WRITE | NEXT, 3)],
        ),
    ]
}

/// Request 1 of five writes cannot be answered. The one before it is done, it is not, and nor is
/// what comes behind it, however often the ring is started, until the guest mends it.
#[test]
fn what_cannot_be_answered_is_not_done_and_stops_the_queue_each_time() {
    for mode in MODES {
        for (case, chain, table) in unanswerable(1) {
            let ring = Ring::new(mode);
            (0..5).for_each(|n| ring.rig.write(n, n.into(), 4096));
            (0..5).for_each(|n| ring.preset(n, 0));
            ring.preset(0, 0xff);
            put(&ring.rig.map.shared().memory(), INDIRECT, &table);
            ring.spoil(1, &chain);
            let mut context = ring.rig.worker_context();
            for times in 1..=3 {
                let (mut server, error) = ring.start();
                ring.rig.run_until_idle(&mut server, &mut context);
                assert_eq!(ring.rig.used(), [0], "{mode:?}: {case}");
                assert_eq!(ring.rig.status(0), 0, "{mode:?}: {case}");
                assert_eq!(signals(&error), 1, "{mode:?}: {case}");
                assert_eq!(ring.broken(), times, "{mode:?}: {case}");
                // It stands before the request, so a stop has nothing to wait for.
                assert!(server.is_drained(), "{mode:?}: {case}");
                assert_eq!((ring.rig.next_avail(), ring.marked()), (1, vec![]), "{mode:?}: {case}");
                // Kicks change nothing, also after a stop.
                ring.rig.run_until_idle(&mut server, &mut context);
                server.stop();
                ring.rig.run_until_idle(&mut server, &mut context);
                assert_eq!((signals(&error), ring.rig.used()), (0, vec![0]));
            }
            assert!((1..5).all(|page| ring.rig.page(page) == [0; 4096]), "{mode:?}: {case}");
            // Once the guest has mended it, the ring continues where it stopped.
            let data = DATA + ROOM;
            let header = HEADERS + 32;
            ring.spoil(
                1,
                &[
                    desc(header, 16, NEXT, 4),
                    desc(data, 4096, NEXT, 5),
                    desc(header + 16, 1, WRITE, 0),
                ],
            );
            (1..5).for_each(|n| ring.preset(n, 0xff));
            let (mut server, _) = ring.start();
            ring.rig.run_until_idle(&mut server, &mut context);
            assert_eq!(ring.rig.used(), [0, 1, 2, 3, 4], "{mode:?}: {case}");
            assert!((0..5).all(|n| ring.rig.status(n) == 0), "{mode:?}: {case}");
            assert!((0..5).all(|page| ring.rig.page(page) == ring.rig.data(page as u16)));
        }
    }
}

/// Requests that were taken before it are finished and published.
#[test]
fn what_was_begun_before_is_finished_and_published() {
    for mode in MODES {
        let ring = Ring::new(mode);
        let held = ring.rig.offer_to_held(3);
        let ((mut server, _), mut context) = (ring.start(), ring.rig.worker_context());
        ring.rig.run_until_idle(&mut server, &mut context);
        ring.rig.write(3, 9, 4096);
        ring.rig.write(4, 10, 4096);
        ring.spoil(3, &[desc(HEADERS + 96, 16, 0, 0)]);
        ring.preset(3, 0);
        ring.rig.run_until_idle(&mut server, &mut context);
        assert_eq!((ring.broken(), ring.rig.next_avail()), (1, 6), "{mode:?}");
        // A stop waits for the three, and for nothing else.
        server.stop();
        assert!(!server.is_drained());
        let tracked = if mode == Mode::Tracked { vec![0, 3, 6] } else { vec![] };
        assert_eq!(ring.marked(), tracked);
        drop(held);
        ring.rig.run_until_idle(&mut server, &mut context);
        assert!(server.is_drained(), "{mode:?}");
        assert_eq!(ring.rig.used()[3..], [0, 1, 2], "{mode:?}");
        assert_eq!((ring.marked(), ring.broken()), (vec![], 1), "{mode:?}");
        assert_eq!(ring.rig.page(10), [0; 4096], "{mode:?}");
    }
}

/// A request that a dead process had in flight stays in the region: it was not done, and its chain at that
/// time is not known.
#[test]
fn what_was_in_flight_and_cannot_be_answered_stays_in_the_region() {
    let mut ring = Ring::new(Mode::Tracked);
    let mut context = ring.rig.worker_context();
    ring.rig.write(0, 0, 4096);
    ring.rig.run_until_idle(&mut ring.rig.server(), &mut context);
    (1..3).for_each(|n| ring.rig.write(n, n.into(), 4096));
    ring.region = left(&[3, 6], 1);
    ring.spoil(1, &[desc(HEADERS + 32, 16, 0, 0)]);
    ring.preset(1, 0);
    for times in 1..=2 {
        let (mut server, _) = ring.start();
        ring.rig.run_until_idle(&mut server, &mut context);
        assert!(server.is_drained());
        assert_eq!((ring.rig.used(), ring.marked()), (vec![0], vec![3, 6]));
        assert_eq!(ring.broken(), times);
    }
}

#[expect(clippy::disallowed_methods, reason = "the kernel counts in its own byte order")]
fn signals(event: &File) -> u64 {
    use std::io::Read;
    let (mut event, mut count) = (event, [0; 8]);
    event.read(&mut count).map_or(0, |_| u64::from_ne_bytes(count))
}
