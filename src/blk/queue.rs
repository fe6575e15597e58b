//! One virtqueue, served: heads in, requests through the device, used elements out. What becomes of a
//! request in between is in `work`.
//!
//! A queue *breaks* when its ring contradicts itself, or when a request cannot be answered. It takes no
//! heads then until it is started anew: the error descriptor is signalled, a line says why, and
//! `broken_queues` counts it. What it had begun before is finished and published.

mod exchange;
mod poll;
mod stop;
mod throttle;
mod timing;
mod work;

use self::throttle::Throttled;
use self::timing::Timing;
use self::work::Parsed;
use std::collections::VecDeque;
use std::fmt::Arguments;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::QueueT;

use crate::blk::config::GuestOptions;
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Mailbox;
use crate::blk::parked::{Bound, InFlight, Parked};
use crate::blk::reply::Status;
use crate::blk::request::snapshot;
use crate::blk::watchdog::{Check, Pulse};
use crate::clock::{self, MIN_WORK, TimeSlice};
use crate::device::{Device, WorkerContext};
use crate::events::Tally;
use crate::ratelimit::{Kind, Limiter};
use crate::rates::Throttle;
use crate::virtq::chain::{Chain, Segment};
use crate::virtq::elem::{Head, UsedElem};
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::memory::SharedMemory;
use crate::virtq::ring::{self, Heads, RingError};

/// Time that a turn of a queue has for requests that woke up, and again for new ones, before the
/// thread serves its other queues. One poll may overrun it.
const TIME_SLICE: Duration = Duration::from_millis(1);

/// What to do about guest memory that is not shared.
pub(crate) const SHARE_IT: &str =
    "QEMU's memory backend needs share=on, libvirt's <memoryBacking> needs <access mode='shared'/>";

/// Kicks of a ring that is all zero, after which its memory is taken to be not shared.
///
/// A driver makes heads available before it kicks, so a read of the ring after the kick finds them. The
/// first kick may be the front end's own at the start of the ring, added up in the eventfd with kicks that
/// are left over from before. The second one is the driver's, and there may be no third: Linux reads the
/// partition table with one request, and waits for it.
const BLIND_KICKS: u8 = 2;

/// The state of a ring that the session sets and the queue thread uses.
pub(crate) type Vring = VringMutex<SharedMemory>;

/// What all queues of a session share.
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    pub(crate) memory: SharedMemory,
    pub(crate) options: GuestOptions,
    /// The log, without lines that repeat too often.
    pub(crate) log: Arc<Limiter>,
    /// The disk's rate limits.
    pub(crate) throttle: Arc<Throttle>,
    /// Bytes of memory that parked requests take.
    pub(crate) parked: AtomicUsize,
    /// A request of this session's guest was seen, so its memory is here.
    pub(crate) seen: AtomicBool,
    /// It was logged how long the first request to the disk took. Of the disk, not of the session.
    pub(crate) announced: Arc<AtomicBool>,
}

impl Shared {
    /// Logs once how long a guest had to wait for this process.
    fn announce_first(&self) {
        if !self.announced.load(Ordering::Relaxed) && !self.announced.swap(true, Ordering::Relaxed)
        {
            let waited = clock::since_start().as_millis();
            let line = format_args!("the first request is completed {waited} ms after the start");
            self.log.info(Kind::Connections, line);
        }
    }
}

/// Whether a queue has more to do right away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A kick will come when there is more, or a parked request will wake up and make room for it, or the queue
    /// waits for a rate limit ([`QueueServer::waits_until`]).
    Idle,
    /// There is more already.
    More,
    /// The ring is empty, and the driver was not asked for kicks: the thread has to poll the ring, or give
    /// the queue another turn before it sleeps.
    Poll,
}

/// What follows an exchange with the ring.
enum Next {
    /// Processing the heads that were taken.
    Work,
    /// Nothing; the turn is over.
    Rest(Turn),
}

