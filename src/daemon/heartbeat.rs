//! The service manager's watchdog (systemd's `WatchdogSec=`). The thread that accepts front ends and serves
//! their messages answers it, between two of its waits: what keeps that thread from its work keeps the
//! answers away, and the service manager ends the daemon. Without a watchdog there is no timer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::service_manager;
use crate::stop::Stop;
use crate::vhost_user::Others;

/// Answers in the time after which the service manager ends the daemon: one may be late, or find the
/// service manager's queue full.
const ANSWERS: u32 = 4;
/// The shortest time between two answers, whatever time the service manager names.
const SHORTEST: Duration = Duration::from_millis(1);

/// A timer that says when the next answer is due.
pub(super) struct Heartbeat {
    timer: TimerFd,
    stop: Stop,
}

impl Heartbeat {
    /// Starts the timer if the service manager has a watchdog on this process.
    pub(super) fn start(stop: &Stop) -> nix::Result<Option<Self>> {
        let Some(time) = service_manager::watchdog_time() else { return Ok(None) };
        let period = TimeSpec::from_duration((time / ANSWERS).max(SHORTEST));
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        timer.set(Expiration::Interval(period), TimerSetTimeFlags::empty())?;
        log::debug!("the service manager is answered each {period:?}");
        Ok(Some(Self { timer, stop: stop.clone() }))
    }

    /// Answers, if it is time to. Never waits.
    pub(super) fn answer_if_due(&self) {
        // It is readable only when it has expired since the last look.
        if self.timer.wait().is_ok() {
            service_manager::say_alive(&self.stop);
        }
    }
}

impl AsFd for Heartbeat {
    /// Readable when an answer is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// A session on a connection that was inherited: no other front end can come.
impl Others for Heartbeat {
    fn event(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn poll(&mut self) {
        self.answer_if_due();
    }

    fn waiting_since(&self) -> Option<Instant> {
        None
    }
}
