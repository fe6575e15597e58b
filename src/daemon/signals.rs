//! Signals, turned into a stop, a line of statistics, or a compaction.

use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};

use super::console::Lines;
use super::{inherit, manager};
use crate::device::{Compaction, Device};
use crate::sync;
use crate::upkeep::Upkeep;

/// The signals that the daemon waits for.
pub(super) struct Signals(SigSet);

impl Signals {
    /// Blocks them, in this thread and all that it will start.
    pub(super) fn block() -> nix::Result<Self> {
        let mut awaited = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2] {
            awaited.add(signal);
        }
        // A terminal that goes is a reason to end, unless nohup(1) says otherwise.
        if !inherit::is_ignored(Signal::SIGHUP) {
            awaited.add(Signal::SIGHUP);
        }
        let mut blocked = awaited;
        // The error of what was too large for RLIMIT_FSIZE says enough.
        blocked.add(Signal::SIGXFSZ);
        blocked.thread_block()?;
        Ok(Self(awaited))
    }

    /// Starts a thread that waits for them for as long as the process lives. The first one that is
    /// to end the daemon makes `stop` readable.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn watch(
        self,
        stop: Arc<EventFd>,
        device: Weak<Device>,
        upkeep: Arc<Mutex<Option<Upkeep>>>,
        stdout: Lines,
    ) -> io::Result<()> {
        let body = move || {
            loop {
                match self.0.wait() {
                    Ok(Signal::SIGUSR1) => {
                        if let Some(device) = device.upgrade() {
                            stdout.say(format_args!("stats: {}", device.report()));
                        }
                    }
                    Ok(Signal::SIGUSR2) => {
                        let stdout = stdout.clone();
                        let told = move |done: Compaction| {
                            let Compaction { pages, moves, .. } = done;
                            stdout.say(format_args!("compacted: pages={pages} objects={moves}"));
                        };
                        if let Some(upkeep) = &*sync::lock(&upkeep) {
                            upkeep.compact(told);
                        }
                    }
                    Ok(_) => {
                        // First: what was taken may take its time.
                        manager::say_stopping();
                        if let Err(errno) = stop.write(1) {
                            log::error!("the daemon cannot be stopped: {errno}");
                        }
                    }
                    Err(errno) => log::debug!("sigwait: {errno}"),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(body).map(drop)
    }
}
