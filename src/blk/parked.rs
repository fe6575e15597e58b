//! The requests of a queue that wait: for a slot, for the engine, or for their turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::blk::config::StallLimits;
use crate::blk::reply::Reply;
use crate::blk::request::GuestBytes;
use crate::blk::watchdog::Check;
use crate::device::{Extent, Io, WINDOW};
use crate::units::PAGE_SIZE;
use crate::virtq::chain::Segment;
use crate::virtq::elem::Head;

/// How much may be parked. A queue that has more takes no heads until some of its own are finished.
///
/// A queue that has nothing parked may always begin one request, whatever its size and whatever others
/// have: no other queue would tell it when there is room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Data bytes that the requests of a queue move.
    pub(crate) bytes: u64,
    /// Requests of a queue.
    pub(crate) count: usize,
    /// Bytes of memory that the requests of all queues of a session take, see [`InFlight::memory`].
    pub(crate) session: usize,
}

impl Default for Bound {
    fn default() -> Self {
        // Enough to keep an engine busy: four of the largest requests that guests usually make, or
        // as many small ones as a ring usually has. Seven such queues fit into what a session has.
        Self { bytes: 4 << 20, count: 256, session: 64 << 20 }
    }
}

/// Bytes of a page in the engine: what goes in and what comes out.
const ENGINE_PAGE_BYTES: usize = 2 * PAGE_SIZE;

/// Bytes that a request may still have to go through for it to be large: what one poll may do.
const LARGE: u64 = 1 << 20;

/// A request that was begun, and how it will be answered.
pub(crate) struct InFlight<'d> {
    pub(crate) head: Head,
    pub(crate) io: Io<'d, GuestBytes>,
    pub(crate) reply: Reply,
    pub(crate) extent: Extent,
    /// When it was first parked, by the coarse clock.
    pub(crate) since: Option<Duration>,
    /// For how long it had been parked at the last check, as far as time counted.
    pub(crate) age: Duration,
    /// The watchdog has reported it.
    pub(crate) reported: bool,
    /// Segments that its payload has room for.
    pub(crate) segments: usize,
}

impl InFlight<'_> {
    /// Most bytes of memory that it takes: its segments, and pages in the engine.
    fn memory(&self) -> usize {
        let pages = self.extent.moved().div_ceil(PAGE_SIZE as u64) + 1;
        let pages = (pages as usize).min(WINDOW);
        size_of::<Self>() + self.segments * size_of::<Segment>() + pages * ENGINE_PAGE_BYTES
    }

    /// Whether it has so much left that a stop does not wait for its end, if it can be resubmitted.
    pub(crate) fn is_large(&self) -> bool {
        self.extent.moved() > 0 && self.io.left() > LARGE
    }
}

/// At no place in [`Parked::requests`].
const NOWHERE: u16 = u16::MAX;

/// The parked requests of one queue, by their heads. A ring may have 32768 heads and few of them are
/// parked at a time, so there is room for those alone.
pub(crate) struct Parked<'d> {
    requests: Vec<InFlight<'d>>,
    /// By head: its place in `requests`.
    places: Vec<u16>,
    /// Data bytes that all of them move.
    bytes: u64,
    bound: Bound,
    /// Bytes of memory that those of all queues of the session take.
    session: &'d AtomicUsize,
}

impl<'d> Parked<'d> {
    /// Nothing is parked. Requests that will be are counted in `session`, which all queues of a session share.
    pub(crate) fn new(bound: Bound, session: &'d AtomicUsize) -> Self {
        Self { requests: Vec::new(), places: Vec::new(), bytes: 0, bound, session }
    }

    #[cfg(test)]
    pub(crate) fn set_bound(&mut self, bound: Bound) {
        self.bound = bound;
    }

    /// Makes room for the heads of a ring of `size`; nothing may be parked.
    pub(crate) fn resize(&mut self, size: u16) {
        debug_assert!(self.is_empty());
        self.places = vec![NOWHERE; usize::from(size)];
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether one more request may be begun.
    pub(crate) fn has_room(&self) -> bool {
        let count = self.requests.len();
        count == 0
            || (count < self.bound.count
                && self.bytes < self.bound.bytes
                && self.session.load(Ordering::Relaxed) < self.bound.session)
    }

    pub(crate) fn put(&mut self, in_flight: InFlight<'d>) {
        self.bytes += in_flight.extent.moved();
        self.session.fetch_add(in_flight.memory(), Ordering::Relaxed);
        let head = usize::from(in_flight.head.index());
        // A ring has at most 32768 heads, and each is parked once.
        self.places[head] = self.requests.len() as u16;
        self.requests.push(in_flight);
    }

    /// Takes a request out, if one with this head is parked.
    pub(crate) fn take(&mut self, head: u16) -> Option<InFlight<'d>> {
        let place = self.places.get_mut(usize::from(head))?;
        let at = std::mem::replace(place, NOWHERE);
        if at == NOWHERE {
            return None;
        }
        let in_flight = self.requests.swap_remove(usize::from(at));
        if let Some(moved) = self.requests.get(usize::from(at)) {
            self.places[usize::from(moved.head.index())] = at;
        }
        self.bytes -= in_flight.extent.moved();
        self.session.fetch_sub(in_flight.memory(), Ordering::Relaxed);
        Some(in_flight)
    }

    /// The request with this head, if it is parked.
    pub(crate) fn get(&self, head: u16) -> Option<&InFlight<'d>> {
        // Nothing is at `NOWHERE`: a ring has at most 32768 heads.
        self.places.get(usize::from(head)).and_then(|at| self.requests.get(usize::from(*at)))
    }

    /// Whether one of them is large.
    pub(crate) fn has_large(&self) -> bool {
        self.requests.iter().any(InFlight::is_large)
    }

    /// Takes out one that is large.
    pub(crate) fn take_large(&mut self) -> Option<InFlight<'d>> {
        let large = self.requests.iter().find(|in_flight| in_flight.is_large())?;
        self.take(large.head.index())
    }

    /// Calls `report` once with each request that is parked for too long at this check, and its age.
    /// Returns the heads of those to abandon.
    pub(crate) fn overdue(
        &mut self,
        check: Check,
        stall_limits: &StallLimits,
        mut report: impl FnMut(&InFlight<'d>, Duration),
    ) -> Vec<u16> {
        let mut lost = Vec::new();
        for in_flight in &mut self.requests {
            // Whatever is in here was parked.
            in_flight.age += check.counted(in_flight.since.unwrap_or_default());
            let age = in_flight.age;
            if stall_limits.is_over(age) && !std::mem::replace(&mut in_flight.reported, true) {
                report(in_flight, age);
            }
            if stall_limits.is_lost(age) {
                lost.push(in_flight.head.index());
            }
        }
        lost
    }
}
