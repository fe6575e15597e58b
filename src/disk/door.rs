//! Who uses a disk: at any time one front end, or a reset, or no one. Each waits for the other, or is refused.

use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sync;

/// How often a front end that waits for a reset looks whether the daemon is to end.
const LOOK: Duration = Duration::from_millis(20);

/// The front end that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Its process, if that is known.
    pub pid: Option<i32>,
    /// Since when.
    pub since: Instant,
}

/// Sessions of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sessions {
    /// The one now.
    pub now: Option<Served>,
    /// How many began so far.
    pub begun: u64,
}

/// Why a disk cannot be reset now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is not complete yet.
    Loading,
    /// A front end is served.
    Session(Served),
    /// Another reset is under way.
    Reset,
    /// The daemon is to end.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Loading,
    Nobody,
    Session(Served),
    Reset,
    /// A reset failed half-way: no guest may see what is left.
    Remains,
}

#[derive(Debug)]
struct State {
    occupant: Occupant,
    begun: u64,
    closed: bool,
}

/// The way in.
#[derive(Debug)]
pub(super) struct Door {
    state: Mutex<State>,
    changed: Condvar,
}

impl Door {
    /// Of a disk that is not complete yet.
    pub(super) fn new() -> Self {
        let state = State { occupant: Occupant::Loading, begun: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The disk is complete.
    pub(super) fn open(&self) {
        let mut state = sync::lock(&self.state);
        if state.occupant == Occupant::Loading {
            state.occupant = Occupant::Nobody;
        }
    }

    /// A session begins, once a reset is over. `None` if `stop` is readable first.
    pub(super) fn enter(&self, pid: Option<i32>, stop: BorrowedFd<'_>) -> Option<Inside<'_>> {
        let mut state = sync::lock(&self.state);
        while matches!(state.occupant, Occupant::Reset | Occupant::Remains) {
            let mut fds = [PollFd::new(stop, PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
                return None;
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.occupant = Occupant::Session(Served { pid, since: Instant::now() });
        state.begun += 1;
        Some(Inside { door: self, then: Occupant::Nobody })
    }

    /// A reset begins.
    pub(super) fn begin_reset(&self) -> Result<Inside<'_>, Taken> {
        let mut state = sync::lock(&self.state);
        if state.closed {
            return Err(Taken::Closed);
        }
        match state.occupant {
            Occupant::Loading => Err(Taken::Loading),
            Occupant::Session(served) => Err(Taken::Session(served)),
            Occupant::Reset => Err(Taken::Reset),
            Occupant::Nobody | Occupant::Remains => {
                state.occupant = Occupant::Reset;
                Ok(Inside { door: self, then: Occupant::Remains })
            }
        }
    }

    /// No reset begins from now on, and one that is under way is to end.
    pub(super) fn close(&self) {
        sync::lock(&self.state).closed = true;
    }

    /// Waits for the end of a reset, if one is under way.
    pub(super) fn wait_for_reset(&self) {
        let mut state = sync::lock(&self.state);
        while state.occupant == Occupant::Reset {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether a reset is to go on.
    pub(super) fn is_open(&self) -> bool {
        !sync::lock(&self.state).closed
    }

    /// The sessions so far.
    pub(super) fn sessions(&self) -> Sessions {
        let state = sync::lock(&self.state);
        let now = match state.occupant {
            Occupant::Session(served) => Some(served),
            _ => None,
        };
        Sessions { now, begun: state.begun }
    }
}

/// The disk is used as long as this exists.
#[derive(Debug)]
pub(super) struct Inside<'d> {
    door: &'d Door,
    then: Occupant,
}

impl Inside<'_> {
    /// The reset is done.
    pub(super) fn done(mut self) {
        self.then = Occupant::Nobody;
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        sync::lock(&self.door.state).occupant = self.then;
        self.door.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::stop::Stop;

    #[test]
    fn a_reset_is_refused_while_the_disk_is_in_use() {
        let (door, stop) = (Door::new(), Stop::new().unwrap());
        assert_eq!(door.begin_reset().unwrap_err(), Taken::Loading);
        door.open();
        let session = door.enter(Some(7), stop.as_fd()).unwrap();
        assert!(matches!(door.begin_reset(), Err(Taken::Session(Served { pid: Some(7), .. }))));
        assert_eq!(door.sessions().begun, 1);
        drop(session);
        assert_eq!(door.sessions().now, None);
        let reset = door.begin_reset().unwrap();
        assert_eq!(door.begin_reset().unwrap_err(), Taken::Reset);
        reset.done();
        door.enter(None, stop.as_fd()).unwrap();
        assert_eq!(door.sessions().begun, 2);
        door.close();
        assert_eq!(door.begin_reset().unwrap_err(), Taken::Closed);
    }

    #[test]
    fn a_session_waits_for_a_reset_and_for_one_that_failed() {
        let (door, stop) = (Door::new(), Stop::new().unwrap());
        door.open();
        let reset = door.begin_reset().unwrap();
        let (entered, seen) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let inside = door.enter(None, stop.as_fd());
                entered.send(inside.is_some()).unwrap();
            });
            // It failed: there is something left that no guest may see.
            drop(reset);
            let again = door.begin_reset().unwrap();
            assert!(seen.try_recv().is_err());
            again.done();
            assert!(seen.recv().unwrap());
        });
    }

    #[test]
    fn the_end_of_the_daemon_ends_the_wait() {
        let (door, stop) = (Door::new(), Stop::new().unwrap());
        door.open();
        let reset = door.begin_reset().unwrap();
        stop.request();
        assert!(door.enter(None, stop.as_fd()).is_none());
        thread::scope(|scope| {
            door.close();
            assert!(!door.is_open());
            let waits = scope.spawn(|| door.wait_for_reset());
            assert!(!waits.is_finished());
            drop(reset);
        });
    }
}
