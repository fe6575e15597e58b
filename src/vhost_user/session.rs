//! One front end, from its connection to its end: the seam between sockets and rings.
//!
//! The vhost crate knows the messages. This module decides what it leaves open: when a message may be
//! read (as a whole, so a peer that stalls in the middle of one delays no other), and what ends a session.
//! It also publishes everything that a guest was promised before the next session begins.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use vhost_user_backend::VringT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::SessionError;
use crate::blk::config::GuestOptions;
use crate::blk::queue::{Shared, Vring};
use crate::clock;
use crate::device::Device;
use crate::failpoint;
use crate::ratelimit::Limiter;
use crate::rates::{Rates, Throttle};
use crate::sync;
use crate::vhost_user::channel::Channel;
use crate::vhost_user::handler::{Handler, Phase};
use crate::vhost_user::incoming::{
    Incoming, can_reply, check_descriptors, has_hung_up, peek, wait,
};
use crate::virtq::memory::MemoryMap;
use crate::virtq::{handed, sigbus, sys};

/// How long a front end that has started a ring says nothing more before it is told of a growth that it may not know
/// of. It could mistake what it then asks for what it waits for: QEMU before 8.0 answers while it waits.
const QUIET: Duration = Duration::from_millis(50);
/// How often a peer that stalls is checked.
const STALL_CHECK: Duration = Duration::from_millis(20);

/// How long a front end may keep others waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// For the rest of a message that it began, or before it reads its replies. Applies even if no other
    /// front end waits.
    pub stall: Duration,
    /// Before it owns the session (SET_OWNER), once another one waits.
    pub silence: Duration,
    /// Before its first message about rings or memory, once another one waits. After that a guest uses it,
    /// and it may be silent for ever: QEMU sends nothing more until the guest's driver starts.
    pub idle: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { stall: seconds(5), silence: seconds(3), idle: seconds(60) }
    }
}

/// Front ends that wait while another one is served.
pub trait Others {
    /// Readable when [`Self::poll`] has something to do.
    fn event(&self) -> BorrowedFd<'_>;
    /// Accepts new front ends, notes which ones have sent a message, and drops those that hung up.
    fn poll(&mut self);
    /// Since when a front end that has sent a message waits.
    fn waiting_since(&self) -> Option<Instant>;
}

/// How a session ended. In every case all requests that were taken are finished and published.
#[derive(Debug)]
pub enum SessionEnd {
    /// The front end hung up.
    HungUp,
    /// The daemon is to stop.
    Stopped,
    /// The front end was disconnected: it sent an invalid message, or was too slow.
    Refused(SessionError),
}

/// Serves front ends, one at a time.
pub struct Server {
    device: Arc<Device>,
    options: GuestOptions,
    times: Times,
    log: Arc<Limiter>,
    /// The disk's rate limits; none until they are set.
    throttle: Arc<Throttle>,
    /// It was logged how long the first request took.
    announced: Arc<AtomicBool>,
    /// Of the session that is served, if there is one.
    growth: Mutex<Option<Arc<EventFd>>>,
}

type Connection = BackendReqHandler<Mutex<Handler>>;

impl Server {
    /// A server of one disk. From now on a SIGBUS that a process sends does nothing.
    pub fn new(device: Arc<Device>, options: GuestOptions) -> Self {
        if let Err(error) = sigbus::install() {
            // Each region of memory will be refused with the same error.
            log::error!(
                "the SIGBUS handler cannot be installed, so no guest memory can be mapped: {error}"
            );
        }
        if options.latency {
            device.count_latencies();
        }
        let times = Times::default();
        let (log, throttle, announced, growth) = Default::default();
        Self { device, options, times, log, throttle, announced, growth }
    }

    /// The same server with other limits on how long a front end may keep others waiting.
    #[cfg(test)]
    #[must_use]
    pub fn with_times(self, times: Times) -> Self {
        Self { times, ..self }
    }

    /// The log of the server and its sessions, without lines that repeat too often.
    pub fn log(&self) -> &Arc<Limiter> {
        &self.log
    }

    /// The rate limits of all its queues together.
    pub fn rates(&self) -> Rates {
        self.throttle.rates()
    }

