//! Front ends that wait while another one is served, say nothing, or come and go: none keeps others out,
//! nor the daemon from ending, and the log names each that waits.

mod common;

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    process::Command,
    thread,
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir},
    disk::{expect_served, mark},
    wait_until,
};
use nix::sys::signal::Signal;
use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{
    queue::Event,
    wire::{FLAG_VERSION, Wire, header},
};

fn asking(daemon: &Daemon) -> Wire {
    let wire = Wire::new(daemon.stream());
    let ask = header(u32::from(FrontendReq::GET_FEATURES), FLAG_VERSION, 0);
    wire.send(&ask, &[]).unwrap();
    wire
}

#[test]
fn one_that_waits_and_one_that_leaves_are_seen() {
    let daemon = Daemon::start("16M", &[]);
    let first = daemon.client();
    let pid = std::process::id();
    let second = asking(&daemon);
    daemon
        .wait_for_log(&format!("a front end (pid {pid}) waits: another one (pid {pid}) is served"));
    drop(second);
    daemon.wait_for_log(&format!("a front end (pid {pid}) left after it had waited for"));
    let third = asking(&daemon);
    drop(first);
    third.recv_message(LIMIT).unwrap();
    drop(third);
    let lines = daemon.log();
    for wrong in ["is disconnected", "roken", "refused"] {
        assert!(!lines.iter().any(|line| line.contains(wrong)), "{lines:?}");
    }
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let (waits, gave_up) = (count(") waits: "), count(") left after "));
    assert_eq!((waits, gave_up, count(") connects")), (2, 1, 2), "{lines:?}");
}

/// Their silence does not add up, since a peer that says nothing is not served.
#[test]
fn silent_front_ends_keep_no_other_waiting() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let silent: Vec<UnixStream> = (0..100).map(|_| daemon.stream()).collect();
    expect_served(&mut daemon);
    drop(silent);
    let lines = daemon.log();
    assert!(!lines.iter().any(|line| line.contains("is disconnected")), "{lines:?}");
}

/// Peers that ask and leave have hung up, after which there is no rest.
#[test]
fn front_ends_that_ask_and_leave_are_not_errors() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    for _ in 0..60 {
        drop(asking(&daemon));
    }
    expect_served(&mut daemon);
    let lines = daemon.log();
    assert!(!lines.iter().any(|line| line.contains("is disconnected")), "{lines:?}");
}

/// A daemon that may open few descriptors.
fn with_descriptors(count: usize) -> Daemon {
    let dir = TempDir::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$1\" && shift && exec \"$@\"", "sh"]).arg(count.to_string());
    command.arg(BINARY).arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    Daemon::spawn(command, dir)
}

/// The crate that reads messages waits for more if descriptors do not arrive, outside of any poll.
#[test]
fn a_message_for_whose_descriptors_there_is_no_room_ends_its_session_only() {
    // A session has some 14 open. With the first limit not all arrive, with the second one all do and
    // nothing is left to be sure that they do once more.
    for limit in [40, 48] {
        let mut daemon = with_descriptors(limit);
        mark(&daemon);
        let event = Event::new().unwrap();
        let fds = [event.fd().as_raw_fd(); 32];
        let session = daemon.session();
        let message = header(u32::from(FrontendReq::SET_MEM_TABLE), FLAG_VERSION, 0);
        session.wire().send(&message, &fds).unwrap();
        session.wire().wait_closed(LIMIT).unwrap();
        daemon.wait_for_log("the process has no descriptors left for those of a message");
        expect_served(&mut daemon);
        let session = daemon.session();
        session.wire().send(&message, &fds).unwrap();
        daemon.end(Signal::SIGTERM);
    }
}

/// A peer that comes when there are no descriptors left is turned away, and seen; nothing spins or hangs.
#[test]
fn one_for_whom_there_is_no_descriptor_is_turned_away() {
    let mut daemon = with_descriptors(40);
    mark(&daemon);
    wait_until("the first session to end", || daemon.queue_threads().is_empty());
    let before = daemon.open_fds();
    let crowd: Vec<Wire> = (0..31).map(|_| Wire::new(daemon.stream())).collect();
    daemon.wait_for_log("a front end is refused");
    drop(crowd);
    wait_until("the crowd to be let go", || daemon.open_fds() <= before);
    expect_served(&mut daemon);
    daemon.end(Signal::SIGTERM);
}

/// There is always one more to accept, while another one is served and while none is.
#[test]
fn front_ends_without_end_keep_no_other_waiting() {
    for served in [true, false] {
        let daemon = Daemon::start("16M", &[]);
        let session = served.then(|| daemon.session());
        let socket = daemon.socket();
        let flood: Vec<_> = (0..3)
            .map(|_| {
                let socket = socket.clone();
                // Until the daemon's end.
                thread::spawn(move || while UnixStream::connect(&socket).is_ok() {})
            })
            .collect();
        if let Some(session) = &session {
            for _ in 0..100 {
                let code = FrontendReq::GET_FEATURES;
                session.wire().ask(code, &[], &[], LIMIT).unwrap();
            }
        }
        daemon.end(Signal::SIGTERM);
        for peer in flood {
            peer.join().unwrap();
        }
    }
}

/// Whatever a front end does or leaves undone, and however many wait: SIGTERM ends the daemon.
#[test]
fn no_front_end_keeps_the_daemon_from_ending() {
    type Do = fn(&Daemon) -> Vec<Wire>;
    let cases: [(&str, Do); 6] = [
        ("silent ones", |daemon| (0..3).map(|_| Wire::new(daemon.stream())).collect()),
        ("one that asks", |daemon| vec![asking(daemon)]),
        ("some that ask", |daemon| (0..40).map(|_| asking(daemon)).collect()),
        ("a part of a header", |daemon| {
            let wire = Wire::new(daemon.stream());
            wire.send(&[2; 5], &[]).unwrap();
            vec![wire]
        }),
        ("a part of a message", |daemon| {
            let wire = asking(daemon);
            wire.recv_message(LIMIT).unwrap();
            wire.send(&header(u32::from(FrontendReq::SET_FEATURES), FLAG_VERSION, 8), &[]).unwrap();
            vec![wire]
        }),
        ("too many descriptors", |daemon| {
            let wire = asking(daemon);
            wire.recv_message(LIMIT).unwrap();
            let event = Event::new().unwrap();
            let fds = [event.fd().as_raw_fd(); 40];
            let message = header(u32::from(FrontendReq::GET_FEATURES), FLAG_VERSION, 0);
            wire.send(&message, &fds).unwrap();
            vec![wire, asking(daemon)]
        }),
    ];
    for (name, act) in cases {
        eprintln!("case: {name}");
        let daemon = Daemon::start("16M", &[]);
        let peers = act(&daemon);
        daemon.end(Signal::SIGTERM);
        drop(peers);
    }
}
