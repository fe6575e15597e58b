//! The slot word: all that is known of one page of the disk, in one `u64`.
//!
//! ```text
//!  bit  0      locked
//!       1      waiters: a task may sleep for the lock
//!       2..4   state: 0 nothing stored, 1 same-filled, 2 object, 3 (reserved) written back
//!       4      idle            (set by upkeep, cleared by access)
//!       5      post-processing: a job works on the content (slot/claims.rs; cleared by any change)
//!       6      incompressible  (sticky until rewritten)
//!       7..11  codec: index into the disk's codec table
//!      11..23  length in bytes; 0 means a raw page of 4096. Of nothing stored: 0 empty, 1 discarded
//!      23..64  place in units of 16 bytes, or the pattern of a same-filled page
//! ```
//!
//! A page filled with a repeated 8-byte word whose halves are equal keeps the 32-bit pattern in
//! `place`, with length 0. If the halves differ the word does not fit: the page takes an 8-byte
//! object (length 8) and still counts as same-filled.
//!
//! The zero word is an empty, unlocked slot, so fresh memory is a valid empty table.
//!
//! Empty and discarded pages both read as zeroes, and both count as nothing. An empty one was never
//! written, so a disk over a layer shows what the layer has; a discarded one hides that. A disk without
//! a layer below stores a discarded page as an empty one, so its part of the table can go.
//!
//! A word that no slot can have is [`Content::Unknown`], never an empty page.

use crate::store::Place;
use crate::units::PAGE_SIZE;

pub(super) const LOCKED: u64 = 1 << 0;
pub(super) const WAITERS: u64 = 1 << 1;
const IDLE: u64 = 1 << 4;
const CLAIMED: u64 = 1 << 5;
const INCOMPRESSIBLE: u64 = 1 << 6;
/// Idle, post-processing, incompressible: what upkeep says of a page, which is not its content.
const FLAGS: u64 = 0b111 << 4;
const STATE_SHIFT: u32 = 2;
const STATE_MASK: u64 = 0b11;
const STATE_NONE: u64 = 0;
const STATE_SAME: u64 = 1;
const STATE_OBJECT: u64 = 2;
const STATE_WRITTEN_BACK: u64 = 3;
const CODEC_SHIFT: u32 = 7;
const CODEC_MASK: u64 = 0xf;
const LENGTH_SHIFT: u32 = 11;
const LENGTH_MASK: u64 = 0xfff;
const PLACE_SHIFT: u32 = 23;
const PLACE_BITS: u32 = Place::BITS;

/// An object in the arena as a slot names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Where it starts.
    pub place: Place,
    /// Its length in bytes, 1..=4096; 4096 is a page stored raw.
    pub length: usize,
}

impl Object {
    /// Whether the page is stored as it is ("huge" in the words of the zram driver).
    pub fn is_huge(self) -> bool {
        self.length == PAGE_SIZE
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Never written, or freed with nothing below: reads as zeroes.
    Empty,
    /// Discarded, which hides what lies below: reads as zeroes.
    Discarded,
    /// Nothing that this program stores: the page is damaged.
    Unknown,
    /// Filled with this repeated 32-bit pattern, and nothing stored.
    Same(u32),
    /// Filled with a repeated 8-byte word, which is the object.
    SameWide(Object),
    /// A compressed page, by the codec of this index; or a raw one, if huge (then the index is 0).
    Object(u8, Object),
}

impl Content {
    /// The object that the slot owns, if any.
    pub fn object(self) -> Option<Object> {
        match self {
            Content::Empty | Content::Discarded | Content::Unknown | Content::Same(_) => None,
            Content::SameWide(object) | Content::Object(_, object) => Some(object),
        }
    }
}

/// The value of a slot word, lock bits included.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Word(pub(super) u64);

impl Word {
    /// An empty slot.
    pub const EMPTY: Word = Word(0);
    const DISCARDED: Word = Word(1 << LENGTH_SHIFT);

