//! Random series of stops, pauses, ends of sessions and rate limits, with requests that go back into the available
//! ring: each request is completed exactly once, and the base tells which ones are left.

use proptest::prelude::*;
use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_OUT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::leave::{Mode, log_of};
use super::resume::{left, marked};
use super::rig::{AVAIL, DATA, ROOM, Rig, SIZE, USED};
use crate::blk::parked::Bound;
use crate::blk::queue::QueueServer;
use crate::clock;
use crate::device::WorkerContext;
use crate::rates::{Rate, Rates};
use crate::slot::SlotGuard;
use crate::virtq::inflight::Inflight;

/// Requests of the guest, each with a head and a range of the disk of its own. Few, so that heads are used
/// again while others are in flight.
const REQUESTS: u16 = 3;
/// Pages of such a range.
const PAGES: u64 = 1024;
/// Bytes of a request that one poll does not end.
const LARGE: u64 = 3 << 20;

#[derive(Debug, Clone, Copy)]
enum Step {
    Offer { n: u16, large: bool },
    Hold { n: u16, middle: bool },
    Release(prop::sample::Index),
    Settle,
    Limit(bool),
    Stop,
    Pause,
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..REQUESTS, prop::bool::weighted(0.7)).prop_map(|(n, large)| Step::Offer { n, large }),
        6 => (0..REQUESTS, prop::bool::weighted(0.3)).prop_map(|(n, middle)| Step::Hold { n, middle }),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
        6 => Just(Step::Settle),
        2 => any::<bool>().prop_map(Step::Limit),
        2 => Just(Step::Stop),
        1 => Just(Step::Pause),
        1 => Just(Step::Leave),
    ]
}

/// The guest's side: what it waits for, and what its disk has to hold.
struct Guest<'r> {
    rig: &'r Rig,
    seen: u16,
    waiting: [bool; REQUESTS as usize],
    version: [u8; REQUESTS as usize],
}

impl Guest<'_> {
    fn pattern(n: u16, version: u8) -> Vec<u8> {
        (0..4096_u32).map(|at| (at % 251) as u8 ^ n as u8 ^ version.wrapping_mul(16)).collect()
    }

    fn offer(&mut self, n: u16, large: bool) {
        let at = usize::from(n);
        if std::mem::replace(&mut self.waiting[at], true) {
            return;
        }
        self.version[at] = self.version[at].wrapping_add(1);
        let memory = self.rig.map.shared().memory().clone();
        let data = Self::pattern(n, self.version[at]);
        memory.write_slice(&data, GuestAddress(DATA + u64::from(n) * ROOM)).unwrap();
        let bytes = if large { LARGE } else { 4096 };
        self.rig.offer(n, VIRTIO_BLK_T_OUT, u64::from(n) * PAGES * 8, bytes);
    }

    fn used_index(&self) -> u16 {
        self.rig.map.shared().memory().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Takes what is completed, which has to be waited for.
    fn collect(&mut self) {
        let memory = self.rig.map.shared().memory().clone();
        while self.seen != self.used_index() {
            let slot = u64::from(self.seen % SIZE);
            let head: u32 = memory.read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap();
            let n = head as u16 / 3;
            assert!(std::mem::take(&mut self.waiting[usize::from(n)]), "{n} is completed twice");
            assert_eq!(self.rig.status(n), 0);
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// Waits for all that it has asked for.
    fn wait(&mut self, server: &mut QueueServer<'_>, context: &mut WorkerContext) {
        for _ in 0..1_000_000 {
            self.rig.pass_on(server);
            server.serve(context);
            self.collect();
            if !self.waiting.contains(&true) {
                return;
            }
        }
        panic!("not completed: {:?}", self.waiting);
    }
}

/// Starts the ring as a session does.
fn start<'r>(rig: &'r Rig, mode: Mode, region: &Inflight) -> QueueServer<'r> {
    let used: u16 = rig.map.shared().memory().read_obj(GuestAddress(USED + 2)).unwrap();
    rig.vring.set_queue_next_avail(used);
    rig.vring.set_queue_next_used(used);
    let mut server = rig.server_on(log_of(rig, mode, region));
    // By default nothing is begun behind a request of 4 MiB.
    server.set_bound(Bound { bytes: 1 << 40, ..Bound::default() });
    server
}

