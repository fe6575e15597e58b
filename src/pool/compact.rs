//! Compaction: objects move from the top of their class into its holes, and the pages they leave go
//! back to the host. All while others allocate, free and read.

use std::sync::atomic::Ordering;

use super::class::{CLASS, Load, Number};
use super::layout::TAG_BYTES;
use super::objects::Pool;
use crate::store::{HOST_PAGE, Place};
use crate::sync;

/// Candidates looked at under one hold of a class's mutex.
const BATCH: usize = 32;

/// How hard a compaction tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Classes that have much more than they need, down to a margin that saves them from taking
    /// and giving back the same pages all the time. Classes that nobody used since the last time
    /// lose the margin too.
    Upkeep,
    /// All there is.
    Full,
    /// Until this many bytes are given back, at the price of so many moves.
    Enough {
        /// Bytes that are wanted.
        bytes: u64,
        /// Objects that may be moved for them.
        moves: u64,
    },
}

/// What became of an object that was to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It lies lower now.
    Moved,
    /// It cannot be moved now: its owner is busy, or it has none (yet, or any more).
    Busy,
    /// There is no lower place, or no memory for one.
    NoPlace,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Host pages given back.
    pub pages: u64,
    /// Objects moved.
    pub moves: u64,
    /// Whether there is more to be had later: from classes in use, or objects that were busy.
    pub more: bool,
}

/// What the last round of upkeep left behind, so that the next one knows which classes rest.
#[derive(Debug, Default)]
pub struct LastRound {
    changes: Vec<u64>,
}

impl Pool {
    /// Compacts classes, those that waste most first.
    ///
    /// `relocate` is called with the number of an object's owner and the object's place, without
    /// any of the pool's locks. It has to lock the owner, see that the owner does name this place
    /// (else the object is [`Move::Busy`]), and call [`Pool::relocate`].
    pub fn compact(
        &self,
        effort: Effort,
        last: &mut LastRound,
        mut relocate: impl FnMut(u32, Place) -> Move,
    ) -> Compaction {
        let changes = self.loads().map(|load| load.changes);
        let rests: Vec<bool> =
            changes.enumerate().map(|(class, now)| last.changes.get(class) == Some(&now)).collect();
        let all_rest = rests.iter().all(|rests| *rests);
        if effort != Effort::Upkeep || all_rest {
            self.drain_caches();
        }
        let mut wasting: Vec<(usize, Load)> =
            self.loads().enumerate().filter(|(_, load)| load.excess > 0).collect();
        wasting.sort_unstable_by_key(|(_, load)| std::cmp::Reverse(load.excess));
        let more = effort == Effort::Upkeep && !all_rest;
        let mut done = Compaction { more, ..Compaction::default() };
        let (enough, mut moves) = match effort {
            Effort::Enough { bytes, moves } => (bytes.div_ceil(HOST_PAGE), moves),
            Effort::Upkeep | Effort::Full => (u64::MAX, u64::MAX),
        };
        for (class, load) in wasting {
            let (threshold, keep) = match effort {
                Effort::Upkeep if !rests[class] => (2 * load.spare() + 2, load.spare() + 1),
                _ => (0, 0),
            };
            if load.excess > threshold {
                let pages = self.compact_class(class, keep, &mut moves, &mut done, &mut relocate);
                done.pages += pages;
            }
            if done.pages >= enough {
                break;
            }
        }
        self.pages_compacted.fetch_add(done.pages, Ordering::Relaxed);
        last.changes = self.loads().map(|load| load.changes).collect();
        done
    }

    /// Moves an object of the caller's to a lower place, and returns the new one. The caller holds
    /// its owner's lock, publishes the new place, and then frees the old one by
    /// [`Pool::vacate`].
    pub fn relocate(&self, from: Place, length: usize) -> Option<Place> {
        let mut class = sync::lock_as(&CLASS, &self.classes[self.kinds.of(length)]);
        // No memory for a hole in a low page is no fault here.
        let to = class.allocate_below(from, self.common()).ok().flatten()?;
        drop(class);
        self.arena.copy(from, to, TAG_BYTES, length);
        Some(to)
    }

    /// Frees the place that an object was moved away from.
    pub fn vacate(&self, from: Place, length: usize) {
        self.free_at_once(from, length);
    }

    /// Brings one class down to `keep` pages more than it needs. Returns the pages given back.
    fn compact_class(
        &self,
        number: usize,
        keep: u64,
        moves: &mut u64,
        done: &mut Compaction,
        relocate: &mut impl FnMut(u32, Place) -> Move,
    ) -> u64 {
        let mut pages = self.trim_class(number, keep);
        let mut batch = Vec::with_capacity(BATCH);
        let mut end = Number::END;
        loop {
            let class = sync::lock_as(&CLASS, &self.classes[number]);
            if class.load().excess <= keep {
                return pages;
            }
            class.uppermost(end, BATCH, &mut batch);
            drop(class);
            let mut packed = batch.is_empty();
            for (object, place) in batch.drain(..) {
                end = object;
                if *moves == 0 {
                    packed = true;
                    break;
                }
                let owner = self.arena.tag(place).load(Ordering::Relaxed);
                match relocate(owner, place) {
                    Move::Moved => {
                        done.moves += 1;
                        *moves -= 1;
                    }
                    Move::Busy => done.more = true,
                    Move::NoPlace => {
                        packed = true;
                        break;
                    }
                }
            }
            pages += self.trim_class(number, keep);
            if packed {
                return pages;
            }
        }
    }

    fn trim_class(&self, number: usize, keep: u64) -> u64 {
        let trimmed = sync::lock_as(&CLASS, &self.classes[number]).trim(keep, self.common());
        trimmed.unwrap_or_else(|error| {
            log::warn!("memory cannot be given back to the host: {error}");
            0
        })
    }
}
