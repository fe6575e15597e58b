//! Regions: pieces of the arena's address space, each of one class at a time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::PoolError;
use super::layout::REGION_BYTES;
use crate::checker::Class;
use crate::sync;

/// The free lists of all pools, to the lock checker.
static FREE: Class = Class::mutex("pool regions");

/// Which class has which region. A region's entry is written under the mutex of the class that has
/// it, or gets it.
pub(super) struct Regions {
    /// For each region 0, or 1 + class in the low half and its position in the class in the high.
    /// In pieces that are made when they are first needed: a disk of 16 TiB has two million.
    owners: Box<[OnceLock<Box<Piece>>]>,
    count: u32,
    free: Mutex<Free>,
}

/// Regions whose owners are noted in one piece: 8 GiB of address space, in 4 KiB.
const PIECE: usize = 512;

type Piece = [AtomicU64; PIECE];

#[derive(Default)]
struct Free {
    /// Regions given back, all below `next`.
    returned: BTreeSet<u32>,
    /// The first region that no class ever had.
    next: u32,
}

impl Regions {
    pub(super) fn new(arena_bytes: u64) -> Self {
        let count = (arena_bytes / REGION_BYTES) as u32;
        let pieces = (count as usize).div_ceil(PIECE);
        let owners = (0..pieces).map(|_| OnceLock::new()).collect();
        Self { owners, count, free: Mutex::default() }
    }

    /// The region of the lowest number that no class has.
    pub(super) fn take(&self, class: usize, position: usize) -> Result<u32, PoolError> {
        let mut free = sync::lock_as(&FREE, &self.free);
        let region = match free.returned.pop_first() {
            Some(region) => region,
            None if free.next < self.count => {
                free.next += 1;
                free.next - 1
            }
            None => {
                let bytes = u64::from(self.count) * REGION_BYTES;
                return Err(PoolError::AddressSpace { bytes });
            }
        };
        self.set_owner(region, class, position);
        Ok(region)
    }

    /// Takes a particular region, if no class has it.
    pub(super) fn claim(&self, region: u32, class: usize, position: usize) -> bool {
        let mut free = sync::lock_as(&FREE, &self.free);
        if region >= self.count {
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
        let piece = self.owners.get(region as usize / PIECE)?.get()?;
        let owner = piece[region as usize % PIECE].load(Ordering::Relaxed);
        let class = (owner as u32).checked_sub(1)?;
        Some((class as usize, (owner >> 32) as usize))
    }

    /// Runs of regions that no class has, as offsets and lengths in bytes.
    pub(super) fn unowned(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for region in 0..self.count {
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
        let pieces = (arena_bytes / REGION_BYTES).div_ceil(PIECE as u64);
        pieces * (size_of::<Piece>() + size_of::<OnceLock<Box<Piece>>>()) as u64
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let free = sync::lock_as(&FREE, &self.free);
        // A B-tree keeps its nodes between half full and full.
        let returned = free.returned.len() * size_of::<u32>() * 3 / 2;
        let pieces = self.owners.iter().filter(|piece| piece.get().is_some()).count();
        (pieces * size_of::<Piece>() + size_of_val(&*self.owners) + returned) as u64
    }

    fn set_owner(&self, region: u32, class: usize, position: usize) {
        let owner = (class as u64 + 1) | ((position as u64) << 32);
        self.set(region, owner);
    }

    fn set(&self, region: u32, owner: u64) {
        let new = || Box::new([const { AtomicU64::new(0) }; PIECE]);
        let piece = self.owners[region as usize / PIECE].get_or_init(new);
        piece[region as usize % PIECE].store(owner, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_region_is_handed_out_and_an_end_is_an_error() {
        let regions = Regions::new(3 * REGION_BYTES);
        assert_eq!(regions.take(5, 0).unwrap(), 0);
        assert_eq!(regions.take(6, 0).unwrap(), 1);
        assert_eq!(regions.take(5, 1).unwrap(), 2);
        assert!(matches!(regions.take(5, 2), Err(PoolError::AddressSpace { .. })));
        assert_eq!(regions.owner(2), Some((5, 1)));
        regions.give_back(1);
        assert_eq!(regions.owner(1), None);
        assert_eq!(regions.unowned(), [(REGION_BYTES, REGION_BYTES)]);
        assert_eq!(regions.take(7, 0).unwrap(), 1);
    }

    #[test]
    fn a_claimed_region_leaves_those_before_it_free() {
        let regions = Regions::new(8 * REGION_BYTES);
        assert!(regions.claim(3, 1, 0));
        assert!(!regions.claim(3, 2, 0));
        assert!(regions.claim(1, 2, 0));
        assert!(!regions.claim(8, 2, 1));
        assert_eq!(regions.take(4, 0).unwrap(), 0);
        assert_eq!(regions.take(4, 1).unwrap(), 2);
        assert_eq!(regions.take(4, 2).unwrap(), 4);
    }
}
