//! A set of small numbers that finds its first and last member fast.

/// A growing bitmap with a second level: one bit for each word that is not zero.
///
/// A class with a million spans has 16,384 words and 256 words of second level, which is what a
/// search reads.
#[derive(Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    /// Bit `i` is set if `words[i]` is not zero.
    summary: Vec<u64>,
}

impl Bits {
    pub(super) fn set(&mut self, number: usize) {
        let word = number / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
            self.summary.resize(word / 64 + 1, 0);
        }
        self.words[word] |= 1 << (number % 64);
        self.summary[word / 64] |= 1 << (word % 64);
    }

    pub(super) fn clear(&mut self, number: usize) {
        let word = number / 64;
        let Some(bits) = self.words.get_mut(word) else { return };
        *bits &= !(1 << (number % 64));
        if *bits == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
    }

    #[cfg(test)]
    pub(super) fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }

    /// The least member.
    pub(super) fn first(&self) -> Option<usize> {
        let top = self.summary.iter().position(|bits| *bits != 0)?;
        let word = top * 64 + self.summary[top].trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// The greatest member below `end`.
    pub(super) fn last_below(&self, end: usize) -> Option<usize> {
        let (word, bit) = (end / 64, end % 64);
        if let Some(bits) = self.words.get(word) {
            let bits = bits & !(u64::MAX << bit);
            if bits != 0 {
                return Some(word * 64 + highest(bits));
            }
        }
        let word = word.min(self.words.len());
        let (mut top, bit) = (word / 64, word % 64);
        let mut bits = self.summary.get(top).map_or(0, |bits| bits & !(u64::MAX << bit));
        while bits == 0 {
            top = top.checked_sub(1)?;
            bits = self.summary[top];
        }
        let word = top * 64 + highest(bits);
        Some(word * 64 + highest(self.words[word]))
    }

    /// Removes all members from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        while let Some(number) = self.last_below(usize::MAX).filter(|number| *number >= len) {
            self.clear(number);
        }
        self.words.truncate(len.div_ceil(64));
        self.summary.truncate(self.words.len().div_ceil(64));
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        ((self.words.capacity() + self.summary.capacity()) * size_of::<u64>()) as u64
    }
}

fn highest(bits: u64) -> usize {
    bits.ilog2() as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn like_a_set(steps in prop::collection::vec((0..4_u8, 0..20_000_usize), 1..300)) {
            let (mut bits, mut set) = (Bits::default(), BTreeSet::new());
            for (what, number) in steps {
                match what {
                    0 | 1 => {
                        bits.set(number);
                        set.insert(number);
                    }
                    2 => {
                        bits.clear(number);
                        set.remove(&number);
                    }
                    _ => {
                        bits.truncate(number);
                        set.retain(|member| *member < number);
                    }
                }
                prop_assert_eq!(bits.first(), set.first().copied());
                prop_assert_eq!(bits.contains(number), set.contains(&number));
                let below = set.range(..number).next_back().copied();
                prop_assert_eq!(bits.last_below(number), below);
                prop_assert_eq!(bits.last_below(usize::MAX), set.last().copied());
            }
        }
    }
}
