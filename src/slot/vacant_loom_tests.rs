//! Pages of the slot table that go beside threads which read them, model-checked: a table of one page
//! with two slots, of which any use after it is gone is a race that loom reports.
//!
//! Each of these changes makes a test fail: no wait, no dismissal, no locks, locks released before the bit is
//! set, either side of the barrier left out, a hidden part made anew.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use loom::cell::UnsafeCell;
use loom::thread;

use super::lock::{Slot, SlotGuard, Waiter};
use super::parking::ParkingLot;
use super::readers::{Reader, Readers};
use super::vacant::{Coming, Gone, Pages};
use super::word::{Content, Word};
use crate::sync::{self, AtomicU64, Ordering};

/// What a table is made of, but for the mapping.
struct Table {
    words: [AtomicU64; 2],
    /// Read by a thread that uses the page, written by one that gives it back or makes it.
    page: UnsafeCell<u32>,
    existing: AtomicU64,
    vacant: AtomicU64,
    lot: ParkingLot,
    readers: Readers,
    coming: Coming,
}

impl Pages for Table {
    fn slots(&self, _: u64) -> Range<u64> {
        0..2
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        self.touch();
        &self.words[index as usize]
    }

    fn is_bare(&self, _: u64) -> bool {
        true
    }

    fn is_shown(&self, _: u64) -> bool {
        self.existing.load(Ordering::Acquire) == 1
    }

    fn show(&self, _: u64) {
        self.existing.fetch_or(1, Ordering::Release);
    }

    fn hide(&self, _: u64) {
        self.existing.fetch_and(!1, Ordering::AcqRel);
    }

    fn give_back(&self, _: Range<u64>) -> io::Result<u64> {
        self.replace();
        Ok(1)
    }
}

impl Table {
    /// With the page there, and this in its first slot.
    fn new(content: Content) -> Arc<Self> {
        let words = [AtomicU64::new(Word::new(content).0), AtomicU64::new(0)];
        Arc::new(Self {
            words,
            page: UnsafeCell::new(0),
            existing: AtomicU64::new(1),
            vacant: AtomicU64::new(0),
            lot: ParkingLot::new(),
            readers: Readers::new(),
            coming: Coming::default(),
        })
    }

    #[allow(unsafe_code)]
    fn touch(&self) {
        // SAFETY: nothing is done with the pointer; loom reports a use that races with `replace`.
        self.page.with(|page| unsafe { page.read() });
    }

