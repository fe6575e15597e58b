//! Regions: pieces of the arena's address space, each of one class at a time.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::PoolError;
use super::layout::REGION_BYTES;
use crate::checker::Class;
use crate::store::{HOST_PAGE, Notes, StoreError};
use crate::sync;

/// The free lists of all pools, to the lock checker.
static FREE: Class = Class::mutex("pool regions");

/// Which class has which region. A region's entry is written under the mutex of the class that has
/// it, or gets it.
pub(super) struct Regions {
    /// For each region that there is room for 0, or 1 + class in the low half and its position in the class in
    /// the high. 8 GiB of address space are noted in one host page; a disk of 16 TiB has two million regions.
    owners: Notes,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// Regions that there are.
    count: u32,
    /// Regions given back, all below `next`.
    returned: BTreeSet<u32>,
    /// The first region that no class ever had.
    next: u32,
}

impl Regions {
    /// The regions of the first `bytes` bytes of an arena with room for `room`.
    pub(super) fn new(bytes: u64, room: u64) -> Result<Self, StoreError> {
        let owners = Notes::new(room / REGION_BYTES)?;
        let regions = Self { owners, free: Mutex::default() };
        regions.grow(bytes);
        Ok(regions)
    }

    /// Those of the first `bytes` bytes, not less than before, from now on.
    pub(super) fn grow(&self, bytes: u64) {
        sync::lock_as(&FREE, &self.free).count = (bytes / REGION_BYTES) as u32;
    }

    /// The region of the lowest number that no class has.
    pub(super) fn take(&self, class: usize, position: usize) -> Result<u32, PoolError> {
        let mut free = sync::lock_as(&FREE, &self.free);
        let region = match free.returned.pop_first() {
            Some(region) => region,
            None if free.next < free.count => {
                free.next += 1;
                free.next - 1
            }
            None => {
                let bytes = u64::from(free.count) * REGION_BYTES;
                return Err(PoolError::AddressSpace { bytes });
            }
        };
        self.set_owner(region, class, position);
        Ok(region)
    }

    /// Takes a particular region, if no class has it.
    pub(super) fn claim(&self, region: u32, class: usize, position: usize) -> bool {
        let mut free = sync::lock_as(&FREE, &self.free);
        if region >= free.count {
            return false;
        }
        if region >= free.next {
            let skipped = free.next..region;
            free.returned.extend(skipped);
            free.next = region + 1;
        } else if !free.returned.remove(&region) {
            return false;
        }
        self.set_owner(region, class, position);
        true
    }

    pub(super) fn give_back(&self, region: u32) {
        let mut free = sync::lock_as(&FREE, &self.free);
        self.set(region, 0);
        free.returned.insert(region);
    }

    /// The class that has the region, and the region's position in that class.
    pub(super) fn owner(&self, region: u32) -> Option<(usize, usize)> {
        let owner = self.owners.get(region as usize)?.load(Ordering::Relaxed);
        let class = (owner as u32).checked_sub(1)?;
        Some((class as usize, (owner >> 32) as usize))
    }

    /// Runs of regions that no class has, as offsets and lengths in bytes; those that there is but room for are
    /// not among them.
    pub(super) fn unowned(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let count = sync::lock_as(&FREE, &self.free).count;
        for region in 0..count {
            if self.owner(region).is_some() {
                continue;
            }
            let offset = u64::from(region) * REGION_BYTES;
            match runs.last_mut() {
                Some((start, len)) if *start + *len == offset => *len += REGION_BYTES,
                _ => runs.push((offset, REGION_BYTES)),
            }
        }
        runs
    }

    /// Most bytes of heap for an arena of this many bytes of address space, but for regions given back.
    pub(super) fn most_heap(arena_bytes: u64) -> u64 {
        (arena_bytes / REGION_BYTES * size_of::<u64>() as u64).next_multiple_of(HOST_PAGE)
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let free = sync::lock_as(&FREE, &self.free);
        // A B-tree keeps its nodes between half full and full.
        let returned = free.returned.len() * size_of::<u32>() * 3 / 2;
        // Regions are handed out from the lowest up.
        (u64::from(free.next) * 8).next_multiple_of(HOST_PAGE) + returned as u64
    }

    fn set_owner(&self, region: u32, class: usize, position: usize) {
        let owner = (class as u64 + 1) | ((position as u64) << 32);
        self.set(region, owner);
    }

    fn set(&self, region: u32, owner: u64) {
        let Some(place) = self.owners.get(region as usize) else { panic!("region {region}") };
        place.store(owner, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_region_is_handed_out_and_an_end_is_an_error() {
        let regions = Regions::new(3 * REGION_BYTES, 4 * REGION_BYTES).unwrap();
        assert_eq!(regions.take(5, 0).unwrap(), 0);
        assert_eq!(regions.take(6, 0).unwrap(), 1);
        assert_eq!(regions.take(5, 1).unwrap(), 2);
        assert!(matches!(regions.take(5, 2), Err(PoolError::AddressSpace { .. })));
        assert_eq!(regions.owner(2), Some((5, 1)));
        regions.give_back(1);
        assert_eq!(regions.owner(1), None);
        assert_eq!(regions.unowned(), [(REGION_BYTES, REGION_BYTES)]);
        assert_eq!(regions.take(7, 0).unwrap(), 1);
        regions.grow(4 * REGION_BYTES);
        assert_eq!(regions.take(5, 2).unwrap(), 3);
        assert!(matches!(regions.take(5, 3), Err(PoolError::AddressSpace { .. })));
    }

    #[test]
    fn a_claimed_region_leaves_those_before_it_free() {
        let regions = Regions::new(8 * REGION_BYTES, 8 * REGION_BYTES).unwrap();
        assert!(regions.claim(3, 1, 0));
        assert!(!regions.claim(3, 2, 0));
        assert!(regions.claim(1, 2, 0));
        assert!(!regions.claim(8, 2, 1));
        assert_eq!(regions.take(4, 0).unwrap(), 0);
        assert_eq!(regions.take(4, 1).unwrap(), 2);
        assert_eq!(regions.take(4, 2).unwrap(), 4);
    }
}
