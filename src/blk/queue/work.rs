//! Requests of a queue, from their heads to their statuses.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::QueueServer;
use crate::blk::parked::InFlight;
use crate::blk::refusal::Refused;
use crate::blk::reply::{Reply, Status};
use crate::blk::request::{GuestBytes, Request, Snapshot, deliver_id};
use crate::clock;
use crate::device::Extent;
use crate::device::{IoError, Op, Timed, WorkerContext};
use crate::ratelimit::Kind;
use crate::virtq::access;
use crate::virtq::chain::{self, DescriptorTable};
use crate::virtq::elem::{Head, Unanswerable};
use crate::virtq::memory::{self, Memory};
use crate::virtq::ring::{self, RingError};

/// Most segments that a spare vector has room for: those of the largest request, as vectors grow.
const SPARE_SEGMENTS: usize = 128;

/// Segments of requests that are parsed together, about: what they take is bounded by that.
const PARSED_SEGMENTS: usize = 128;

/// Bytes of an object or of a page's data that are fetched ahead: for a whole batch, and for the next request.
/// Behind them the processor sees by itself where it goes.
const FETCHED_FIRST: usize = 128;
const FETCHED: usize = 1024;

/// A head that was taken, and what its chain asks for.
pub(super) struct Parsed {
    head: Head,
    request: Result<Request, Unanswerable>,
}

impl<'d> QueueServer<'d> {
    /// Processes the heads that were taken, until the slice ends. Returns true if the turn is over. What was
    /// parsed and not begun goes back to the heads.
    pub(crate) fn work(
        &mut self,
        table: DescriptorTable,
        memory: &Snapshot,
        context: &mut WorkerContext,
    ) -> bool {
        let mut over = false;
        // What an earlier process had begun was paid for there.
        let asked_at = (self.limited && !self.scratch.resubmit).then(clock::since_start);
        while !over && self.parked.has_room() && self.parse(table, memory, context) {
            let Some(Parsed { head, request }) = self.scratch.parsed.pop_front() else { break };
            let request = match request {
                Ok(request) => request,
                Err(why) => {
                    // It becomes the first of those that were not begun.
                    self.stuck = Some(RingError::Unanswerable { head: head.index(), why });
                    self.scratch.parsed.push_front(Parsed { head, request: Err(why) });
                    over = true;
                    break;
                }
            };
            if let Some(now) = asked_at
                && !self.may_begin(&request, now)
            {
                self.scratch.parsed.push_front(Parsed { head, request: Ok(request) });
                over = true;
                break;
            }
            if let Some(Parsed { request: Ok(next), .. }) = self.scratch.parsed.front() {
                self.prefetch(next, FETCHED, memory, context);
            }
            over = match self.begin(head, request, memory, context) {
                Some(bytes) => self.time_slice.spend(bytes),
                None => self.time_slice.is_over(),
            };
            over |= self.stuck.is_some();
        }
        while let Some(Parsed { head, .. }) = self.scratch.parsed.pop_back() {
            self.scratch.taken.push_front(head);
        }
        // Also a guest that only moves its available index back and forth uses up its turn.
        over || self.time_slice.spend(0)
    }

    /// Parses the heads that were taken, if none is parsed. False if there are none.
    ///
    /// Each request needs lines of memory that another processor wrote or that nothing used for long: its
    /// descriptors, its header, its slot, its object or data. One after another they cost more than all
    /// else but the codec. So all requests of a batch are taken through each step together, and the
    /// processor waits for many lines, and looks many pages up, at the same time.
    fn parse(&mut self, table: DescriptorTable, memory: &Memory, context: &WorkerContext) -> bool {
        if !self.scratch.parsed.is_empty() {
            return true;
        }
        let taken = &self.scratch.taken;
        if taken.len() > 1 {
            taken.iter().for_each(|head| chain::prefetch_table(memory, table, head.index()));
            taken.iter().for_each(|head| chain::prefetch_header(memory, table, head.index()));
        }
        let mut segments = 0;
        while segments < PARSED_SEGMENTS
            && let Some(head) = self.scratch.taken.pop_front()
        {
            self.refill_chain();
            let chain = &mut self.scratch.chain;
            let read = chain.read(memory, table, head.index()).map_err(Unanswerable::from);
            let request = read.and_then(|()| Request::parse(memory, chain, &self.shared.options));
            if let Ok(Request::Io { sector, data, .. }) = &request {
                self.shared.device.prefetch_slot(*sector);
                segments += data.len();
            }
            self.scratch.parsed.push_back(Parsed { head, request });
        }
        for parsed in self.scratch.parsed.iter().skip(1) {
            if let Ok(request) = &parsed.request {
                self.prefetch(request, FETCHED_FIRST, memory, context);
            }
        }
        !self.scratch.parsed.is_empty()
    }

