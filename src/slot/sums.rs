//! Check sums of slots: how a page that was damaged while no process had it is told from a good one.
//!
//! Beside the word of each slot of a state lies a sum of 32 bits:
//!
//! ```text
//! sum(slot) = CRC-32(index, word without lock bits and flags) ^ CRC-32(bytes of its object)
//! ```
//!
//! and 0 for an empty slot. Either part can change without the other being known, so an object can be
//! moved without its bytes being summed again: what was damaged stays damaged.
//!
//! Word and sum cannot change in one step. So a thread that changes them first leaves an *intent*, the
//! slot's number with its old and its new sum, changes the sum, then the word, and takes the intent
//! back. After a death in between, the slot has either the old content or the new one, and the intent
//! says which sums they have; a sum that is neither is damage.
//!
//! A sum is checked when its page is first read after the state was opened (`slot/unverified.rs`). From then
//! on the memory is this process's own, and is trusted like all of its memory.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::word::{Content, Word};
use crate::checker::Class;
use crate::failpoint;
use crate::stats;
use crate::store::{INTENTS, State};
use crate::sync::{self, AtomicU32};

/// The mutexes of all intents, to the lock checker.
static INTENT: Class = Class::mutex("intent");

/// The part of a sum that the word makes.
pub(super) fn of_word(index: u64, word: Word) -> u32 {
    if word.content() == Content::Empty {
        return 0;
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..].copy_from_slice(&word.essence().to_le_bytes());
    crc32fast::hash(&bytes)
}

/// The part of a sum that the object's bytes make; 0 if there are none.
pub(super) fn of_bytes(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// An intent that an earlier process left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) index: u64,
    pub(super) sums: [u32; 2],
}

/// The intents of a state: each belongs to some threads, which take turns.
#[derive(Debug)]
pub(super) struct Intents {
    turns: Box<[Mutex<()>]>,
}

impl Intents {
    pub(super) fn new() -> Self {
        Self { turns: (0..INTENTS).map(|_| Mutex::default()).collect() }
    }

    /// Changes a slot's sum from `old` to `new`, and then its word by `publish`.
    pub(super) fn change(
        &self,
        state: &State,
        index: u64,
        sum: &AtomicU32,
        new: u32,
        publish: impl FnOnce(),
    ) {
        let number = stats::thread_number() % self.turns.len();
        // No thread sleeps while it has it.
        let _turn = sync::lock_as(&INTENT, &self.turns[number]);
        let [what, sums] = state.intent(number);
        let old = sum.load(Ordering::Relaxed);
        sums.store(u64::from(old) | u64::from(new) << 32, Ordering::Relaxed);
        what.store(index + 1, Ordering::Release);
        failpoint::reach("sum.intended");
        sum.store(new, Ordering::Release);
        failpoint::reach("sum.stored");
        publish();
        failpoint::reach("sum.published");
        what.store(0, Ordering::Release);
    }
}

/// The intents that an earlier process left.
pub(super) fn left(state: &State) -> Vec<Intent> {
    let intents = (0..INTENTS).filter_map(|number| {
        let [what, sums] = state.intent(number).map(|word| word.load(Ordering::Acquire));
        let index = what.checked_sub(1)?;
        Some(Intent { index, sums: [sums as u32, (sums >> 32) as u32] })
    });
    intents.collect()
}

/// All that the intents said is done.
pub(super) fn clear(state: &State) {
    for number in 0..INTENTS {
        let [what, _] = state.intent(number);
        what.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Object;
    use crate::store::Place;

    #[test]
    fn a_sum_tells_index_place_length_and_bytes_apart() {
        let object = |place, length| Object { place: Place::from_units(place), length };
        let word = |place, length| Word::new(Content::Object(0, object(place, length)));
        let sum = |index, word, bytes: &[u8]| of_word(index, word) ^ of_bytes(bytes);
        let good = sum(7, word(100, 5), b"bytes");
        assert_ne!(good, sum(8, word(100, 5), b"bytes"));
        assert_ne!(good, sum(7, word(101, 5), b"bytes"));
        assert_ne!(good, sum(7, word(100, 4), b"byte"));
        assert_ne!(good, sum(7, word(100, 5), b"bytez"));
        // Moved without a check of the bytes.
        let moved = good ^ of_word(7, word(100, 5)) ^ of_word(7, word(300, 5));
        assert_eq!(moved, sum(7, word(300, 5), b"bytes"));
        assert_eq!(sum(7, Word::EMPTY, b""), 0);
        assert_ne!(sum(7, Word::new(Content::Same(0)), b""), 0);
    }
}
