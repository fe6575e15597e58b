//! The mapping of a slot table: 8-byte words of which only the touched parts exist.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use super::mapping::{Extent, Mapping, Notes};
use super::{HOST_PAGE, MemoryKind, State, StateError, StoreError};
use crate::failpoint;
use crate::sync::{self, AtomicU32, AtomicU64, Ordering};
use crate::units::PAGE_SIZE;

/// Words of one host page.
pub const WORDS_PER_PAGE: u64 = HOST_PAGE / 8;

/// Host pages of words for each host page of check sums.
const PAGES_PER_SUMS: u64 = 2;

/// An array of 8-byte words, zero until written, in a sparse shared mapping; those of a state with
/// a check sum of 4 bytes beside each.
///
/// Reading a hole of a shared mapping allocates a page, so a bit for each host page says whether
/// it exists, and is asked first.
///
/// The array may grow while threads use it, as far as there is room in its mapping. What is to be grown into
/// is not touched before, and a thread that knows of it finds it in place.
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    /// One for each word. Where a word exists its sum does.
    sums: Option<Mapping>,
    /// Pages of sums without words that the file system did not take back. They exist, and the
    /// counters of bytes still include them.
    stranded: Mutex<BTreeSet<u64>>,
    /// Stored after all that makes more words usable.
    len: AtomicU64,
    /// Words that there may be at most.
    room: u64,
    /// For each 64 host pages a word of bits that say which of them exist (set after the page was populated,
    /// cleared before it is given back), and one of bits that say which may have no content.
    notes: Notes,
    /// Host pages of words that an earlier process left behind the end.
    beyond: Vec<u64>,
}

/// Bytes of whole host pages: of `len` words, and of their sums, which come behind the words in the table's file
/// of a state.
pub(super) fn parts(len: u64) -> Option<[u64; 2]> {
    let page = |bytes: u64| bytes.max(1).checked_next_multiple_of(HOST_PAGE);
    Some([page(len.checked_mul(8)?)?, page(len.checked_mul(4)?)?])
}

impl Words {
    /// `len` words, all zero, that cannot grow.
    #[cfg(test)]
    pub(crate) fn new(len: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        Self::with_room(len, len, kind)
    }

