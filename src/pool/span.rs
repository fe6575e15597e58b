//! A span's bookkeeping: which of its objects are in use, which of its host pages exist.

use std::ops::Range;

use super::layout::SPAN_OBJECTS;

/// Host pages of the longest span.
const MAX_PAGES: usize = 257;

/// 256 objects and the pages they lie on; 80 bytes.
#[derive(Debug, Default)]
pub(super) struct Span {
    /// One bit for each object in use.
    used: [u64; SPAN_OBJECTS as usize / 64],
    /// One bit for each host page that is committed.
    committed: [u64; MAX_PAGES.div_ceil(64)],
    count: u16,
    pages: u16,
}

impl Span {
    /// Objects in use.
    pub(super) fn count(&self) -> u32 {
        u32::from(self.count)
    }

    pub(super) fn is_full(&self) -> bool {
        self.count() == SPAN_OBJECTS
    }

    /// Neither objects nor memory.
    pub(super) fn is_bare(&self) -> bool {
        self.count == 0 && self.pages == 0
    }

    /// Host pages committed.
    pub(super) fn pages(&self) -> u32 {
        u32::from(self.pages)
    }

    /// The lowest object that is not in use.
    pub(super) fn first_free(&self) -> Option<u32> {
        let group = self.used.iter().position(|bits| *bits != u64::MAX)?;
        Some(group as u32 * 64 + self.used[group].trailing_ones())
    }

    pub(super) fn is_used(&self, object: u32) -> bool {
        self.used[(object / 64) as usize] >> (object % 64) & 1 == 1
    }

    /// Marks a free object as used.
    pub(super) fn take(&mut self, object: u32) {
        debug_assert!(!self.is_used(object));
        self.used[(object / 64) as usize] |= 1 << (object % 64);
        self.count += 1;
    }

    /// Marks a used object as free.
    pub(super) fn give_back(&mut self, object: u32) {
        assert!(self.is_used(object), "object {object} of a span was freed twice");
        self.used[(object / 64) as usize] &= !(1 << (object % 64));
        self.count -= 1;
    }

    /// The highest used object below `end`.
    pub(super) fn last_used_below(&self, end: u32) -> Option<u32> {
        let mut group = (end / 64) as usize;
        let mut bits = self.used.get(group).map_or(0, |bits| bits & !(u64::MAX << (end % 64)));
        while bits == 0 {
            group = group.checked_sub(1)?;
            bits = self.used[group];
        }
        Some(group as u32 * 64 + bits.ilog2())
    }

    /// Whether an object of the range is in use.
    pub(super) fn any_used(&self, objects: Range<u32>) -> bool {
        self.last_used_below(objects.end).is_some_and(|last| last >= objects.start)
    }

    pub(super) fn is_committed(&self, page: u32) -> bool {
        self.committed[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    pub(super) fn set_committed(&mut self, pages: Range<u32>, committed: bool) {
        for page in pages {
            debug_assert_ne!(self.is_committed(page), committed);
            self.committed[(page / 64) as usize] ^= 1 << (page % 64);
            if committed {
                self.pages += 1;
            } else {
                self.pages -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookkeeping_of_256_objects_takes_80_bytes() {
        assert_eq!(size_of::<Span>(), 80);
    }

    #[test]
    fn objects_are_found_from_both_ends() {
        let mut span = Span::default();
        assert_eq!(span.last_used_below(256), None);
        for object in 0..256 {
            assert_eq!(span.first_free(), Some(object));
            span.take(object);
        }
        assert!(span.is_full());
        assert_eq!(span.first_free(), None);
        for object in [0, 63, 64, 200] {
            span.give_back(object);
        }
        assert_eq!(span.first_free(), Some(0));
        assert_eq!(span.last_used_below(256), Some(255));
        assert_eq!(span.last_used_below(65), Some(62));
        assert!(!span.any_used(63..65));
        assert!(span.any_used(63..66));
        assert_eq!(span.count(), 252);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_noticed() {
        let mut span = Span::default();
        span.take(7);
        span.give_back(7);
        span.give_back(7);
    }
}
