//! When a queue thread polls its empty rings, and for how long, before it sleeps.
//!
//! To sleep and be woken costs the driver a kick, which is a system call or an exit of the guest, and the
//! thread some microseconds of processor time. To poll costs the time until the next request. So the
//! thread polls as long as requests come soon after the rings were empty, and not longer:
//!
//! * A poll takes at most a *bound*, which is at most the limit that the user set. A sleep that ended within
//!   the limit doubles the bound, since a longer poll would have found the request. A longer sleep halves
//!   it, down to nothing.
//! * Polls in vain, one after another, cause a pause, which doubles with each further one. Such are the polls
//!   of a thread on the very processor that the driver needs: the request comes when the thread sleeps,
//!   however long it polled before.
//! * A thread that lost its processor to another one while it polled has a longer pause. The others
//!   have work to do, and a thread that sleeps is given a processor sooner than one that used up its share.
//! * Polls in vain take no more than a part of the thread's time, whatever else holds.

use std::time::Duration;

/// The bound starts as this part of the limit, which is also the least bound.
const START: u32 = 8;
/// Polls in vain may take this part of the time.
const VAIN_PART: u32 = 10;
/// Limits that can be saved up to be polled in vain.
const SAVED: u32 = 4;
/// Polls in vain, one after another, of which the last one causes a pause.
const PATIENCE: u32 = 3;
/// The longest pause after polls in vain is 2 to the power of this many sleeps.
const LONGEST_PAUSE: u32 = 12;
/// Time between two readings of the clock in which the thread was not running, but another one. Interrupts
/// take less, and the scheduler's slices more. At least the limit, too.
const PREEMPTED: Duration = Duration::from_micros(500);
/// The first pause after that, in sleeps. A lost slice costs as much as some hundred sleeps.
const PREEMPTED_PAUSE: u32 = 256;
/// The longest is that, doubled so often.
const MOST_DOUBLED: u32 = 6;
/// Successful polls in a row after which the thread has its processor to itself.
const UNDISTURBED: u32 = 4096;

/// The decisions of one thread. Times are those of any one clock that does not run backwards.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    /// How long the next poll may take; zero is not at all.
    bound: Duration,
    /// Polls in vain since the last successful one.
    misses: u32,
    /// Successful polls since the thread last lost its processor, up to a number that is enough.
    hits: u32,
    /// How often the pause after such a loss was doubled.
    doubled: u32,
    /// Sleeps that are still to come before the next poll.
    pause: u32,
    /// Time that may be polled in vain, and when it was last added to.
    credit: Duration,
    credited: Duration,
    /// When all rings were found empty, as far as that is known.
    empty_since: Option<Duration>,
    /// The last reading of the clock in this poll.
    last: Duration,
}

impl Polling {
    /// Polls of at most `limit`; zero is never.
    pub(crate) fn new(limit: Duration, now: Duration) -> Self {
        Self {
            limit,
            bound: limit / START,
            misses: 0,
            hits: 0,
            doubled: 0,
            pause: 0,
            credit: limit * SAVED,
            credited: now,
            empty_since: None,
            last: now,
        }
    }

    /// Whether the rings may be polled when they are empty.
    pub(crate) fn is_on(&self) -> bool {
        self.pause == 0 && !self.bound.is_zero()
    }

    /// Whether it is to be told when the thread sleeps and what wakes it.
    pub(crate) fn is_watching(&self) -> bool {
        !self.limit.is_zero()
    }

    /// All rings are empty. Returns whether to poll them.
    pub(crate) fn begin(&mut self, now: Duration) -> bool {
        self.empty_since = Some(now);
        self.last = now;
        let earned = now.saturating_sub(self.credited) / VAIN_PART;
        self.credit = (self.credit + earned).min(self.limit * SAVED);
        self.credited = now;
        self.is_on() && self.bound <= self.credit
    }

    /// The rings were read once more, and something was `found` or not. Returns whether the poll is over,
    /// successful or in vain.
    pub(crate) fn read(&mut self, now: Duration, found: bool) -> bool {
        let step = now.saturating_sub(std::mem::replace(&mut self.last, now));
        let preempted = step >= PREEMPTED.max(self.limit);
        if preempted {
            self.lose_processor();
        }
        if found {
            self.misses = 0;
            self.empty_since = None;
            self.hits = if preempted { 0 } else { (self.hits + 1).min(UNDISTURBED) };
            return true;
        }
        let over = self.waited(now) >= self.bound;
        if over {
            self.credit = self.credit.saturating_sub(self.waited(now));
            self.misses = self.misses.saturating_add(1);
            if self.misses >= PATIENCE {
                let pause = 1 << (self.misses - PATIENCE).min(LONGEST_PAUSE);
                self.pause = self.pause.max(pause);
            }
        }
        over
    }

