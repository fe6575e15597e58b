//! One front end, from its connection to its end: the seam between sockets and rings.
//!
//! The vhost crate knows the messages; here is what it leaves open: when a message may be read
//! (whole, so that a peer which stalls in the middle of one holds up nobody), what ends a session,
//! and that everything a guest was promised is published before the next session begins.
//! Config-change messages and polling will find their place behind this same seam.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use vhost_user_backend::VringT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::GuestOptions;
use super::handler::Handler;
use super::limited::Limiter;
use super::memory::MemoryMap;
use super::queue::{Shared, Vring};
use super::{sigbus, sys};
use crate::device::Device;
use crate::sync;

/// Bytes of a message's header: le32 request, le32 flags, le32 size of the body.
const HEADER_BYTES: usize = 12;
/// Longest body of a message.
const MAX_BODY_BYTES: usize = 4096;
/// How long a peer may take over the rest of a message that it began, or to read its replies.
const STALL: Duration = Duration::from_secs(5);
/// How long a peer may be silent before its first message while another one is waiting.
const SILENCE: Duration = Duration::from_secs(3);
/// How often a stalled message or a waiting client is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How a session ended. In every case all requests that were taken are finished and published.
#[derive(Debug)]
pub enum SessionEnd {
    /// The front end hung up.
    HungUp,
    /// The daemon is to stop.
    Stopped,
    /// The front end said something that cannot be, or was too slow; it was disconnected.
    Refused(SessionError),
}

/// Why a session could not start, or was ended from this side.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection fails.
    #[error("the connection fails")]
    Connection(#[source] io::Error),
    /// Threads or descriptors cannot be had.
    #[error("the session cannot be set up")]
    Setup(#[source] io::Error),
    /// A message is not one, or was refused.
    #[error("the front end's message is refused")]
    Message(#[source] VhostError),
    /// A message's size cannot be.
    #[error("a message of {0} bytes is too long")]
    MessageSize(usize),
    /// The peer began a message and did not go on, or does not read replies.
    #[error("the front end stalls")]
    Stalled,
    /// The peer said nothing while another one was waiting.
    #[error("the front end says nothing, and another one is waiting")]
    Silent,
    /// The peer's memory went away under its mapping.
    #[error("the guest's memory is gone")]
    MemoryLost,
    /// A queue thread died.
    #[error("a queue thread died")]
    QueueThread,
}

/// Serves front ends, one at a time.
pub struct Server {
    device: Arc<Device>,
    options: GuestOptions,
    log: Arc<Limiter>,
}

type Connection = BackendReqHandler<Mutex<Handler>>;

impl Server {
    /// A server of one disk. From now on a SIGBUS that somebody sends does nothing.
    pub fn new(device: Arc<Device>, options: GuestOptions) -> Self {
        if let Err(error) = sigbus::install() {
            // Each region of memory will be refused with the same.
            log::error!("lost guest memory cannot be survived: {error}");
        }
        Self { device, options, log: Arc::default() }
    }

    /// What the server and its sessions log, less what comes too often.
    pub fn log(&self) -> &Limiter {
        &self.log
    }

    /// Serves one front end until it hangs up, errs, or `stop` becomes readable. `others` is
    /// readable while another front end is waiting.
    ///
    /// When this returns, no request is in flight and nothing of the guest's memory is mapped. The
    /// connection is the caller's to close, after that: a front end that sees it close can rely on
    /// the used rings.
    pub fn serve(
        &self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<BorrowedFd<'_>>,
    ) -> SessionEnd {
        match Session::start(self, stream) {
            Ok(session) => session.run(stream, stop, others),
            Err(error) => SessionEnd::Refused(error),
        }
    }
}

struct Session {
    handler: Arc<Mutex<Handler>>,
    connection: Connection,
    /// Readable when guest memory was lost or a queue thread died.
    trouble: EventFd,
}

/// What a look at the socket says.
enum Incoming {
    /// A whole message can be read.
    Message,
    /// Nothing, or not all of a message.
    Part { begun: bool },
    /// The peer is gone.
    End,
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
        });
        let handler = Arc::new(Mutex::new(Handler::new(shared, memory, vrings, clone()?)));
        let stream = stream.try_clone().map_err(SessionError::Connection)?;
        let connection = Connection::from_stream(stream, Arc::clone(&handler));
        Ok(Self { handler, connection, trouble })
    }

    fn run(
        mut self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<BorrowedFd<'_>>,
    ) -> SessionEnd {
        let end = self.pump(stream, stop, others).unwrap_or_else(SessionEnd::Refused);
        // Take no more, finish and publish what was taken; only then is the socket closed.
        let healthy = sync::lock(&self.handler).shut_down();
        sync::lock(&self.handler).forget_stranger();
        if healthy {
            end
        } else {
            // What it took may not have been published, so used indexes alone do not say what was
            // done: rings that are in use must not be taken up again by them.
            sync::lock(&self.handler).forget_unaccounted();
            SessionEnd::Refused(SessionError::QueueThread)
        }
    }

    fn pump(
        &mut self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<BorrowedFd<'_>>,
    ) -> Result<SessionEnd, SessionError> {
        let started = Instant::now();
        let mut stalled_since: Option<Instant> = None;
        loop {
            let owned = sync::lock(&self.handler).is_owned();
            let timeout = if stalled_since.is_some() || !owned { Some(LOOK) } else { None };
            // While a message is incomplete its first bytes keep the socket readable, so it is
            // looked at by the clock.
            let socket = if stalled_since.is_some() { None } else { Some(stream.as_fd()) };
            let [readable, stopped, trouble] =
                wait([socket, Some(stop), Some(sys::event_fd(&self.trouble))], timeout)?;
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
            if !owned && started.elapsed() > SILENCE && is_readable(others)? {
                return Err(SessionError::Silent);
            }
            if !readable && stalled_since.is_none() {
                continue;
            }
            match look_at(stream)? {
                Incoming::End => return Ok(SessionEnd::HungUp),
                Incoming::Message if can_reply(stream)? => {
                    stalled_since = None;
                    if !self.handle_message()? {
                        return Ok(SessionEnd::HungUp);
                    }
                }
                Incoming::Part { begun: false } => stalled_since = None,
                Incoming::Part { begun: true } if has_hung_up(stream)? => {
                    return Ok(SessionEnd::HungUp);
                }
                Incoming::Part { begun: true } | Incoming::Message => {
                    let since = *stalled_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > STALL {
                        return Err(SessionError::Stalled);
                    }
                }
            }
        }
    }

    /// Handles one message; false if the peer hung up in the middle of it.
    fn handle_message(&mut self) -> Result<bool, SessionError> {
        // The ring state's mutex is poisoned by a queue thread that dies while it holds it, and the
        // crate unwraps; that must end this session and not the disk.
        let connection = &mut self.connection;
        let handled = catch_unwind(AssertUnwindSafe(|| connection.handle_request()));
        match handled.map_err(|_| SessionError::QueueThread)? {
            Ok(()) => Ok(true),
            Err(VhostError::Disconnected | VhostError::PartialMessage) => Ok(false),
            Err(_) if sync::lock(&self.handler).take_soft_refusal() => Ok(true),
            Err(error) => Err(SessionError::Message(error)),
        }
    }
}

