//! Front ends that wait to be served. All of them are accepted and looked at together, so that one
//! that says nothing keeps nobody waiting, and one that waits is seen.

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

use super::socket::Bound;
use crate::guest::{Kind, Limiter, Others};

/// Most front ends that wait in here; others are turned away unless one in here has said nothing yet.
const MOST: usize = 32;
/// Bytes of a message's header. Whoever has sent as many has said something.
const WORD: usize = 12;
/// How often it is tried again to listen, in milliseconds, if there was no descriptor for anybody.
const DEAF: u16 = 100;
/// Token of the listening socket; those of front ends are from 1 on.
const LISTENER: u64 = 0;

/// What is waited for on the listening socket. One that was shut down, as whoever handed it down can do,
/// is readable for ever, and nobody comes.
const LISTENING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// Who is at the other end of a connection.
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

/// The listening socket, and who has come by it and is not served yet.
pub(super) struct Lobby {
    // First: whoever sees its connection close must not be let in again by a daemon that ends.
    listener: Bound,
    waiting: Vec<Waiting>,
    epoll: Epoll,
    /// New front ends are waited for. Not while there is no descriptor for any, or the socket fails.
    listens: bool,
    /// That the socket fails was said.
    failed: bool,
    /// A descriptor for a front end that is turned away because there is no other.
    spare: Option<EventFd>,
    tokens: u64,
    /// Who is served.
    served: Option<Peer>,
    log: Arc<Limiter>,
}

impl Lobby {
    pub(super) fn new(listener: Bound, log: Arc<Limiter>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(LISTENING, LISTENER))?;
        let (waiting, spare) = (Vec::new(), EventFd::new().ok());
        Ok(Self {
            listener,
            waiting,
            epoll,
            listens: true,
            failed: false,
            spare,
            tokens: LISTENER,
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
            let timeout = match (self.has_spoken(), self.listens) {
                (true, _) => PollTimeout::ZERO,
                (false, true) => PollTimeout::NONE,
                (false, false) => PollTimeout::from(DEAF),
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

    /// Whether somebody waits who has said something.
    pub(super) fn has_spoken(&self) -> bool {
        self.waiting.iter().any(|one| one.spoke.is_some())
    }

    fn remove(&mut self, at: usize) -> Waiting {
        let one = self.waiting.remove(at);
        if let Err(errno) = self.epoll.delete(&one.stream) {
            log::debug!("a front end cannot be taken out of epoll: {errno}");
        }
        one
    }

    /// Lets all in who have come.
    fn let_in(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(stream) => self.receive(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        if !self.turn_away(&error) {
                            return;
                        }
                    }
                    // The peer was faster to leave.
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ => {
                        self.stop_listening(&error);
                        return;
                    }
                },
            }
        }
    }

    fn receive(&mut self, stream: UnixStream) {
        let peer = Peer::of(&stream);
        let silent = self.waiting.iter().position(|one| one.spoke.is_none());
        if self.waiting.len() >= MOST {
            let Some(silent) = silent else {
                let line = format_args!("a front end ({peer}) is turned away: {MOST} wait already");
                self.log.warn(Kind::Connections, line);
                return;
            };
            let one = self.remove(silent);
            let waited = one.since.elapsed().as_secs_f64();
            let line = format_args!(
                "a front end ({}) that has said nothing for {waited:.1} s makes room for another",
                one.peer
            );
            self.log.warn(Kind::Connections, line);
        }
        self.tokens += 1;
        let token = self.tokens;
        // Edges alone: what it says stays where it is until it is served.
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if let Err(errno) = self.epoll.add(&stream, EpollEvent::new(events, token)) {
            let line = format_args!("a front end ({peer}) is turned away: {errno}");
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

    /// Accepts a front end for which there is no descriptor, and closes it. False if nobody is there (the
    /// kernel looks for a descriptor first), or if there is none left even for that; then nobody is
    /// waited for until the session has ended.
    fn turn_away(&mut self, error: &io::Error) -> bool {
        drop(self.spare.take());
        let accepted = self.listener.accept();
        let nobody =
            accepted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        let turned_away = accepted.is_ok();
        drop(accepted);
        if !nobody {
            let line = format_args!("a front end is turned away: {error} (ulimit -n)");
            self.log.warn(Kind::Connections, line);
        }
        self.spare = EventFd::new().ok();
        if !nobody && (!turned_away || self.spare.is_none()) {
            self.listens = self.listens && self.epoll.delete(&self.listener).is_err();
            return false;
        }
        turned_away
    }

    /// Waits for nobody until the session has ended.
    fn stop_listening(&mut self, why: &dyn fmt::Display) {
        if !std::mem::replace(&mut self.failed, true) {
            log::error!("front ends cannot be accepted: {why}");
        }
        self.listens = self.listens && self.epoll.delete(&self.listener).is_err();
    }

    fn listen_again(&mut self) {
        if self.spare.is_none() {
            self.spare = EventFd::new().ok();
        }
        if !self.listens {
            let event = EpollEvent::new(LISTENING, LISTENER);
            self.listens = self.epoll.add(&self.listener, event).is_ok();
        }
    }

    /// Looks at a front end that has done something.
    fn look_at(&mut self, token: u64, events: EpollFlags) {
        let Some(at) = self.waiting.iter().position(|one| one.token == token) else { return };
        let one = &mut self.waiting[at];
        let mut word = [0; WORD];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let here = recv(one.stream.as_raw_fd(), &mut word, flags);
        let gone =
            events.contains(EpollFlags::EPOLLHUP) || matches!(here, Ok(0) | Err(Errno::ECONNRESET));
        if !gone {
            if here == Ok(WORD) {
                one.spoke.get_or_insert_with(Instant::now);
            }
            return;
        }
        let one = self.remove(at);
        if one.behind {
            let waited = one.since.elapsed().as_secs_f64();
            let line =
                format_args!("a front end ({}) gave up waiting after {waited:.1} s", one.peer);
            self.log.warn(Kind::Connections, line);
        }
    }
}

impl Others for Lobby {
    fn event(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn look(&mut self) {
        let mut events = [EpollEvent::empty(); MOST + 1];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or_else(|errno| {
            log::debug!("epoll: {errno}");
            0
        });
        // Who has left makes room for who comes.
        for event in &events[..count] {
            if event.data() != LISTENER {
                self.look_at(event.data(), event.events());
            }
        }
        if let Some(event) = events[..count].iter().find(|event| event.data() == LISTENER) {
            self.let_in();
            let shut = EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR;
            if event.events().intersects(shut) {
                self.stop_listening(&"the socket was shut down");
            }
        }
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|one| one.spoke).min()
    }
}

/// Rests, unless the daemon is to stop.
pub(super) fn pause(stop: BorrowedFd<'_>, time: Duration) {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(stop, PollFlags::POLLIN)], timeout);
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
