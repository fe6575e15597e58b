//! When pages were last accessed, coarsely: 2 bytes a slot beside the table, if they are asked for.
//!
//! A time is a number of [`UNIT`]s since the process began to count, modulo 2^16. So what is younger than the
//! number goes around can be told from it; the time of a page that is older than [`Ages::MOST`] is moved forward to that age
//! before it seems young again ([`Ages::saturate`], by upkeep).
//!
//! Times are notes of this process: a table that is taken over counts as accessed when the process began, and so does a
//! slot of which no time was stored. They are hints that nothing but idle marks and reports rely on, so
//! they are stored without any lock, and memory of theirs is there where the table is.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::store::{HOST_PAGE, Notes, StoreError, WORDS_PER_PAGE};

/// Seconds of the unit of times.
const UNIT: u64 = 4;

/// The oldest age in units.
const OLDEST: u16 = 48 << 10;

/// Units by which a time may be ahead of what the thread that looks at it took for the present.
const AHEAD: u16 = 1 << 10;

/// Parts of a table, each a page of words, whose times lie on one page.
const PARTS: u64 = 4;

const _: () = assert!(PARTS * WORDS_PER_PAGE * 2 == HOST_PAGE);

/// The times of last accesses to the slots of one table.
#[derive(Debug)]
pub(super) struct Ages {
    times: Notes,
    start: Duration,
    /// When old times were last looked for, in seconds since the start.
    saturated: AtomicU64,
    /// Seconds by which the clock is ahead.
    #[cfg(test)]
    pub(super) ahead: AtomicU64,
}

impl Ages {
    /// The oldest age that a page can have, in seconds: two days and six hours.
    pub(super) const MOST: u64 = OLDEST as u64 * UNIT;

    /// Seconds from one look for old times to the next.
    pub(super) const ROUND: u64 = (8 << 10) * UNIT;

    /// The ages of `room` slots, all of which were accessed just now.
    ///
    /// # Errors
    /// The host refuses the address space.
    pub(super) fn new(room: u64) -> Result<Self, StoreError> {
        Ok(Self {
            times: Notes::new(room.div_ceil(4))?,
            start: clock::coarse(),
            saturated: AtomicU64::new(0),
            #[cfg(test)]
            ahead: Default::default(),
        })
    }

    /// Bytes of the ages of `parts` groups of [`PARTS`] parts of a table.
    pub(super) const fn bytes(groups: u64) -> u64 {
        groups * HOST_PAGE
    }

    /// Bytes of the ages of `len` slots.
    pub(super) fn full_bytes(len: u64) -> u64 {
        Self::bytes(len.div_ceil(PARTS * WORDS_PER_PAGE))
    }

    /// Whole seconds since it began to count.
    fn seconds(&self) -> u64 {
        let seconds = clock::coarse().saturating_sub(self.start).as_secs();
        #[cfg(test)]
        let seconds = seconds + self.ahead.load(Ordering::Relaxed);
        seconds
    }

    /// The present, as a time.
    pub(super) fn now(&self) -> u16 {
        (self.seconds() / UNIT) as u16
    }

    /// A slot was accessed at `now`.
    #[inline]
    pub(super) fn touch(&self, index: u64, now: u16) {
        let Some(time) = self.times.quarter(index) else { return };
        // What is there already is not stored again: the line stays with all processors that have it.
        if time.load(Ordering::Relaxed) != now {
            time.store(now, Ordering::Relaxed);
        }
    }

    /// Units from the last access of a slot to the present `now`; up to [`OLDEST`].
    fn units(&self, index: u64, now: u16) -> u16 {
        let time = self.times.quarter(index).map_or(now, |time| time.load(Ordering::Relaxed));
        match now.wrapping_sub(time) {
            ahead if ahead > u16::MAX - AHEAD => 0,
            units => units.min(OLDEST),
        }
    }

    /// Seconds for which a slot was surely not accessed.
    pub(super) fn age(&self, index: u64) -> u64 {
        let seconds = self.seconds();
        let now = seconds / UNIT;
        let accessed = now.saturating_sub(self.units(index, now as u16).into());
        // It may have been at the end of its unit.
        seconds.saturating_sub((accessed + 1) * UNIT)
    }

    /// When a slot was last accessed, by the host's clock that counts from its start: not later than it was, and by
    /// less than a unit earlier if it was within the last two days.
    pub(super) fn accessed(&self, index: u64) -> Duration {
        let now = self.seconds() / UNIT;
        let accessed = now.saturating_sub(self.units(index, now as u16).into());
        self.start + Duration::from_secs(accessed * UNIT)
    }

