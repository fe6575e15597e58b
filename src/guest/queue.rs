//! One virtqueue, served: heads in, requests through the device, used elements out.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryBackend, GuestMemoryLoadGuard};

use super::chain::{Chain, DescriptorTable, Segment};
use super::config::GuestOptions;
use super::mailbox::Mailbox;
use super::memory::{Memory, Region, SharedMemory};
use super::request::{Finished, GuestBytes, Reply, Request, Status, Taken, deliver_id, snapshot};
use super::ring::{self, Heads, RingError};
use crate::device::{Device, Io, IoError, Lane, Op};

/// Batches that a queue is served before the thread looks at its other queues.
const BATCHES_PER_TURN: usize = 4;
/// Data bytes of a batch after which the turn ends, and the next batch is a smaller one.
const BATCH_BYTES: u64 = 256 * 1024;

/// The state of a ring that the session sets and the queue thread uses.
pub(super) type Vring = VringMutex<SharedMemory>;

/// What all queues of a session share.
pub(super) struct Shared {
    pub(super) device: Arc<Device>,
    pub(super) memory: SharedMemory,
    pub(super) options: GuestOptions,
}

/// Whether a queue has more to do right away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The driver will kick when there is more.
    Idle,
    /// There is more already.
    More,
}

/// A request that waits, and how it will be answered.
struct InFlight<'d> {
    taken: Taken,
    io: Io<'d, GuestBytes>,
    reply: Reply,
}

/// One virtqueue of one queue thread.
pub(super) struct QueueServer<'d> {
    index: usize,
    shared: &'d Shared,
    vring: Vring,
    mailbox: Arc<Mailbox>,
    /// Heads may be taken. Cleared by a stop and by a ring that makes no sense.
    running: bool,
    /// Told when the ring breaks.
    error_event: Option<File>,
    heads: Heads,
    waiting: Vec<Option<InFlight<'d>>>,
    waiting_count: usize,
    /// One for each head, made when the head is first used.
    wakers: Vec<Option<Waker>>,
    /// Used index when the driver was last asked whether it wants an interrupt.
    signalled: u16,
    /// Heads to take at once; fewer when requests are large.
    batch_limit: usize,
    scratch: Scratch,
}

/// Vectors that are used again and again, so that a request allocates nothing.
#[derive(Default)]
struct Scratch {
    taken: Vec<Taken>,
    finished: Vec<Finished>,
    chain: Chain,
    segments: Vec<Vec<Segment>>,
}

