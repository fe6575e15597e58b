//! Who is served next, and who is let go.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

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

    fn comes(&mut self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        self.lobby.look();
        stream
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

/// Those who say nothing cannot fill the house, and those who do are let in as long as there is room.
#[test]
fn one_that_says_nothing_makes_room_and_one_that_speaks_does_not() {
    let mut house = House::new("room");
    let mut silent: Vec<_> = (0..MOST + 5).map(|_| house.comes()).collect();
    assert_eq!(house.lobby.waiting.len(), MOST);
    // The first five have had their time.
    for stream in &mut silent[..5] {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    for stream in &mut silent[5..] {
        stream.write_all(&[1; WORD]).unwrap();
    }
    house.lobby.look();
    let mut turned_away = house.comes();
    assert_eq!(turned_away.read(&mut [0]).unwrap(), 0);
    for _ in 0..MOST {
        assert_eq!(house.next(), [1; WORD]);
    }
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
    assert!(!house.lobby.listens);
    let mut event = [PollFd::new(house.lobby.event(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut event, PollTimeout::ZERO), Ok(0), "it would be looked at for ever");
    waits.write_all(&[1; WORD]).unwrap();
    assert_eq!(house.next(), [1; WORD]);
    house.stop.write(1).unwrap();
    assert!(house.lobby.next(house.stop.as_fd()).is_none());
}
