//! Which slots of a state that was opened are not verified yet.

use crate::sync::{AtomicU64, Ordering};

/// Slots of one page of words.
pub(super) const GROUP: u64 = 512;

/// The slots of a state whose sums were not checked since it was opened.
#[derive(Debug, Default)]
pub(super) struct Unverified {
    /// Number of a group of slots, in order, and a bit for each of its slots.
    groups: Box<[(u64, [AtomicU64; (GROUP / 64) as usize])]>,
    left: AtomicU64,
}

impl Unverified {
    /// Those slots of these groups for which `is_unverified` holds.
    pub(super) fn new(
        groups: impl Iterator<Item = u64>,
        is_unverified: impl Fn(u64) -> bool,
    ) -> Self {
        let mut left = 0;
        let groups = groups.map(|group| {
            let bits = std::array::from_fn(|part| {
                let first = group * GROUP + part as u64 * 64;
                let bits = (0..64).filter(|bit| is_unverified(first + bit));
                AtomicU64::new(bits.fold(0, |bits, bit| bits | 1 << bit))
            });
            left += bits
                .iter()
                .map(|bits| u64::from(bits.load(Ordering::Relaxed).count_ones()))
                .sum::<u64>();
            (group, bits)
        });
        let groups = groups.collect();
        Self { groups, left: AtomicU64::new(left) }
    }

    /// Whether the slot's sum is still to be checked.
    pub(super) fn has(&self, index: u64) -> bool {
        self.left.load(Ordering::Acquire) > 0
            && self.bits(index).is_some_and(|(bits, bit)| bits.load(Ordering::Acquire) & bit != 0)
    }

    /// The slot is good, or has a new content, which was published before. A thread that finds the slot
    /// verified may read its word without the lock, and sees what was published.
    pub(super) fn mark_verified(&self, index: u64) {
        if self.left.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some((bits, bit)) = self.bits(index) else { return };
        if bits.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.left.fetch_sub(1, Ordering::Release);
        }
    }

    #[cfg(not(loom))]
    /// Most bytes of heap for this many groups.
    pub(super) fn most_heap(groups: u64) -> u64 {
        groups * size_of::<(u64, [AtomicU64; (GROUP / 64) as usize])>() as u64
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        size_of_val(&*self.groups) as u64
    }

    fn bits(&self, index: u64) -> Option<(&AtomicU64, u64)> {
        let at = self.groups.binary_search_by_key(&(index / GROUP), |(group, _)| *group).ok()?;
        let within = index % GROUP;
        Some((&self.groups[at].1[(within / 64) as usize], 1 << (within % 64)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn slots_are_verified_one_by_one() {
        let unverified = Unverified::new([1, 7].into_iter(), |index| index % 3 == 0);
        for index in 0..5000 {
            let group = index / GROUP;
            let expected = (group == 1 || group == 7) && index % 3 == 0;
            assert_eq!(unverified.has(index), expected, "{index}");
            unverified.mark_verified(index);
            assert!(!unverified.has(index));
        }
        assert_eq!(unverified.left.load(Ordering::Relaxed), 0);
    }
}
