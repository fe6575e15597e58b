//! Front ends that wait to be served. All are accepted and polled together, so a silent one delays no
//! other. The log names each one that waits. The work of a poll is bounded, however many connect.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::heartbeat::Heartbeat;
use super::socket::Bound;
use crate::ratelimit::{Kind, Limiter};
use crate::vhost_user::Others;

/// Most front ends that wait in the lobby. When one more connects, one that has been silent for [`SILENCE`]
/// is disconnected to make room. If there is no such one, the new connection stays in the socket's own
/// queue, which the kernel bounds by its backlog. A connection there costs no descriptor and loses nothing,
/// whereas a front end that is disconnected may abandon its disk, as QEMU 7.2 does.
const MAX_WAITING: usize = 128;
/// Most front ends that one poll accepts. They may connect as fast as they are accepted, and the caller has
/// other work: signals, a guest's memory, the front end that is served.
const MAX_ACCEPTED: usize = 16;
/// For how long a front end may be silent before it is disconnected to make room for another.
const SILENCE: Duration = Duration::from_secs(3);
/// Bytes of a message's header. A front end that has sent as many can be served.
const HEADER: usize = 12;
/// The time between two attempts to accept, in milliseconds, when the process has no free descriptor.
const ACCEPT_RETRY: u16 = 100;
/// Token of the listening socket.
const LISTENER: u64 = 0;
/// Token of the timer.
const TIMER: u64 = 1;
/// Token of the service manager's watchdog; those of front ends come after it.
const HEARTBEAT: u64 = 2;

/// The events of the listening socket. The process that passed it on can shut it down: it stays readable
/// then, and no connection arrives.
const LISTENING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(Option<i32>);

impl Peer {
    /// Asks the kernel which process has connected (`SO_PEERCRED`).
    pub(super) fn of(stream: &UnixStream) -> Self {
        let pid = getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
        // 0 is a process of another PID namespace.
        Self(pid.filter(|pid| *pid != 0))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "pid {pid}"),
            None => f.write_str("pid unknown"),
        }
    }
}

struct Waiting {
    token: u64,
    stream: UnixStream,
    peer: Peer,
    since: Instant,
    /// When a poll first found a whole header.
    ready_since: Option<Instant>,
    /// It connected while another one was served, and that was logged.
    behind: bool,
}

/// Whether the lobby accepts new front ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// It does.
    Open,
    /// Not until there is room: they stay in the socket's queue.
    Full,
    /// Not until the session has ended: the process has no free descriptor, or the socket fails.
    Suspended,
}

/// The listening socket, and the front ends that connected to it and are not served yet.
pub(super) struct Lobby {
    // Dropped first: a front end whose connection is closed must not reconnect to a daemon that ends.
    listener: Bound,
    waiting: Vec<Waiting>,
    epoll: Epoll,
    /// The listening socket is in `epoll` only in state `Open`. It stays readable as long as its queue is
    /// not empty, so a wait for it would spin.
    accepting: Accepting,
    /// Expires when a waiting front end has been silent for long enough to make room. Set while `Full`.
    timer: TimerFd,
    /// [`SILENCE`], except in tests.
    silence: Duration,
    /// The failure of the socket was logged.
    failed: bool,
    /// Closed to accept, and so refuse, a front end when the process has no other free descriptor.
    spare: Option<EventFd>,
    tokens: u64,
    /// The front end that is served.
    served: Option<Peer>,
    /// What is due to the service manager meanwhile.
    heartbeat: Option<Heartbeat>,
    log: Arc<Limiter>,
}

