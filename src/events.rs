//! What happens to a disk, for those that listen: sessions, limits, refusals, stalls.
//!
//! Any thread tells, and one thread listens, which passes on what it takes. As long as it does not listen,
//! telling costs one load. What a guest can cause as often as it likes is counted (a [`Tally`]), with
//! atomics alone, so a queue thread never waits for the listener; what is rare is queued, up to a limit.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

use crate::sync;

/// Most events that wait for the listener. It takes them several times a second.
const QUEUED: usize = 1024;

/// Something that happened once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A front end is served from now on.
    SessionBegun {
        /// Its process, if that is known.
        pid: Option<i32>,
    },
    /// It is not served any more.
    SessionEnded {
        /// Why, for a reader.
        reason: String,
    },
    /// The disk's memory comes near to its limit, or is not near any more.
    MemLimit {
        /// Whether it is near.
        near: bool,
        /// Bytes that the disk takes.
        used: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The host has no memory to spare, or has some again.
    HostMemory {
        /// Whether it has none.
        short: bool,
    },
    /// Settings were changed.
    SettingsChanged,
    /// The disk was reset.
    Reset,
    /// A job began.
    JobBegun {
        /// Its number.
        job: u64,
    },
    /// A job is over.
    JobEnded {
        /// Its number.
        job: u64,
        /// It was cancelled, and not done.
        cancelled: bool,
    },
}

/// Something that may happen often, and is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tally {
    /// A page that was not stored: a limit is reached, or the host has no memory.
    WritesRefused,
    /// A request that takes too long.
    RequestsStalled,
    /// A request that was abandoned.
    RequestsExpired,
    /// A virtqueue that was stopped because it makes no sense.
    QueuesBroken,
    /// A virtqueue that is kicked and shows nothing.
    QueuesBlind,
}

/// All tallies, in their order.
const TALLIES: [Tally; 5] = [
    Tally::WritesRefused,
    Tally::RequestsStalled,
    Tally::RequestsExpired,
    Tally::QueuesBroken,
    Tally::QueuesBlind,
];

/// What the listener takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What happened, oldest first, and when.
    pub events: Vec<(SystemTime, Event)>,
    /// What happened how often since the last time; what did not happen is left out.
    pub tallies: Vec<(Tally, u64)>,
    /// Events that were lost, since too many came at once.
    pub lost: u64,
}

/// The events of one disk.
#[derive(Debug, Default)]
pub struct Bus {
    listening: AtomicBool,
    tallies: [AtomicU64; TALLIES.len()],
    queue: Mutex<VecDeque<(SystemTime, Event)>>,
    lost: AtomicU64,
    /// The bell was rung, and the listener has not come since.
    rung: AtomicBool,
    /// Made for the first listener: what is written to one is read from the other. An eventfd would do, too,
    /// but an async runtime waits for sockets without `unsafe`.
    bell: OnceLock<[UnixStream; 2]>,
}

