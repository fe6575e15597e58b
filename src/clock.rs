//! Time, read seldom: slices of a thread's time, and a clock that is cheap and coarse.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Most work between two readings of the clock, in bytes: some ten microseconds with a fast codec.
const MAX_STRIDE: u64 = 64 * 1024;
/// Least work that a slice takes into account, in bytes: a sector.
pub const MIN_WORK: u64 = 512;
/// Readings of the clock that a slice is meant to take.
const READINGS: u32 = 8;

/// A slice of a thread's time.
///
/// Work is counted in bytes, and the clock read only after so many of them as lately took an
/// eighth of the slice: with a fast codec after every 64 KiB, with a slow one after every page.
#[derive(Debug)]
pub struct TimeSlice {
    limit: Duration,
    /// Start of the slice and the last reading of the clock, from the first one on.
    looks: Option<(Instant, Instant)>,
    /// Work since the last reading, in bytes.
    unseen: u64,
    /// Work after which the clock is read next, in bytes.
    stride: u64,
}

impl TimeSlice {
    /// Slices of `limit` each; the clock is read after `stride` bytes at first. The first slice
    /// begins with the first reading of the clock.
    pub fn new(limit: Duration, stride: u64) -> Self {
        Self { limit, looks: None, unseen: 0, stride }
    }

    /// Begins a new slice. How fast the work goes is remembered.
    pub fn begin(&mut self) {
        self.unseen = 0;
        // Fast work need not be timed from its first byte: most slices end before the first reading.
        self.looks = None;
        if self.stride < MAX_STRIDE {
            self.start();
        }
    }

    /// Begins a new slice, timed from this moment on.
    pub fn start(&mut self) {
        let now = Instant::now();
        self.unseen = 0;
        self.looks = Some((now, now));
    }

    /// Notes that `work` bytes were worked off. True if the slice is used up.
    pub fn spend(&mut self, work: u64) -> bool {
        self.unseen += work.max(MIN_WORK);
        self.unseen >= self.stride && self.learn()
    }

    /// Whether the slice is used up, by the clock. To be asked after work of which the bytes do
    /// not say how much it was.
    pub fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.unseen = 0;
        let (began, _) = *self.looks.get_or_insert((now, now));
        self.looks = Some((began, now));
        now.duration_since(began) >= self.limit
    }

    #[cold]
    fn learn(&mut self) -> bool {
        let (work, last) = (self.unseen, self.looks.map(|(_, last)| last));
        let over = self.is_over();
        if let (Some(last), Some((_, now))) = (last, self.looks) {
            let took = now.duration_since(last).as_nanos().max(1);
            let stride = u128::from(work) * (self.limit / READINGS).as_nanos() / took;
            self.stride = stride.clamp(u128::from(MIN_WORK), u128::from(MAX_STRIDE)) as u64;
        }
        over
    }
}

static START: OnceLock<Instant> = OnceLock::new();

/// The process starts now. To be called before all else.
pub fn mark_start() {
    START.get_or_init(Instant::now);
}

/// Time since the process started, or since the first call if the start was not set.
pub fn since_start() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Time since some moment in the past, some milliseconds exact: what it takes is a few nanoseconds
/// on any machine.
pub fn coarse() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_without_time_is_over_after_each_piece_of_work() {
        let mut slice = TimeSlice::new(Duration::ZERO, MIN_WORK);
        for _ in 0..3 {
            slice.begin();
            assert!(slice.spend(1));
        }
        let mut endless = TimeSlice::new(Duration::MAX, MIN_WORK);
        endless.begin();
        assert!((0..100_000).all(|_| !endless.spend(4096)));
        assert!(!endless.is_over());
    }

    #[test]
    fn slow_work_is_looked_at_more_often_and_fast_work_less() {
        let limit = Duration::from_secs(1000);
        let mut slice = TimeSlice::new(limit, 4096);
        slice.begin();
        slice.spend(4096);
        assert_eq!(slice.stride, MAX_STRIDE, "4096 bytes in an instant");
        slice.begin();
        assert!(slice.looks.is_none(), "fast work is not timed from the start");
        // 64 KiB that took the whole slice: the next look comes after an eighth of them.
        let began = Instant::now().checked_sub(limit).unwrap();
        slice.looks = Some((began, began));
        assert!(slice.spend(MAX_STRIDE));
        assert!((MAX_STRIDE / 8 - 64..=MAX_STRIDE / 8).contains(&slice.stride), "{slice:?}");
        slice.begin();
        assert!(slice.looks.is_some());
    }

    #[test]
    fn the_coarse_clock_goes_forward() {
        let (before, began) = (coarse(), Instant::now());
        assert!(before > Duration::ZERO);
        while coarse() == before {
            assert!(began.elapsed() < Duration::from_secs(60), "it stands still");
        }
        assert!(coarse() > before);
    }
}