    /// How long nothing has to be done that keeps old slots from seeming young. If that is over, [`Self::saturate`]
    /// has to be called for all slots, as the caller is told by `None`, once.
    pub(super) fn rests(&self) -> Option<Duration> {
        let now = self.seconds();
        let left = (self.saturated.load(Ordering::Relaxed) + Self::ROUND).checked_sub(now);
        if left.is_none_or(|left| left == 0) {
            self.saturated.store(now, Ordering::Relaxed);
            return None;
        }
        left.map(Duration::from_secs)
    }

    /// Gives these slots, if they were not accessed for so long, the oldest age that there is.
    pub(super) fn saturate(&self, slots: Range<u64>) {
        let now = self.now();
        let oldest = now.wrapping_sub(OLDEST);
        for time in slots.map_while(|index| self.times.quarter(index)) {
            let seen = time.load(Ordering::Relaxed);
            if (OLDEST + 1..=u16::MAX - AHEAD).contains(&now.wrapping_sub(seen)) {
                // Unless it is accessed just now.
                let _ = time.compare_exchange(seen, oldest, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Parts of the table are gone: their ages are given back where no other part shares the memory, which
    /// `exists` says.
    pub(super) fn forget(&self, parts: Range<u64>, exists: impl Fn(u64) -> bool) {
        for group in parts.start / PARTS..parts.end.div_ceil(PARTS) {
            if (group * PARTS..(group + 1) * PARTS).any(&exists) {
                continue;
            }
            if let Err(error) = self.times.forget(group * HOST_PAGE, HOST_PAGE) {
                log::warn!("memory of access times cannot be given back: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(ages: &Ages, seconds: u64) {
        ages.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    #[test]
    fn an_age_is_what_surely_went_by() {
        let ages = Ages::new(8).unwrap();
        assert_eq!(ages.age(3), 0);
        later(&ages, 1000);
        // All of them were accessed at the start.
        assert!((1000 - UNIT..=1001).contains(&ages.age(7)), "{}", ages.age(7));
        ages.touch(3, ages.now());
        assert_eq!(ages.age(3), 0);
        later(&ages, 100);
        assert!((100 - 2 * UNIT..=101).contains(&ages.age(3)), "{}", ages.age(3));
        assert!(ages.age(2) > 1000 && ages.age(4) > 1000);
        let between = ages.accessed(3) - ages.accessed(4);
        assert!((1000 - UNIT..=1001).contains(&between.as_secs()), "{between:?}");
        // A thread that looked at the clock before another one accessed it.
        ages.touch(3, ages.now() + 1);
        assert_eq!(ages.age(3), 0);
        // There is none.
        assert_eq!(ages.age(8), 0);
        ages.touch(8, 1);
    }

    #[test]
    fn an_old_page_does_not_become_young_again() {
        let ages = Ages::new(4).unwrap();
        let mut young = 0;
        for _ in 0..60 {
            later(&ages, Ages::ROUND);
            ages.touch(1, ages.now());
            ages.saturate(0..4);
            let age = ages.age(0);
            assert!(age >= young.min(Ages::MOST - 2 * UNIT), "{age} after {young}");
            assert!(age <= Ages::MOST && ages.age(1) == 0);
            young = age;
        }
        assert!(young >= Ages::MOST - 2 * UNIT);
        // What is older than any that it can be, if nothing saturates.
        later(&ages, Ages::ROUND);
        assert!(ages.age(0) >= Ages::MOST - 2 * UNIT);
    }

    #[test]
    fn memory_goes_where_no_part_needs_it() {
        let ages = Ages::new(3 * PARTS * WORDS_PER_PAGE).unwrap();
        let slot = |part: u64| part * WORDS_PER_PAGE;
        for part in 0..12 {
            ages.touch(slot(part), 5);
        }
        let time = |part| ages.times.quarter(slot(part)).unwrap().load(Ordering::Relaxed);
        ages.forget(2..9, |part| part == 1 || part > 9);
        assert_eq!([0, 3, 4, 7, 8, 11].map(time), [5, 5, 0, 0, 5, 5]);
        ages.forget(8..10, |part| part == 1);
        assert_eq!([3, 8, 11].map(time), [5, 0, 0]);
    }
}
