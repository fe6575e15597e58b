//! Claims of jobs on the contents of slots.
//!
//! A job that works on a page for long does not hold its lock meanwhile: it copies the content out, *claims* it,
//! lets go, works, locks the slot again, and replaces the content if the claim still *holds*. Any change of the content
//! ends the claim, as a word that is published has no flags, whoever publishes it and whatever it says. So a
//! page that was written, freed and written again in between, and whose word looks as before, is not taken for the
//! one that was copied.
//!
//! The word has one bit for this, and jobs are many: a note beside says by which claim the bit was set. A bit
//! that is set always has its note. A note without the bit is a claim that has ended, of which its job does not
//! know yet. Where an object is moved to is no change, and claims hold over it.
//!
//! Claims are of one process: one that takes a table over clears the bits.

use std::collections::BTreeMap;

use super::lock::SlotGuard;
use super::word::Word;
use crate::checker::Class;
use crate::sync::{self, Mutex};

/// The mutexes of claims, to the lock checker.
static CLAIMS: Class = Class::mutex("claims");

/// The claims on slots of one table.
#[derive(Default)]
pub(super) struct Claims(Mutex<Notes>);

#[derive(Default)]
struct Notes {
    last: u64,
    /// The claim on a slot, by the slot's number.
    of: BTreeMap<u64, u64>,
}

/// A claim on what a slot holds. It has to be [ended](Claims::end), whether it holds or not.
#[must_use = "a claim stays until it is ended"]
#[derive(Debug)]
pub struct Claim {
    index: u64,
    number: u64,
}

impl Claims {
    /// Claims the content of a locked slot, and releases it. `None` if there is a claim on it already.
    pub(super) fn claim(&self, guard: SlotGuard<'_>) -> Option<Claim> {
        let (word, index) = (guard.word(), guard.index());
        if word.is_claimed() {
            return None;
        }
        let mut notes = sync::lock_as(&CLAIMS, &self.0);
        notes.last += 1;
        let number = notes.last;
        // That of a claim that has ended goes.
        notes.of.insert(index, number);
        drop(notes);
        guard.release(word.with_claimed(true));
        Some(Claim { index, number })
    }

    /// Whether the claim holds on the content of a slot, which is locked.
    pub(super) fn holds(&self, guard: &SlotGuard<'_>, claim: &Claim) -> bool {
        guard.index() == claim.index
            && guard.word().is_claimed()
            && sync::lock_as(&CLAIMS, &self.0).of.get(&claim.index) == Some(&claim.number)
    }

    /// Ends a claim whose slot has another content by now, or is locked by `guard`: that is released, and if the
    /// claim holds, with the marks that `mark` makes of its word.
    pub(super) fn end(
        &self,
        claim: Claim,
        guard: Option<SlotGuard<'_>>,
        mark: impl FnOnce(Word) -> Word,
    ) {
        let held = guard.filter(|guard| self.holds(guard, &claim));
        let mut notes = sync::lock_as(&CLAIMS, &self.0);
        if notes.of.get(&claim.index) == Some(&claim.number) {
            notes.of.remove(&claim.index);
        }
        drop(notes);
        if let Some(guard) = held {
            let word = mark(guard.word()).with_claimed(false);
            guard.release(word);
        }
    }

    /// How many there are, those of which nobody knows that they ended included.
    #[cfg(all(test, loom))]
    pub(super) fn count(&self) -> usize {
        sync::lock(&self.0).of.len()
    }
}
