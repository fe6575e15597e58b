//! The slot table: one word for each page of the disk, in a mapping that is sparse.

use std::task::{Context, Poll};

use super::lock::{Slot, Ticket, Waiter};
use super::parking::ParkingLot;
use super::word::{Content, Word};
use crate::store::{StoreError, Words};
use crate::sync::Ordering;

/// One slot for each page of a disk.
///
/// The words lie in a shared mapping, of which only the parts that were ever written exist. A slot
/// in a part that does not exist is empty, and looking at it allocates nothing.
pub struct SlotTable {
    words: Words,
    lot: ParkingLot,
}

/// What a table takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableUsage {
    /// Slot words that exist.
    pub words: u64,
    /// Notes on which of them exist.
    pub index: u64,
}

impl SlotTable {
    /// The table over `words`, all of it empty unless the mapping says otherwise.
    pub fn new(words: Words) -> Self {
        Self { words, lot: ParkingLot::new() }
    }

    /// Number of slots, which is pages of the disk.
    pub fn len(&self) -> u64 {
        self.words.len()
    }

    /// Whether the disk has no pages at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content of a slot that can be had without its lock: empty and same-filled pages, of
    /// which the word says everything. `None` if there is an object to be read under the lock.
    pub fn peek(&self, index: u64) -> Option<Content> {
        let Some(word) = self.words.get(index) else { return Some(Content::Empty) };
        let content = Word(word.load(Ordering::Acquire)).content();
        content.object().is_none().then_some(content)
    }

    /// Takes the lock of a slot, or queues for it; `None` if the slot is in a part of the table
    /// that does not exist, so it is empty. The rules stand at the top of `slot/lock.rs`.
    pub fn poll_lock<'a>(
        &'a self,
        index: u64,
        waiter: &mut Option<Waiter<'a>>,
        cx: &Context<'_>,
    ) -> Poll<Option<Ticket<'a>>> {
        match self.slot(index) {
            Some(slot) => slot.poll_lock(waiter, cx).map(Some),
            None => Poll::Ready(None),
        }
    }

    /// Takes the lock of a slot if it is free and exists; any index is allowed.
    pub fn try_lock(&self, index: u64) -> Option<Ticket<'_>> {
        (index < self.len()).then(|| self.slot(index))??.try_lock()
    }

    /// Makes the part of the table exist in which `index` lies, so that the slot can be written.
    ///
    /// Returns the bytes that it takes more.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn ensure(&self, index: u64) -> Result<u64, StoreError> {
        self.words.ensure(index)
    }

    /// Whether the part of the table exists in which `index` lies.
    pub fn exists(&self, index: u64) -> bool {
        self.words.get(index).is_some()
    }

    /// The table with nothing known of it but what its mapping says; see [`Words::reopened`].
    ///
    /// # Errors
    /// The mapping cannot be asked.
    pub fn reopened(self) -> std::io::Result<Self> {
        Ok(Self::new(self.words.reopened()?))
    }

    /// The first slot at or after `index` that lies in a part of the table that exists; `len()`
    /// if there is none. What is skipped is empty.
    pub fn next_existing(&self, index: u64) -> u64 {
        self.words.next_existing(index)
    }

    /// What the table takes.
    pub fn usage(&self) -> TableUsage {
        TableUsage { words: self.words.resident_bytes(), index: self.words.index_bytes() }
    }

    /// Calls `visit` with every slot that is not empty, in order, without locking. Exact when
    /// nobody writes; for tests and reports.
    pub fn for_each(&self, mut visit: impl FnMut(u64, Word)) {
        let mut index = self.next_existing(0);
        while index < self.len() {
            if let Some(word) = self.words.get(index) {
                let word = Word(word.load(Ordering::Acquire));
                if word.content() != Content::Empty {
                    visit(index, word);
                }
            }
            index = self.next_existing(index + 1);
        }
    }

    fn slot(&self, index: u64) -> Option<Slot<'_>> {
        let word = self.words.get(index)?;
        Some(Slot { word, lot: &self.lot, index })
    }
}
