//! Which front end is served next, and which ones are refused.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

/// More than any test takes.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Whether the daemon has not closed the connection.
fn is_open(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// A lobby at a path of its own, and a way to stop it.
struct Rig {
    path: PathBuf,
    lobby: Lobby,
    stop: EventFd,
}

impl Rig {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lobby.{}.{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = Bound::inherited(UnixListener::bind(&path).unwrap());
        let lobby = Lobby::new(listener, None, Arc::default()).unwrap();
        Self { path, lobby, stop: EventFd::new().unwrap() }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    fn connect_and_poll(&mut self) -> UnixStream {
        let stream = self.connect();
        self.lobby.poll();
        stream
    }

    /// Whether a thread that waits for the lobby's event would wake up.
    fn has_events(&self) -> bool {
        let mut event = [PollFd::new(self.lobby.event(), PollFlags::POLLIN)];
        poll(&mut event, PollTimeout::ZERO) == Ok(1)
    }

    /// The header of the front end that is served next.
    fn next(&mut self) -> [u8; HEADER] {
        let (mut stream, peer) = self.lobby.next(self.stop.as_fd()).unwrap();
        assert_eq!(peer, Peer(Some(std::process::id() as i32)));
        let mut word = [0; HEADER];
        stream.read_exact(&mut word).unwrap();
        word
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_first_that_has_sent_a_header_is_next() {
    let mut rig = Rig::new("first");
    let silent: Vec<_> = (0..20).map(|_| rig.connect_and_poll()).collect();
    let (mut early, mut late) = (rig.connect_and_poll(), rig.connect_and_poll());
    // Not all of a header yet.
    (&silent[3]).write_all(&[3; HEADER - 1]).unwrap();
    assert!(!rig.lobby.any_ready());
    late.write_all(&[2; HEADER]).unwrap();
    assert_eq!(rig.next(), [2; HEADER]);
    early.write_all(&[1; HEADER]).unwrap();
    (&silent[3]).write_all(&[3]).unwrap();
    // In the order in which they connected.
    assert_eq!(rig.next(), [3; HEADER]);
    assert_eq!(rig.next(), [1; HEADER]);
    rig.stop.write(1).unwrap();
    assert!(rig.lobby.next(rig.stop.as_fd()).is_none());
}

#[test]
fn one_that_has_left_is_not_served() {
    let mut rig = Rig::new("left");
    let (mut asks, says_nothing, mut stays) =
        (rig.connect_and_poll(), rig.connect_and_poll(), rig.connect_and_poll());
    asks.write_all(&[1; HEADER]).unwrap();
    stays.write_all(&[2; HEADER]).unwrap();
    drop((asks, says_nothing));
    assert_eq!(rig.next(), [2; HEADER]);
    assert!(rig.lobby.waiting.is_empty());
}

/// A poll ends although further front ends wait to be accepted, and the next poll continues there.
#[test]
fn a_poll_accepts_a_bounded_number() {
    let mut rig = Rig::new("bounded");
    let stays: Vec<_> = (0..2 * MAX_ACCEPTED + 1).map(|_| rig.connect()).collect();
    for accepted in [MAX_ACCEPTED, 2 * MAX_ACCEPTED, stays.len()] {
        assert!(rig.has_events());
        rig.lobby.poll();
        assert_eq!(rig.lobby.waiting.len(), accepted);
    }
    assert!(!rig.has_events());
    // Front ends that hang up at once count as well: some are still to be accepted after the poll.
    for _ in 0..2 * MAX_ACCEPTED + 1 {
        drop(rig.connect());
    }
    assert!(!rig.lobby.accept_some());
    assert!(!rig.lobby.accept_some());
    assert!(rig.lobby.accept_some());
    // A daemon that is to stop checks that first.
    drop(rig.connect());
    rig.stop.write(1).unwrap();
    assert!(rig.lobby.next(rig.stop.as_fd()).is_none());
    assert!(rig.has_events());
}

/// A silent front end is disconnected when its time has expired, and not before.
#[test]
fn a_silent_one_makes_room_when_its_time_has_expired() {
    let mut rig = Rig::new("room");
    rig.lobby.silence = FOR_EVER;
    let mut silent: Vec<_> = (0..MAX_WAITING).map(|_| rig.connect_and_poll()).collect();
    let mut late = rig.connect_and_poll();
    rig.lobby.poll();
    assert!(silent.iter_mut().all(is_open));
    assert_eq!((rig.lobby.waiting.len(), rig.lobby.accepting), (MAX_WAITING, Accepting::Full));
    // The new connection is in the socket's queue: it is not closed, and no thread spins for it.
    assert!(is_open(&mut late) && !rig.has_events());
    // The time of the first one has expired.
    rig.lobby.silence = Duration::ZERO;
    rig.lobby.open_if_due();
    rig.lobby.poll();
    assert!(!is_open(&mut silent[0]));
    assert!(silent[1..].iter_mut().all(is_open));
    assert!(is_open(&mut late) && !rig.has_events());
    late.write_all(&[9; HEADER]).unwrap();
    assert_eq!(rig.next(), [9; HEADER]);
}

/// The timer alone makes the lobby accept again.
#[test]
fn a_full_lobby_is_polled_when_the_time_of_a_silent_one_has_expired() {
    let mut rig = Rig::new("timer");
    rig.lobby.silence = FOR_EVER;
    let _silent: Vec<_> = (0..MAX_WAITING).map(|_| rig.connect_and_poll()).collect();
    let mut late = rig.connect_and_poll();
    late.write_all(&[9; HEADER]).unwrap();
    assert_eq!(rig.lobby.accepting, Accepting::Full);
    // Longer than every front end has waited, so it is the timer that ends the wait.
    let oldest = rig.lobby.waiting[0].since.elapsed();
    rig.lobby.silence = oldest + Duration::from_millis(50);
    rig.lobby.poll();
    assert_eq!(rig.next(), [9; HEADER]);
}

/// Its header may not have been read yet when another front end needs its place.
#[test]
fn one_that_has_sent_a_header_makes_no_room() {
    let mut rig = Rig::new("ready");
    rig.lobby.silence = Duration::ZERO;
    let mut asks: Vec<_> = (0..MAX_WAITING).map(|_| rig.connect_and_poll()).collect();
    for (at, stream) in asks.iter_mut().enumerate() {
        stream.write_all(&[at as u8; HEADER]).unwrap();
    }
    let mut late = rig.connect();
    // As if they had sent it after epoll was asked.
    assert!(!rig.lobby.accept_some());
    rig.lobby.poll();
    assert_eq!((rig.lobby.waiting.len(), rig.lobby.accepting), (MAX_WAITING, Accepting::Full));
    assert!(asks.iter_mut().all(is_open) && is_open(&mut late) && !rig.has_events());
    late.write_all(&[MAX_WAITING as u8; HEADER]).unwrap();
    for at in 0..=MAX_WAITING {
        assert_eq!(rig.next(), [at as u8; HEADER]);
    }
}

/// A front end that hangs up makes room also while another one is served, when no thread calls `next`.
#[test]
fn a_full_lobby_has_room_when_one_hangs_up() {
    let mut rig = Rig::new("leaves");
    rig.lobby.silence = FOR_EVER;
    let mut waits: Vec<_> = (0..MAX_WAITING).map(|_| rig.connect_and_poll()).collect();
    let _late = rig.connect_and_poll();
    assert_eq!(rig.lobby.accepting, Accepting::Full);
    drop(waits.pop());
    for _ in 0..2 {
        assert!(rig.has_events());
        rig.lobby.poll();
    }
    assert_eq!(rig.lobby.waiting.len(), MAX_WAITING);
    let _later = rig.connect_and_poll();
    assert_eq!(rig.lobby.accepting, Accepting::Full);
    waits[7].write_all(&[7; HEADER]).unwrap();
    assert_eq!(rig.next(), [7; HEADER]);
    assert!(rig.has_events());
    rig.lobby.poll();
    assert_eq!(rig.lobby.waiting.len(), MAX_WAITING);
}

#[test]
fn a_session_knows_since_when_another_one_waits() {
    let mut rig = Rig::new("since");
    let mut waits = rig.connect_and_poll();
    assert_eq!(rig.lobby.waiting_since(), None);
    let before = Instant::now();
    waits.write_all(&[1; HEADER]).unwrap();
    assert!(
        poll(&mut [PollFd::new(rig.lobby.event(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    );
    rig.lobby.poll();
    assert!(rig.lobby.waiting_since().unwrap() >= before);
    // What it has sent stays in the socket, and is not reported again.
    assert!(
        poll(&mut [PollFd::new(rig.lobby.event(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    );
    drop(waits);
    rig.lobby.poll();
    assert_eq!(rig.lobby.waiting_since(), None);
}

/// The process that handed down a socket may shut it down: it is readable for ever, and no connection arrives.
#[test]
fn a_listening_socket_that_fails_hangs_nothing() {
    let mut rig = Rig::new("fails");
    let mut waits = rig.connect_and_poll();
    nix::sys::socket::shutdown(
        rig.lobby.listener.as_fd().as_raw_fd(),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    rig.lobby.poll();
    assert_eq!(rig.lobby.accepting, Accepting::Suspended);
    let mut event = [PollFd::new(rig.lobby.event(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut event, PollTimeout::ZERO), Ok(0), "it would be polled for ever");
    waits.write_all(&[1; HEADER]).unwrap();
    assert_eq!(rig.next(), [1; HEADER]);
    rig.stop.write(1).unwrap();
    assert!(rig.lobby.next(rig.stop.as_fd()).is_none());
}
