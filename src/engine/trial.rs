//! Whether it pays at present to spread the pages of large requests over idle workers: by trial.
//!
//! A worker that waits says nothing of the processors. A client that polls, or another program, may use all of
//! them, and what a worker gains is then lost elsewhere. What counts in the end is how many pages go through, so that
//! is measured, by the wall clock, with the spreading and without. Now and then the other way is tried for one epoch.

use std::time::{Duration, Instant};

/// One measurement: some tens of requests of 128 KiB, longer than a slice of the scheduler.
const EPOCH: Duration = Duration::from_millis(8);

/// A pause longer than this between two requests is the client's own, and the epoch starts again. A shorter one may be
/// due to a worker that has the client's processor.
const PAUSE: Duration = Duration::from_millis(32);

/// The spreading pays if it moves at least 9 pages in the time of 8 without.
const GAIN: (u64, u64) = (9, 8);

/// Epochs without spreading before it is tried, fewest and most. After a trial that lost there are twice as many, so
/// that of the requests of a busy machine less than one in a hundred meets a trial.
const INLINE: (u32, u32) = (4, 128);

/// Epochs of spreading before the other way is measured again: twice as many each time that it goes on to pay.
const SPREAD: (u32, u32) = (8, 64);

/// What is known of one direction of the codec.
#[derive(Debug)]
pub(super) struct Trial {
    spreads: bool,
    epoch: Option<Epoch>,
    /// Pages a second without spreading, a running average; 0 before the first epoch.
    inline_rate: u64,
    /// Epochs until the other way is tried, and what that was at first, of both ways.
    left: u32,
    inline: u32,
    spread: u32,
}

/// A measurement under way.
#[derive(Debug)]
struct Epoch {
    start: Instant,
    /// When its last request was begun.
    last: Instant,
    pages: u64,
}

impl Epoch {
    fn new(now: Instant) -> Self {
        Self { start: now, last: now, pages: 0 }
    }
}

impl Default for Trial {
    /// Nothing is spread before it was tried.
    fn default() -> Self {
        let (inline, spread) = (INLINE.0, SPREAD.0);
        Self { spreads: false, epoch: None, inline_rate: 0, left: inline, inline, spread }
    }
}

impl Trial {
    /// Counts a request of `pages` pages that is begun at `now`. True if idle workers are to share it.
    pub(super) fn spreads(&mut self, pages: u64, now: Instant) -> bool {
        let since = |then| now.saturating_duration_since(then);
        let epoch = self.epoch.take().filter(|epoch| since(epoch.last) <= PAUSE);
        let mut epoch = epoch.unwrap_or_else(|| Epoch::new(now));
        let elapsed = since(epoch.start);
        if elapsed >= EPOCH {
            self.end_epoch(epoch.pages * 1_000_000_000 / elapsed.as_nanos() as u64);
            epoch = Epoch::new(now);
        }
        epoch.last = now;
        epoch.pages += pages;
        self.epoch = Some(epoch);
        self.spreads
    }

    /// An epoch moved so many pages a second.
    fn end_epoch(&mut self, rate: u64) {
        self.left -= 1;
        if !self.spreads {
            self.inline_rate =
                if self.inline_rate == 0 { rate } else { u64::midpoint(self.inline_rate, rate) };
            if self.left == 0 {
                (self.spreads, self.left) = (true, self.spread);
            }
        } else if rate * GAIN.1 < self.inline_rate * GAIN.0 {
            self.inline = (2 * self.inline).min(INLINE.1);
            (self.spreads, self.left, self.spread) = (false, self.inline, SPREAD.0);
        } else {
            self.inline = (self.inline / 2).max(INLINE.0);
            if self.left == 0 {
                self.spread = (2 * self.spread).min(SPREAD.1);
                (self.spreads, self.left) = (false, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 32;

    /// Requests one after the other, each of which takes this long with and without spreading. Returns the time of
    /// the last one's begin, and how many were spread.
    fn run(
        trial: &mut Trial,
        mut now: Instant,
        requests: u32,
        spread: Duration,
        inline: Duration,
    ) -> (Instant, u32) {
        let mut count = 0;
        for _ in 0..requests {
            let spreads = trial.spreads(PAGES, now);
            count += u32::from(spreads);
            now += if spreads { spread } else { inline };
        }
        (now, count)
    }

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn what_moves_more_pages_is_done_most_of_the_time() {
        let mut trial = Trial::default();
        let (now, spread) = run(&mut trial, Instant::now(), 100_000, 100 * US, 200 * US);
        assert!(spread > 95_000, "{spread}: it pays");
        let (now, spread) = run(&mut trial, now, 100_000, 200 * US, 190 * US);
        assert!(spread < 1000, "{spread}: it does not");
        let (now, spread) = run(&mut trial, now, 100_000, 185 * US, 200 * US);
        assert!(spread < 1000, "{spread}: it gains too little");
        let (_, spread) = run(&mut trial, now, 100_000, 100 * US, 200 * US);
        assert!(spread > 80_000, "{spread}: it pays again");
    }

    #[test]
    fn a_machine_that_becomes_busy_ends_the_spreading_within_two_epochs() {
        let mut trial = Trial::default();
        let (now, _) = run(&mut trial, Instant::now(), 10_000, 100 * US, 200 * US);
        let (_, spread) = run(&mut trial, now, 10_000, 400 * US, 200 * US);
        assert!(spread < 2 * 8000 / 400 + 200, "{spread}");
    }

    #[test]
    fn a_pause_of_the_client_counts_for_neither_way() {
        let mut trial = Trial::default();
        let (mut now, _) = run(&mut trial, Instant::now(), 2000, 100 * US, 200 * US);
        let known = trial.inline_rate;
        for _ in 0..100 {
            now += PAUSE + US;
            (now, _) = run(&mut trial, now, 10, 100 * US, 200 * US);
        }
        assert_eq!(trial.inline_rate, known);
        assert!(trial.spreads, "nothing was measured, and nothing changed");
    }
}