    /// Changes the rate limits. Queues that wait for the old ones are woken.
    pub fn set_rates(&self, rates: &Rates) {
        self.throttle.set(rates, clock::since_start());
    }

    /// Serves one front end, while `others` wait, until it hangs up or fails, or `stop` is readable.
    ///
    /// When this returns, no request is in flight, and none of the guest's memory is mapped. The caller
    /// closes the connection after that, so a front end that sees it close can rely on the used rings.
    pub fn serve(
        &self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<&mut dyn Others>,
    ) -> SessionEnd {
        match Session::start(self, stream) {
            Ok(session) => {
                *sync::lock(&self.growth) = Some(Arc::clone(&session.growth));
                let end = session.run(stream, stop, others);
                *sync::lock(&self.growth) = None;
                end
            }
            Err(error) => SessionEnd::Refused(error),
        }
    }

    /// The disk has grown: the front end, if there is one and it has a channel for that, is told. Does not wait.
    pub fn tell_of_growth(&self) {
        if let Some(growth) = &*sync::lock(&self.growth) {
            // Full, it is as good.
            let _ = growth.write(1);
        }
    }
}

struct Session {
    handler: Arc<Mutex<Handler>>,
    connection: Connection,
    /// Readable when guest memory was lost or a queue thread died.
    trouble: EventFd,
    times: Times,
    /// Readable when the disk has grown.
    growth: Arc<EventFd>,
    channel: Channel,
    /// When the front end is to be told of the disk's size.
    due: Option<Instant>,
    /// A ring was started, and the front end told or about to be.
    told: bool,
}