    /// `len` words, all zero, with room for `room`; costs no memory but two bits for each 512 words.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn with_room(len: u64, room: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        let [used, _] = parts(len).ok_or_else(too_many)?;
        let [all, _] = parts(room.max(len)).ok_or_else(too_many)?;
        let mapping = Mapping::new("table", Extent { len: used, room: all }, kind)?;
        Self::over(mapping, None, len, room.max(len))
    }

    /// The words of a state, and which of them exist. Not public, as [`Arena::of`](super::Arena::of): they say
    /// which bytes are an object.
    ///
    /// # Errors
    /// The host refuses the mappings, or words exist without their sums, or sums without words.
    pub(crate) fn of(state: &State, len: u64) -> Result<Self, StateError> {
        let room = state.format().capacity / PAGE_SIZE as u64;
        let [words, sums] = parts(len).ok_or_else(too_many)?;
        let [all_words, all_sums] = parts(room).ok_or_else(too_many)?;
        let map = |start, len, room| {
            let extent = Extent { len, room };
            Mapping::over(state.table(), "table", start, extent, state.is_locked())
        };
        let (words, sums) = (map(0, words, all_words)?, map(all_words, sums, all_sums)?);
        let this = Self::over(words, Some(sums), len, room)?;
        if state.is_new() {
            this.mapping.try_out()?;
        }
        this.look()
    }

    fn over(
        mapping: Mapping,
        sums: Option<Mapping>,
        len: u64,
        room: u64,
    ) -> Result<Self, StoreError> {
        // The host may have refused the address space for more.
        let has_room =
            mapping.len() / 8 >= room && sums.as_ref().is_none_or(|sums| sums.len() / 4 >= room);
        let groups = (mapping.len() / HOST_PAGE).div_ceil(64);
        Ok(Self {
            mapping,
            sums,
            stranded: Mutex::default(),
            len: AtomicU64::new(len),
            room: if has_room { room } else { len },
            notes: Notes::new(groups * 2)?,
            beyond: Vec::new(),
        })
    }

    /// Words that there may be at most, as this process has them mapped.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Has what is needed for `len` words in place, at most [`Self::room`]; they are not there yet.
    ///
    /// # Errors
    /// The host does not lock so much memory.
    pub fn prepare(&self, len: u64) -> Result<(), StoreError> {
        assert!(len <= self.room, "{len} words in room for {}", self.room);
        let [words, sums] = parts(len).ok_or_else(too_many)?;
        self.mapping.use_up_to(words)?;
        self.sums.as_ref().map_or(Ok(()), |mapping| mapping.use_up_to(sums))
    }

    /// There are `len` words from now on, not less than before, and prepared for. One thread at a time.
    pub fn grow(&self, len: u64) {
        assert!(len >= self.len() && len <= self.room, "from {} to {len} words", self.len());
        self.len.store(len, Ordering::Release);
    }

    fn existing(&self, group: u64) -> &AtomicU64 {
        self.note(group * 2)
    }

    fn vacant(&self, group: u64) -> &AtomicU64 {
        self.note(group * 2 + 1)
    }

    fn note(&self, number: u64) -> &AtomicU64 {
        match self.notes.get(number as usize) {
            Some(note) => note,
            None => panic!("note {number} of {} words", self.room),
        }
    }

    /// Host pages that words lie on.
    fn pages(&self) -> u64 {
        self.len().div_ceil(WORDS_PER_PAGE)
    }

    /// Groups of 64 host pages.
    fn groups(&self) -> u64 {
        self.pages().div_ceil(64)
    }

    /// Has the part of `index` exist, as a table does; returns the bytes that it takes more.
    #[cfg(test)]
    pub(crate) fn ensure(&self, index: u64) -> Result<u64, StoreError> {
        if self.get(index).is_some() {
            return Ok(0);
        }
        let count = self.growth(index);
        let bytes = self.growth_bytes(index, count);
        self.populate(index, count).map(|()| bytes)
    }

    /// The same words with nothing known of them but what the file says.
    #[cfg(test)]
    pub(crate) fn reopened(self) -> Result<Self, StateError> {
        let (len, room) = (self.len(), self.room);
        Self::over(self.mapping, self.sums, len, room)?.look()
    }

    /// Finds out which parts exist, by one pass over the file that skips holes.
    fn look(mut self) -> Result<Self, StateError> {
        let fail = |source| StoreError::Look { what: "table", source };
        let mut sums_until = 0;
        let mut offset = self.mapping.next_existing(0).map_err(fail)?;
        while offset < self.mapping.len() {
            let page = offset / HOST_PAGE;
            if page >= self.pages() {
                self.beyond.push(page);
                offset = self.mapping.next_existing(offset + HOST_PAGE).map_err(fail)?;
                continue;
            }
            self.existing(page / 64).fetch_or(1 << (page % 64), Ordering::Relaxed);
            if let Some(sums) = &self.sums {
                // They are made first, so a word without one is not valid.
                let at = page / PAGES_PER_SUMS * HOST_PAGE;
                if at >= sums_until {
                    if sums.next_existing(at).map_err(fail)? != at {
                        return Err(StateError::NoSums { index: page * WORDS_PER_PAGE });
                    }
                    sums_until = sums.next_hole(at).map_err(fail)?;
                }
            }
            offset = self.mapping.next_existing(offset + HOST_PAGE).map_err(fail)?;
        }
        match self.first_bare_sum().map_err(fail)? {
            Some(index) => Err(StateError::NoWords { index }),
            None => Ok(self),
        }
    }

    /// The first slot that has a sum, and whose word does not exist. It would read as empty.
    fn first_bare_sum(&self) -> io::Result<Option<u64>> {
        let Some(sums) = &self.sums else { return Ok(None) };
        let mut offset = sums.next_existing(0)?;
        while offset < sums.len() {
            let first = offset / HOST_PAGE * PAGES_PER_SUMS;
            for page in first..first + PAGES_PER_SUMS {
                if self.has_page(page) {
                    continue;
                }
                let mut words = page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE;
                let has_sum = |index: &u64| sums.half_word(index * 4).load(Ordering::Relaxed) != 0;
                if let Some(index) = words.find(has_sum) {
                    return Ok(Some(index));
                }
            }
            offset = sums.next_existing(offset + HOST_PAGE)?;
        }
        Ok(None)
    }

    /// Number of words.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Host pages of words that an earlier process left behind the end: none, unless the state is damaged.
    pub fn beyond(&self) -> &[u64] {
        &self.beyond
    }

    /// Gives those pages back.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn drop_beyond(&mut self) -> io::Result<()> {
        for page in std::mem::take(&mut self.beyond) {
            self.mapping.punch(page * HOST_PAGE, HOST_PAGE)?;
        }
        Ok(())
    }

    /// The word of this index, below `len()`, if the part it lies in exists.
    pub fn get(&self, index: u64) -> Option<&AtomicU64> {
        assert!(index < self.len(), "word {index} of {}", self.len());
        self.has_page(index / WORDS_PER_PAGE).then(|| self.mapping.word(index))
    }

    /// Has a word fetched that will be used soon, of any index.
    #[cfg(not(loom))]
    pub fn prefetch(&self, index: u64) {
        self.mapping.prefetch(index.wrapping_mul(8), 8);
    }

    /// The sum of the word of this index, if the word exists and there are sums.
    pub fn sum(&self, index: u64) -> Option<&AtomicU32> {
        let sums = self.sums.as_ref()?;
        self.get(index).map(|_| sums.half_word(index * 4))
    }

    /// How many pages are to be made at once, from the one of `index` on, which does not exist: some
    /// of what follows too if much of what comes before exists, so a table that is filled in order is
    /// populated in batches.
    pub fn growth(&self, index: u64) -> u64 {
        let page = index / WORDS_PER_PAGE;
        let (group, bit) = (page / 64, page % 64);
        let bits = self.existing(group).load(Ordering::Acquire);
        // Neighbours below that exist without a gap; an eighth of them is populated ahead.
        let below = (bits << (63 - bit) << 1).leading_ones();
        let end = (page + u64::from(below / 8).max(1)).min(self.pages()).min((group + 1) * 64);
        1 + (page + 1..end).take_while(|next| bits >> (next % 64) & 1 == 0).count() as u64
    }

    /// Bytes that come to exist if `count` pages are populated from that of `index` on, none of
    /// which exists. The caller keeps others from populating.
    pub fn growth_bytes(&self, index: u64, count: u64) -> u64 {
        let page = index / WORDS_PER_PAGE;
        let stranded = sync::lock(&self.stranded);
        let sums =
            self.bare_sums(page, count).filter(|sums| !stranded.contains(sums)).count() as u64;
        (count + sums) * HOST_PAGE
    }

    /// Makes `count` pages exist from that of `index` on, all of one group and none of which exists.
    /// The caller keeps others from populating.
    ///
    /// # Errors
    /// The host has no memory for it. Nothing more exists then.
    pub fn populate(&self, index: u64, count: u64) -> Result<(), StoreError> {
        let page = index / WORDS_PER_PAGE;
        let made = self.try_populate(page, count);
        if made.is_ok() {
            let mut stranded = sync::lock(&self.stranded);
            for sums in self.bare_sums(page, count) {
                stranded.remove(&sums);
            }
            drop(stranded);
            let (group, bits) = (page / 64, (u64::MAX >> (64 - count)) << (page % 64));
            self.existing(group).fetch_or(bits, Ordering::Release);
            // The caller may fail before it writes, and some are for others to come.
            self.vacant(group).fetch_or(bits, Ordering::Relaxed);
        } else if let Err(error) = self.undo(page, count) {
            log::warn!("a part of the table that is not used cannot be given back: {error}");
        }
        made
    }

    fn try_populate(&self, page: u64, count: u64) -> Result<(), StoreError> {
        if let Some(sums) = &self.sums {
            let first = page / PAGES_PER_SUMS;
            let after = (page + count).div_ceil(PAGES_PER_SUMS);
            // Before the words, so that no word is without one. What is there stays as it is.
            sums.populate(first * HOST_PAGE, (after - first) * HOST_PAGE)?;
        }
        self.mapping.populate(page * HOST_PAGE, count * HOST_PAGE)
    }

    /// Gives back what a populating that failed made, of which no counter has a byte: no sums that were
    /// there before.
    fn undo(&self, page: u64, count: u64) -> io::Result<()> {
        self.mapping.punch(page * HOST_PAGE, count * HOST_PAGE)?;
        let Some(sums) = &self.sums else { return Ok(()) };
        let stranded = sync::lock(&self.stranded);
        let mut made = self.bare_sums(page, count).filter(|sums| !stranded.contains(sums));
        made.try_for_each(|page| sums.punch(page * HOST_PAGE, HOST_PAGE))
    }

    /// Gives pages of words back that count as not existing, and the sums that no page needs then.
    /// Returns the bytes. The caller keeps others from populating.
    ///
    /// # Errors
    /// The file system refuses. The words are still there then.
    pub fn give_back(&self, page: u64, count: u64) -> io::Result<u64> {
        self.mapping.punch(page * HOST_PAGE, count * HOST_PAGE)?;
        failpoint::reach("table.punched");
        let mut bytes = count * HOST_PAGE;
        let Some(sums) = &self.sums else { return Ok(bytes) };
        // After the words, so that no word is without one.
        let mut stranded = sync::lock(&self.stranded);
        for bare in self.bare_sums(page, count) {
            match sums.punch(bare * HOST_PAGE, HOST_PAGE) {
                Ok(()) => {
                    bytes += HOST_PAGE;
                    stranded.remove(&bare);
                }
                Err(error) => {
                    log::warn!("check sums cannot be given back: {error}");
                    stranded.insert(bare);
                }
            }
        }
        drop(stranded);
        failpoint::reach("table.gone");
        Ok(bytes)
    }

    /// A page counts as not existing from now on, or again as existing.
    pub fn set_existing(&self, page: u64, exists: bool) {
        let (group, bit) = (self.existing(page / 64), 1 << (page % 64));
        if exists {
            group.fetch_or(bit, Ordering::Release);
        } else {
            group.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Whether a page exists, and counts as existing.
    pub fn has_page(&self, page: u64) -> bool {
        let group = self.notes.get((page / 64) as usize * 2);
        group.is_some_and(|bits| bits.load(Ordering::Acquire) >> (page % 64) & 1 == 1)
    }

    /// The word of an index whose page exists, also if it does not count as existing, or if the index is behind the
    /// last word of the last page.
    pub fn hidden(&self, index: u64) -> &AtomicU64 {
        self.mapping.word(index)
    }

    /// Whether a word whose page exists, counted or not, has a sum other than 0.
    pub fn has_sum(&self, index: u64) -> bool {
        let sum = self.sums.as_ref().map(|sums| sums.half_word(index * 4));
        sum.is_some_and(|sum| sum.load(Ordering::Relaxed) != 0)
    }

    /// The page of this index may have no content any more: what made it so was done before. True if
    /// that was not known.
    pub fn note_vacant(&self, index: u64) -> bool {
        let page = index / WORDS_PER_PAGE;
        let bit = 1 << (page % 64);
        self.vacant(page / 64).fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Pages that may have no content, from the lowest up; each is forgotten when it is returned, before
    /// any thread reads it.
    pub fn take_vacant(&self) -> impl Iterator<Item = u64> {
        (0..self.groups()).flat_map(|group| {
            let bits = self.vacant(group);
            std::iter::from_fn(move || {
                // Most groups have none, and are not written to.
                let bit = bits.load(Ordering::Relaxed).trailing_zeros();
                (bit < 64).then(|| {
                    bits.fetch_and(!(1 << bit), Ordering::AcqRel);
                    group * 64 + u64::from(bit)
                })
            })
        })
    }

    /// The pages of sums beside some pages of words of which no word exists, if there are sums.
    fn bare_sums(&self, page: u64, count: u64) -> impl Iterator<Item = u64> {
        let first = page / PAGES_PER_SUMS;
        let after = (page + count).div_ceil(PAGES_PER_SUMS);
        let range = if self.sums.is_some() { first..after } else { 0..0 };
        range.filter(|sums| {
            let mut beside = sums * PAGES_PER_SUMS..(sums + 1) * PAGES_PER_SUMS;
            !beside.any(|page| self.has_page(page))
        })
    }

    /// Gives back the sums that a process left which died before it made their words, or after it
    /// gave those back.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn drop_bare_sums(&self) -> io::Result<()> {
        let Some(sums) = &self.sums else { return Ok(()) };
        let mut offset = sums.next_existing(0)?;
        while offset < sums.len() {
            let page = offset / HOST_PAGE * PAGES_PER_SUMS;
            for bare in self.bare_sums(page, PAGES_PER_SUMS) {
                sums.punch(bare * HOST_PAGE, HOST_PAGE)?;
            }
            offset = sums.next_existing(offset + HOST_PAGE)?;
        }
        Ok(())
    }

    /// Bytes of the words that exist and of their sums, by what is known of them.
    pub fn existing_bytes(&self) -> u64 {
        // A bit for each page of sums, at that of its first page of words.
        const FIRST: u64 = u64::MAX / 3;
        const { assert!(PAGES_PER_SUMS == 2) };
        let count = |group: &AtomicU64| {
            let bits = group.load(Ordering::Relaxed);
            let sums =
                if self.sums.is_some() { ((bits | bits >> 1) & FIRST).count_ones() } else { 0 };
            u64::from(bits.count_ones() + sums)
        };
        let stranded = sync::lock(&self.stranded).len() as u64;
        let groups = (0..self.groups()).map(|group| count(self.existing(group)));
        (groups.sum::<u64>() + stranded) * HOST_PAGE
    }

    /// Groups of four host pages, of the numbers `4 n` to `4 n + 3`, of which any exists.
    pub fn groups_of_four(&self) -> u64 {
        const FIRST: u64 = u64::MAX / 15;
        let count = |group| {
            let bits = self.existing(group).load(Ordering::Relaxed);
            u64::from(((bits | bits >> 1 | bits >> 2 | bits >> 3) & FIRST).count_ones())
        };
        (0..self.groups()).map(count).sum()
    }

    /// The first index at or after `index` that lies in a part that exists, or `len()`.
    pub fn next_existing(&self, index: u64) -> u64 {
        let len = self.len();
        if index >= len {
            return len;
        }
        let groups = len.div_ceil(WORDS_PER_PAGE).div_ceil(64);
        let first = index / WORDS_PER_PAGE;
        let mut group = first / 64;
        let mut bits = self.existing(group).load(Ordering::Acquire) & (u64::MAX << (first % 64));
        while bits == 0 {
            group += 1;
            if group >= groups {
                return len;
            }
            bits = self.existing(group).load(Ordering::Acquire);
        }
        let page = group * 64 + u64::from(bits.trailing_zeros());
        index.max(page * WORDS_PER_PAGE).min(len)
    }

    /// Bytes of the words that exist, by the file's allocated blocks; of a state with their sums and the
    /// table's seal.
    pub fn resident_bytes(&self) -> u64 {
        self.mapping.file_bytes()
    }

    /// Bytes that `len` words take if all of them exist, with their check sums if they are `kept` in a state;
    /// `u64::MAX` if there cannot be so many.
    pub fn full_bytes(len: u64, kept: bool) -> u64 {
        parts(len).map_or(u64::MAX, |[words, sums]| words + if kept { sums } else { 0 })
    }

    /// Bytes of the bits of `len` words, see [`Words::index_bytes`].
    pub fn index_bytes_of(len: u64) -> u64 {
        2 * len.div_ceil(WORDS_PER_PAGE).div_ceil(64) * size_of::<u64>() as u64
    }

    /// Bytes of the bits that say what exists, and what may be vacant.
    pub fn index_bytes(&self) -> u64 {
        self.groups() * 16
    }
}

fn too_many() -> StoreError {
    let source = io::ErrorKind::OutOfMemory.into();
    StoreError::Map { what: "table", bytes: u64::MAX, source }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const LEN: u64 = 4 * WORDS_PER_PAGE;

    /// A mapping for words, or for their sums, of a file of its own.
    fn mapping() -> (Arc<File>, Mapping) {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = Arc::new(File::from(memfd_create("table", flags).unwrap()));
        file.set_len(LEN * 8).unwrap();
        let mapping = Mapping::over(&file, "table", 0, Extent::fixed(LEN * 8), false).unwrap();
        (file, mapping)
    }

    /// Words whose sums are in a file that takes nothing back, and the words' file.
    fn stuck() -> (Arc<File>, Words) {
        let ((words_file, words), (sums_file, sums)) = (mapping(), mapping());
        // A hole is a change of the file, and one that is mapped already may be written to.
        fcntl(&*sums_file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).unwrap();
        (words_file, Words::over(words, Some(sums), LEN, LEN).unwrap())
    }

    fn exist(words: &Words) -> u64 {
        words.resident_bytes() + words.sums.as_ref().map_or(0, Mapping::file_bytes)
    }

    #[test]
    fn sums_that_do_not_go_are_counted_once() {
        let (_, mut words) = stuck();
        let mut counted = 0;
        for _ in 0..3 {
            counted += words.ensure(0).unwrap();
            assert_eq!((counted, exist(&words)), (2 * HOST_PAGE, 2 * HOST_PAGE));
            words.set_existing(0, false);
            counted -= words.give_back(0, 1).unwrap();
            assert_eq!((counted, exist(&words)), (HOST_PAGE, HOST_PAGE));
            assert_eq!(words.existing_bytes(), HOST_PAGE);
        }
        // The file takes them back again: then they are gone for the counters, too.
        counted += words.ensure(0).unwrap();
        let (_, sums) = mapping();
        sums.populate(0, HOST_PAGE).unwrap();
        words.sums = Some(sums);
        words.set_existing(0, false);
        counted -= words.give_back(0, 1).unwrap();
        assert_eq!((counted, exist(&words), words.existing_bytes()), (0, 0, 0));
        assert_eq!(words.growth_bytes(0, 1), 2 * HOST_PAGE);
    }

    /// A caller that asked for a part that could not be made takes back what it reserved, and no more.
    #[test]
    fn a_part_that_cannot_be_made_leaves_sums_counted_that_were_there() {
        let (file, mut words) = stuck();
        let mut counted = words.ensure(0).unwrap();
        words.set_existing(0, false);
        counted -= words.give_back(0, 1).unwrap();
        let (_, sums) = mapping();
        sums.populate(0, HOST_PAGE).unwrap();
        words.sums = Some(sums);
        file.set_len(0).unwrap();
        words.ensure(0).unwrap_err();
        assert_eq!((counted, exist(&words)), (HOST_PAGE, HOST_PAGE));
        file.set_len(LEN * 8).unwrap();
        counted += words.ensure(0).unwrap();
        assert_eq!((counted, exist(&words)), (2 * HOST_PAGE, 2 * HOST_PAGE));
    }
}
