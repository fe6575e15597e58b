//! What ends a session, and what does not. Limits of time are zero or unlimited here, so no test depends
//! on how long a step takes.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use nix::sys::eventfd::EventFd as Event;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::*;
use crate::blk::config::tests::options;
use crate::device::{BlockChoice, DeviceConfig, MemoryKind};
use crate::engine::EngineConfig;

const NEVER: Duration = Duration::from_secs(1 << 30);
/// A test that waits as long for an event that has to happen has failed.
const LIMIT: Duration = Duration::from_secs(5);

fn times(stall: Duration, silence: Duration, idle: Duration) -> Times {
    Times { stall, silence, idle }
}

fn server(times: Times) -> Server {
    let config = DeviceConfig {
        size: 1 << 20,
        block_size: BlockChoice::default(),
        codec: "lz4".parse().unwrap(),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: false,
        engine: EngineConfig::default(),
    };
    let device = Arc::new(Device::new(&config).unwrap());
    Server::new(device, options(2, 128)).with_times(times)
}

/// Other front ends, which wait from the moment that a test sets.
struct Queue {
    event: Event,
    told: Arc<AtomicBool>,
    since: Option<Instant>,
}

impl Others for Queue {
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn poll(&mut self) {
        let _ = self.event.read();
        if self.told.load(Ordering::SeqCst) {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.since
    }
}

/// A front end by hand, its session in a thread of its own.
struct Peer {
    wire: Option<UnixStream>,
    stop: Arc<Event>,
    told: Arc<AtomicBool>,
    others: OwnedFd,
    end: Receiver<SessionEnd>,
}

impl Peer {
    fn new(times: Times) -> Self {
        Self::having_said(times, |_| {})
    }

    /// A front end that has sent a message, or hung up, before its session begins.
    fn having_said(times: Times, say: impl FnOnce(&mut Option<UnixStream>)) -> Self {
        Self::of(&Arc::new(server(times)), say)
    }

    fn of(server: &Arc<Server>, say: impl FnOnce(&mut Option<UnixStream>)) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_write_timeout(Some(LIMIT)).unwrap();
        let mut wire = Some(theirs);
        say(&mut wire);
        let stop = Arc::new(Event::new().unwrap());
        let event = Event::new().unwrap();
        let others = event.as_fd().try_clone_to_owned().unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let mut queue = Queue { event, told: Arc::clone(&told), since: None };
        let (send, end) = channel();
        let (its_stop, server) = (Arc::clone(&stop), Arc::clone(server));
        thread::spawn(move || {
            let ended = server.serve(&ours, its_stop.as_fd(), Some(&mut queue));
            let _ = send.send(ended);
        });
        Self { wire, stop, told, others, end }
    }

    fn wire(&mut self) -> &mut UnixStream {
        self.wire.as_mut().unwrap()
    }

    fn send(&mut self, code: FrontendReq, body: &[u8], fds: &[RawFd]) {
        let message = message(code, body);
        let control = ControlMessage::ScmRights(fds);
        let control = if fds.is_empty() { &[][..] } else { std::slice::from_ref(&control) };
        let wire = self.wire().as_raw_fd();
        let flags = MsgFlags::empty();
        let sent = sendmsg::<()>(wire, &[IoSlice::new(&message)], control, flags, None).unwrap();
        assert_eq!(sent, message.len());
    }

    /// A request and its reply. All messages before it are handled then.
    fn ask(&mut self) {
        self.send(FrontendReq::GET_FEATURES, &[], &[]);
        let mut answer = [0; 20];
        self.wire().set_read_timeout(Some(LIMIT)).unwrap();
        self.wire().read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], message(FrontendReq::GET_FEATURES, &[])[..4]);
    }

    /// Another one begins to wait, and the session knows.
    #[expect(clippy::disallowed_methods, reason = "the kernel counts in its own byte order")]
    fn another_comes(&mut self) {
        self.told.store(true, Ordering::SeqCst);
        nix::unistd::write(&self.others, &1_u64.to_ne_bytes()).unwrap();
    }

    fn hang_up(&mut self) {
        self.wire = None;
    }

    fn end(&mut self) -> SessionEnd {
        self.end.recv_timeout(LIMIT).expect("the session does not end")
    }
}

fn message(code: FrontendReq, body: &[u8]) -> Vec<u8> {
    let words = [u32::from(code), 1, body.len() as u32];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(body.iter().copied()).collect()
}