impl Session {
    fn start(server: &Server, stream: &UnixStream) -> Result<Self, SessionError> {
        let trouble = EventFd::new(EFD_NONBLOCK).map_err(SessionError::Setup)?;
        let clone = || trouble.try_clone().map_err(SessionError::Setup);
        let memory = MemoryMap::new(clone()?);
        let options = &server.options;
        let vrings: Vec<Vring> = (0..options.num_queues)
            .map(|_| Vring::new(memory.shared(), options.max_queue_size))
            .collect::<Result<_, _>>()
            .map_err(|error| SessionError::Setup(io::Error::other(error)))?;
        let shared = Arc::new(Shared {
            device: Arc::clone(&server.device),
            memory: memory.shared(),
            options: options.clone(),
            log: Arc::clone(&server.log),
            throttle: Arc::clone(&server.throttle),
            parked: AtomicUsize::default(),
            seen: AtomicBool::default(),
            announced: Arc::clone(&server.announced),
        });
        let handler = Arc::new(Mutex::new(Handler::new(shared, memory, vrings, clone()?)));
        let stream = stream.try_clone().map_err(SessionError::Connection)?;
        let connection = Connection::from_stream(stream, Arc::clone(&handler));
        let growth = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(SessionError::Setup)?);
        let (times, channel) = (server.times, Channel::default());
        Ok(Self { handler, connection, trouble, times, growth, channel, due: None, told: false })
    }

    fn run(
        mut self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<&mut dyn Others>,
    ) -> SessionEnd {
        let end = self.pump(stream, stop, others).unwrap_or_else(SessionEnd::Refused);
        // Take no more, finish and publish what was taken; only then is the socket closed.
        let healthy = sync::lock(&self.handler).shut_down();
        if healthy { end } else { SessionEnd::Refused(SessionError::QueueThread) }
    }

    fn pump(
        &mut self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<&mut dyn Others>,
    ) -> Result<SessionEnd, SessionError> {
        let mut others = others;
        let started = Instant::now();
        let mut stalled_since: Option<Instant> = None;
        loop {
            let left = self.time_left(started, others.as_deref());
            let next_check = stalled_since.map(|_| STALL_CHECK);
            // Nor told in the middle of a message.
            let due = self.due.filter(|_| stalled_since.is_none());
            let until_due = due.map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = left.into_iter().chain(next_check).chain(until_due).min();
            // While a message is incomplete, its first bytes keep the socket readable. So the socket is
            // checked from time to time instead of polled.
            let socket = if stalled_since.is_some() { None } else { Some(stream.as_fd()) };
            let waiting = others.as_deref().map(Others::event);
            let trouble = Some(sys::event_fd(&self.trouble));
            let growth = Arc::clone(&self.growth);
            let growth = Some(sys::event_fd(&growth));
            let [readable, stopped, trouble, waiting, growth] =
                wait([socket, Some(stop), trouble, waiting, growth], timeout)?;
            if stopped {
                return Ok(SessionEnd::Stopped);
            }
            if trouble {
                let _ = self.trouble.read();
                let lost = sync::lock(&self.handler).memory_is_lost();
                return Err(if lost {
                    SessionError::MemoryLost
                } else {
                    SessionError::QueueThread
                });
            }
            if let Some(others) = others.as_deref_mut().filter(|_| waiting) {
                others.poll();
            }
            if self.time_left(started, others.as_deref()).is_some_and(|left| left.is_zero()) {
                return Err(SessionError::Silent);
            }
            if growth {
                let _ = self.growth.read();
                self.due = Some(Instant::now());
                self.told = sync::lock(&self.handler).may_know_old_size();
            }
            if !readable && stalled_since.is_none() {
                self.tell_if_due();
                continue;
            }
            match peek(stream)? {
                Incoming::End => return Ok(SessionEnd::HungUp),
                Incoming::Message if can_reply(stream)? => {
                    stalled_since = None;
                    let descriptor = check_descriptors(stream)?;
                    let handled = self.handle_message();
                    self.take_channel(descriptor);
                    if !handled? {
                        return Ok(SessionEnd::HungUp);
                    }
                    self.plan_to_tell();
                }
                Incoming::Part { begun: false } => stalled_since = None,
                Incoming::Part { begun: true } if has_hung_up(stream)? => {
                    return Ok(SessionEnd::HungUp);
                }
                Incoming::Part { begun: true } | Incoming::Message => {
                    let since = *stalled_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.times.stall {
                        return Err(SessionError::Stalled);
                    }
                }
            }
        }
    }

    /// Keeps the descriptor that came with the last message if that handed a channel over.
    fn take_channel(&mut self, descriptor: Option<OwnedFd>) {
        let given = sync::lock(&self.handler).take_channel_given();
        match descriptor {
            Some(descriptor) if given => self.channel.open(descriptor),
            Some(descriptor) => handed::discard(descriptor.into()),
            None => {}
        }
    }

    /// After a message: a front end that has started its rings may know a size from before a growth, as QEMU does
    /// that has reconnected, or whose guest has started anew. It is told once it says nothing more.
    fn plan_to_tell(&mut self) {
        let may_know_old_size = sync::lock(&self.handler).may_know_old_size();
        if self.due.is_some() || may_know_old_size && !self.told {
            self.due = Some(Instant::now() + QUIET);
        }
        self.told = may_know_old_size;
    }

    fn tell_if_due(&mut self) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.channel.tell_of_config();
        }
    }

    /// How long the front end may still keep others waiting; `None` is for ever. After its first message
    /// about rings or memory it is in use, however silent it is.
    fn time_left(&self, started: Instant, others: Option<&dyn Others>) -> Option<Duration> {
        let limit = match sync::lock(&self.handler).phase() {
            Phase::Begun => self.times.silence,
            Phase::Owned => self.times.idle,
            Phase::InUse => return None,
        };
        let since = others?.waiting_since()?.max(started);
        Some(limit.saturating_sub(since.elapsed()))
    }

    /// Handles one message. Returns false if the peer hung up in the middle of it.
    fn handle_message(&mut self) -> Result<bool, SessionError> {
        // A queue thread that dies while it holds the ring state's mutex poisons it, and the crate calls
        // `unwrap` on it. That must end this session and not the disk.
        failpoint::reach("session.message");
        let connection = &mut self.connection;
        let handled = catch_unwind(AssertUnwindSafe(|| connection.handle_request()));
        match handled.map_err(|_| SessionError::QueueThread)? {
            Ok(()) => Ok(true),
            // The last case is a reply that the peer does not read any more, or a reset.
            Err(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            ) => Ok(false),
            Err(_) if sync::lock(&self.handler).take_soft_refusal() => Ok(true),
            Err(error) => Err(SessionError::Message(error)),
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
