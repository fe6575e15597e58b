//! A queue and its disk, driven by hand.

use std::time::Duration;

use std::fs::File;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{NEXT, TABLE, WRITE, desc, put};
use crate::blk::config::GuestOptions;
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Mailbox;
use crate::blk::queue::{QueueServer, Shared, Turn, Vring};
use crate::blk::request::GuestBytes;
use crate::blk::watchdog::Pulse;
use crate::device::{BlockChoice, Device, DeviceConfig, MemoryKind, Op, WorkerContext};
use crate::engine::{EngineConfig, Policy};
use crate::ratelimit::tests::Printed;
use crate::slot::SlotGuard;
use crate::virtq::chain::Segment;
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::memory::{MemoryMap, for_tests};

pub(crate) const AVAIL: u64 = 0x10000;
pub(crate) const USED: u64 = 0x20000;
pub(crate) const SIZE: u16 = 64;
/// Headers and status bytes, 32 bytes a request.
pub(crate) const HEADERS: u64 = 0x30000;
/// Data buffers, one after another.
pub(crate) const DATA: u64 = 0x10_0000;
/// Bytes of each buffer.
pub(crate) const ROOM: u64 = 1 << 20;
/// A page that no request uses.
const SCRATCH: u64 = DATA - 4096;

/// A disk and guest memory with room for rings and requests.
pub(crate) struct Rig {
    pub(crate) map: MemoryMap,
    pub(crate) shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    pub(crate) vring: Vring,
    /// What is logged, in a second that never ends.
    pub(crate) printed: Arc<Printed>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(false, Duration::ZERO, false)
    }

    /// A rig whose disk must not be changed.
    pub(crate) fn read_only() -> Self {
        Self::with(true, Duration::ZERO, false)
    }

    /// A rig whose queue threads poll for up to `limit`.
    pub(crate) fn polled(limit: Duration) -> Self {
        Self::with(false, limit, false)
    }

    /// A rig that counts how long its requests take.
    pub(crate) fn timed() -> Self {
        Self::with(false, Duration::ZERO, true)
    }

    fn with(read_only: bool, poll: Duration, latency: bool) -> Self {
        let map = for_tests(0, DATA + 32 * ROOM);
        let options = GuestOptions {
            num_queues: 1,
            max_queue_size: SIZE,
            threads: 1,
            serial: String::new(),
            read_only,
            stall_limits: StallLimits::default(),
            poll,
            latency,
        };
        let codec = "lz4".parse().unwrap();
        let memory = MemoryKind::default();
        let config = DeviceConfig {
            size: 64 << 20,
            block_size: BlockChoice::default(),
            codec,
            mem_limit: 0,
            memory,
            access_times: false,
            // The queue's own thread does the work, whatever the codec costs on this host.
            engine: EngineConfig { policy: Policy::Inline, ..EngineConfig::default() },
        };
        let device = Arc::new(Device::new(&config).unwrap());
        if latency {
            device.count_latencies();
        }
        let vring = Vring::new(map.shared(), SIZE).unwrap();
        vring.set_queue_size(SIZE);
        vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        let (log, printed) = Printed::limiter();
        let shared = Arc::new(Shared {
            device,
            memory: map.shared(),
            options,
            log,
            throttle: Default::default(),
            parked: Default::default(),
            seen: Default::default(),
            // Logged already, so that tests find only their own lines.
            announced: Arc::new(true.into()),
        });
        Self { map, shared, mailbox: Mailbox::new().unwrap(), vring, printed }
    }

    pub(crate) fn server(&self) -> QueueServer<'_> {
        self.server_with(Arc::default())
    }

    pub(crate) fn server_with(&self, pulse: Arc<Pulse>) -> QueueServer<'_> {
        let mailbox = Arc::clone(&self.mailbox);
        let mut server = QueueServer::new(0, self.vring.clone(), &self.shared, mailbox, pulse);
        server.start(None, InflightLog::default());
        server
    }

    pub(crate) fn server_on(&self, inflight_log: InflightLog) -> QueueServer<'_> {
        self.server_told(inflight_log, None)
    }

    /// A server that signals `error_event` if its ring breaks.
    pub(crate) fn server_told(
        &self,
        inflight_log: InflightLog,
        error_event: Option<File>,
    ) -> QueueServer<'_> {
        let mailbox = Arc::clone(&self.mailbox);
        let vring = self.vring.clone();
        let mut server = QueueServer::new(0, vring, &self.shared, mailbox, Arc::default());
        server.start(error_event, inflight_log);
        server
    }

    pub(crate) fn worker_context(&self) -> WorkerContext {
        self.shared.device.worker_context().unwrap()
    }

    /// Lays out request `n`, whose head is 3 `n`, and makes it available.
    pub(crate) fn offer(&self, n: u16, kind: u32, sector: u64, bytes: u64) {
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

    pub(crate) fn write(&self, n: u16, page: u64, bytes: u64) {
        // Something that takes an object, so that the slot is one that requests wait for.
        let data: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8 ^ n as u8).collect();
        let memory = self.map.shared().memory().clone();
        memory.write_slice(&data, GuestAddress(DATA + u64::from(n) * ROOM)).unwrap();
        self.offer(n, VIRTIO_BLK_T_OUT, page * 8, bytes);
    }

    pub(crate) fn status(&self, n: u16) -> u8 {
        let memory = self.map.shared().memory().clone();
        memory.read_obj(GuestAddress(HEADERS + u64::from(n) * 32 + 16)).unwrap()
    }

    /// The first page of a request's data.
    pub(crate) fn data(&self, n: u16) -> Vec<u8> {
        self.bytes(DATA + u64::from(n) * ROOM, 4096)
    }

    /// Numbers of the requests in the used ring, in order.
    pub(crate) fn used(&self) -> Vec<u16> {
        let memory = self.map.shared().memory().clone();
        let index: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let element = |at: u16| -> u32 {
            let slot = u64::from(at % SIZE);
            memory.read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap()
        };
        (0..index).map(|at| element(at) as u16 / 3).collect()
    }

    /// What the disk holds in a page, without any ring.
    pub(crate) fn page(&self, page: u64) -> Vec<u8> {
        let segments = vec![Segment { addr: GuestAddress(SCRATCH), len: 4096 }];
        let payload = GuestBytes::new(self.map.shared().memory().into(), segments);
        let mut read = self.shared.device.request(Op::Read, page * 8, 4096, payload).unwrap();
        let polled = read.poll(&mut self.worker_context(), &Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(()))), "{polled:?}");
        self.bytes(SCRATCH, 4096)
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.shared().memory().read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.vring.get_ref().get_queue().next_avail()
    }

    /// As the session does before it starts a ring again.
    pub(crate) fn vring_ready(&self) {
        self.vring.set_queue_ready(true);
    }

    /// Tells the server of all requests that woke up.
    pub(crate) fn pass_on(&self, server: &mut QueueServer<'_>) {
        let (mut commands, mut woken) = (Vec::new(), Vec::new());
        self.mailbox.take(&mut commands, &mut woken);
        woken.into_iter().for_each(|(_, head)| server.wake(head));
    }

    /// Serves as a queue thread does, until nothing is left to be done without waiting.
    pub(crate) fn run_until_idle(&self, server: &mut QueueServer<'_>, context: &mut WorkerContext) {
        for _ in 0..1000 {
            self.pass_on(server);
            if server.serve(context) == Turn::Idle && !server.has_woken() {
                let before = self.used().len();
                self.pass_on(server);
                if !server.has_woken() && self.used().len() == before {
                    return;
                }
            }
        }
        panic!("it spins");
    }

    /// Writes the first `count` pages, holds their slots, and makes a read of each available.
    pub(crate) fn offer_to_held(&self, count: u16) -> Vec<SlotGuard<'_>> {
        let (mut server, mut context) = (self.server(), self.worker_context());
        for n in 0..count {
            self.write(n, n.into(), 4096);
        }
        self.run_until_idle(&mut server, &mut context);
        assert_eq!(self.used().len(), usize::from(count));
        let held = (0..count).map(|page| self.shared.device.hold(page.into()).unwrap()).collect();
        for n in 0..count {
            self.offer(n, VIRTIO_BLK_T_IN, u64::from(n) * 8, 4096);
        }
        held
    }
}
