//! The watchdog: it reports requests that do not end, and abandons them if it is configured to.
//!
//! There are two reasons why a request does not end. Each is detected where that costs least:
//!
//! * A request that is *parked* waits for an event that does not happen. Its own queue thread checks the
//!   parked requests. It is woken by a time limit on its sleep, which is set only while something is
//!   parked. A request is timed by a coarse clock from the moment at which it is first parked.
//! * A request that is *being worked on* keeps its thread. A thread of the session that does nothing else
//!   reads the [`Pulse`] of each queue thread. The pulse costs the queue thread a few stores for each poll,
//!   and no clock. The watchdog checks only while queue threads are awake. When all of them have slept for
//!   a while, it sleeps without a time limit, until a queue thread wakes up and finds it asleep.
//!
//! Time counts only while checks are on time ([`Checks`]): a daemon that was stopped, frozen or asleep with
//! its host could not do anything, and a request must not fail for that.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::blk::config::StallLimits;
use crate::device::{Device, Extent, Op};
use crate::events::Tally;
use crate::ratelimit::{Kind, Limiter};
use crate::sync;

/// A series of checks of waiting requests, and how much time counts between them.
#[derive(Debug)]
pub(crate) struct Checks {
    /// The time of the last check.
    before: Duration,
    /// Most time that counts from one check to the next.
    most: Duration,
}

/// One check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    now: Duration,
    before: Duration,
    most: Duration,
}

impl Checks {
    /// The checks of a thread. A check may be late by an interval: a thread that was woken just before its
    /// check sleeps for another interval.
    pub(crate) fn of(stall_limits: &StallLimits) -> Self {
        Self::new(stall_limits.interval().map_or(Duration::MAX, |interval| 2 * interval))
    }

    /// Checks between which no more than `most` counts.
    pub(crate) fn new(most: Duration) -> Self {
        Self { before: Duration::ZERO, most }
    }

    /// Whether the last check is this long ago.
    pub(crate) fn are_due(&self, now: Duration, interval: Duration) -> bool {
        now.saturating_sub(self.before) >= interval
    }

    /// The next check, at the time `now` of any one clock.
    pub(crate) fn at(&mut self, now: Duration) -> Check {
        let before = std::mem::replace(&mut self.before, now);
        Check { now, before, most: self.most }
    }
}

impl Check {
    /// The time that counts since the previous check for something that exists since `since`.
    pub(crate) fn counted(&self, since: Duration) -> Duration {
        self.now.saturating_sub(self.before.max(since)).min(self.most)
    }
}

/// What one queue thread is doing. Written by the thread, in its own cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Pulse {
    /// Beginnings and ends of polls: odd within one.
    beat: AtomicU64,
    /// Of the request that is polled: queue in bits 32 to 47, head in 16 to 31, operation in 1 to
    /// 2, whether it was reported before in 0.
    request: AtomicU64,
    sector: AtomicU64,
    bytes: AtomicU64,
    /// The thread does not sleep.
    awake: AtomicBool,
    /// Beat of the last poll that was reported. The one field that the watchdog writes.
    reported: AtomicU64,
}

const OPS: [Op; 4] = [Op::Read, Op::Write, Op::Discard, Op::WriteZeroes];

impl Pulse {
    /// A poll of a request begins.
    pub(crate) fn enter(&self, queue: usize, head: u16, extent: &Extent, reported: bool) {
        let op = OPS.iter().position(|op| *op == extent.op).unwrap_or_default() as u64;
        let request = (queue as u64) << 32 | u64::from(head) << 16 | op << 1 | u64::from(reported);
        let beat = self.beat.load(Ordering::Relaxed);
        // A thread that sees one of the next stores sees the end of the poll before it.
        fence(Ordering::Release);
        self.request.store(request, Ordering::Relaxed);
        self.sector.store(extent.sector, Ordering::Relaxed);
        self.bytes.store(extent.bytes, Ordering::Relaxed);
        self.beat.store(beat + 1, Ordering::Release);
    }

    /// The poll is over.
    pub(crate) fn leave(&self) {
        let beat = self.beat.load(Ordering::Relaxed);
        self.beat.store(beat + 1, Ordering::Release);
    }

    /// Whether the last poll, which is over, was reported.
    pub(crate) fn was_reported(&self) -> bool {
        self.reported.load(Ordering::Relaxed) + 1 == self.beat.load(Ordering::Relaxed)
    }

    /// The thread is about to sleep.
    pub(crate) fn rest(&self) {
        self.awake.store(false, Ordering::Release);
    }

    /// How many polls there were, and what the last one was of.
    #[cfg(test)]
    pub(crate) fn last(&self) -> (u64, String) {
        let beat = self.beat.load(Ordering::Relaxed);
        let (queue, head, extent, reported) = self.request(beat).unwrap();
        (beat / 2, format!("{queue} {head} {extent} {reported}"))
    }

