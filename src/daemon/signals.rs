//! Signals, turned into the daemon's end, a line of statistics, a compaction, or a change of settings.

use std::io;
use std::sync::Weak;

use nix::sys::signal::{SigSet, Signal};

use super::console::Lines;
use super::reload::{self, Reread};
use super::{inherit, service_manager};
use crate::device::Compaction;
use crate::disk::Disk;
use crate::stop::Stop;
use crate::threads;

/// The signals that the daemon handles. They are blocked in the thread that made this and in all threads
/// that it starts later, so each signal is pending until its thread takes it.
pub(super) struct Signals {
    /// The signals that end the daemon.
    end: SigSet,
    /// The signals that are requests to its disk.
    ask: SigSet,
    /// The signal that has the options read again, if they can be.
    again: SigSet,
}

impl Signals {
    /// Blocks the signals. SIGHUP ends the daemon, unless it `can_reload`.
    pub(super) fn block(can_reload: bool) -> nix::Result<Self> {
        let set = |signals: &[Signal]| signals.iter().copied().collect::<SigSet>();
        let mut end = set(&[Signal::SIGTERM, Signal::SIGINT]);
        let mut again = SigSet::empty();
        // Without options to read again the daemon ends with its terminal, unless nohup(1) had the signal
        // ignored. A signal that is blocked is pending whether it is ignored or not.
        if can_reload {
            again.add(Signal::SIGHUP);
        } else if !inherit::is_ignored(Signal::SIGHUP) {
            end.add(Signal::SIGHUP);
        }
        let ask = set(&[Signal::SIGUSR1, Signal::SIGUSR2]);
        // A write beyond RLIMIT_FSIZE fails with an error, so it needs no signal.
        let silent = set(&[Signal::SIGXFSZ]);
        for signals in [end, ask, again, silent] {
            signals.thread_block()?;
        }
        Ok(Self { end, ask, again })
    }

    /// Starts a thread that requests the stop at each signal that ends the daemon. It lives as long as
    /// the process.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn watch_for_end(&self, stop: Stop) -> io::Result<()> {
        forever("signals", self.end, move |_| {
            // First: the process may end soon after the request.
            service_manager::say_stopping(&stop);
            stop.request();
        })
    }

    /// Starts a thread that handles SIGUSR1 and SIGUSR2, also those that are pending. It lives as long as
    /// the process.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn answer(&self, disk: Weak<Disk>, stdout: Lines) -> io::Result<()> {
        forever("requests", self.ask, move |signal| {
            let Some(disk) = disk.upgrade() else { return };
            if signal == Signal::SIGUSR1 {
                return stdout.say(format_args!("stats: {}", disk.report()));
            }
            let stdout = stdout.clone();
            disk.compact(move |done| {
                let Compaction { pages, moves, .. } = done;
                stdout.say(format_args!("compacted: pages={pages} objects={moves}"));
            });
        })
    }

    /// Starts a thread that has the options read again at each SIGHUP, also if one is pending. It lives as
    /// long as the process. A thread of its own: a file can stall.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn reload(&self, reread: Reread, disk: Weak<Disk>, stop: Stop) -> io::Result<()> {
        forever("reload", self.again, move |_| reload::reload(&reread, &disk, &stop))
    }
}

/// Starts a thread that calls `act` with each of `signals` that arrives.
fn forever(name: &str, signals: SigSet, act: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
    let body = move || {
        loop {
            match signals.wait() {
                Ok(signal) => act(signal),
                Err(errno) => log::debug!("sigwait: {errno}"),
            }
        }
    };
    threads::spawn(name, body).map(drop)
}
