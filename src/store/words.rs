//! The mapping of a slot table: 8-byte words of which only the touched parts exist.

use super::mapping::Mapping;
use super::{HOST_PAGE, MemoryKind, StoreError};
use crate::sync::{AtomicU64, Ordering};

/// Words of one host page.
const WORDS_PER_PAGE: u64 = HOST_PAGE / 8;

/// An array of 8-byte words, zero until written, in a sparse shared mapping.
///
/// Reading a hole of a shared mapping allocates a page, so a bit for each host page says whether
/// it exists, and is asked first.
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    len: u64,
    /// One bit for each host page of the mapping; set after the page was populated.
    existing: Box<[AtomicU64]>,
}

impl Words {
    /// `len` words, all zero; costs no memory but a bit for each 512 words.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(len: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        let bytes = len.checked_mul(8).ok_or_else(|| StoreError::Map {
            what: "table",
            bytes: u64::MAX,
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        Ok(Self::over(Mapping::new("table", bytes, kind)?, len))
    }

    fn over(mapping: Mapping, len: u64) -> Self {
        let pages = mapping.len() / HOST_PAGE;
        let existing = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { mapping, len, existing }
    }

    /// The same words with nothing known of them but what the file says: which parts exist is found
    /// by one pass over it that skips holes.
    ///
    /// # Errors
    /// The file system does not tell.
    pub fn reopened(self) -> std::io::Result<Self> {
        let this = Self::over(self.mapping, self.len);
        let mut offset = this.mapping.next_existing(0)?;
        while offset < this.mapping.len() {
            let page = offset / HOST_PAGE;
            this.existing[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::Relaxed);
            offset = this.mapping.next_existing(offset + HOST_PAGE)?;
        }
        Ok(this)
    }

    /// Number of words.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The word of this index, below `len()`, if the part it lies in exists.
    pub fn get(&self, index: u64) -> Option<&AtomicU64> {
        assert!(index < self.len, "word {index} of {}", self.len);
        let page = index / WORDS_PER_PAGE;
        let bits = self.existing[(page / 64) as usize].load(Ordering::Acquire);
        (bits >> (page % 64) & 1 == 1).then(|| self.mapping.word(index))
    }

    /// Makes the part exist in which `index` lies, and some of what follows if much of what comes
    /// before exists: a table that is filled in order is populated in batches.
    ///
    /// Returns the bytes that came to exist.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn ensure(&self, index: u64) -> Result<u64, StoreError> {
        if self.get(index).is_some() {
            return Ok(0);
        }
        let page = index / WORDS_PER_PAGE;
        let (group, bit) = ((page / 64) as usize, page % 64);
        let bits = self.existing[group].load(Ordering::Acquire);
        // Neighbours below that exist without a gap; an eighth of them is populated ahead.
        let below = (bits << (63 - bit) << 1).leading_ones();
        let last = self.mapping.len() / HOST_PAGE;
        let end = (page + u64::from(below / 8).max(1)).min(last).min((group as u64 + 1) * 64);
        let holes = (page + 1..end).take_while(|next| bits >> (next % 64) & 1 == 0).count() as u64;
        self.populate(page, 1 + holes).or_else(|_| self.populate(page, 1))
    }

    /// Makes some pages of one group exist.
    fn populate(&self, page: u64, count: u64) -> Result<u64, StoreError> {
        self.mapping.populate(page * HOST_PAGE, count * HOST_PAGE)?;
        let bits = (u64::MAX >> (64 - count)) << (page % 64);
        self.existing[(page / 64) as usize].fetch_or(bits, Ordering::Release);
        Ok(count * HOST_PAGE)
    }

    /// The first index at or after `index` that lies in a part that exists, or `len()`.
    pub fn next_existing(&self, index: u64) -> u64 {
        if index >= self.len {
            return self.len;
        }
        let first = index / WORDS_PER_PAGE;
        let mut group = (first / 64) as usize;
        let mut bits = self.existing[group].load(Ordering::Acquire) & (u64::MAX << (first % 64));
        while bits == 0 {
            group += 1;
            let Some(next) = self.existing.get(group) else { return self.len };
            bits = next.load(Ordering::Acquire);
        }
        let page = group as u64 * 64 + u64::from(bits.trailing_zeros());
        index.max(page * WORDS_PER_PAGE).min(self.len)
    }

    /// Bytes of the words that exist.
    pub fn resident_bytes(&self) -> u64 {
        self.mapping.allocated_bytes()
    }

    /// Bytes of the bits that say what exists.
    pub fn index_bytes(&self) -> u64 {
        size_of_val(&*self.existing) as u64
    }
}
