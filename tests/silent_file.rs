//! A front end that hands over a file of a FUSE file system whose server is silent.
//!
//! In a process of its own, with one test: whoever closes such a file waits for its server, and a
//! process that is started closes what it does not inherit.

mod common;

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

#[test]
fn a_silent_file_system_in_user_space_holds_up_nobody() {
    // Before the file is there, and so ended after it is gone.
    let mut daemon = Daemon::start("16M", &["--num-queues", "1"]);
    mark(&daemon);
    let Some(silent) = SilentFile::new() else { return };
    for code in ALL {
        assert!(!hand_over(&daemon, code, silent.file(), MEMORY, 0), "{code:?}");
        // Also with what else is wrong.
        assert!(!hand_over(&daemon, code, silent.file(), MEMORY, 1), "{code:?}");
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