    /// The word of a slot with this content and no flag set.
    pub fn new(content: Content) -> Self {
        match content {
            Content::Empty => Word::EMPTY,
            Content::Discarded => Self::pack(STATE_NONE, 0, 1, 0),
            Content::Unknown => Self::pack(STATE_WRITTEN_BACK, 0, 0, 0),
            Content::Same(pattern) => Self::pack(STATE_SAME, 0, 0, u64::from(pattern)),
            Content::SameWide(object) => {
                debug_assert_eq!(object.length, 8);
                Self::pack(STATE_SAME, 0, 8, object.place.units())
            }
            Content::Object(codec, object) => {
                debug_assert!((1..=PAGE_SIZE).contains(&object.length));
                debug_assert!(!object.is_huge() || codec == 0);
                let length = (object.length % PAGE_SIZE) as u64;
                Self::pack(STATE_OBJECT, codec, length, object.place.units())
            }
        }
    }

    fn pack(state: u64, codec: u8, length: u64, place: u64) -> Self {
        debug_assert!(u64::from(codec) <= CODEC_MASK && place >> PLACE_BITS == 0);
        Word(
            state << STATE_SHIFT
                | (u64::from(codec) & CODEC_MASK) << CODEC_SHIFT
                | length << LENGTH_SHIFT
                | place << PLACE_SHIFT,
        )
    }

    /// What the slot holds.
    pub fn content(self) -> Content {
        let length = (self.0 >> LENGTH_SHIFT & LENGTH_MASK) as usize;
        let place = self.0 >> PLACE_SHIFT;
        let codec = (self.0 >> CODEC_SHIFT & CODEC_MASK) as u8;
        let object = |length| Object { place: Place::from_units(place), length };
        match (self.0 >> STATE_SHIFT & STATE_MASK, codec, length) {
            (STATE_OBJECT, 0, 0) => Content::Object(0, object(PAGE_SIZE)),
            (STATE_OBJECT, _, 1..) => Content::Object(codec, object(length)),
            (STATE_SAME, 0, 0) if place <= u64::from(u32::MAX) => Content::Same(place as u32),
            (STATE_SAME, 0, 8) => Content::SameWide(object(8)),
            (STATE_NONE, ..) if self.data() == Word::EMPTY => Content::Empty,
            (STATE_NONE, ..) if self.data() == Word::DISCARDED => Content::Discarded,
            _ => Content::Unknown,
        }
    }

    /// Whether the state bits say that the slot holds a page as an object.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn is_object(self) -> bool {
        self.0 >> STATE_SHIFT & STATE_MASK == STATE_OBJECT
    }

