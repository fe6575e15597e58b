//! A front end that hands over a file of a FUSE file system whose server is silent.
//!
//! In a process of its own, with one test: a process that closes such a file waits for its server, and a
//! process that is started closes what it does not inherit.

mod common;

use std::os::fd::AsRawFd;

use common::{
    LIMIT,
    daemon::Daemon,
    disk::{expect_served, mark},
    fuse::SilentFile,
    handed::{ACCEPTED, ALL, hand_over},
    raw::MEMORY,
    wait_until,
};
use nix::sys::signal::Signal;
use vhost::vhost_user::message::FrontendReq;

#[test]
fn a_silent_file_system_in_user_space_holds_up_no_other() {
    // Before the file is there, and so ended after it is gone.
    let mut daemon = Daemon::start("16M", &["--num-queues", "1"]);
    mark(&daemon);
    let Some(silent) = SilentFile::new() else { return };
    for code in ALL {
        assert!(!hand_over(&daemon, code, silent.file(), MEMORY, 0), "{code:?}");
        // Also with what else is wrong, so that the message is refused before its file is checked.
        assert!(!hand_over(&daemon, code, silent.file(), MEMORY, 1), "{code:?}");
        assert!(!hand_over(&daemon, code, silent.file(), 0, 0), "{code:?}");
        expect_served(&mut daemon);
    }
    // Where another kind of descriptor is meant, and where none is.
    for code in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_OWNER] {
        let session = daemon.session();
        let body: &[u8] = if code == FrontendReq::SET_OWNER { &[] } else { &[0; 8] };
        let answer = session.wire().ask(code, body, &[silent.file().as_raw_fd()], LIMIT);
        assert!(answer.expect("an answer").is_refusal(), "{code:?}");
        drop(session);
        expect_served(&mut daemon);
    }
    daemon.signal(Signal::SIGTERM);
    daemon.stdout.wait_for("summary:", 0, LIMIT).expect("an end in good order");
    wait_until("the socket to go", || !daemon.socket().exists());
    // What is left of the process waits for the server.
    drop(silent);
    let (status, _, stderr) = daemon.wait();
    assert!(status.success(), "{status:?} {stderr:?}");
    assert!(stderr.iter().any(|line| line.contains(ACCEPTED)), "{stderr:?}");
}
