//! Front ends that wait to be served. All are accepted and polled together, so that a silent one delays no
//! other, and one that waits is logged. The work of a poll is bounded, however many connect.

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

use super::socket::Bound;
use crate::ratelimit::{Kind, Limiter};
use crate::vhost_user::Others;

/// Most front ends that wait in here. When one more comes, one that has said nothing for [`SILENCE`] makes
/// room. If there is none, the newcomer stays in the socket's own queue, which the kernel bounds by its
/// backlog: a connection there costs no descriptor and loses nothing, and a front end that is cut off may
/// give its disk up, as QEMU 7.2 does.
const MOST: usize = 128;
/// Most front ends that one poll accepts. They may connect as fast as they are accepted, and the caller has
/// more to do: a signal to end at, a guest's memory, a front end that is served.
const AT_ONCE: usize = 16;
/// For how long a front end may say nothing before it makes room for another.
const SILENCE: Duration = Duration::from_secs(3);
/// Bytes of a message's header. A front end that has sent as many has spoken.
const WORD: usize = 12;
/// The time between two attempts to accept, in milliseconds, when the process has no free descriptor.
const DEAF: u16 = 100;
/// Token of the listening socket.
const LISTENER: u64 = 0;
/// Token of the timer; those of front ends come after it.
const TIMER: u64 = 1;

/// The events of the listening socket. One that was shut down, as the process that passed it on can do,
/// stays readable, and no connection comes.
const LISTENING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(Option<i32>);

impl Peer {
    /// Asks the kernel which process has connected (`SO_PEERCRED`).
    pub(super) fn of(stream: &UnixStream) -> Self {
        let pid = getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
        // 0 is one of another namespace.
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
    /// When it was seen to have said something.
    spoke: Option<Instant>,
    /// It came while another one was served, and that was logged.
    behind: bool,
}

/// Whether new front ends are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// They are.
    Open,
    /// They stay in the socket's queue until there is room.
    Full,
    /// The process has no free descriptor, or the socket fails: not until the session has ended.
    Shut,
}

/// The listening socket, and the front ends that connected to it and are not served yet.
pub(super) struct Lobby {
    // First: a front end whose connection is closed must not be accepted again by a daemon that ends.
    listener: Bound,
    waiting: Vec<Waiting>,
    epoll: Epoll,
    /// The listening socket is in `epoll` only while it is open: it stays readable as long as its queue is
    /// not empty, so that a wait for it would spin.
    door: Door,
    /// Expires when a waiting front end has been silent for long enough to make room. Set while full.
    timer: TimerFd,
    /// [`SILENCE`], except in tests.
    silence: Duration,
    /// That the socket fails was said.
    failed: bool,
    /// Closed to have a descriptor for a front end that is refused because there is no other.
    spare: Option<EventFd>,
    tokens: u64,
    /// The front end that is served.
    served: Option<Peer>,
    log: Arc<Limiter>,
}