    /// What the content is, without flags and lock bits, as a number.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn essence(self) -> u64 {
        self.data().0 & !FLAGS
    }

    /// The same word, flags and all, with its object at another place. The word has an object.
    #[must_use]
    pub fn moved_to(self, place: Place) -> Word {
        debug_assert!(self.content().object().is_some());
        let rest = self.data().0 & !(u64::MAX << PLACE_SHIFT);
        Word(rest | place.units() << PLACE_SHIFT)
    }

    /// The same word, marked as idle, or not any more.
    #[must_use]
    pub fn with_idle(self, idle: bool) -> Word {
        Word(if idle { self.0 | IDLE } else { self.0 & !IDLE })
    }

    /// The same word, marked as one that no codec makes less of.
    #[must_use]
    pub fn with_incompressible(self) -> Word {
        Word(self.0 | INCOMPRESSIBLE)
    }

    /// The same word, claimed by a job, or not any more.
    #[must_use]
    pub(super) fn with_claimed(self, claimed: bool) -> Word {
        Word(if claimed { self.0 | CLAIMED } else { self.0 & !CLAIMED })
    }

    /// Whether a job works on this content.
    pub fn is_claimed(self) -> bool {
        self.0 & CLAIMED != 0
    }

    /// Whether the page was not accessed since upkeep marked it.
    pub fn is_idle(self) -> bool {
        self.0 & IDLE != 0
    }

    /// Whether no codec of the disk makes less of the page than a page.
    pub fn is_incompressible(self) -> bool {
        self.0 & INCOMPRESSIBLE != 0
    }

    /// Whether the lock bit is set.
    pub fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// The word without its two lock bits.
    pub(super) fn data(self) -> Word {
        Word(self.0 & !(LOCKED | WAITERS))
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Word")
            .field("locked", &self.is_locked())
            .field("waiters", &(self.0 & WAITERS != 0))
            .field("content", &self.content())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_place() -> impl Strategy<Value = Place> {
        (0..1_u64 << PLACE_BITS).prop_map(Place::from_units)
    }

    fn any_content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Empty),
            Just(Content::Discarded),
            any::<u32>().prop_map(Content::Same),
            any_place().prop_map(|place| Content::SameWide(Object { place, length: 8 })),
            any_place().prop_map(|place| Content::Object(0, Object { place, length: PAGE_SIZE })),
            (0..16_u8, any_place(), 1..PAGE_SIZE).prop_map(|(codec, place, length)| {
                Content::Object(codec, Object { place, length })
            }),
        ]
    }

    proptest! {
        #[test]
        fn content_survives_packing(content in any_content()) {
            let word = Word::new(content);
            prop_assert_eq!(word.content(), content);
            prop_assert!(!word.is_locked());
            prop_assert_eq!(word.data(), word);
        }

        #[test]
        fn lock_bits_do_not_touch_content(content in any_content()) {
            let word = Word(Word::new(content).0 | LOCKED | WAITERS);
            prop_assert_eq!(word.content(), content);
            prop_assert_eq!(word.data(), Word::new(content));
        }
    }

    proptest! {
        #[test]
        fn moving_changes_the_place_alone(content in any_content(), place in any_place()) {
            let flags = 0b111 << 4;
            let word = Word(Word::new(content).0 | flags);
            if let Some(object) = content.object() {
                let moved = word.moved_to(place);
                prop_assert_eq!(moved.content().object(), Some(Object { place, ..object }));
                prop_assert_eq!(moved.moved_to(object.place), word);
            }
        }
    }

    /// The table at the top, once more and for each combination of all bits outside the place.
    fn expected(tag: u64, units: u64) -> Content {
        let (state, flags, codec, length) =
            (tag >> 2 & 3, tag >> 4 & 7, tag >> 7 & 15, (tag >> 11) as usize);
        let object = |length| Object { place: Place::from_units(units), length };
        match state {
            0 if flags == 0 && codec == 0 && units == 0 && length == 0 => Content::Empty,
            0 if flags == 0 && codec == 0 && units == 0 && length == 1 => Content::Discarded,
            1 if codec == 0 && length == 0 && units < 1 << 32 => Content::Same(units as u32),
            1 if codec == 0 && length == 8 => Content::SameWide(object(8)),
            2 if codec == 0 && length == 0 => Content::Object(0, object(PAGE_SIZE)),
            2 if length > 0 => Content::Object(codec as u8, object(length)),
            _ => Content::Unknown,
        }
    }

    #[test]
    fn every_word_has_a_content_of_its_own_or_is_unknown() {
        let places = [0, 1, u64::from(u32::MAX), 1 << 32, (1 << PLACE_BITS) - 1];
        let mut unknown = 0_u64;
        for tag in 0..1 << PLACE_SHIFT {
            for units in places {
                let word = Word(tag | units << PLACE_SHIFT);
                let content = word.content();
                assert_eq!(content, expected(tag, units), "{:#x}", word.0);
                if content == Content::Unknown {
                    unknown += 1;
                } else {
                    // What says all of the content, and the flags, leads to the same word again.
                    assert_eq!(Word::new(content).0 | word.0 & FLAGS, word.data().0);
                }
            }
        }
        assert!(unknown > 0);
        assert_eq!(Word::new(Content::Unknown).content(), Content::Unknown);
    }

    #[test]
    fn flags_are_the_bits_that_the_table_above_says() {
        for bit in 0..64 {
            let word = Word(1 << bit);
            let flags = [word.is_idle(), word.is_claimed(), word.is_incompressible()];
            assert_eq!(flags, [bit == 4, bit == 5, bit == 6], "{bit}");
            let set = [Word(0).with_idle(true), Word(0).with_claimed(true)];
            assert_eq!([set[0].is_idle(), set[1].is_claimed()], [true; 2]);
            assert_eq!([set[0].with_idle(false), set[1].with_claimed(false)], [Word(0); 2]);
        }
    }

    #[test]
    fn zero_is_an_empty_unlocked_slot() {
        assert_eq!(Word(0), Word::EMPTY);
        assert_eq!(Word(0).content(), Content::Empty);
    }
}