/// Has what is in flight finished or put back; releases a slot only if a request waits for one.
fn rest<'d>(
    rig: &Rig,
    server: &mut QueueServer<'d>,
    context: &mut WorkerContext,
    held: &mut Vec<SlotGuard<'_>>,
    is_over: fn(&QueueServer<'d>) -> bool,
    work: fn(&mut QueueServer<'d>, &mut WorkerContext),
) {
    for _ in 0..1_000_000 {
        rig.pass_on(server);
        if is_over(server) {
            return;
        }
        work(server, context);
        rig.pass_on(server);
        if !is_over(server) && !server.has_woken() {
            held.pop();
        }
    }
    panic!("it does not come to rest");
}

/// Sets a rate limit that lets a queue begin one request and no other one, or none.
fn limit(rig: &Rig, on: bool) {
    let slow = Rate { operations_per_second: 0, bytes_per_second: u64::from(on), burst_ms: 1 };
    let rates = Rates { write: slow, ..Rates::default() };
    rig.shared.throttle.set(&rates, clock::since_start());
}

fn walk(mode: Mode, first: u16, steps: &[Step]) {
    let rig = Rig::new();
    for index in [AVAIL + 2, USED + 2] {
        rig.map.shared().memory().write_obj(first, GuestAddress(index)).unwrap();
    }
    let region = left(&[], first);
    let (waiting, version) = Default::default();
    let mut guest = Guest { rig: &rig, seen: first, waiting, version };
    let mut context = rig.worker_context();
    (0..REQUESTS).for_each(|n| guest.offer(n, false));
    let mut server = start(&rig, mode, &region);
    guest.wait(&mut server, &mut context);
    let mut held: Vec<SlotGuard<'_>> = Vec::new();
    for step in steps {
        match *step {
            Step::Offer { n, large } => guest.offer(n, large),
            Step::Hold { n, middle } => {
                let page = u64::from(n) * PAGES + if middle { 300 } else { 0 };
                held.extend(rig.shared.device.hold(page));
            }
            Step::Release(index) => {
                if !held.is_empty() {
                    let _ = held.remove(index.index(held.len()));
                }
            }
            Step::Limit(on) => limit(&rig, on),
            Step::Settle => {
                for _ in 0..8 {
                    rig.pass_on(&mut server);
                    server.serve(&mut context);
                }
            }
            Step::Stop | Step::Leave => {
                let leaves = matches!(step, Step::Leave);
                if leaves {
                    server.leave();
                } else {
                    server.stop();
                }
                let serve: fn(&mut QueueServer<'_>, &mut WorkerContext) = |server, context| {
                    server.serve(context);
                };
                rest(&rig, &mut server, &mut context, &mut held, QueueServer::is_drained, serve);
                let in_flight = marked(&region).len() as u16;
                assert!(leaves && mode == Mode::Tracked || in_flight == 0, "{in_flight} marked");
                assert_eq!(rig.next_avail(), guest.used_index().wrapping_add(in_flight), "base");
                guest.collect();
                server = start(&rig, mode, &region);
            }
            Step::Pause => {
                server.pause();
                let resume_woken = QueueServer::resume_woken;
                rest(
                    &rig,
                    &mut server,
                    &mut context,
                    &mut held,
                    QueueServer::is_at_rest,
                    resume_woken,
                );
                server.resume();
            }
        }
        guest.collect();
    }
    held.clear();
    limit(&rig, false);
    guest.wait(&mut server, &mut context);
    assert!(server.is_drained());
    assert_eq!(marked(&region), [0_u16; 0]);
    let queue = rig.vring.get_ref();
    assert_eq!(queue.get_queue().next_avail(), queue.get_queue().next_used());
    drop(queue);
    for n in 0..REQUESTS {
        let expected = Guest::pattern(n, guest.version[usize::from(n)]);
        assert_eq!(rig.page(u64::from(n) * PAGES), expected, "page of {n}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn each_request_is_completed_once_whatever_stops_its_ring(
        steps in prop::collection::vec(step(), 1..80),
        first in prop_oneof![Just(0_u16), 65500..=u16::MAX],
    ) {
        for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
            walk(mode, first, &steps);
        }
    }
}