impl<'d> QueueServer<'d> {
    pub(super) fn new(
        index: usize,
        vring: Vring,
        shared: &'d Shared,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        Self {
            index,
            shared,
            vring,
            mailbox,
            running: false,
            error_event: None,
            heads: Heads::default(),
            waiting: Vec::new(),
            waiting_count: 0,
            wakers: Vec::new(),
            signalled: 0,
            batch_limit: ring::BATCH,
            scratch: Scratch::default(),
        }
    }

    /// Starts to serve a ring whose addresses and indexes are set and checked.
    pub(super) fn start(&mut self, error_event: Option<File>) {
        debug_assert_eq!(self.waiting_count, 0);
        let vring = self.vring.get_ref();
        let size = vring.get_queue().size();
        self.signalled = vring.get_queue().next_used();
        drop(vring);
        self.heads = Heads::new(size);
        self.waiting.resize_with(usize::from(size), || None);
        self.wakers.resize_with(usize::from(size), || None);
        self.error_event = error_event;
        self.running = true;
    }

    /// Takes no more heads. Those in flight go on; see [`Self::is_drained`].
    pub(super) fn stop(&mut self) {
        self.running = false;
    }

    /// Whether everything that was taken is finished and published.
    pub(super) fn is_drained(&self) -> bool {
        self.waiting_count == 0
    }

    /// Takes heads and works them off until there are none left, or the queue's turn is over.
    pub(super) fn serve(&mut self, lane: &mut Lane) -> Turn {
        let vring = self.vring.clone();
        let mut state = vring.get_mut();
        if !self.running || !state.is_enabled() || !state.get_queue().ready() {
            return Turn::Idle;
        }
        let memory = snapshot(&self.shared.memory);
        let turn = self.serve_turn(&mut state, &memory, lane);
        turn.unwrap_or_else(|error| {
            self.break_down(error);
            Turn::Idle
        })
    }

    fn serve_turn(
        &mut self,
        state: &mut VringState<SharedMemory>,
        memory: &GuestMemoryLoadGuard<Memory>,
        lane: &mut Lane,
    ) -> Result<Turn, RingError> {
        let unreachable = |_| RingError::Unreachable;
        state.disable_notification().map_err(unreachable)?;
        for _ in 0..BATCHES_PER_TURN {
            let mut taken = std::mem::take(&mut self.scratch.taken);
            let queue = state.get_queue_mut();
            let table = ring::descriptors(queue);
            let limit = self.batch_limit;
            let outcome = ring::take_batch(queue, memory, &mut self.heads, limit, &mut taken);
            let any = !taken.is_empty();
            if any {
                // From now on the disk is one that a guest has seen.
                self.shared.device.mark_served();
            }
            let mut bytes = 0;
            // All that was taken is worked off and given back, also if the ring is broken.
            for taken in taken.drain(..) {
                bytes += self.begin(taken, table, memory, lane);
            }
            self.scratch.taken = taken;
            outcome.and(self.publish(state, memory))?;
            // Large requests are taken few at a time: the ring is locked meanwhile, and the guest
            // should not wait for the last of them to see the first.
            self.batch_limit = if bytes >= BATCH_BYTES {
                (limit / 4).max(1)
            } else {
                (limit * 2).min(ring::BATCH)
            };
            if bytes >= BATCH_BYTES {
                return Ok(Turn::More);
            }
            if !any && !state.enable_notification().map_err(unreachable)? {
                return Ok(Turn::Idle);
            }
        }
        Ok(Turn::More)
    }

    /// Goes on with a request that waited.
    pub(super) fn resume(&mut self, head: u16, lane: &mut Lane) {
        let Some(in_flight) = self.waiting.get_mut(usize::from(head)).and_then(Option::take) else {
            // Woken twice, and finished the first time.
            return;
        };
        self.waiting_count -= 1;
        self.poll(in_flight, lane);
        if self.scratch.finished.is_empty() {
            return;
        }
        let vring = self.vring.clone();
        let mut state = vring.get_mut();
        let memory = snapshot(&self.shared.memory);
        if let Err(error) = self.publish(&mut state, &memory) {
            self.break_down(error);
        }
    }

    /// Works one request off, or leaves it waiting. Returns the bytes of data it moves.
    fn begin(
        &mut self,
        taken: Taken,
        table: DescriptorTable,
        memory: &GuestMemoryLoadGuard<Memory>,
        lane: &mut Lane,
    ) -> u64 {
        let chain = &mut self.scratch.chain;
        let finished = match chain.read(memory, table, taken.head()) {
            Err(error) => {
                log::debug!("queue {}: request {}: {error}", self.index, taken.head());
                taken.finish(0)
            }
            Ok(()) => match Request::parse(memory, chain, &self.shared.options) {
                // Memory that was lost reads as zeroes, which may look like a request; what it
                // would change is not changed.
                Request::Io { op, reply, .. }
                    if op != Op::Read && memory.iter().any(Region::is_lost) =>
                {
                    reply.finish(memory, taken, Status::IoErr)
                }
                Request::Io { op, sector, bytes, data, reply } => {
                    self.refill_chain();
                    let payload = GuestBytes::new(memory.clone(), data);
                    match self.shared.device.request(op, sector, bytes, payload) {
                        Ok(io) => {
                            self.poll(InFlight { taken, io, reply }, lane);
                            return bytes;
                        }
                        Err(error) => {
                            self.report(taken.head(), &error);
                            reply.finish(memory, taken, Status::IoErr)
                        }
                    }
                }
                Request::Flush { reply } => {
                    // What was written is in memory, and nothing makes it more stable.
                    self.shared.device.figures().flushes.inc();
                    reply.finish(memory, taken, Status::Ok)
                }
                Request::GetId { data, reply } => {
                    let status = deliver_id(memory, &data, &self.shared.options.id());
                    reply.finish(memory, taken, status)
                }
                Request::Refused { status, reply } => reply.finish(memory, taken, status),
                Request::Mute => taken.finish(0),
            },
        };
        self.scratch.finished.push(finished);
        0
    }

    fn poll(&mut self, mut in_flight: InFlight<'d>, lane: &mut Lane) {
        let head = in_flight.taken.head();
        let waker = self.wakers[usize::from(head)]
            .get_or_insert_with(|| self.mailbox.waker(self.index, head));
        let done = match in_flight.io.poll(lane, &Context::from_waker(waker)) {
            Poll::Pending => {
                self.waiting[usize::from(head)] = Some(in_flight);
                self.waiting_count += 1;
                return;
            }
            Poll::Ready(done) => done,
        };
        let status = match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                self.report(head, &error);
                Status::IoErr
            }
        };
        let InFlight { taken, io, reply } = in_flight;
        let payload = io.into_payload();
        let finished = reply.finish(payload.memory(), taken, status);
        self.scratch.finished.push(finished);
        let segments = payload.into_segments();
        // A discard has none to give back, and a spare more than a batch needs is never used.
        if segments.capacity() != 0 && self.scratch.segments.len() < ring::BATCH {
            self.scratch.segments.push(segments);
        }
    }

    /// Gives the chain vectors again for those that a request took with it.
    fn refill_chain(&mut self) {
        let chain = &mut self.scratch.chain;
        for segments in [&mut chain.readable, &mut chain.writable] {
            if segments.capacity() == 0
                && let Some(spare) = self.scratch.segments.pop()
            {
                *segments = spare;
            }
        }
    }

    fn publish(
        &mut self,
        state: &mut VringState<SharedMemory>,
        memory: &Memory,
    ) -> Result<(), RingError> {
        let finished = &mut self.scratch.finished;
        ring::put_batch(state.get_queue_mut(), memory, &mut self.heads, finished)?;
        if ring::wants_interrupt(state.get_queue(), memory, &mut self.signalled)? {
            // A full eventfd is signalled already.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }

    /// Stops a ring that makes no sense, visibly.
    fn break_down(&mut self, error: RingError) {
        super::limited::warn(format_args!("queue {} is stopped: {error}", self.index));
        self.running = false;
        if let Some(event) = &mut self.error_event {
            let _ = event.write(&1_u64.to_ne_bytes());
        }
    }

    fn report(&self, head: u16, error: &IoError) {
        let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
        match error {
            // The guest's own mistakes are many and harmless.
            IoError::OutOfRange { .. } | IoError::Unaligned { .. } | IoError::Payload(_) => {
                log::debug!("queue {}: request {head}: {error}{cause}", self.index);
            }
            _ => super::limited::warn(format_args!("queue {}: {error}{cause}", self.index)),
        }
    }
}
