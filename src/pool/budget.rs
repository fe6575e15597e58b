//! How much memory a pool has and may have.

use super::PoolError;
use crate::sync::{AtomicU64, Ordering};

/// Memory is taken ahead only where there is room for so many times as much.
const ROOMY: u64 = 64;

/// Committed bytes and their limits, shared by all classes.
#[derive(Debug)]
pub(super) struct Budget {
    committed: AtomicU64,
    committed_max: AtomicU64,
    /// The user's limit in bytes; `u64::MAX` is none.
    limit: u64,
    /// What others have committed for the same disk, in bytes: the limit does not count it, the
    /// host does.
    beside: AtomicU64,
    /// What the host can bear of both, in bytes; moved by whoever watches the host.
    ceiling: AtomicU64,
}

impl Budget {
    /// A budget of at most `limit` bytes; 0 is no limit.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            committed: AtomicU64::new(0),
            committed_max: AtomicU64::new(0),
            limit: if limit == 0 { u64::MAX } else { limit },
            beside: AtomicU64::new(0),
            ceiling: AtomicU64::new(u64::MAX),
        }
    }

    /// Reserves bytes before they are committed, with one atomic add that is undone on refusal, so
    /// that any number of writers together cannot overshoot.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), PoolError> {
        let now = self.committed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let refusal = if now > self.limit {
            PoolError::Limit { limit: self.limit }
        } else if now + self.beside.load(Ordering::Relaxed) > self.ceiling.load(Ordering::Relaxed) {
            PoolError::HostShort
        } else {
            self.committed_max.fetch_max(now, Ordering::Relaxed);
            return Ok(());
        };
        self.release(bytes);
        Err(refusal)
    }

    /// Takes bytes that are committed already, whatever the limits are.
    pub(super) fn adopt(&self, bytes: u64) {
        let now = self.committed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.committed_max.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        self.committed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes committed, or reserved to be.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    pub(super) fn committed_max(&self) -> u64 {
        self.committed_max.load(Ordering::Relaxed)
    }

    /// The user's limit; 0 is none.
    pub(super) fn limit(&self) -> u64 {
        if self.limit == u64::MAX { 0 } else { self.limit }
    }

    /// The host can bear `bytes` more than are committed now.
    pub(super) fn allow_more(&self, bytes: u64) {
        let now = self.committed() + self.beside.load(Ordering::Relaxed);
        self.ceiling.store(now.saturating_add(bytes), Ordering::Relaxed);
    }

    /// Whether the host can bear so many bytes more.
    pub(super) fn host_has(&self, bytes: u64) -> bool {
        let now = self.committed() + self.beside.load(Ordering::Relaxed);
        now.saturating_add(bytes) <= self.ceiling.load(Ordering::Relaxed)
    }

    /// Counts bytes that were committed beside the arena.
    pub(super) fn add_beside(&self, bytes: u64) {
        self.beside.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether there is so much room that bytes which are not needed yet keep nobody out.
    pub(super) fn is_roomy(&self, bytes: u64) -> bool {
        let end = self.committed().saturating_add(bytes.saturating_mul(ROOMY));
        end <= self.limit && self.host_has(bytes.saturating_mul(ROOMY))
    }
}