    /// The page is another one: all zero.
    #[allow(unsafe_code)]
    fn replace(&self) {
        // SAFETY: loom reports a use that is not ordered before or after this one.
        self.page.with_mut(|page| unsafe { *page += 1 });
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn peek(&self, index: u64) -> Content {
        if !self.is_shown(0) {
            return Content::Empty;
        }
        let word = self.word(index).load(Ordering::Acquire);
        self.touch();
        Word(word).content()
    }

    /// As the table's own.
    fn poll_lock<'a>(
        &'a self,
        index: u64,
        waiter: &mut Option<Waiter<'a>>,
        cx: &Context<'_>,
    ) -> Poll<Option<SlotGuard<'a>>> {
        if !self.is_shown(0) {
            *waiter = None;
            return Poll::Ready(None);
        }
        let polled = Slot { word: self.word(index), lot: &self.lot, index }.poll_lock(waiter, cx);
        self.touch();
        polled.map(Some)
    }

    fn ensure(&self) {
        let make = || {
            self.replace();
            self.show(0);
            Ok::<(), Infallible>(())
        };
        let _ = self.coming.ensure(self, &self.lot, 0, make);
    }

    /// Puts a content into a slot, as a request does: each poll is a visit.
    fn write(&self, reader: &Reader, index: u64, content: Content) {
        let mut waiter = None;
        sync::block_on(|cx| {
            reader.inside(|| {
                loop {
                    match self.poll_lock(index, &mut waiter, cx) {
                        Poll::Ready(Some(guard)) => {
                            guard.release(Word::new(content));
                            self.touch();
                            return Poll::Ready(());
                        }
                        Poll::Ready(None) if content == Content::Empty => return Poll::Ready(()),
                        Poll::Ready(None) => self.ensure(),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
        });
    }

    /// Tries to give the page back, and waits for others so many times.
    fn give_back(&self, mut waits: u32) -> Gone {
        let wait = || {
            let again = waits > 0;
            waits = waits.saturating_sub(1);
            thread::yield_now();
            again
        };
        self.coming.give_back(self, &self.lot, &self.readers, std::iter::once(0), wait)
    }

    /// To be called when all threads are done: nothing is locked, and no task waits.
    fn finish(&self) -> [Content; 2] {
        assert!(!self.lot.bucket(0).waits(0) && !self.lot.bucket(0).waits(1));
        if self.is_shown(0) {
            for index in 0..2 {
                let slot = Slot { word: self.word(index), lot: &self.lot, index };
                drop(slot.try_lock().expect("free at the end"));
            }
        }
        [self.peek(0), self.peek(1)]
    }
}

fn model(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

const SAME: Content = Content::Same(1);

#[test]
fn a_write_beside_a_page_that_goes_is_not_lost() {
    for waits in [0, 2] {
        model(3, move || {
            let table = Table::new(Content::Empty);
            let its = Arc::clone(&table);
            let reader = its.readers.reader();
            let writer = thread::spawn(move || {
                its.write(&reader, 0, SAME);
                // Done: a thread that reads now finds it.
                assert_eq!(reader.inside(|| its.peek(0)), SAME);
            });
            let gone = table.give_back(waits);
            assert!(gone.bytes <= 1 && gone.busy.len() <= 1);
            writer.join().unwrap();
            assert_eq!(table.finish(), [SAME, Content::Empty]);
        });
    }
}

#[test]
fn a_reader_of_a_slot_finds_its_page_there() {
    for waits in [0, 2] {
        model(3, move || {
            let table = Table::new(Content::Empty);
            let its = Arc::clone(&table);
            let reader = its.readers.reader();
            let other = thread::spawn(move || {
                for index in [0, 1] {
                    assert_eq!(reader.inside(|| its.peek(index)), Content::Empty);
                }
            });
            table.give_back(waits);
            other.join().unwrap();
            table.finish();
            // No thread is there: it goes now, if it did not.
            let is_there = u64::from(table.is_shown(0));
            assert_eq!(table.give_back(0).bytes, is_there);
        });
    }
}

/// Two that write to one slot, so that one may have to wait, and a page that goes.
#[test]
fn waiters_of_a_page_that_goes_are_all_served() {
    for waits in [0, 2] {
        model(2, move || {
            let table = Table::new(Content::Empty);
            let writers: Vec<_> = (1..3)
                .map(|value| {
                    let its = Arc::clone(&table);
                    let reader = its.readers.reader();
                    thread::spawn(move || its.write(&reader, 0, Content::Same(value)))
                })
                .collect();
            table.give_back(waits);
            for writer in writers {
                writer.join().unwrap();
            }
            let [first, second] = table.finish();
            assert!(matches!(first, Content::Same(1 | 2)), "{first:?}");
            assert_eq!(second, Content::Empty);
        });
    }
}

/// A page with content stays, and one that loses its content is noted or gone.
#[test]
fn a_page_that_was_emptied_is_gone_or_noted() {
    model(3, || {
        let table = Table::new(SAME);
        table.vacant.store(1, Ordering::Relaxed);
        let its = Arc::clone(&table);
        let reader = its.readers.reader();
        let other = thread::spawn(move || {
            its.write(&reader, 0, Content::Empty);
            its.vacant.fetch_or(1, Ordering::AcqRel);
        });
        let mut busy = Vec::new();
        if table.vacant.fetch_and(!1, Ordering::AcqRel) == 1 {
            busy = table.give_back(2).busy;
        }
        other.join().unwrap();
        let noted = table.vacant.load(Ordering::Relaxed) == 1 || !busy.is_empty();
        assert!(noted || !table.is_shown(0), "no thread tries it again");
        assert_eq!(table.finish(), [Content::Empty; 2]);
    });
}
