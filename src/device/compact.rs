//! Moving objects while requests are served: what compaction has to know of slots.

use std::task::Waker;

use super::Device;
use crate::checker::Class;
use crate::pool::{Compaction, Effort, LastRound, Move, PoolError};
use crate::store::Place;
use crate::sync;

/// Bytes that a writer who meets a limit gives back at least, before it stores its own page.
const RECLAIM_BYTES: u64 = 64 * 1024;

/// Objects that it moves for that at most: some hundred microseconds.
const RECLAIM_MOVES: u64 = 1024;

/// The mutexes of writers that reclaim, to the lock checker.
static RECLAIMING: Class = Class::mutex("reclaiming");

/// What a series of compactions remembers.
#[derive(Debug, Default)]
pub struct Compactor {
    last: LastRound,
}

impl Device {
    /// Moves objects out of sparse pages and gives the pages back to the host, while requests go
    /// on. Slots in use are passed over, not waited for.
    pub fn compact(&self, compactor: &mut Compactor, effort: Effort) -> Compaction {
        self.pool.compact(effort, &mut compactor.last, |owner, from| self.relocate(owner, from))
    }

    /// Who is woken when something was stored or freed, once for each [`Device::answer`].
    pub fn set_upkeep_waker(&self, waker: Waker) {
        self.pool.set_waker(waker);
    }

    /// Whether anything was stored or freed since the last call.
    pub fn answer(&self) -> bool {
        self.pool.answer()
    }

    /// The host can bear `bytes` more than the disk has now. Writes that need more fail.
    pub fn allow_more(&self, bytes: u64) {
        self.pool.allow_more(bytes);
    }

    /// Stores an object for the slot `index`. Where a limit is reached, it first compacts.
    pub(super) fn store(&self, index: u64, bytes: &[u8]) -> Result<Place, PoolError> {
        // Slots are numbered in 32 bits: a disk has less than 16 TiB.
        let owner = index as u32;
        match self.pool.store(bytes, owner) {
            Err(PoolError::Limit { .. } | PoolError::HostShort) if self.reclaim() => {
                self.pool.store(bytes, owner)
            }
            stored => stored,
        }
    }

    /// Gives back what can be had without much work. True if that was anything, or if another
    /// writer was at it.
    fn reclaim(&self) -> bool {
        let Some(mut last) = sync::try_lock_as(&RECLAIMING, &self.reclaiming) else {
            // Waiting for the other one costs no more than working beside it.
            drop(sync::lock_as(&RECLAIMING, &self.reclaiming));
            return true;
        };
        let effort = Effort::Enough { bytes: RECLAIM_BYTES, moves: RECLAIM_MOVES };
        let done = self.pool.compact(effort, &mut last, |owner, from| self.relocate(owner, from));
        done.pages > 0
    }

    /// Moves the object at `from` to a lower place, if `owner` names it and is not locked.
    ///
    /// The tag that named the owner was read without any lock, so it may be of an object that was
    /// freed since, or be overwritten just now. The slot's word decides: while the slot is locked
    /// nobody changes or frees what it names.
    fn relocate(&self, owner: u32, from: Place) -> Move {
        let Some(ticket) = self.table.try_lock(u64::from(owner)) else { return Move::Busy };
        let word = ticket.word();
        let Some(object) = word.content().object().filter(|object| object.place == from) else {
            return Move::Busy;
        };
        let Some(to) = self.pool.relocate(from, object.length) else { return Move::NoPlace };
        // The bytes are complete at the new place before the word names it (invariant J5).
        ticket.release(word.moved_to(to));
        self.pool.vacate(from, object.length);
        Move::Moved
    }
}