    /// A command has ended the poll, which was as much in vain as one that took so long.
    pub(crate) fn called(&mut self, now: Duration) {
        self.credit = self.credit.saturating_sub(self.waited(now));
        self.empty_since = None;
    }

    /// Something else than a kick has ended the thread's sleep: how long the rings will have been empty at the
    /// next kick is counted from the next sleep on.
    pub(crate) fn woken(&mut self) {
        self.empty_since = None;
    }

    fn lose_processor(&mut self) {
        self.doubled = if self.hits < UNDISTURBED { self.doubled + 1 } else { 0 }.min(MOST_DOUBLED);
        self.hits = 0;
        self.pause = PREEMPTED_PAUSE << self.doubled;
    }

    /// The thread sleeps until something happens.
    pub(crate) fn sleeps(&mut self, now: Duration) {
        self.empty_since.get_or_insert(now);
    }

    /// A kick has ended the thread's sleep.
    pub(crate) fn kicked(&mut self, now: Duration) {
        let waited = self.waited(now);
        self.empty_since = None;
        self.pause = self.pause.saturating_sub(1);
        let least = self.limit / START;
        self.bound = if waited <= self.limit {
            (self.bound * 2).clamp(least, self.limit)
        } else if self.bound / 2 >= least {
            self.bound / 2
        } else {
            Duration::ZERO
        };
    }

