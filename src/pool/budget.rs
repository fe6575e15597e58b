//! How much memory a pool has and may have.

use super::PoolError;
use crate::sync::{AtomicU64, Ordering};

/// Memory is taken ahead only where there is room for so many times as much.
const ROOMY: u64 = 64;

/// Before the host is asked again, a disk takes one part of so many of what the host can spare. So
/// disks that were asked at the same time, as many as this, cannot take more than there is; and the
/// less there is, the more often they ask.
const SHARE: u64 = 64;
/// Most bytes between two readings of the host's memory, however much there is.
const MOST: u64 = 4 << 20;
/// A share smaller than this counts as 0: a page of the disk may need pages of arena, table and sums.
const LEAST: u64 = 16 << 10;
/// What a disk at rest may take before the host is asked again. What was seen of it is old by then.
const AT_REST: u64 = 64 << 10;

/// Committed bytes of a disk and their limits, shared by all classes and the slot table.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes of arena and table together, committed or reserved to be. Both limits are about these,
    /// and one number decides, so that two takers cannot both have the last page.
    total: AtomicU64,
    /// Those of the arena.
    arena: AtomicU64,
    arena_max: AtomicU64,
    /// The user's limit in bytes; `u64::MAX` means no limit.
    limit: AtomicU64,
    /// What may be taken until the host is asked again, in bytes; moved by the thread that watches
    /// the host.
    ceiling: AtomicU64,
    /// What the host could spare when it was asked, in bytes.
    horizon: AtomicU64,
}

/// A limit as it is compared.
fn stored(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

impl Budget {
    /// A budget of at most `limit` bytes; 0 means no limit.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            total: AtomicU64::new(0),
            arena: AtomicU64::new(0),
            arena_max: AtomicU64::new(0),
            limit: AtomicU64::new(stored(limit)),
            ceiling: AtomicU64::new(u64::MAX),
            horizon: AtomicU64::new(u64::MAX),
        }
    }

    /// Reserves bytes of the arena before they are committed.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), PoolError> {
        self.reserve_table(bytes)?;
        self.count_arena(bytes);
        Ok(())
    }

    /// Reserves bytes of the table before they are committed: with one atomic addition that is
    /// undone on refusal, so that any number of takers together cannot overshoot.
    pub(super) fn reserve_table(&self, bytes: u64) -> Result<(), PoolError> {
        let now = self.total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let limit = self.limit.load(Ordering::Relaxed);
        let refusal = if now > limit {
            PoolError::Limit { limit }
        } else if now > self.ceiling.load(Ordering::Relaxed) {
            PoolError::HostShort
        } else {
            return Ok(());
        };
        self.release_table(bytes);
        Err(refusal)
    }

    /// Takes bytes of the arena that are committed already, whatever the limits are.
    pub(super) fn adopt(&self, bytes: u64) {
        self.adopt_table(bytes);
        self.count_arena(bytes);
    }

    /// Takes bytes of the table that are committed already, whatever the limits are.
    pub(super) fn adopt_table(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_arena(&self, bytes: u64) {
        let now = self.arena.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.arena_max.fetch_max(now, Ordering::Relaxed);
    }

    /// Bytes of the arena are not committed any more, or were not after all.
    pub(super) fn release(&self, bytes: u64) {
        self.arena.fetch_sub(bytes, Ordering::Relaxed);
        self.release_table(bytes);
    }

    /// Bytes of the table are not committed any more, or were not after all.
    pub(super) fn release_table(&self, bytes: u64) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of arena and table committed, or reserved to be.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Those of the arena.
    #[cfg(any(test, loom))]
    pub(super) fn arena(&self) -> u64 {
        self.arena.load(Ordering::Relaxed)
    }

    /// The most that the arena ever had.
    pub(super) fn arena_max(&self) -> u64 {
        self.arena_max.load(Ordering::Relaxed)
    }

    /// The arena never had more than it has now.
    pub(super) fn restart_arena_max(&self) {
        self.arena_max.store(self.arena.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The user's limit; 0 means no limit.
    pub(super) fn limit(&self) -> u64 {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == u64::MAX { 0 } else { limit }
    }

    /// Sets the user's limit; 0 means no limit. What is committed stays, also if that is more.
    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(stored(limit), Ordering::Relaxed);
    }

    /// The host could spare `spare` bytes when `before` were committed: a share of that may be taken
    /// until it is asked again. False if it is too little to be any.
    pub(super) fn share(&self, before: u64, spare: u64) -> bool {
        let share = (spare / SHARE).min(MOST);
        let share = if share < LEAST { 0 } else { share };
        self.horizon.store(before.saturating_add(spare), Ordering::Relaxed);
        self.ceiling.store(before.saturating_add(share), Ordering::Relaxed);
        share > 0
    }

    /// Nothing will be taken for a while: little of the share is left then, if the host was ever asked.
    pub(super) fn rest(&self) {
        if self.horizon.load(Ordering::Relaxed) != u64::MAX {
            self.ceiling.fetch_min(self.total().saturating_add(AT_REST), Ordering::Relaxed);
        }
    }

    /// `bytes` more than are committed now may be taken.
    #[cfg(any(test, loom))]
    pub(super) fn allow_more(&self, bytes: u64) {
        self.horizon.store(self.total().saturating_add(bytes), Ordering::Relaxed);
        self.ceiling.store(self.total().saturating_add(bytes), Ordering::Relaxed);
    }

    /// Whether there is so much room that no writer fails for bytes which are not needed yet.
    pub(super) fn is_roomy(&self, bytes: u64) -> bool {
        let end = self.total().saturating_add(bytes.saturating_mul(ROOMY));
        end <= self.limit.load(Ordering::Relaxed) && end <= self.horizon.load(Ordering::Relaxed)
    }
}
