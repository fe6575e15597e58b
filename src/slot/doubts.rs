//! Which slots of a state that was opened are still to be looked at.

use crate::sync::{AtomicU64, Ordering};

/// Slots of one page of words.
pub(super) const GROUP: u64 = 512;

/// The slots of a state whose sums were not looked at since it was opened.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Number of a group of slots, in order, and a bit for each of its slots.
    groups: Box<[(u64, [AtomicU64; (GROUP / 64) as usize])]>,
    left: AtomicU64,
}

impl Doubts {
    /// Doubts about the slots of these groups for which `doubtful` holds.
    pub(super) fn new(groups: impl Iterator<Item = u64>, doubtful: impl Fn(u64) -> bool) -> Self {
        let mut left = 0;
        let groups = groups.map(|group| {
            let bits = std::array::from_fn(|part| {
                let first = group * GROUP + part as u64 * 64;
                let bits = (0..64).filter(|bit| doubtful(first + bit));
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

    /// Whether the slot's sum is still to be looked at.
    pub(super) fn has(&self, index: u64) -> bool {
        self.left.load(Ordering::Acquire) > 0
            && self.bits(index).is_some_and(|(bits, bit)| bits.load(Ordering::Acquire) & bit != 0)
    }

    /// The slot is good, or has a new content, which was published before. Whoever then finds no doubt
    /// may look at the slot without its lock, and sees what was published.
    pub(super) fn settle(&self, index: u64) {
        if self.left.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some((bits, bit)) = self.bits(index) else { return };
        if bits.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.left.fetch_sub(1, Ordering::Release);
        }
    }

    #[cfg(not(loom))]
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
    fn doubts_are_settled_one_by_one() {
        let doubts = Doubts::new([1, 7].into_iter(), |index| index % 3 == 0);
        for index in 0..5000 {
            let group = index / GROUP;
            let expected = (group == 1 || group == 7) && index % 3 == 0;
            assert_eq!(doubts.has(index), expected, "{index}");
            doubts.settle(index);
            assert!(!doubts.has(index));
        }
        assert_eq!(doubts.left.load(Ordering::Relaxed), 0);
    }
}