/// Waits until one of `fds` is readable or hung up, and says which are.
fn wait<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> Result<[bool; N], SessionError> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(SessionError::Connection(errno.into())),
    }
    let mut results = polled.iter().map(|fd| fd.any().unwrap_or(true));
    Ok(fds.map(|fd| fd.is_some() && results.next().unwrap_or(false)))
}

fn is_readable(fd: Option<BorrowedFd<'_>>) -> Result<bool, SessionError> {
    let [readable] = wait([fd], Some(Duration::ZERO))?;
    Ok(readable)
}

/// Whether there is room for a reply: the vhost crate writes replies in a loop that a peer which
/// never reads could keep busy for ever.
fn can_reply(stream: &UnixStream) -> Result<bool, SessionError> {
    let events = poll_now(stream, PollFlags::POLLOUT)?;
    Ok(events.is_some_and(|events| events.contains(PollFlags::POLLOUT)))
}

/// Whether nothing more will come after what is in the socket.
fn has_hung_up(stream: &UnixStream) -> Result<bool, SessionError> {
    // The nix crate has no name for this one, so it does not know what it is told either.
    let events = poll_now(stream, PollFlags::from_bits_retain(libc::POLLRDHUP))?;
    Ok(events.is_none_or(|events| events.contains(PollFlags::POLLHUP)))
}

/// The events that are pending; `None` if there is one that has no name.
fn poll_now(stream: &UnixStream, flags: PollFlags) -> Result<Option<PollFlags>, SessionError> {
    let mut fds = [PollFd::new(stream.as_fd(), flags)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds[0].revents()),
        Err(errno) => Err(SessionError::Connection(errno.into())),
    }
}

/// Looks at the socket without reading: is there a whole message?
fn look_at(stream: &UnixStream) -> Result<Incoming, SessionError> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut header = [0; HEADER_BYTES];
    let here = match recv(stream.as_raw_fd(), &mut header, flags) {
        Ok(0) | Err(Errno::ECONNRESET) => return Ok(Incoming::End),
        Ok(here) => here,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Incoming::Part { begun: false }),
        Err(errno) => return Err(SessionError::Connection(errno.into())),
    };
    if here < HEADER_BYTES {
        return Ok(Incoming::Part { begun: true });
    }
    let [.., a, b, c, d] = header;
    let body = u32::from_le_bytes([a, b, c, d]) as usize;
    if body > MAX_BODY_BYTES {
        return Err(SessionError::MessageSize(body));
    }
    let waiting = sys::bytes_waiting(stream).map_err(SessionError::Connection)?;
    if waiting >= HEADER_BYTES + body {
        Ok(Incoming::Message)
    } else {
        Ok(Incoming::Part { begun: true })
    }
}