/// One virtqueue of one queue thread.
pub(crate) struct QueueServer<'d> {
    index: usize,
    shared: &'d Shared,
    vring: Vring,
    mailbox: Arc<Mailbox>,
    /// The thread's, for the watchdog.
    pulse: Arc<Pulse>,
    /// Heads may be taken. Cleared by a stop and by a ring that makes no sense.
    running: bool,
    /// A head was taken since the start, so the used index is this queue's own.
    begun: bool,
    /// The driver kicked since the ring was last read.
    kicked: bool,
    /// Reads of the ring after a kick, since the start, that found no head or an index that makes no sense, while
    /// no head was found at all.
    blind_kicks: u8,
    /// Told when the ring breaks.
    error_event: Option<File>,
    heads: Heads,
    inflight_log: InflightLog,
    parked: Parked<'d>,
    /// One for each head, made when the head is first used.
    wakers: Vec<Option<Waker>>,
    /// The driver was told not to kick.
    quiet: bool,
    /// The thread polls the ring when it is empty, so the driver need not be asked for kicks.
    polled: bool,
    /// Used index when the driver was last asked whether it wants an interrupt.
    signalled: u16,
    /// Heads of parked requests that can continue, in the order in which they woke up. A head may be
    /// in it that waits no more.
    woken: VecDeque<u16>,
    time_slice: TimeSlice,
    /// The disk has rate limits in this turn.
    limited: bool,
    /// Its next request waits for a rate limit.
    throttled: Option<Throttled>,
    /// Wakes the thread for this queue.
    caller: Option<Waker>,
    /// How long its requests take, if that is counted.
    timing: Option<Timing>,
    /// What is wrong with the ring behind the heads that were taken.
    fault: Option<RingError>,
    /// Why the queue cannot continue with those.
    stuck: Option<RingError>,
    /// It broke, and was not started since.
    broken: bool,
    /// It stops or pauses: large requests go back into the available ring, where they can.
    stopping: bool,
    /// The session ends, and the in-flight region keeps large requests for the next one.
    leaving: bool,
    scratch: Scratch,
}

/// Vectors that are used again and again, so that a request allocates nothing.
#[derive(Default)]
struct Scratch {
    /// Heads that were taken and not begun; empty between turns.
    taken: VecDeque<Head>,
    /// They were in flight when the ring started, and are resubmitted.
    resubmit: bool,
    /// Heads that were taken and parsed and not begun; empty between batches.
    parsed: VecDeque<Parsed>,
    finished: Vec<UsedElem>,
    chain: Chain,
    segments: Vec<Vec<Segment>>,
}

impl<'d> QueueServer<'d> {
    pub(crate) fn new(
        index: usize,
        vring: Vring,
        shared: &'d Shared,
        mailbox: Arc<Mailbox>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self {
            index,
            shared,
            vring,
            mailbox,
            pulse,
            running: false,
            begun: false,
            kicked: false,
            blind_kicks: 0,
            error_event: None,
            heads: Heads::default(),
            inflight_log: InflightLog::default(),
            parked: Parked::new(Bound::default(), &shared.parked),
            wakers: Vec::new(),
            quiet: false,
            polled: false,
            signalled: 0,
            woken: VecDeque::new(),
            time_slice: TimeSlice::new(TIME_SLICE, MIN_WORK),
            limited: false,
            throttled: None,
            caller: None,
            timing: None,
            fault: None,
            stuck: None,
            broken: false,
            stopping: false,
            leaving: false,
            scratch: Scratch::default(),
        }
    }

    /// Starts to serve a ring whose addresses and indexes are set and checked.
    pub(crate) fn start(&mut self, error_event: Option<File>, inflight_log: InflightLog) {
        let vring = self.vring.get_ref();
        let size = vring.get_queue().size();
        self.signalled = vring.get_queue().next_used();
        drop(vring);
        self.heads = Heads::new(size);
        self.timing = self.shared.options.latency.then(|| Timing::new(size));
        self.inflight_log = inflight_log;
        self.parked.resize(size);
        self.wakers.resize_with(usize::from(size), || None);
        self.error_event = error_event;
        self.woken.clear();
        self.quiet = false;
        self.broken = false;
        self.stopping = false;
        self.begun = false;
        self.kicked = false;
        self.blind_kicks = 0;
        self.running = true;
    }

    /// Logs a warning about this queue, unless there were too many of its kind lately.
    pub(crate) fn warn(&self, kind: Kind, message: Arguments<'_>) {
        self.shared.log.warn(kind, format_args!("queue {}: {message}", self.index));
    }

    /// Takes no more heads, and puts large requests back where that is possible. The others are
    /// finished; see [`Self::is_drained`].
    pub(crate) fn stop(&mut self) {
        self.running = false;
        self.stopping = true;
        self.wait_no_more();
    }

    /// Puts large requests back where that is possible, for a pause. The others are finished; see
    /// [`Self::is_at_rest`]. Heads are taken again after [`Self::resume`], but not by a queue that broke,
    /// which finishes all that it began.
    pub(crate) fn pause(&mut self) {
        self.stopping = self.running;
        self.publish_finished();
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self) {
        self.stopping = false;
    }

    /// Takes no more heads, as the session ends. With an in-flight region, all large requests are
    /// abandoned between two of their pages and stay marked there, for the next session to resubmit.
    /// Without one, they are put back as for a stop.
    pub(crate) fn leave(&mut self) {
        self.stop();
        self.leaving = matches!(self.inflight_log, InflightLog::Region(_));
        while self.leaving
            && let Some(InFlight { head, .. }) = self.parked.take_large()
        {
            head.abandon();
        }
    }