    /// Has the memory fetched that a request needs: up to `bytes` bytes.
    fn prefetch(&self, request: &Request, bytes: usize, memory: &Memory, context: &WorkerContext) {
        match request {
            Request::Io { op: Op::Read, sector, .. } => {
                self.shared.device.prefetch_object(*sector, bytes, context);
            }
            Request::Io { op: Op::Write, data, .. } => {
                if let Some(first) = data.first() {
                    access::prefetch(memory, first.addr, bytes.min(first.len as usize));
                }
            }
            _ => {}
        }
    }

    /// Processes one request, or leaves it waiting. Returns the bytes of data that it moved, if they measure
    /// how much work that was.
    fn begin(
        &mut self,
        head: Head,
        request: Request,
        memory: &Snapshot,
        context: &mut WorkerContext,
    ) -> Option<u64> {
        if memory::is_lost(memory) {
            // Bytes that were read from lost memory are zeroes, which may pass for a request.
            if let Request::Io { op, .. } = request {
                self.shared.device.figures().failed(op);
            }
            self.answer(request.reply(), memory, head, Status::IoErr);
            return Some(0);
        }
        if let Some(timing) = &mut self.timing {
            match &request {
                Request::Io { op, .. } => timing.begin(head.index(), (*op).into()),
                Request::Flush { .. } => timing.begin(head.index(), Timed::Flush),
                Request::GetId { .. } | Request::Refused { .. } => {}
            }
        }
        match request {
            Request::Io { op, sector, bytes, data, reply } => {
                let segments = data.capacity();
                let payload = GuestBytes::new(Rc::clone(memory), data);
                match self.shared.device.request(op, sector, bytes, payload) {
                    Ok(io) => {
                        let extent = Extent { op, sector, bytes };
                        let (since, age, reported) = (None, Duration::ZERO, false);
                        let begun =
                            InFlight { head, io, reply, extent, since, age, reported, segments };
                        let ended = self.poll(begun, context);
                        return (ended && matches!(op, Op::Read | Op::Write)).then_some(bytes);
                    }
                    Err(error) => {
                        self.report(head.index(), &error);
                        self.answer(reply, memory, head, Status::IoErr);
                    }
                }
            }
            Request::Flush { reply } => {
                // Written data is in memory, and no operation makes it more stable.
                self.shared.device.figures().flushes.inc();
                self.answer(reply, memory, head, Status::Ok);
            }
            Request::GetId { data, reply } => {
                let status = deliver_id(memory, &data, &self.shared.options.id());
                self.answer(reply, memory, head, status);
            }
            Request::Refused { refused, reply } => {
                let Refused { why, op } = refused;
                self.shared.device.figures().refused(op);
                self.warn(why.kind(), format_args!("request {} is refused: {why}", head.index()));
                self.answer(reply, memory, head, why.status());
            }
        }
        Some(0)
    }

    /// Ends a request. If its status cannot be written by now, it stays in its ring's in-flight
    /// log, and the queue is stuck.
    pub(crate) fn answer(&mut self, reply: Reply, memory: &Memory, head: Head, status: Status) {
        let index = head.index();
        match reply.finish(memory, head, status) {
            Ok(finished) => self.scratch.finished.push(finished),
            Err(why) => self.stuck = Some(RingError::Unanswerable { head: index, why }),
        }
    }

    /// Polls a request, which is finished or waits then. Returns true if it is finished.
    pub(crate) fn poll(
        &mut self,
        mut in_flight: InFlight<'d>,
        context: &mut WorkerContext,
    ) -> bool {
        let head = in_flight.head.index();
        let waker = self.wakers[usize::from(head)]
            .get_or_insert_with(|| self.mailbox.waker(self.index, head));
        let InFlight { io, extent, reported, .. } = &mut in_flight;
        self.pulse.enter(self.index, head, extent, *reported);
        let polled = io.poll(context, &Context::from_waker(waker));
        self.pulse.leave();
        let done = match polled {
            Poll::Pending if self.leaving && in_flight.is_large() => {
                in_flight.head.abandon();
                return false;
            }
            Poll::Pending => {
                in_flight.since.get_or_insert_with(clock::coarse);
                in_flight.reported |= self.pulse.was_reported();
                self.parked.put(in_flight);
                return false;
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
        let InFlight { head, io, reply, .. } = in_flight;
        let payload = io.into_payload();
        self.answer(reply, payload.memory(), head, status);
        let segments = payload.into_segments();
        // A discard has none to give back, a spare more than a batch needs is never used, and one for
        // more segments than a driver may use would make a request that has few of them take much.
        if (1..=SPARE_SEGMENTS).contains(&segments.capacity())
            && self.scratch.segments.len() < ring::BATCH
        {
            self.scratch.segments.push(segments);
        }
        true
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

    fn report(&self, head: u16, error: &IoError) {
        let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
        let kind = match error {
            IoError::OutOfRange { .. } | IoError::Unaligned { .. } => Kind::Range,
            IoError::Decompress { .. } | IoError::Damaged { .. } => Kind::Damage,
            _ => Kind::Failures,
        };
        self.warn(kind, format_args!("request {head} fails: {error}{cause}"));
    }
}
