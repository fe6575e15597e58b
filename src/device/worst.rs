//! The most memory that a disk can take from its host, which is when no page compresses.

use super::{Device, DeviceConfig, DeviceError};
use crate::pool::{Pool, PoolWorst};
use crate::slot::SlotTable;
use crate::store::HOST_PAGE;
use crate::units::PAGE_SIZE;

/// Pages of a state beside table and arena: the superblock's two, and the arena's seal.
const BESIDE: u64 = 3;

/// The most host memory of a disk, in bytes, at rest. A guest that overwrites everything at once can have the
/// disk take more for a moment, until upkeep has given back what was overwritten; a limit bounds that, too.
/// Requests under way, rings and threads are not of the disk and not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorstCase {
    /// Of the slot table, with check sums and seal if the disk has a state.
    pub table_bytes: u64,
    /// Of the arena, if no page compresses.
    pub arena_bytes: u64,
    /// Of the notes on both, times of accesses included; and of a state's superblock.
    pub notes_bytes: u64,
    /// Of all of these together, after the limit on table and arena.
    pub total_bytes: u64,
}

impl WorstCase {
    /// That of a disk of `pages` pages, `kept` in a state or not, with this limit; 0 means none.
    fn new(pages: u64, kept: bool, has_ages: bool, limit: u64, pool: PoolWorst) -> Self {
        let words = SlotTable::full_bytes(pages, kept);
        let [seal, beside] = if kept { [1, BESIDE].map(|pages| pages * HOST_PAGE) } else { [0; 2] };
        let ages = if has_ages { SlotTable::most_ages(pages) } else { 0 };
        let notes_bytes = SlotTable::most_heap(pages, kept) + ages + pool.heap_bytes + beside;
        let limited = (words + pool.arena_bytes).min(if limit == 0 { u64::MAX } else { limit });
        Self {
            table_bytes: words + seal,
            arena_bytes: pool.arena_bytes,
            notes_bytes,
            total_bytes: limited + seal + notes_bytes,
        }
    }
}

impl DeviceConfig {
    /// The most that such a disk takes, `kept` in a state or not. A state that is there already may be
    /// of other classes, which makes little difference.
    ///
    /// # Errors
    /// The size is impossible.
    pub fn worst_case(&self, kept: bool) -> Result<WorstCase, DeviceError> {
        let pages = self.disk_size()? / PAGE_SIZE as u64;
        Ok(WorstCase::new(pages, kept, self.access_times, self.limit(), Pool::worst_case_of(pages)))
    }
}

impl Device {
    /// The most that the disk takes, with the size and the limit that it has now.
    pub fn worst_case(&self) -> WorstCase {
        let pages = self.size() / PAGE_SIZE as u64;
        let (kept, limit) = (self.outlives_process(), self.pool.usage().limit);
        WorstCase::new(pages, kept, self.table.has_ages(), limit, self.pool.worst_case(pages))
    }
}