    /// The driver kicked; the queue has its turn next.
    pub(crate) fn kicked(&mut self) {
        self.kicked = true;
    }

    /// Whether nothing is being worked on: what was begun is finished and published.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.parked.is_empty()
    }

    /// Whether everything that was taken is finished and published, also what an earlier process
    /// took. Of a ring that must not be served that stays as it is, for its next start.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_at_rest()
            && !(self.inflight_log.has_resubmits() && is_served(&self.vring.get_ref()))
    }

    /// Whether it broke and was not started since.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sets the bound of what is parked.
    #[cfg(test)]
    pub(crate) fn set_bound(&mut self, bound: Bound) {
        self.parked.set_bound(bound);
    }

    /// Sets the length of a time slice.
    #[cfg(test)]
    pub(crate) fn set_time_slice(&mut self, time: Duration) {
        self.time_slice = TimeSlice::new(time, MIN_WORK);
    }

    /// A request woke up; it is polled when the queue has its turn.
    pub(crate) fn wake(&mut self, head: u16) {
        self.woken.push_back(head);
    }

    /// Whether requests woke up that were not polled since.
    pub(crate) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// Gives the queue its turn: a slice of time for requests that woke up, and one for new heads.
    pub(crate) fn serve(&mut self, context: &mut WorkerContext) -> Turn {
        self.poll_woken(context);
        self.look_at_limits();
        let vring = self.vring.clone();
        // Guest memory changes only while the thread rests.
        let memory = snapshot(&self.shared.memory);
        let mut over = false;
        self.time_slice.begin();
        // The ring is locked to exchange heads and used elements and not while requests are worked
        // off: the session's messages need it too.
        loop {
            let mut state = vring.get_mut();
            let table = ring::descriptors(state.get_queue());
            let next = self.exchange(&mut state, &memory, over);
            drop(state);
            match next {
                Ok(Next::Work) => over = self.work(table, &memory, context),
                Ok(Next::Rest(turn)) => return turn,
                Err(error) => {
                    self.break_down(error);
                    return self.rest(false);
                }
            }
        }
    }

    /// Continues requests that woke up, for a slice of time, and publishes what is finished.
    /// Takes nothing new.
    pub(crate) fn resume_woken(&mut self, context: &mut WorkerContext) {
        self.poll_woken(context);
        self.publish_finished();
    }

    fn publish_finished(&mut self) {
        let vring = self.vring.clone();
        let memory = snapshot(&self.shared.memory);
        let mut state = vring.get_mut();
        let published = self.publish(&mut state, &memory);
        self.put_back_large(state.get_queue_mut(), &memory);
        drop(state);
        let stuck = self.stuck.take().map_or(Ok(()), Err);
        if let Err(error) = published.and(stuck) {
            self.break_down(error);
        }
    }

    fn poll_woken(&mut self, context: &mut WorkerContext) {
        if self.woken.is_empty() {
            return;
        }
        self.time_slice.start();
        while let Some(head) = self.woken.pop_front() {
            // If it is not parked, it was woken twice and finished the first time.
            let Some(in_flight) = self.parked.take(head) else { continue };
            self.poll(in_flight, context);
            if self.time_slice.is_over() {
                return;
            }
        }
    }

    /// Reports the requests that are parked for too long at this check, and abandons those that are
    /// parked for far too long. Returns true if there were such, so there is room for others.
    pub(crate) fn check_parked(&mut self, check: Check, stall_limits: &StallLimits) -> bool {
        let (index, figures, log) = (self.index, self.shared.device.figures(), &self.shared.log);
        let events = self.shared.device.events();
        let lost = self.parked.overdue(check, stall_limits, |request, age| {
            figures.stalled_requests.inc();
            events.count(Tally::RequestsStalled);
            let what = request.io.waits_for().map(|what| format!(", now for {what}"));
            log.warn(
                Kind::Stalls,
                format_args!(
                    "queue {index}: request {} ({}) has waited for {:.1} s{}",
                    request.head.index(),
                    request.extent,
                    age.as_secs_f64(),
                    what.unwrap_or_default()
                ),
            );
        });
        if lost.is_empty() {
            return false;
        }
        for index in lost {
            let Some(InFlight { head, io, reply, extent, .. }) = self.parked.take(index) else {
                continue;
            };
            figures.expired(extent.op);
            self.shared.device.events().count(Tally::RequestsExpired);
            self.warn(Kind::Stalls, format_args!("request {index} ({extent}) is abandoned"));
            // Its pages are done or untouched, and its place in a slot's queue is free.
            let payload = io.into_payload();
            self.answer(reply, payload.memory(), head, Status::IoErr);
        }
        self.publish_finished();
        true
    }
}

/// Whether requests of a ring may be worked on.
fn is_served(state: &VringState<SharedMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}