impl Lobby {
    pub(super) fn new(listener: Bound, log: Arc<Limiter>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(LISTENING, LISTENER))?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let (waiting, spare) = (Vec::new(), EventFd::new().ok());
        Ok(Self {
            listener,
            waiting,
            epoll,
            door: Door::Open,
            timer,
            silence: SILENCE,
            failed: false,
            spare,
            tokens: TIMER,
            served: None,
            log,
        })
    }

    /// The next front end, which is the first one that has said something, or `None` when the daemon
    /// is to stop.
    pub(super) fn next(&mut self, stop: BorrowedFd<'_>) -> Option<(UnixStream, Peer)> {
        self.served = None;
        loop {
            self.listen_again();
            let mut fds = [
                PollFd::new(stop, PollFlags::POLLIN),
                PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = match (self.has_spoken(), self.door) {
                (true, _) => PollTimeout::ZERO,
                (false, Door::Open | Door::Full) => PollTimeout::NONE,
                (false, Door::Shut) => PollTimeout::from(DEAF),
            };
            if let Err(errno) = poll(&mut fds, timeout) {
                log::debug!("poll: {errno}");
                continue;
            }
            if fds[0].any().unwrap_or(true) {
                return None;
            }
            self.look();
            if let Some(first) = self.waiting.iter().position(|one| one.spoke.is_some()) {
                let one = self.remove(first);
                self.served = Some(one.peer);
                return Some((one.stream, one.peer));
            }
        }
    }

    /// Whether a front end waits that has spoken.
    pub(super) fn has_spoken(&self) -> bool {
        self.waiting.iter().any(|one| one.spoke.is_some())
    }

    fn remove(&mut self, at: usize) -> Waiting {
        let one = self.waiting.remove(at);
        if let Err(errno) = self.epoll.delete(&one.stream) {
            log::debug!("cannot remove a front end from epoll: {errno}");
        }
        self.open_if_due();
        one
    }

    /// Accepts some of the front ends in the socket's queue. False if there may be more.
    fn let_in(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            if self.waiting.len() >= MOST {
                let mut came = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                if poll(&mut came, PollTimeout::ZERO) == Ok(0) {
                    return true;
                }
                if !self.make_room() {
                    let line = format_args!(
                        "{MOST} front ends wait: further ones stay in the socket's queue"
                    );
                    self.log.warn(Kind::Connections, line);
                    self.close(Door::Full);
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
                    // The peer was faster to leave.
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

    /// Lets one go that has left, or that has been silent for long enough. False if there is none.
    fn make_room(&mut self) -> bool {
        let mut at = 0;
        while at < self.waiting.len() {
            // It may have said something since epoll was asked.
            if self.waiting[at].spoke.is_none() && !self.is_here(at, false) {
                return true;
            }
            let one = &self.waiting[at];
            if one.spoke.is_none() && one.since.elapsed() >= self.silence {
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

    /// Listens again when there is room, or when a front end can make room; else sets the timer to when
    /// one can.
    fn open_if_due(&mut self) {
        if self.door != Door::Full {
            return;
        }
        let silent = self.waiting.iter().filter(|one| one.spoke.is_none());
        let left = silent.map(|one| self.silence.saturating_sub(one.since.elapsed())).min();
        let room = self.waiting.len() < MOST;
        // Both make the timer unreadable, if it has expired.
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
        self.door = if open { Door::Open } else { Door::Shut };
    }

    fn close(&mut self, door: Door) {
        if self.door == Door::Open && self.epoll.delete(&self.listener).is_ok() {
            self.door = door;
        }
    }

    fn receive(&mut self, stream: UnixStream) {
        let peer = Peer::of(&stream);
        self.tokens += 1;
        let token = self.tokens;
        // Edges alone: what it says stays where it is until it is served.
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
        self.waiting.push(Waiting { token, stream, peer, since, spoke: None, behind });
    }

    /// Accepts a front end for which there is no descriptor, and closes it. False if the queue is empty (the
    /// kernel allocates a descriptor first), or if there is none left even for that; then the socket is
    /// not polled until the session has ended.
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
            self.close(Door::Shut);
            return false;
        }
        refused
    }

    /// Accepts no front end until the session has ended.
    fn stop_listening(&mut self, why: &dyn fmt::Display) {
        if !std::mem::replace(&mut self.failed, true) {
            log::error!("cannot accept front ends: {why}");
        }
        self.close(Door::Shut);
    }

    fn listen_again(&mut self) {
        if self.spare.is_none() {
            self.spare = EventFd::new().ok();
        }
        if self.door == Door::Shut {
            self.open();
        }
    }

    /// Looks whether a front end has left, which lets it go, or has said something. True if it is here.
    fn is_here(&mut self, at: usize, hung_up: bool) -> bool {
        let one = &mut self.waiting[at];
        let mut word = [0; WORD];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let here = recv(one.stream.as_raw_fd(), &mut word, flags);
        let gone = hung_up || matches!(here, Ok(0) | Err(Errno::ECONNRESET));
        if !gone {
            if here == Ok(WORD) {
                one.spoke.get_or_insert_with(Instant::now);
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

    fn look(&mut self) {
        let mut events = [EpollEvent::empty(); MOST + 2];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or_else(|errno| {
            log::debug!("epoll: {errno}");
            0
        });
        // First those that left: they make room for new ones.
        for event in &events[..count] {
            let token = event.data();
            if let Some(at) = self.waiting.iter().position(|one| one.token == token) {
                self.is_here(at, event.events().contains(EpollFlags::EPOLLHUP));
            }
        }
        if let Some(event) = events[..count].iter().find(|event| event.data() == LISTENER) {
            let all = self.let_in();
            let shut = EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR;
            if all && event.events().intersects(shut) {
                self.stop_listening(&"the socket was shut down");
            }
        }
        self.open_if_due();
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|one| one.spoke).min()
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
