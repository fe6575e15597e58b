//! The request that the process ends, as an argument of waits.
//!
//! A signal may request the end at any moment, also during the start. A wait that may be long takes a
//! [`Stop`] and ends early with [`Stopped`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Whether the process is to end. A request is never withdrawn. Clones share it.
#[derive(Debug, Clone)]
pub struct Stop(Arc<EventFd>);

/// The process is to end, so the operation was not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is to end")]
pub struct Stopped;

impl Stop {
    /// A new one; the end is not requested yet.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(event)))
    }

    /// Requests the end.
    pub fn request(&self) {
        if let Err(errno) = self.0.write(1) {
            log::error!("cannot stop the daemon: {errno}");
        }
    }

    /// Fails once the end was requested.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn check(&self) -> Result<(), Stopped> {
        self.pause(Duration::ZERO)
    }

    /// Sleeps for `time`, which may be rounded up to a millisecond.
    ///
    /// # Errors
    /// [`Stopped`], as soon as the end is requested.
    pub fn pause(&self, time: Duration) -> Result<(), Stopped> {
        self.wait(None, time).map(drop)
    }

    /// Waits at most `time` until `fd` has one of `events`. Returns false if it has none by then.
    ///
    /// # Errors
    /// [`Stopped`], as soon as the end is requested.
    pub fn wait_for(
        &self,
        fd: BorrowedFd<'_>,
        events: PollFlags,
        time: Duration,
    ) -> Result<bool, Stopped> {
        self.wait(Some(PollFd::new(fd, events)), time)
    }

    fn wait(&self, other: Option<PollFd<'_>>, time: Duration) -> Result<bool, Stopped> {
        let began = Instant::now();
        let stop = PollFd::new(self.0.as_fd(), PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = std::iter::once(stop).chain(other).collect();
        loop {
            // `poll` counts milliseconds; less than one must not become a busy loop.
            let left = time.saturating_sub(began.elapsed());
            let millis = left.as_nanos().div_ceil(1_000_000);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let found = poll(&mut fds, timeout);
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
            match found {
                Ok(_) if is_ready(&fds[0]) => return Err(Stopped),
                Ok(0) if began.elapsed() >= time => return Ok(false),
                Ok(0) => {}
                Ok(_) => return Ok(fds.get(1).is_some_and(is_ready)),
                Err(errno) => {
                    log::debug!("poll: {errno}");
                    if began.elapsed() >= time {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

impl AsFd for Stop {
    /// Readable once the end was requested; never read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::unistd::{pipe, write};

    use super::*;

    /// No wait of these tests lasts as long.
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_wait_ends_when_the_end_is_asked_for() {
        let stop = Stop::new().unwrap();
        stop.check().unwrap();
        stop.pause(Duration::from_micros(1)).unwrap();
        let waits = stop.clone();
        let (reader, _writer) = pipe().unwrap();
        let thread = thread::spawn(move || {
            (waits.pause(LONG), waits.wait_for(reader.as_fd(), PollFlags::POLLIN, LONG))
        });
        stop.request();
        assert_eq!(thread.join().unwrap(), (Err(Stopped), Err(Stopped)));
        // It stays so, whatever else is ready.
        stop.check().unwrap_err();
        let (reader, writer) = pipe().unwrap();
        write(&writer, b"x").unwrap();
        stop.wait_for(reader.as_fd(), PollFlags::POLLIN, Duration::ZERO).unwrap_err();
    }

    #[test]
    fn a_wait_ends_when_its_descriptor_is_ready() {
        let stop = Stop::new().unwrap();
        let (reader, writer) = pipe().unwrap();
        let short = Duration::from_millis(1);
        assert_eq!(stop.wait_for(reader.as_fd(), PollFlags::POLLIN, short), Ok(false));
        write(&writer, b"x").unwrap();
        assert_eq!(stop.wait_for(reader.as_fd(), PollFlags::POLLIN, LONG), Ok(true));
        // A hang-up is an event, too.
        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert_eq!(stop.wait_for(reader.as_fd(), PollFlags::POLLIN, LONG), Ok(true));
    }
}