    /// Time since the rings were found empty.
    fn waited(&self, now: Duration) -> Duration {
        now.saturating_sub(self.empty_since.unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(80);

    /// A thread that only polls and sleeps, and its clock.
    struct Thread {
        polling: Polling,
        now: Duration,
        /// Time that it polled in vain.
        vain: Duration,
    }

    impl Thread {
        fn new(limit: Duration) -> Self {
            Self {
                polling: Polling::new(limit, Duration::ZERO),
                now: Duration::ZERO,
                vain: Duration::ZERO,
            }
        }

        /// Waits for a request that comes `gap` after the rings were empty, or `late` after the thread has
        /// begun to sleep if that is later. Returns for how long it polled, and whether that found it.
        fn wait(&mut self, gap: Duration, late: Duration) -> (Duration, bool) {
            let began = self.now;
            if self.polling.is_on() && self.polling.begin(self.now) {
                loop {
                    self.now += Duration::from_micros(1);
                    let found = self.now - began >= gap;
                    if self.polling.read(self.now, found) {
                        if found {
                            return (self.now - began, true);
                        }
                        break;
                    }
                }
            }
            let polled = self.now - began;
            self.vain += polled;
            self.polling.sleeps(self.now);
            self.now = (began + gap).max(self.now + late);
            self.polling.kicked(self.now);
            (polled, false)
        }

        /// How long it polls in vain before a sleep of `gap`.
        fn misses(&mut self, gap: Duration) -> u128 {
            let (polled, found) = self.wait(gap, Duration::ZERO);
            assert!(!found, "{:?}", self.polling);
            polled.as_micros()
        }
    }

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_limit_of_zero_is_never() {
        let mut thread = Thread::new(Duration::ZERO);
        assert!(!thread.polling.is_watching());
        for _ in 0..100 {
            assert_eq!(thread.misses(us(1)), 0);
        }
        assert!(!thread.polling.is_on());
    }

    #[test]
    fn the_bound_follows_what_would_have_been_found() {
        let mut thread = Thread::new(LIMIT);
        // Of requests that come 30 us after the last one, the first two are missed.
        let waits: Vec<_> = (0..4).map(|_| thread.wait(us(30), us(0))).collect();
        assert_eq!(waits, [(us(10), false), (us(20), false), (us(30), true), (us(30), true)]);
        assert_eq!(thread.polling.bound, us(40));
        // Requests that come too late for any poll: shorter and shorter ones, and then none.
        thread.now += Duration::from_secs(1);
        assert_eq!([1, 2, 3, 4, 5].map(|_| thread.misses(us(1_000_000))), [40, 20, 10, 0, 0]);
        assert!(!thread.polling.is_on());
        // One that comes soon is the reason to begin anew.
        assert_eq!(thread.misses(us(80)), 0);
        assert!(thread.polling.is_on());
        assert_eq!(thread.polling.bound, us(10));
    }

    #[test]
    fn a_poll_is_never_longer_than_the_limit() {
        let mut thread = Thread::new(LIMIT);
        for gap in (0..10_000).map(|n| n * 37 % 200) {
            assert!(thread.wait(us(gap), us(1)).0 <= LIMIT);
        }
    }

    /// The driver runs when the thread sleeps, and not before.
    #[test]
    fn polls_in_vain_one_after_another_stop() {
        let mut thread = Thread::new(LIMIT);
        let mut polls = 0;
        for _ in 0..1000 {
            // Neither time nor the length of sleeps is a reason not to poll.
            thread.now += Duration::from_secs(1);
            thread.polling.bound = us(20);
            let (polled, found) = thread.wait(us(30), us(5));
            assert!(!found);
            polls += usize::from(!polled.is_zero());
        }
        // Pauses of 1, 2, 4, ... sleeps after the third.
        assert_eq!(polls, 3 + 9);
        // A successful one ends that.
        thread.polling.pause = 0;
        assert!(thread.wait(us(5), us(0)).1);
        assert_eq!([1, 2, 3].map(|_| thread.wait(us(5), us(0)).1), [true; 3]);
    }

    #[test]
    fn polls_in_vain_take_a_tenth_of_the_time_at_most() {
        let mut thread = Thread::new(LIMIT);
        for round in 0..10_000 {
            // Two misses and a hit: no reason for a pause.
            let gap = if round % 3 == 2 { us(1) } else { LIMIT };
            thread.polling.bound = LIMIT / 2;
            thread.wait(gap, us(0));
        }
        let most = thread.now / VAIN_PART + LIMIT * SAVED;
        assert!(thread.vain <= most, "{:?} of {:?}", thread.vain, thread.now);
        assert!(thread.vain > most / 2, "{:?} of {:?}: it hardly polls", thread.vain, thread.now);
    }

    #[test]
    fn a_lost_processor_is_a_reason_for_a_pause() {
        let mut thread = Thread::new(LIMIT);
        let lose = |thread: &mut Thread| {
            thread.polling.pause = 0;
            assert!(thread.polling.begin(thread.now));
            thread.now += PREEMPTED;
            assert!(thread.polling.read(thread.now, true));
            thread.polling.pause
        };
        let pauses = [1, 2, 3].map(|_| lose(&mut thread));
        assert_eq!(pauses, [1, 2, 3].map(|doubled| PREEMPTED_PAUSE << doubled));
        assert_eq!((0..10).map(|_| lose(&mut thread)).max(), Some(PREEMPTED_PAUSE << MOST_DOUBLED));
        assert!(!thread.wait(us(1), us(1)).1, "it polls in its pause");
        // A thread that was not disturbed for long has a short one.
        thread.polling.pause = 0;
        for _ in 0..UNDISTURBED {
            assert!(thread.wait(us(1), us(0)).1);
        }
        assert_eq!(lose(&mut thread), PREEMPTED_PAUSE);
        for _ in 0..PREEMPTED_PAUSE {
            assert!(!thread.wait(us(1), us(1)).1);
        }
        assert!(thread.wait(us(1), us(1)).1, "the pause is over");
    }

    #[test]
    fn polls_that_commands_end_take_of_the_time_for_polls_in_vain() {
        let mut polling = Polling::new(LIMIT, Duration::ZERO);
        let mut polled = Duration::ZERO;
        while polling.begin(polled) {
            polled += LIMIT / START / 2;
            assert!(!polling.read(polled, false));
            polling.called(polled);
            assert!(polled < LIMIT * 100, "the time is not taken");
        }
    }

    #[test]
    fn a_sleep_that_a_worker_ends_does_not_make_the_next_one_long() {
        let mut polling = Polling::new(LIMIT, Duration::ZERO);
        let first = polling.bound;
        polling.sleeps(Duration::ZERO);
        polling.woken();
        polling.sleeps(LIMIT * 9);
        polling.kicked(LIMIT * 9 + LIMIT / 2);
        assert!(polling.bound > first);
    }
}
