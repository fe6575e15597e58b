//! Compaction: objects move from the top of their class into its holes, and the pages they leave go
//! back to the host. All while others allocate, free and read.

use std::sync::atomic::Ordering;

use super::class::{CLASS, Candidate, Load, Number};
use super::objects::Pool;
use crate::store::{HOST_PAGE, Place};
use crate::sync;

/// Candidates tried under one hold of a class's mutex.
const BATCH: usize = 32;

/// Pages given back, or spans read, under one hold of a class's mutex: some hundred
/// microseconds.
const TRIM: u64 = 64;

/// How hard a compaction tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Classes that have much more than they need, down to a margin that saves them from taking
    /// and giving back the same pages all the time. Classes that were not used since the last time
    /// lose the margin too.
    Upkeep,
    /// All there is.
    Full,
    /// Until this many bytes are given back, or so many objects were tried.
    Enough {
        /// Bytes that are wanted.
        bytes: u64,
        /// Objects that may be tried for them.
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
    /// Those of them that objects were moved away from; the others were bare before.
    pub vacated: u64,
    /// Objects moved.
    pub moves: u64,
    /// Host pages more than the objects needed when it began: those that are to be had at best.
    pub excess: u64,
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
    /// (else the object is [`Move::Busy`]), and call [`Pool::copy_below`]. `go_on` is asked every
    /// now and then, also without locks, whether to, and told what was done so far.
    pub fn compact(
        &self,
        effort: Effort,
        last: &mut LastRound,
        relocate: impl FnMut(u32, Place) -> Move,
        go_on: impl FnMut(&Compaction) -> bool,
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
        let excess = wasting.iter().map(|(_, load)| load.excess).sum();
        let mut run = Run {
            pool: self,
            done: Compaction { more, excess, ..Compaction::default() },
            wanted: u64::MAX,
            tries: u64::MAX,
            relocate,
            go_on,
        };
        if let Effort::Enough { bytes, moves } = effort {
            (run.wanted, run.tries) = (bytes.div_ceil(HOST_PAGE), moves);
        }
        for (class, load) in wasting {
            let (threshold, keep) = match effort {
                Effort::Upkeep if !rests[class] => (2 * load.spare() + 2, load.spare() + 1),
                _ => (0, 0),
            };
            if load.excess > threshold {
                run.class(class, keep);
            }
            if run.is_over() || !(run.go_on)(&run.done) {
                break;
            }
        }
        let done = run.done;
        self.pages_compacted.fetch_add(done.vacated, Ordering::Relaxed);
        last.changes = self.loads().map(|load| load.changes).collect();
        done
    }
}

/// One compaction under way.
struct Run<'p, R, G> {
    pool: &'p Pool,
    done: Compaction,
    /// Pages after which it is over.
    wanted: u64,
    /// Objects that may still be tried.
    tries: u64,
    relocate: R,
    go_on: G,
}

impl<R: FnMut(u32, Place) -> Move, G: FnMut(&Compaction) -> bool> Run<'_, R, G> {
    fn is_over(&self) -> bool {
        self.done.pages >= self.wanted || self.tries == 0
    }

    /// Brings one class down to `keep` pages more than it needs.
    fn class(&mut self, number: usize, keep: u64) {
        self.trim(number, keep);
        let mut batch = Vec::with_capacity(BATCH);
        let mut end = Number::END;
        while !self.is_over() {
            let class = sync::lock_as(&CLASS, &self.pool.classes[number]);
            if class.load().excess <= keep {
                return;
            }
            class.uppermost(end, BATCH, &self.pool.arena, &mut batch);
            drop(class);
            let Some(lowest) = batch.last() else { return };
            end = lowest.number;
            let before = self.done;
            let packed = !self.moves(&batch);
            self.trim(number, keep);
            if self.done.moves > before.moves {
                self.done.vacated += self.done.pages - before.pages;
            }
            if packed {
                return;
            }
            if !(self.go_on)(&self.done) {
                self.tries = 0;
            }
        }
    }

    /// Moves objects as far as they can be. False if nothing lower is free.
    fn moves(&mut self, batch: &[Candidate]) -> bool {
        for candidate in batch {
            if self.tries == 0 {
                return true;
            }
            self.tries -= 1;
            match (self.relocate)(candidate.owner, candidate.place) {
                Move::Moved => self.done.moves += 1,
                Move::Busy => self.done.more = true,
                Move::NoPlace => return false,
            }
        }
        true
    }

    /// Trims a class, a bit at a time: others wait for its mutex.
    fn trim(&mut self, number: usize, keep: u64) {
        loop {
            let most = TRIM.min(self.wanted.saturating_sub(self.done.pages));
            let mut class = sync::lock_as(&CLASS, &self.pool.classes[number]);
            let trimmed = class.trim(keep, most, self.pool.common());
            drop(class);
            let (pages, over) = trimmed.unwrap_or_else(|error| {
                log::warn!("memory cannot be given back to the host: {error}");
                (0, true)
            });
            self.done.pages += pages;
            if over || self.is_over() {
                return;
            }
        }
    }
}
