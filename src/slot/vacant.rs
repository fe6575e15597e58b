//! Pages of the slot table without content: how they come and go beside threads that read them.
//!
//! One page at a time is *taken*: each of its slots is locked by a trial, from the lowest up, which
//! works if the slot is empty and free, and has no waiters. Then the page is *hidden*: its bit is
//! cleared, so a thread that comes from then on finds an empty slot that does not exist. When all
//! threads have left that may have found a slot before ([`super::readers`]), waiters that queued
//! meanwhile are
//! *dismissed* (they find the slot anew), and the page is given back to the host.
//!
//! Why no write is lost: it is published by a thread that holds the slot's lock. Either that had the
//! lock before the page was taken, and then it is not taken; or it finds the lock held, and waits, until
//! it is dismissed; or it finds no bit. In both cases it has the slot made to exist again. The slots of
//! a hidden page stay locked until the page is gone, or *shown* again, which happens with the bit first
//! and the locks after: by a thread that needs the page, or by the taker, if a thread does not
//! leave in time.
//!
//! A page comes, goes, is hidden and is shown under one mutex, which is not held during any
//! wait.

use std::io;
use std::ops::Range;

use super::lock::Slot;
use super::parking::ParkingLot;
use super::readers::Readers;
use crate::checker::Class;
use crate::sync::{self, AtomicU64, Locked, Mutex};

/// The mutexes of growing tables, to the lock checker.
static GROWING: Class = Class::mutex("growing");

/// The mutexes of threads that take pages away, to the lock checker.
static TAKING: Class = Class::mutex("taking");

/// Pages that are hidden at the same time at most.
const BATCH: usize = 64;

/// Pages that are made in one go lie in one group of so many, with all that they share with others.
pub(super) const GROUP: u64 = 64;

/// The words of a table, by page.
pub(super) trait Pages {
    /// The slots of a page.
    fn slots(&self, page: u64) -> Range<u64>;
    /// The word of a slot whose page exists, hidden or not.
    fn word(&self, index: u64) -> &AtomicU64;
    /// Whether nothing is noted of an empty slot beside its word.
    fn is_bare(&self, index: u64) -> bool;
    /// Whether the page exists and is not hidden.
    fn is_shown(&self, page: u64) -> bool;
    /// Sets the page's bit.
    fn show(&self, page: u64);
    /// Clears the page's bit.
    fn hide(&self, page: u64);
    /// Gives a run of hidden pages back to the host; returns the bytes. An error leaves all of them
    /// as they are.
    fn give_back(&self, run: Range<u64>) -> io::Result<u64>;
}

/// Which pages of a table are on their way.
#[derive(Default)]
pub(super) struct Coming {
    /// Hidden and not yet given back, their slots locked. Pages come and go under this mutex.
    hidden: Mutex<Vec<u64>>,
    /// Held by the thread that takes pages away.
    taking: Mutex<()>,
}

/// What became of pages that were to be given back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Bytes that went back.
    pub(super) bytes: u64,
    /// Pages in use, or that a thread did not leave in time: to be tried again.
    pub(super) busy: Vec<u64>,
}

/// How a page was found.
enum Found {
    Yes,
    /// It is not there, or has content; no reason to try again before that changes.
    No,
    Busy,
}

impl Coming {
    /// Has the page exist, if need be by `make`, during which no other thread makes or takes
    /// pages.
    pub(super) fn ensure<E>(
        &self,
        pages: &impl Pages,
        lot: &ParkingLot,
        page: u64,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // Others that need the same page have it when they get here.
        let mut hidden = self.hidden();
        if pages.is_shown(page) {
            return Ok(());
        }
        // Hidden pages are not to be made, and what they share with this one is still there.
        hidden.retain(|other| {
            let apart = other / GROUP != page / GROUP;
            if !apart {
                show(pages, lot, *other);
            }
            apart
        });
        if pages.is_shown(page) { Ok(()) } else { make() }
    }