    /// As if the watchdog reported the next poll.
    #[cfg(test)]
    pub(crate) fn report_next(&self) {
        self.reported.store(self.beat.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The request of poll `beat`, if that is not over: queue, head, extent, reported before.
    fn request(&self, beat: u64) -> Option<(u64, u16, Extent, bool)> {
        let request = self.request.load(Ordering::Relaxed);
        let sector = self.sector.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let op = OPS[(request >> 1 & 3) as usize];
        let described =
            (request >> 32, (request >> 16) as u16, Extent { op, sector, bytes }, request & 1 == 1);
        (self.beat.load(Ordering::Relaxed) == beat).then_some(described)
    }
}

/// What queue threads and watchdog share.
pub(crate) struct Watch {
    pulses: Vec<Arc<Pulse>>,
    stall_limits: StallLimits,
    /// The watchdog checks from time to time; otherwise it has to be woken.
    armed: AtomicBool,
    stopped: Mutex<bool>,
    changed: Condvar,
}

/// What the watchdog saw of a thread.
#[derive(Clone, Copy)]
struct Seen {
    beat: u64,
    /// For how long it has been seen, as far as time counted.
    age: Duration,
}

impl Watch {
    /// A watch over `threads` queue threads.
    pub(crate) fn new(threads: usize, stall_limits: StallLimits) -> Arc<Self> {
        Arc::new(Self {
            pulses: (0..threads).map(|_| Arc::default()).collect(),
            stall_limits,
            // A watch that is off need not be woken.
            armed: AtomicBool::new(stall_limits.interval().is_none()),
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// The pulse of thread `number`.
    pub(crate) fn pulse(&self, number: usize) -> Arc<Pulse> {
        Arc::clone(&self.pulses[number])
    }

    pub(crate) fn stall_limits(&self) -> StallLimits {
        self.stall_limits
    }

    /// A queue thread woke up.
    pub(crate) fn rouse(&self, pulse: &Pulse) {
        pulse.awake.store(true, Ordering::Relaxed);
        // With the fence in `sleep`: either the watchdog sees a thread awake, or it is woken.
        fence(Ordering::SeqCst);
        if !self.armed.load(Ordering::Relaxed) {
            let _stopped = sync::lock(&self.stopped);
            self.armed.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    fn run(&self, device: &Device, log: &Limiter, interval: Duration) {
        let mut seen = Vec::new();
        let (began, mut checks) = (Instant::now(), Checks::of(&self.stall_limits));
        loop {
            if seen.is_empty() && self.sleep() {
                return;
            }
            let counted = checks.at(began.elapsed()).counted(Duration::ZERO);
            let mut quiet = true;
            // Of polls that were not seen before, time counts from now on.
            seen.resize(self.pulses.len(), Seen { beat: 0, age: Duration::ZERO });
            for (pulse, seen) in self.pulses.iter().zip(&mut seen) {
                let beat = pulse.beat.load(Ordering::Acquire);
                quiet &= beat == seen.beat && !pulse.awake.load(Ordering::Acquire);
                if beat != seen.beat {
                    *seen = Seen { beat, age: Duration::ZERO };
                    continue;
                }
                seen.age += counted;
                if beat & 1 == 1 && self.stall_limits.is_over(seen.age) {
                    report(pulse, beat, seen.age, device, log);
                }
            }
            if quiet {
                seen.clear();
                continue;
            }
            let stopped = sync::lock(&self.stopped);
            let waited = self.changed.wait_timeout_while(stopped, interval, |stopped| !*stopped);
            if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
        }
    }

    /// Sleeps until a queue thread is awake. Returns true if the watchdog is to end.
    fn sleep(&self) -> bool {
        let stopped = sync::lock(&self.stopped);
        self.armed.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.pulses.iter().any(|pulse| pulse.awake.load(Ordering::Relaxed)) {
            self.armed.store(true, Ordering::Relaxed);
        }
        let asleep = |stopped: &mut bool| !*stopped && !self.armed.load(Ordering::Relaxed);
        *self.changed.wait_while(stopped, asleep).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports a thread that does not return from a poll, once for each poll.
fn report(pulse: &Pulse, beat: u64, age: Duration, device: &Device, log: &Limiter) {
    if pulse.reported.load(Ordering::Relaxed) == beat {
        return;
    }
    let Some((queue, head, extent, before)) = pulse.request(beat) else { return };
    pulse.reported.store(beat, Ordering::Relaxed);
    if !before {
        device.figures().stalled_requests.inc();
        device.events().count(Tally::RequestsStalled);
    }
    log.warn(
        Kind::Stalls,
        format_args!(
            "queue {queue}: request {head} ({extent}) has kept its thread for {:.1} s",
            age.as_secs_f64()
        ),
    );
}

/// The thread that watches a session's queue threads. Dropping it ends the thread.
pub(crate) struct Watchdog {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread, unless the watch is off.
    pub(crate) fn start(
        watch: Arc<Watch>,
        device: Arc<Device>,
        log: Arc<Limiter>,
    ) -> io::Result<Self> {
        let its_watch = Arc::clone(&watch);
        let thread = watch.stall_limits.interval().map(|interval| {
            let body = move || its_watch.run(&device, &log, interval);
            crate::threads::spawn("watchdog", body)
        });
        Ok(Self { watch, thread: thread.transpose()? })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *sync::lock(&self.watch.stopped) = true;
        self.watch.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the watchdog had died");
        }
    }
}
