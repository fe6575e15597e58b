//! The requests of a queue that wait: for a slot, for the engine, or for their turn.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::chain::Segment;
use super::request::{GuestBytes, Reply, Taken};
use super::watchdog::{Look, Patience};
use crate::device::{ENGINE_WINDOW, Io, Op};
use crate::units::PAGE_SIZE;

/// How much may be parked. A queue that has more takes no heads until some of its own are finished.
///
/// A queue that has nothing parked may always begin one request, whatever its size and whatever others
/// have: nobody else would tell it when there is room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// Data bytes that the requests of a queue move.
    pub(super) bytes: u64,
    /// Requests of a queue.
    pub(super) count: usize,
    /// Bytes of memory that the requests of all queues of a session take, see [`InFlight::memory`].
    pub(super) session: usize,
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

/// What a request does, as far as anybody has to know who does not do it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) op: Op,
    /// First sector.
    pub(super) sector: u64,
    /// Length of the range.
    pub(super) bytes: u64,
}

impl Extent {
    /// Bytes of guest memory that are read or written. A discard has a range and moves nothing.
    fn moved(&self) -> u64 {
        match self.op {
            Op::Read | Op::Write => self.bytes,
            Op::Discard | Op::WriteZeroes => 0,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Read => "read",
            Op::Write => "write",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
        };
        write!(f, "{op} of {} bytes from sector {}", self.bytes, self.sector)
    }
}

/// A request that was begun, and how it will be answered.
pub(super) struct InFlight<'d> {
    pub(super) taken: Taken,
    pub(super) io: Io<'d, GuestBytes>,
    pub(super) reply: Reply,
    pub(super) extent: Extent,
    /// When it was first parked, by the coarse clock.
    pub(super) since: Option<Duration>,
    /// For how long it has been parked at the last look, as far as that counts.
    pub(super) age: Duration,
    /// The watchdog has spoken of it.
    pub(super) reported: bool,
    /// Segments that its payload has room for.
    pub(super) segments: usize,
}

impl InFlight<'_> {
    /// Most bytes of memory that it takes: its segments, and pages in the engine.
    fn memory(&self) -> usize {
        let pages = self.extent.moved().div_ceil(PAGE_SIZE as u64) + 1;
        let pages = (pages as usize).min(ENGINE_WINDOW);
        size_of::<Self>() + self.segments * size_of::<Segment>() + pages * ENGINE_PAGE_BYTES
    }

    /// Whether it has so much to go that its end is not worth to be waited for, if somebody else
    /// can do it again.
    pub(super) fn is_large(&self) -> bool {
        self.extent.moved() > 0 && self.io.left() > LARGE
    }
}

/// At no place in [`Parked::requests`].
const NOWHERE: u16 = u16::MAX;

/// The parked requests of one queue, by their heads. A ring may have 32768 heads and few of them are
/// parked at a time, so there is room for those alone.
pub(super) struct Parked<'d> {
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
    /// Nothing is parked. What will be is added to `session`, which all queues of a session share.
    pub(super) fn new(bound: Bound, session: &'d AtomicUsize) -> Self {
        Self { requests: Vec::new(), places: Vec::new(), bytes: 0, bound, session }
    }

    #[cfg(test)]
    pub(super) fn set_bound(&mut self, bound: Bound) {
        self.bound = bound;
    }

    /// Makes place for the heads of a ring of `size`; nothing may be parked.
    pub(super) fn resize(&mut self, size: u16) {
        debug_assert!(self.is_empty());
        self.places = vec![NOWHERE; usize::from(size)];
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether one more request may be begun.
    pub(super) fn has_room(&self) -> bool {
        let count = self.requests.len();
        count == 0
            || (count < self.bound.count
                && self.bytes < self.bound.bytes
                && self.session.load(Ordering::Relaxed) < self.bound.session)
    }

    pub(super) fn put(&mut self, in_flight: InFlight<'d>) {
        self.bytes += in_flight.extent.moved();
        self.session.fetch_add(in_flight.memory(), Ordering::Relaxed);
        let head = usize::from(in_flight.taken.head());
        // A ring has at most 32768 heads, and each is parked once.
        self.places[head] = self.requests.len() as u16;
        self.requests.push(in_flight);
    }

    /// Takes a request out, if one with this head is parked.
    pub(super) fn take(&mut self, head: u16) -> Option<InFlight<'d>> {
        let place = self.places.get_mut(usize::from(head))?;
        let at = std::mem::replace(place, NOWHERE);
        if at == NOWHERE {
            return None;
        }
        let in_flight = self.requests.swap_remove(usize::from(at));
        if let Some(moved) = self.requests.get(usize::from(at)) {
            self.places[usize::from(moved.taken.head())] = at;
        }
        self.bytes -= in_flight.extent.moved();
        self.session.fetch_sub(in_flight.memory(), Ordering::Relaxed);
        Some(in_flight)
    }

    /// The request with this head, if it is parked.
    pub(super) fn get(&self, head: u16) -> Option<&InFlight<'d>> {
        // Nothing is at `NOWHERE`: a ring has at most 32768 heads.
        self.places.get(usize::from(head)).and_then(|at| self.requests.get(usize::from(*at)))
    }

    /// Whether one of them is large.
    pub(super) fn has_large(&self) -> bool {
        self.requests.iter().any(InFlight::is_large)
    }

    /// Takes out one that is large.
    pub(super) fn take_large(&mut self) -> Option<InFlight<'d>> {
        let large = self.requests.iter().find(|in_flight| in_flight.is_large())?;
        self.take(large.taken.head())
    }

    /// Calls `report` with each request that is parked for too long at this look and its age, once.
    /// Returns the heads of those that are to be given up.
    pub(super) fn overdue(
        &mut self,
        look: Look,
        patience: &Patience,
        mut report: impl FnMut(&InFlight<'d>, Duration),
    ) -> Vec<u16> {
        let mut lost = Vec::new();
        for in_flight in &mut self.requests {
            // Whatever is in here was parked.
            in_flight.age += look.counted(in_flight.since.unwrap_or_default());
            let age = in_flight.age;
            if patience.is_over(age) && !std::mem::replace(&mut in_flight.reported, true) {
                report(in_flight, age);
            }
            if patience.is_lost(age) {
                lost.push(in_flight.taken.head());
            }
        }
        lost
    }
}