    /// Gives those of some pages back to the host that have no content; at most [`BATCH`] of them are
    /// tried. `wait` is as for [`Readers::all_left`]. Nothing happens if another thread is doing this.
    pub(super) fn give_back(
        &self,
        pages: &impl Pages,
        lot: &ParkingLot,
        readers: &Readers,
        candidates: impl Iterator<Item = u64>,
        wait: impl FnMut() -> bool,
    ) -> Gone {
        let mut gone = Gone::default();
        let Some(_taking) = sync::try_lock_as(&TAKING, &self.taking) else { return gone };
        let mut taken = Vec::new();
        for page in candidates.take(BATCH) {
            let mut hidden = self.hidden();
            match take(pages, lot, page) {
                Found::Yes => {
                    pages.hide(page);
                    hidden.push(page);
                    taken.push(page);
                }
                Found::No => {}
                Found::Busy => gone.busy.push(page),
            }
        }
        if taken.is_empty() {
            return gone;
        }
        step("table.hidden");
        let all_left = readers.all_left(wait);
        let mut hidden = self.hidden();
        // Without those that a thread needed meanwhile.
        let mut left = std::mem::take(&mut *hidden);
        left.sort_unstable();
        gone.busy.extend(taken.into_iter().filter(|page| left.binary_search(page).is_err()));
        if !all_left {
            left.iter().for_each(|page| show(pages, lot, *page));
            gone.busy.append(&mut left);
            return gone;
        }
        let of_these = |slot| left.iter().any(|page| pages.slots(*page).contains(&slot));
        let dismissed = lot.dismiss(of_these);
        for run in left.chunk_by(|page, next| page + 1 == *next) {
            match pages.give_back(run[0]..run[0] + run.len() as u64) {
                Ok(bytes) => gone.bytes += bytes,
                Err(error) => {
                    log_refusal(&error);
                    run.iter().for_each(|page| show(pages, lot, *page));
                }
            }
        }
        drop(hidden);
        dismissed.iter().for_each(|sleeper| sleeper.wake());
        gone
    }

    fn hidden(&self) -> Locked<'_, Vec<u64>> {
        sync::lock_as(&GROWING, &self.hidden)
    }
}

/// Locks all slots of a page, if it exists, and they are empty and free.
fn take(pages: &impl Pages, lot: &ParkingLot, page: u64) -> Found {
    if !pages.is_shown(page) {
        return Found::No;
    }
    let slots = pages.slots(page);
    let slot = |index| Slot { word: pages.word(index), lot, index };
    // A read first, which costs less: most pages that are tried have content.
    let has_content = |index: u64| slot(index).has_content() || !pages.is_bare(index);
    if slots.clone().any(has_content) {
        return Found::No;
    }
    let Some(stopped) = slots.clone().find(|index| !slot(*index).take_away()) else {
        // What is beside a word changes under its lock, so this is the check that counts.
        if slots.clone().all(|index| pages.is_bare(index)) {
            return Found::Yes;
        }
        slots.for_each(|index| slot(index).put_back());
        return Found::No;
    };
    (slots.start..stopped).for_each(|index| slot(index).put_back());
    Found::Busy
}

/// Has a hidden page be as it was. The bit comes first: a thread that finds no bit takes a slot for
/// empty, and one that is unlocked may be written.
fn show(pages: &impl Pages, lot: &ParkingLot, page: u64) {
    pages.show(page);
    for index in pages.slots(page) {
        Slot { word: pages.word(index), lot, index }.put_back();
    }
}

#[cfg(not(any(loom, shuttle)))]
fn step(name: &'static str) {
    crate::failpoint::reach(name);
}

#[cfg(any(loom, shuttle))]
fn step(_: &'static str) {}

#[cfg(not(any(loom, shuttle)))]
fn log_refusal(error: &io::Error) {
    log::warn!("a part of the table that is not used cannot be given back: {error}");
}

#[cfg(any(loom, shuttle))]
fn log_refusal(_: &io::Error) {}
