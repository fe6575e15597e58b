//! Which front end is served next, and which ones are refused.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

/// More than any test takes.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Whether the daemon has not cut it off.
fn is_open(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// A lobby at a path of its own, and a way to stop it.
struct House {
    path: PathBuf,
    lobby: Lobby,
    stop: EventFd,
}

impl House {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lobby.{}.{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = Bound::inherited(UnixListener::bind(&path).unwrap());
        let lobby = Lobby::new(listener, Arc::default()).unwrap();
        Self { path, lobby, stop: EventFd::new().unwrap() }
    }

    fn connects(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    fn comes(&mut self) -> UnixStream {
        let stream = self.connects();
        self.lobby.look();
        stream
    }

    /// Whether whoever waits for something to look at would wake up.
    fn is_to_look(&self) -> bool {
        let mut event = [PollFd::new(self.lobby.event(), PollFlags::POLLIN)];
        poll(&mut event, PollTimeout::ZERO) == Ok(1)
    }

    /// What the next one that is served has said.
    fn next(&mut self) -> [u8; WORD] {
        let (mut stream, peer) = self.lobby.next(self.stop.as_fd()).unwrap();
        assert_eq!(peer, Peer(Some(std::process::id() as i32)));
        let mut word = [0; WORD];
        stream.read_exact(&mut word).unwrap();
        word
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_first_that_has_said_something_is_next() {
    let mut house = House::new("first");
    let silent: Vec<_> = (0..20).map(|_| house.comes()).collect();
    let (mut early, mut late) = (house.comes(), house.comes());
    // Not all of a header yet.
    (&silent[3]).write_all(&[3; WORD - 1]).unwrap();
    assert!(!house.lobby.has_spoken());
    late.write_all(&[2; WORD]).unwrap();
    assert_eq!(house.next(), [2; WORD]);
    early.write_all(&[1; WORD]).unwrap();
    (&silent[3]).write_all(&[3]).unwrap();
    // In the order in which they came.
    assert_eq!(house.next(), [3; WORD]);
    assert_eq!(house.next(), [1; WORD]);
    house.stop.write(1).unwrap();
    assert!(house.lobby.next(house.stop.as_fd()).is_none());
}

#[test]
fn one_that_has_left_is_not_served() {
    let mut house = House::new("left");
    let (mut asks, says_nothing, mut stays) = (house.comes(), house.comes(), house.comes());
    asks.write_all(&[1; WORD]).unwrap();
    stays.write_all(&[2; WORD]).unwrap();
    drop((asks, says_nothing));
    assert_eq!(house.next(), [2; WORD]);
    assert!(house.lobby.waiting.is_empty());
}

/// A look ends although there is always somebody to accept, and the next one goes on from there.
#[test]
fn a_look_accepts_a_bounded_number() {
    let mut house = House::new("bounded");
    let stays: Vec<_> = (0..2 * AT_ONCE + 1).map(|_| house.connects()).collect();
    for let_in in [AT_ONCE, 2 * AT_ONCE, stays.len()] {
        assert!(house.is_to_look());
        house.lobby.look();
        assert_eq!(house.lobby.waiting.len(), let_in);
    }
    assert!(!house.is_to_look());
    // Those who leave at once count as well: some are still to be accepted after the look.
    for _ in 0..2 * AT_ONCE + 1 {
        drop(house.connects());
    }
    assert!(!house.lobby.let_in());
    assert!(!house.lobby.let_in());
    assert!(house.lobby.let_in());
    // Whoever is to stop looks at that first.
    drop(house.connects());
    house.stop.write(1).unwrap();
    assert!(house.lobby.next(house.stop.as_fd()).is_none());
    assert!(house.is_to_look());
}

/// Those who say nothing make room when they had their time, and not before.
#[test]
fn one_that_says_nothing_makes_room_when_it_had_its_time() {
    let mut house = House::new("room");
    house.lobby.silence = FOR_EVER;
    let mut silent: Vec<_> = (0..MOST).map(|_| house.comes()).collect();
    let mut late = house.comes();
    house.lobby.look();
    assert!(silent.iter_mut().all(is_open));
    assert_eq!((house.lobby.waiting.len(), house.lobby.door), (MOST, Door::Full));
    // The newcomer is in the socket's queue: not cut off, and nothing spins for it.
    assert!(is_open(&mut late) && !house.is_to_look());
    // The first has had its time.
    house.lobby.silence = Duration::ZERO;
    house.lobby.open_if_due();
    house.lobby.look();
    assert!(!is_open(&mut silent[0]));
    assert!(silent[1..].iter_mut().all(is_open));
    assert!(is_open(&mut late) && !house.is_to_look());
    late.write_all(&[9; WORD]).unwrap();
    assert_eq!(house.next(), [9; WORD]);
}

/// Nothing has to happen for that but time.
#[test]
fn a_full_house_is_looked_at_when_somebody_has_had_its_time() {
    let mut house = House::new("timer");
    house.lobby.silence = FOR_EVER;
    let _silent: Vec<_> = (0..MOST).map(|_| house.comes()).collect();
    let mut late = house.comes();
    late.write_all(&[9; WORD]).unwrap();
    assert_eq!(house.lobby.door, Door::Full);
    // Longer than all have been here, so that the timer is what ends the wait.
    let oldest = house.lobby.waiting[0].since.elapsed();
    house.lobby.silence = oldest + Duration::from_millis(50);
    house.lobby.look();
    assert_eq!(house.next(), [9; WORD]);
}

/// What it has sent may not have been looked at yet when another one needs its place.
#[test]
fn one_that_has_spoken_makes_no_room() {
    let mut house = House::new("spoken");
    house.lobby.silence = Duration::ZERO;
    let mut asks: Vec<_> = (0..MOST).map(|_| house.comes()).collect();
    for (at, stream) in asks.iter_mut().enumerate() {
        stream.write_all(&[at as u8; WORD]).unwrap();
    }
    let mut late = house.connects();
    // As if they had sent it between what epoll said and now.
    assert!(!house.lobby.let_in());
    house.lobby.look();
    assert_eq!((house.lobby.waiting.len(), house.lobby.door), (MOST, Door::Full));
    assert!(asks.iter_mut().all(is_open) && is_open(&mut late) && !house.is_to_look());
    late.write_all(&[MOST as u8; WORD]).unwrap();
    for at in 0..=MOST {
        assert_eq!(house.next(), [at as u8; WORD]);
    }
}

/// One that leaves makes room while another one is served, which is when nobody calls `next`.
#[test]
fn a_full_house_has_room_when_somebody_leaves() {
    let mut house = House::new("leaves");
    house.lobby.silence = FOR_EVER;
    let mut waits: Vec<_> = (0..MOST).map(|_| house.comes()).collect();
    let _late = house.comes();
    assert_eq!(house.lobby.door, Door::Full);
    drop(waits.pop());
    for _ in 0..2 {
        assert!(house.is_to_look());
        house.lobby.look();
    }
    assert_eq!(house.lobby.waiting.len(), MOST);
    let _later = house.comes();
    assert_eq!(house.lobby.door, Door::Full);
    waits[7].write_all(&[7; WORD]).unwrap();
    assert_eq!(house.next(), [7; WORD]);
    assert!(house.is_to_look());
    house.lobby.look();
    assert_eq!(house.lobby.waiting.len(), MOST);
}

#[test]
fn a_session_knows_since_when_somebody_waits() {
    let mut house = House::new("since");
    let mut waits = house.comes();
    assert_eq!(house.lobby.waiting_since(), None);
    let before = Instant::now();
    waits.write_all(&[1; WORD]).unwrap();
    assert!(
        poll(&mut [PollFd::new(house.lobby.event(), PollFlags::POLLIN)], PollTimeout::ZERO)
            == Ok(1)
    );
    house.lobby.look();
    assert!(house.lobby.waiting_since().unwrap() >= before);
    // What it has said stays where it is, and is not looked at again and again.
    assert!(
        poll(&mut [PollFd::new(house.lobby.event(), PollFlags::POLLIN)], PollTimeout::ZERO)
            == Ok(0)
    );
    drop(waits);
    house.lobby.look();
    assert_eq!(house.lobby.waiting_since(), None);
}

/// A socket that was handed down may be shut down by whoever did: it is readable for ever, and nobody comes.
#[test]
fn a_listening_socket_that_fails_hangs_nothing() {
    let mut house = House::new("fails");
    let mut waits = house.comes();
    nix::sys::socket::shutdown(
        house.lobby.listener.as_fd().as_raw_fd(),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    house.lobby.look();
    assert_eq!(house.lobby.door, Door::Shut);
    let mut event = [PollFd::new(house.lobby.event(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut event, PollTimeout::ZERO), Ok(0), "it would be looked at for ever");
    waits.write_all(&[1; WORD]).unwrap();
    assert_eq!(house.next(), [1; WORD]);
    house.stop.write(1).unwrap();
    assert!(house.lobby.next(house.stop.as_fd()).is_none());
}
