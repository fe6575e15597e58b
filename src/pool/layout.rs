//! Where objects lie: the arithmetic of classes, spans and regions.
//!
//! An object of class `m` is `16 * m` bytes, its tag included. 256 of them fill exactly `m` host
//! pages, whatever `m` is, and that is a span: no byte is left over at its end. Spans of one class
//! lie side by side in regions of 16 MiB of address space, so the number of an object in its class
//! and its place in the arena follow from each other by arithmetic (`docs/memory.md` draws it).

use std::ops::Range;

use crate::store::{HOST_PAGE, Place};
use crate::units::PAGE_SIZE;

/// Bytes before an object's own: the number of its owner, so that compaction finds the slot.
pub(super) const TAG_BYTES: usize = 4;

/// Objects of a span.
pub(super) const SPAN_OBJECTS: u32 = 256;

/// Bytes of address space that a class takes at a time.
pub(super) const REGION_BYTES: u64 = 16 << 20;

/// Units of the largest object: a raw page and its tag.
const MAX_UNITS: u32 = (PAGE_SIZE + TAG_BYTES).div_ceil(Place::UNIT as usize) as u32;

/// How object lengths are divided into classes; fixed for the life of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Classes {
    /// Units between the object sizes of neighbouring classes.
    step: u32,
}

impl Classes {
    /// The classes of a pool for a disk of `pages` pages.
    ///
    /// Each class wastes half a page at its end on average, each object half a step. Many objects
    /// want small steps, few objects want few classes: the sum is least where the step is
    /// `4096 / sqrt(pages)` bytes, of which this is the next power of two in units.
    pub(super) fn for_pages(pages: u64) -> Self {
        let root = pages.max(1).isqrt();
        let units = (PAGE_SIZE as u64 / root).clamp(1, 256).div_ceil(Place::UNIT);
        Self { step: units.next_power_of_two() as u32 }
    }

    pub(super) fn count(self) -> usize {
        MAX_UNITS.div_ceil(self.step) as usize
    }

    /// The class of objects of this length, 1..=4096 bytes.
    pub(super) fn of(self, length: usize) -> usize {
        let units = (length + TAG_BYTES).div_ceil(Place::UNIT as usize);
        units.div_ceil(self.step as usize) - 1
    }

    /// The shape of a class's objects. Those of the last one are a raw page and no more.
    pub(super) fn shape(self, class: usize) -> Shape {
        Shape { units: ((class as u32 + 1) * self.step).min(MAX_UNITS) }
    }
}

/// How the objects of one class lie in its spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Units of an object, and host pages of a span.
    units: u32,
}

impl Shape {
    pub(super) fn object_bytes(self) -> u64 {
        u64::from(self.units) * Place::UNIT
    }

    pub(super) fn span_pages(self) -> u32 {
        self.units
    }

    fn span_bytes(self) -> u64 {
        u64::from(self.units) * HOST_PAGE
    }

    /// Spans in a region.
    pub(super) fn region_spans(self) -> usize {
        (REGION_BYTES / self.span_bytes()) as usize
    }

    /// The host pages of a span on which an object lies: one or two.
    pub(super) fn pages_of(self, object: u32) -> Range<u32> {
        let start = u64::from(object) * self.object_bytes();
        let end = start + self.object_bytes();
        (start / HOST_PAGE) as u32..end.div_ceil(HOST_PAGE) as u32
    }

    /// The objects of a span that lie on a host page, wholly or with a part.
    pub(super) fn objects_on(self, page: u32) -> Range<u32> {
        let start = u64::from(page) * HOST_PAGE;
        let end = start + HOST_PAGE;
        let first = start / self.object_bytes();
        let end = end.div_ceil(self.object_bytes()).min(u64::from(SPAN_OBJECTS));
        first as u32..end as u32
    }

    /// Offset in the arena of a host page of a span.
    pub(super) fn page_offset(self, region: u32, span: usize, page: u32) -> u64 {
        self.span_offset(region, span) + u64::from(page) * HOST_PAGE
    }

    /// Where an object of a span lies.
    pub(super) fn place(self, region: u32, span: usize, object: u32) -> Place {
        let within = u64::from(object) * self.object_bytes();
        Place::from_offset(self.span_offset(region, span) + within)
    }

    /// The span of its region, and the object of that span, that a place names; `None` if no
    /// object of this shape starts there.
    pub(super) fn position(self, place: Place) -> Option<(usize, u32)> {
        let within = place.offset() % REGION_BYTES;
        let span = (within / self.span_bytes()) as usize;
        let rest = within % self.span_bytes();
        let fits = span < self.region_spans() && rest.is_multiple_of(self.object_bytes());
        fits.then(|| (span, (rest / self.object_bytes()) as u32))
    }

    fn span_offset(self, region: u32, span: usize) -> u64 {
        debug_assert!(span < self.region_spans());
        u64::from(region) * REGION_BYTES + span as u64 * self.span_bytes()
    }
}

/// The region in which a place lies.
pub(super) fn region_of(place: Place) -> u32 {
    (place.offset() / REGION_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_classes() -> impl Iterator<Item = Classes> {
        [1, 512, 2048, 16_384, 262_144, 1 << 32].into_iter().map(Classes::for_pages)
    }

    #[test]
    fn steps_follow_the_size_of_the_disk() {
        let step = |pages| Classes::for_pages(pages).step * 16;
        assert_eq!(step(1 << 32), 16);
        assert_eq!(step(262_144), 16, "1 GiB");
        assert_eq!(step(16_384), 32, "64 MiB");
        assert_eq!(step(512), 256, "2 MiB");
        assert_eq!(step(1), 256);
    }

    #[test]
    fn every_length_has_a_class_that_holds_it_and_its_tag() {
        for classes in all_classes() {
            let mut last = 0;
            for length in 1..=PAGE_SIZE {
                let class = classes.of(length);
                assert!(class == last || class == last + 1);
                last = class;
                let room = classes.shape(class).object_bytes() as usize;
                assert!(room >= length + TAG_BYTES);
                assert!(room < length + TAG_BYTES + 16 * classes.step as usize);
            }
            assert_eq!(last + 1, classes.count());
            assert_eq!(classes.shape(last).object_bytes(), 4112);
        }
    }

    #[test]
    fn a_span_is_full_to_its_last_byte() {
        let classes = Classes::for_pages(1 << 20);
        for class in 0..classes.count() {
            let shape = classes.shape(class);
            assert_eq!(u64::from(SPAN_OBJECTS) * shape.object_bytes(), shape.span_bytes());
            assert_eq!(shape.pages_of(SPAN_OBJECTS - 1).end, shape.span_pages());
            assert!(shape.region_spans() >= 15);
            for object in 0..SPAN_OBJECTS {
                let pages = shape.pages_of(object);
                assert!((1..=2).contains(&pages.len()));
                for page in 0..shape.span_pages() {
                    let lies_there = shape.objects_on(page).contains(&object);
                    assert_eq!(lies_there, pages.contains(&page));
                }
            }
        }
    }

    #[test]
    fn places_and_positions_are_inverse() {
        let classes = Classes::for_pages(1 << 20);
        for class in (0..classes.count()).step_by(7) {
            let shape = classes.shape(class);
            for span in [0, shape.region_spans() - 1] {
                for object in [0, 1, 255] {
                    let place = shape.place(3, span, object);
                    assert_eq!(region_of(place), 3);
                    assert_eq!(shape.position(place), Some((span, object)));
                    let beside = Place::from_units(place.units() + 1);
                    assert!(class == 0 || shape.position(beside).is_none());
                }
            }
        }
    }
}
