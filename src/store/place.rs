//! Positions in an arena.

/// Where an object starts in the arena, in units of [`Place::UNIT`] bytes.
///
/// 41 bits, which is what a slot word has room for: an arena may be 32 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// Objects start at multiples of this many bytes.
    pub const UNIT: u64 = 16;
    /// Bits of a place counted in units.
    pub const BITS: u32 = 41;
    /// One past the greatest byte offset that a place can name.
    pub const LIMIT_BYTES: u64 = Self::UNIT << Self::BITS;

    /// The place at `offset` bytes: a multiple of [`Self::UNIT`] below [`Self::LIMIT_BYTES`].
    pub fn from_offset(offset: u64) -> Self {
        debug_assert_eq!(offset % Self::UNIT, 0);
        debug_assert!(offset < Self::LIMIT_BYTES);
        Self(offset / Self::UNIT)
    }

    /// The place `units` units from the start; below 2^[`Self::BITS`].
    pub fn from_units(units: u64) -> Self {
        debug_assert!(units >> Self::BITS == 0);
        Self(units)
    }

    /// Offset from the start, in bytes.
    pub fn offset(self) -> u64 {
        self.0 * Self::UNIT
    }

    /// Offset from the start, in units.
    pub fn units(self) -> u64 {
        self.0
    }
}