impl Lobby {
    pub(super) fn new(
        listener: Bound,
        heartbeat: Option<Heartbeat>,
        log: Arc<Limiter>,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(LISTENING, LISTENER))?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        if let Some(heartbeat) = &heartbeat {
            epoll.add(heartbeat, EpollEvent::new(EpollFlags::EPOLLIN, HEARTBEAT))?;
        }
        let (waiting, spare) = (Vec::new(), EventFd::new().ok());
        Ok(Self {
            listener,
            waiting,
            epoll,
            accepting: Accepting::Open,
            timer,
            silence: SILENCE,
            failed: false,
            spare,
            tokens: HEARTBEAT,
            served: None,
            heartbeat,
            log,
        })
    }

    /// The next front end: the first one that has sent a message header. `None` when the daemon is to
    /// stop.
    pub(super) fn next(&mut self, stop: BorrowedFd<'_>) -> Option<(UnixStream, Peer)> {
        self.served = None;
        loop {
            self.resume_listening();
            let mut fds = [
                PollFd::new(stop, PollFlags::POLLIN),
                PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = match (self.any_ready(), self.accepting) {
                (true, _) => PollTimeout::ZERO,
                (false, Accepting::Open | Accepting::Full) => PollTimeout::NONE,
                (false, Accepting::Suspended) => PollTimeout::from(ACCEPT_RETRY),
            };
            if let Err(errno) = poll(&mut fds, timeout) {
                log::debug!("poll: {errno}");
                continue;
            }
            if fds[0].any().unwrap_or(true) {
                return None;
            }
            self.poll();
            if let Some(first) = self.waiting.iter().position(|one| one.ready_since.is_some()) {
                let one = self.remove(first);
                self.served = Some(one.peer);
                return Some((one.stream, one.peer));
            }
        }
    }

    /// Whether a waiting front end has sent a message header.
    pub(super) fn any_ready(&self) -> bool {
        self.waiting.iter().any(|one| one.ready_since.is_some())
    }

    fn remove(&mut self, at: usize) -> Waiting {
        let one = self.waiting.remove(at);
        if let Err(errno) = self.epoll.delete(&one.stream) {
            log::debug!("cannot remove a front end from epoll: {errno}");
        }
        self.open_if_due();
        one
    }

    /// Accepts some of the front ends in the socket's queue. Returns false if there may be more.
    fn accept_some(&mut self) -> bool {
        for _ in 0..MAX_ACCEPTED {
            if self.waiting.len() >= MAX_WAITING {
                let mut came = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                if poll(&mut came, PollTimeout::ZERO) == Ok(0) {
                    return true;
                }
                if !self.make_room() {
                    let line = format_args!(
                        "{MAX_WAITING} front ends wait: further ones stay in the socket's queue"
                    );
                    self.log.warn(Kind::Connections, line);
                    self.close(Accepting::Full);
                    return false;
                }
            }
            match self.listener.accept() {
                Ok(stream) => self.receive(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        if !self.refuse(&error) {
                            return true;
                        }
                    }
                    // The peer has already disconnected.
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ => {
                        self.stop_listening(&error);
                        return true;
                    }
                },
            }
        }
        false
    }

    /// Removes a front end that has hung up, or was silent for long enough. Returns false without one.
    fn make_room(&mut self) -> bool {
        let mut at = 0;
        while at < self.waiting.len() {
            // It may have sent something since the last poll.
            if self.waiting[at].ready_since.is_none() && !self.is_connected(at, false) {
                return true;
            }
            let one = &self.waiting[at];
            if one.ready_since.is_none() && one.since.elapsed() >= self.silence {
                let one = self.remove(at);
                let waited = one.since.elapsed().as_secs_f64();
                let line = format_args!(
                    "a front end ({}) that has sent no message header for {waited:.1} s makes room for \
                     another",
                    one.peer
                );
                self.log.warn(Kind::Connections, line);
                return true;
            }
            at += 1;
        }
        false
    }

    /// Listens again when there is room, or when a silent front end can be disconnected. Otherwise sets
    /// the timer to the time when one can be.
    fn open_if_due(&mut self) {
        if self.accepting != Accepting::Full {
            return;
        }
        let silent = self.waiting.iter().filter(|one| one.ready_since.is_none());
        let left = silent.map(|one| self.silence.saturating_sub(one.since.elapsed())).min();
        let room = self.waiting.len() < MAX_WAITING;
        // Either call makes an expired timer unreadable.
        let set = match left.filter(|left| !room && !left.is_zero()) {
            Some(left) => {
                let left = Expiration::OneShot(TimeSpec::from_duration(left));
                self.timer.set(left, TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        if let Err(errno) = set {
            log::debug!("cannot set the timer: {errno}");
        }
        if room || left.is_some_and(|left| left.is_zero()) {
            self.open();
        }
    }

    fn open(&mut self) {
        let event = EpollEvent::new(LISTENING, LISTENER);
        let open = self.epoll.add(&self.listener, event).is_ok();
        self.accepting = if open { Accepting::Open } else { Accepting::Suspended };
    }

    fn close(&mut self, accepting: Accepting) {
        if self.accepting == Accepting::Open && self.epoll.delete(&self.listener).is_ok() {
            self.accepting = accepting;
        }
    }

    fn receive(&mut self, stream: UnixStream) {
        let peer = Peer::of(&stream);
        self.tokens += 1;
        let token = self.tokens;
        // Edge-triggered: what it has sent stays in the socket until it is served.
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if let Err(errno) = self.epoll.add(&stream, EpollEvent::new(events, token)) {
            let line = format_args!("a front end ({peer}) is refused: {errno}");
            self.log.warn(Kind::Connections, line);
            return;
        }
        if let Some(served) = self.served {
            let line = format_args!("a front end ({peer}) waits: another one ({served}) is served");
            self.log.warn(Kind::Connections, line);
        }
        let (since, behind) = (Instant::now(), self.served.is_some());
        self.waiting.push(Waiting { token, stream, peer, since, ready_since: None, behind });
    }

    /// Accepts a front end for which the process has no descriptor, and closes it. Returns false if the queue
    /// is empty (the kernel allocates a descriptor first), or if even the spare descriptor is used up. In the
    /// second case the socket is not polled until the session has ended.
    fn refuse(&mut self, error: &io::Error) -> bool {
        drop(self.spare.take());
        let accepted = self.listener.accept();
        let empty = accepted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        let refused = accepted.is_ok();
        drop(accepted);
        if !empty {
            let line = format_args!("a front end is refused: {error} (ulimit -n)");
            self.log.warn(Kind::Connections, line);
        }
        self.spare = EventFd::new().ok();
        if !empty && (!refused || self.spare.is_none()) {
            self.close(Accepting::Suspended);
            return false;
        }
        refused
    }

    /// Accepts no front end until the session has ended.
    fn stop_listening(&mut self, why: &dyn fmt::Display) {
        if !std::mem::replace(&mut self.failed, true) {
            log::error!("cannot accept front ends: {why}");
        }
        self.close(Accepting::Suspended);
    }

    fn resume_listening(&mut self) {
        if self.spare.is_none() {
            self.spare = EventFd::new().ok();
        }
        if self.accepting == Accepting::Suspended {
            self.open();
        }
    }

    /// Removes a front end that has hung up, and returns false then. Notes whether it has sent a header.
    fn is_connected(&mut self, at: usize, hung_up: bool) -> bool {
        let one = &mut self.waiting[at];
        let mut word = [0; HEADER];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let here = recv(one.stream.as_raw_fd(), &mut word, flags);
        let gone = hung_up || matches!(here, Ok(0) | Err(Errno::ECONNRESET));
        if !gone {
            if here == Ok(HEADER) {
                one.ready_since.get_or_insert_with(Instant::now);
            }
            return true;
        }
        let one = self.remove(at);
        if one.behind {
            let waited = one.since.elapsed().as_secs_f64();
            let line = format_args!(
                "a front end ({}) left after it had waited for {waited:.1} s",
                one.peer
            );
            self.log.warn(Kind::Connections, line);
        }
        false
    }
}

impl Others for Lobby {
    fn event(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn poll(&mut self) {
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.answer_if_due();
        }
        let mut events = [EpollEvent::empty(); MAX_WAITING + 3];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or_else(|errno| {
            log::debug!("epoll: {errno}");
            0
        });
        // First the connections that were closed: they make room for new ones.
        for event in &events[..count] {
            let token = event.data();
            if let Some(at) = self.waiting.iter().position(|one| one.token == token) {
                self.is_connected(at, event.events().contains(EpollFlags::EPOLLHUP));
            }
        }
        if let Some(event) = events[..count].iter().find(|event| event.data() == LISTENER) {
            let all = self.accept_some();
            let shut = EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR;
            if all && event.events().intersects(shut) {
                self.stop_listening(&"the socket was shut down");
            }
        }
        self.open_if_due();
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|one| one.ready_since).min()
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