fn ring_size(ring: u32, size: u32) -> Vec<u8> {
    [ring.to_le_bytes(), size.to_le_bytes()].concat()
}

#[test]
fn one_that_stalls_in_a_message_is_disconnected() {
    for part in [1, 11, 12, 19] {
        let mut peer = Peer::new(times(Duration::ZERO, NEVER, NEVER));
        peer.wire().write_all(&message(FrontendReq::SET_FEATURES, &[0; 8])[..part]).unwrap();
        assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Stalled)), "{part}");
    }
}

#[test]
fn one_that_reads_no_replies_is_disconnected() {
    let mut peer = Peer::new(times(Duration::ZERO, NEVER, NEVER));
    let ask = message(FrontendReq::GET_FEATURES, &[]);
    // Until neither side's buffer has room, or the session has ended.
    while peer.wire().write_all(&ask).is_ok() {}
    assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Stalled)));
}

#[test]
fn a_stop_and_a_hang_up_end_a_stall() {
    for stop in [false, true] {
        let mut peer = Peer::new(times(NEVER, NEVER, NEVER));
        peer.ask();
        peer.wire().write_all(&message(FrontendReq::SET_FEATURES, &[0; 8])[..13]).unwrap();
        if stop {
            peer.stop.write(1).unwrap();
            assert!(matches!(peer.end(), SessionEnd::Stopped));
        } else {
            peer.hang_up();
            assert!(matches!(peer.end(), SessionEnd::HungUp));
        }
    }
}

#[test]
fn a_front_end_that_does_not_own_its_session_keeps_no_other_waiting() {
    let mut peer = Peer::new(times(NEVER, Duration::ZERO, NEVER));
    // As long as no other front end waits there is no limit.
    (0..3).for_each(|_| peer.ask());
    peer.another_comes();
    assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Silent)));
}

#[test]
fn a_front_end_that_only_owns_its_session_makes_room_in_the_end() {
    let mut peer = Peer::new(times(NEVER, NEVER, Duration::ZERO));
    peer.send(FrontendReq::SET_OWNER, &[], &[]);
    (0..3).for_each(|_| peer.ask());
    peer.another_comes();
    assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Silent)));
    // But longer than one that does not.
    let mut peer = Peer::new(times(NEVER, Duration::ZERO, NEVER));
    peer.send(FrontendReq::SET_OWNER, &[], &[]);
    peer.ask();
    peer.another_comes();
    (0..3).for_each(|_| peer.ask());
    peer.hang_up();
    assert!(matches!(peer.end(), SessionEnd::HungUp));
}

/// As QEMU does while its guest's driver has not started, for hours.
#[test]
fn one_that_has_said_something_of_its_rings_may_be_silent() {
    let mut peer = Peer::new(times(NEVER, Duration::ZERO, Duration::ZERO));
    peer.send(FrontendReq::SET_OWNER, &[], &[]);
    peer.send(FrontendReq::SET_VRING_NUM, &ring_size(1, 128), &[]);
    peer.ask();
    peer.another_comes();
    (0..3).for_each(|_| peer.ask());
    peer.hang_up();
    assert!(matches!(peer.end(), SessionEnd::HungUp));
}

/// The vhost crate would wait for the rest in a blocking call.
#[test]
fn a_message_with_too_many_descriptors_is_refused() {
    for count in [33, 34, 253] {
        let mut peer = Peer::new(times(NEVER, NEVER, NEVER));
        let fds = vec![peer.stop.as_fd().as_raw_fd(); count];
        peer.send(FrontendReq::GET_FEATURES, &[], &fds);
        let end = peer.end();
        let refused = SessionError::Descriptors { count, max: 32 };
        assert_eq!(format!("{end:?}"), format!("{:?}", SessionEnd::Refused(refused)));
    }
    // As many as there may be arrive, whatever the message makes of them.
    let mut peer = Peer::new(times(NEVER, NEVER, NEVER));
    let fds = vec![peer.stop.as_fd().as_raw_fd(); 32];
    peer.send(FrontendReq::GET_FEATURES, &[], &fds);
    assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Message(_))));
}

/// A reply that the front end does not read any more is not an error.
#[test]
fn one_that_asks_and_leaves_has_hung_up() {
    let mut peer = Peer::having_said(times(NEVER, NEVER, NEVER), |wire| {
        let all = message(FrontendReq::GET_FEATURES, &[]).repeat(3);
        wire.take().unwrap().write_all(&all).unwrap();
    });
    assert!(matches!(peer.end(), SessionEnd::HungUp));
}

