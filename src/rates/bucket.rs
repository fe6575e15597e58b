//! One token bucket, by any clock that does not run backwards.

/// Parts of a token. With a thousand million of them a nanosecond adds a whole number of parts at any rate, so
/// nothing is lost by rounding, however often the bucket is asked.
const TOKEN: i128 = 1_000_000_000;

/// Nanoseconds of a millisecond.
const MILLISECOND: i128 = 1_000_000;

/// Tokens that come at a constant rate, up to a capacity.
///
/// The bucket is *open* while it has any part of a token. What is taken from an open bucket may be more than it
/// has: it owes the rest, and is closed until that has come. So a demand of any size is served, and at any time
/// no more was taken than has come, the capacity and one demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Tokens that come in a second; not 0.
    per_second: u64,
    /// Most parts of tokens that it has.
    capacity: i128,
    /// Parts of tokens that it has, or less than nothing.
    level: i128,
    /// When that was, in nanoseconds.
    at: u64,
}

impl Bucket {
    /// A full bucket of so many tokens a second, which holds those of `burst_ms` milliseconds, of one at least.
    /// `None` if there is no limit: `per_second` is 0.
    pub(super) fn new(per_second: u64, burst_ms: u32, now: u64) -> Option<Self> {
        let capacity = i128::from(per_second) * i128::from(burst_ms.max(1)) * MILLISECOND;
        (per_second > 0).then_some(Self { per_second, capacity, level: capacity, at: now })
    }

    /// The same, in place of the bucket `old`. It has no more tokens than that had, and what that owed it owes, too,
    /// but for no longer than before.
    pub(super) fn instead_of(
        old: Option<Self>,
        per_second: u64,
        burst_ms: u32,
        now: u64,
    ) -> Option<Self> {
        let mut new = Self::new(per_second, burst_ms, now)?;
        if let Some(mut old) = old {
            old.refill(now);
            // Parts are tokens times nanoseconds: what comes in the same time is more of them at a higher rate.
            let slower = per_second.min(old.per_second);
            let owed = old.level.min(0) / i128::from(old.per_second) * i128::from(slower);
            new.level = if old.level > 0 { old.level.min(new.capacity) } else { owed };
        }
        Some(new)
    }

    /// Adds what has come by now.
    pub(super) fn refill(&mut self, now: u64) {
        let elapsed = i128::from(now.saturating_sub(self.at));
        let come = elapsed.saturating_mul(self.per_second.into());
        self.level = self.level.saturating_add(come).min(self.capacity);
        self.at = self.at.max(now);
    }

    /// When it opens, if it is closed.
    pub(super) fn opens_at(&self) -> Option<u64> {
        let missing = self.level.checked_neg().filter(|missing| *missing >= 0)?;
        let wait = missing / i128::from(self.per_second) + 1;
        Some(self.at.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Takes tokens, however many it has.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * TOKEN);
    }

    /// Nanoseconds in which so many tokens come.
    pub(super) fn time_of(&self, tokens: u64) -> u128 {
        u128::from(tokens) * TOKEN as u128 / u128::from(self.per_second)
    }
}