impl Bus {
    /// Tells of something rare. Not for queue threads: it takes a lock, if only for a moment.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if !self.listening.load(Ordering::Relaxed) {
            return;
        }
        let event = (SystemTime::now(), event());
        let mut queue = sync::lock(&self.queue);
        if queue.len() < QUEUED {
            queue.push_back(event);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        self.ring();
    }

    /// Counts something. Waits for nothing, and makes one system call each time that the listener was there.
    pub fn count(&self, tally: Tally) {
        if !self.listening.load(Ordering::Relaxed) {
            return;
        }
        self.tallies[tally as usize].fetch_add(1, Ordering::Relaxed);
        self.ring();
    }

    fn ring(&self) {
        if self.rung.load(Ordering::Relaxed) || self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        // Non-blocking; and a socket that is full wakes, too.
        if let Some([bell, _]) = self.bell.get()
            && let Err(error) = { bell }.write(&[1])
        {
            log::debug!("the listener to events cannot be woken: {error}");
        }
    }

    /// Whether there is a listener from now on. Without one, what happens is forgotten.
    pub fn listen(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
        if !listening {
            self.take();
        }
    }

    /// A socket that is readable when there is something to take; [`Self::take`] reads it.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn bell(&self) -> io::Result<UnixStream> {
        if self.bell.get().is_none() {
            let (one, other) = UnixStream::pair()?;
            one.set_nonblocking(true)?;
            other.set_nonblocking(true)?;
            // Another thread may have been faster.
            let _ = self.bell.set([one, other]);
        }
        let [_, bell] = self.bell.get().ok_or(io::ErrorKind::NotFound)?;
        bell.try_clone()
    }

    /// Takes what happened since the last time, and resets the bell.
    pub fn take(&self) -> Taken {
        // First: what happens after this rings again.
        if let Some([_, bell]) = self.bell.get() {
            // An error says that it was not rung.
            let _ = { bell }.read(&mut [0; 64]);
        }
        self.rung.store(false, Ordering::Release);
        let events = std::mem::take(&mut *sync::lock(&self.queue)).into();
        let count = |tally: Tally| self.tallies[tally as usize].swap(0, Ordering::AcqRel);
        let tallies = TALLIES.into_iter().map(|tally| (tally, count(tally)));
        let tallies = tallies.filter(|(_, count)| *count > 0).collect();
        Taken { events, tallies, lost: self.lost.swap(0, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_rung(bell: &UnixStream) -> bool {
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn what_happens_without_a_listener_is_forgotten() {
        let bus = Bus::default();
        bus.tell(|| unreachable!("it is not even made"));
        bus.count(Tally::WritesRefused);
        bus.listen(true);
        assert_eq!(bus.take(), Taken::default());
        bus.count(Tally::WritesRefused);
        bus.tell(|| Event::Reset);
        bus.listen(false);
        bus.listen(true);
        assert_eq!(bus.take(), Taken::default());
    }

    #[test]
    fn the_bell_rings_once_until_the_listener_comes() {
        let bus = Bus::default();
        bus.listen(true);
        let bell = bus.bell().unwrap();
        assert!(!is_rung(&bell));
        for _ in 0..3 {
            bus.count(Tally::QueuesBroken);
        }
        bus.tell(|| Event::SettingsChanged);
        assert!(is_rung(&bell));
        let taken = bus.take();
        assert_eq!(taken.tallies, [(Tally::QueuesBroken, 3)]);
        assert_eq!(taken.events[0].1, Event::SettingsChanged);
        assert!(!is_rung(&bell));
        assert_eq!(bus.take(), Taken::default());
        bus.count(Tally::RequestsStalled);
        assert!(is_rung(&bell));
    }

    #[test]
    fn events_wait_up_to_a_limit_and_the_rest_is_counted() {
        let bus = Bus::default();
        bus.listen(true);
        for job in 0..QUEUED as u64 + 7 {
            bus.tell(|| Event::JobBegun { job });
        }
        let taken = bus.take();
        assert_eq!((taken.events.len(), taken.lost), (QUEUED, 7));
        assert_eq!(taken.events[0].1, Event::JobBegun { job: 0 });
        assert_eq!(bus.take().lost, 0);
    }

    #[test]
    fn a_listener_that_waits_for_the_bell_misses_no_count() {
        const EACH: u64 = 10_000;
        let bus = Arc::new(Bus::default());
        bus.listen(true);
        let bell = bus.bell().unwrap();
        let tellers: Vec<_> = (0..3)
            .map(|_| {
                let bus = Arc::clone(&bus);
                thread::spawn(move || (0..EACH).for_each(|_| bus.count(Tally::RequestsExpired)))
            })
            .collect();
        let mut seen = 0;
        while seen < 3 * EACH {
            let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 60_000_u16).unwrap(), 1, "{seen} were seen");
            seen += bus.take().tallies.iter().map(|(_, count)| count).sum::<u64>();
        }
        assert_eq!(seen, 3 * EACH);
        tellers.into_iter().for_each(|teller| teller.join().unwrap());
    }
}