/// After a queue thread has died with the lock of its ring, the next message about the ring panics.
#[test]
fn a_message_that_panics_ends_its_session_only() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = server(Times::default());
    let session = Session::start(&server, &ours).unwrap();
    let vring = sync::lock(&session.handler).vring(1);
    let held = thread::spawn(move || {
        let _held = vring.get_mut();
        panic!("with the lock of a ring");
    });
    held.join().unwrap_err();
    theirs.write_all(&message(FrontendReq::SET_VRING_NUM, &ring_size(1, 128))).unwrap();
    let stop = Event::new().unwrap();
    let end = session.run(&ours, stop.as_fd(), None);
    assert!(matches!(end, SessionEnd::Refused(SessionError::QueueThread)), "{end:?}");
    // The next one is served.
    drop((ours, theirs));
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(server.serve(&ours, stop.as_fd(), None), SessionEnd::HungUp));
}

/// A front end that has negotiated a channel.
fn with_channel_negotiated(server: &Arc<Server>) -> Peer {
    let mut peer = Peer::of(server, |_| {});
    let features = GuestOptions::protocol_features() & VhostUserProtocolFeatures::BACKEND_REQ;
    peer.send(FrontendReq::SET_OWNER, &[], &[]);
    peer.send(FrontendReq::SET_PROTOCOL_FEATURES, &features.bits().to_le_bytes(), &[]);
    peer
}

fn grow(server: &Server) {
    server.device.grow(server.device.size() + 4096).unwrap();
    server.tell_of_growth();
}

#[test]
fn a_front_end_with_a_channel_is_told_of_each_growth() {
    const TOLD: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let server = Arc::new(server(times(NEVER, NEVER, NEVER)));
    // Without a session, and without a channel, nobody is.
    grow(&server);
    let mut peer = with_channel_negotiated(&server);
    grow(&server);
    for _ in 0..2 {
        let (mut channel, theirs) = UnixStream::pair().unwrap();
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        peer.send(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
        drop(theirs);
        peer.ask();
        for _ in 0..2 {
            grow(&server);
            let mut told = [0; 12];
            channel.read_exact(&mut told).unwrap();
            assert_eq!(told, TOLD);
        }
        // What it says itself is not heard.
        channel.write_all(&[7; 100]).unwrap();
        peer.ask();
    }
    // One that is closed ends nothing.
    let (channel, theirs) = UnixStream::pair().unwrap();
    peer.send(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    drop((channel, theirs));
    peer.ask();
    grow(&server);
    (0..3).for_each(|_| peer.ask());
    peer.hang_up();
    assert!(matches!(peer.end(), SessionEnd::HungUp));
    grow(&server);
}

/// It is told when it says nothing more, and at once: whatever is in the channel, no thread waits for it.
#[test]
fn a_channel_that_is_not_read_holds_up_neither_session_nor_growth() {
    let server = Arc::new(server(times(NEVER, NEVER, NEVER)));
    let mut peer = with_channel_negotiated(&server);
    let (ours, theirs) = UnixStream::pair().unwrap();
    // There is no room for a message.
    theirs.set_nonblocking(true).unwrap();
    while (&theirs).write(&[0; 4096]).is_ok() {}
    while (&theirs).write(&[0]).is_ok() {}
    peer.send(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    for _ in 0..3 {
        grow(&server);
        peer.ask();
    }
    peer.stop.write(1).unwrap();
    assert!(matches!(peer.end(), SessionEnd::Stopped));
    drop(ours);
}

#[test]
fn a_channel_that_is_none_is_refused() {
    let server = Arc::new(server(times(NEVER, NEVER, NEVER)));
    let event = Event::new().unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for fds in [vec![], vec![event.as_fd().as_raw_fd()], vec![datagram.as_raw_fd()]] {
        let mut peer = with_channel_negotiated(&server);
        peer.send(FrontendReq::SET_BACKEND_REQ_FD, &[], &fds);
        assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Message(_))), "{fds:?}");
    }
    // Nor is it taken from a front end that did not negotiate it.
    let mut peer = Peer::of(&server, |_| {});
    let (_channel, theirs) = UnixStream::pair().unwrap();
    peer.send(FrontendReq::SET_OWNER, &[], &[]);
    peer.send(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    assert!(matches!(peer.end(), SessionEnd::Refused(SessionError::Message(_))));
}
