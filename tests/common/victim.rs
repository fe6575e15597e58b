//! A daemon that is attacked, and has to serve a good client after each attack.

use std::os::fd::RawFd;

use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{Session, Status, wire::Answer};

use super::LIMIT;
use super::daemon::Daemon;
use super::disk::{expect_served, mark};
use super::raw::{Outcome, Raw, UNWRITTEN};

/// A daemon with a marked disk.
pub struct Victim {
    pub daemon: Daemon,
}

impl Victim {
    /// One of 16 MiB.
    pub fn new() -> Self {
        let daemon = Daemon::start("16M", &[]);
        mark(&daemon);
        Self { daemon }
    }

    /// Runs a case on a session of its own and insists that the daemon serves on.
    pub fn case(&mut self, name: &str, attack: impl FnOnce(&mut Raw)) {
        eprintln!("case: {name}");
        let mut raw = Raw::new(&self.daemon);
        attack(&mut raw);
        drop(raw);
        expect_served(&mut self.daemon);
    }

    /// A case that must be refused in any of the allowed ways.
    pub fn refused(&mut self, name: &str, attack: impl FnOnce(&mut Raw) -> Outcome) {
        self.case(name, |raw| {
            let outcome = attack(raw);
            assert!(outcome.is_refusal(), "{name}: {outcome:?}");
        });
    }

    /// A case with one right answer.
    pub fn answers(
        &mut self,
        name: &str,
        right: Outcome,
        attack: impl FnOnce(&mut Raw) -> Outcome,
    ) {
        self.case(name, |raw| {
            if matches!(right, Outcome::Used { status: Status::Ok, .. }) {
                raw.preset = UNWRITTEN;
            }
            assert_eq!(attack(raw), right, "{name}");
        });
    }

    /// A case without a status that could be written: the queue stops, and nothing is done.
    pub fn stops(&mut self, name: &str, attack: impl FnOnce(&mut Raw) -> Outcome) {
        let before = self.daemon.stats()["broken_queues"];
        self.answers(name, Outcome::Stopped, attack);
        assert_eq!(self.daemon.stats()["broken_queues"], before + 1, "{name}");
    }
}

/// Options of a daemon with one queue.
pub const ONE_QUEUE: &[&str] = &["--num-queues", "1"];

/// A daemon with one queue and a marked disk.
pub fn victim() -> Daemon {
    let daemon = Daemon::start("16M", ONE_QUEUE);
    mark(&daemon);
    daemon
}

/// Sends a message and insists on a refusal: a negative acknowledgement or a hang-up.
pub fn refused(session: &Session, code: FrontendReq, body: &[u8], fds: &[RawFd]) -> Answer {
    let answer = session.wire().ask(code, body, fds, LIMIT).expect("an answer");
    assert!(answer.is_refusal(), "{code:?} {body:02x?}: {answer:?}");
    answer
}
