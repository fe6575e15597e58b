//! The slot table: one word for each page of the disk, in a mapping that is sparse.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::ages::Ages;
use super::claims::{Claim, Claims};
use super::lock::{Slot, SlotGuard, Waiter};
use super::parking::ParkingLot;
use super::readers::{Reader, Readers};
use super::sums::{self, Intents};
use super::unverified::{GROUP, Unverified};
use super::vacant::{Coming, Pages};
use super::word::{Content, Object, Word};
use crate::failpoint;
use crate::store::{Place, State, StateError, StoreError, WORDS_PER_PAGE, Words};
use crate::sync::{AtomicU64, Ordering};

/// One slot for each page of a disk.
///
/// The words lie in a shared mapping, of which only the parts that were ever written exist. A slot
/// in a part that does not exist is empty, and reading it allocates nothing.
pub struct SlotTable {
    words: Words,
    lot: ParkingLot,
    readers: Readers,
    /// Pages of words that come or go.
    coming: Coming,
    claims: Claims,
    /// When slots were last accessed, if that is kept.
    ages: Option<Ages>,
    kept: Option<Kept>,
}

/// What a table has beside, if it outlives the process.
struct Kept {
    state: Arc<State>,
    intents: Intents,
    unverified: Unverified,
}

/// A slot is not what an earlier process left: its sum does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// What a publication replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// The content that the slot had.
    pub old: Content,
    /// The slot is empty now, and its part of the table was not known to be without content.
    pub vacated: bool,
}

/// What became of parts of the table without content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Bytes that went back to the host, those of check sums with them.
    pub bytes: u64,
    /// Whether there is more to be had later: a slot was in use.
    pub more: bool,
}

/// What a table takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableUsage {
    /// Slot words that exist.
    pub words: u64,
    /// Notes on which of them exist, which are to be verified, and when they were accessed.
    pub index: u64,
}

impl SlotTable {
    /// The table over `words`, all of it empty unless the mapping says otherwise.
    pub fn new(words: Words) -> Self {
        let (lot, readers, coming) = (ParkingLot::new(), Readers::new(), Coming::default());
        Self { words, lot, readers, coming, claims: Claims::default(), ages: None, kept: None }
    }

    /// The table of a state, of `len` slots. If there is anything in it, [`Self::take_over`] has to
    /// be called before it is used.
    ///
    /// # Errors
    /// The mapping cannot be made, or is not whole.
    pub(crate) fn of(state: &Arc<State>, len: u64) -> Result<Self, StateError> {
        let words = Words::of(state, len)?;
        let (state, intents, unverified) =
            (Arc::clone(state), Intents::new(), Unverified::default());
        Ok(Self { kept: Some(Kept { state, intents, unverified }), ..Self::new(words) })
    }

    /// Keeps from now on when slots are accessed; see `slot/ages.rs`.
    ///
    /// # Errors
    /// The host refuses the address space.
    pub fn keep_ages(&mut self) -> Result<(), StoreError> {
        self.ages = Some(Ages::new(self.words.room())?);
        Ok(())
    }

    /// Whether ages are kept.
    pub fn has_ages(&self) -> bool {
        self.ages.is_some()
    }

    /// The present, for [`Self::touch`]; anything if no ages are kept.
    #[inline]
    pub fn now(&self) -> u16 {
        self.ages.as_ref().map_or(0, Ages::now)
    }

    /// A request accesses a slot at `now`.
    #[inline]
    pub fn touch(&self, index: u64, now: u16) {
        if let Some(ages) = &self.ages
            && self.words.has_page(index / WORDS_PER_PAGE)
        {
            ages.touch(index, now);
        }
    }

    /// Seconds for which no request accessed a slot, at least; `None` if no ages are kept.
    pub fn age(&self, index: u64) -> Option<u64> {
        self.ages.as_ref().map(|ages| ages.age(index))
    }

    /// When a slot was last accessed, by the host's clock; `None` if no ages are kept.
    pub fn accessed(&self, index: u64) -> Option<Duration> {
        self.ages.as_ref().map(|ages| ages.accessed(index))
    }

    /// Keeps old slots from seeming young. To be called again after the time that it returns, or earlier; `None` if no
    /// ages are kept.
    pub fn keep_ages_true(&self) -> Option<Duration> {
        let ages = self.ages.as_ref()?;
        let rests = ages.rests();
        if rests.is_none() {
            self.pages().for_each(|page| ages.saturate(slots_of(page)));
        }
        rests.or_else(|| ages.rests())
    }

    /// Has so many seconds go by for the ages.
    #[cfg(test)]
    pub(crate) fn let_pass(&self, seconds: u64) {
        if let Some(ages) = &self.ages {
            ages.ahead.fetch_add(seconds, Ordering::Relaxed);
        }
    }

    /// The most seconds that [`Self::age`] can be.
    pub const OLDEST: u64 = Ages::MOST;

    /// Slots that there may be at most.
    pub fn room(&self) -> u64 {
        self.words.room()
    }

    /// Has what is needed for `len` slots in place; they are not there yet.
    ///
    /// # Errors
    /// The host does not lock so much memory.
    pub fn prepare(&self, len: u64) -> Result<(), StoreError> {
        self.words.prepare(len)
    }

    /// There are `len` slots from now on, not fewer than before, and prepared for. What is new is empty.
    pub fn grow(&self, len: u64) {
        self.words.grow(len);
    }

    /// The first slot whose content is unknown, or that has one behind the end of the disk.
    pub fn first_unknown(&self) -> Option<u64> {
        let is_wrong = |index: &u64| {
            let content = Word(self.words.hidden(*index).load(Ordering::Relaxed)).content();
            content == Content::Unknown || *index >= self.len() && content != Content::Empty
        };
        let beyond = self.words.beyond().iter().copied();
        self.pages().chain(beyond).find_map(|page| slots_of(page).find(is_wrong))
    }

    /// The pages of words that exist.
    fn pages(&self) -> impl Iterator<Item = u64> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let index = self.next_existing(next);
            next = (index / WORDS_PER_PAGE + 1) * WORDS_PER_PAGE;
            (index < self.len()).then_some(index / WORDS_PER_PAGE)
        })
    }

    /// Takes the table over from a process that is gone: ends what it was at, clears its locks, and
    /// has all that it left verified before it is used. `bytes` are those of an object that a slot names.
    pub fn take_over<'a>(&mut self, bytes: impl Fn(Object) -> &'a [u8]) {
        let Some(kept) = &self.kept else { return };
        self.end_changes(&kept.state, bytes);
        self.unlock_all();
        failpoint::reach("open.unlocked");
        let unverified = self.all_unverified();
        if let Some(kept) = &mut self.kept {
            kept.unverified = unverified;
        }
        self.note_vacant_parts();
        // Sums after words, so that no word is without one.
        if let Err(error) = self.words.drop_beyond().and_then(|()| self.words.drop_bare_sums()) {
            log::warn!("a part of the table that is not used cannot be given back: {error}");
        }
    }

    /// Makes the sums match of slots that were being changed, if they have one of their two contents.
    fn end_changes<'a>(&self, state: &State, bytes: impl Fn(Object) -> &'a [u8]) {
        for intent in sums::left(state) {
            // An intent that makes no sense is ignored, and its slot is verified as it is.
            if intent.index >= self.len() {
                continue;
            }
            let (Some(word), Some(sum)) =
                (self.words.get(intent.index), self.words.sum(intent.index))
            else {
                continue;
            };
            let word = Word(word.load(Ordering::Acquire));
            let body = word.content().object().map_or(0, |object| sums::of_bytes(bytes(object)));
            let found = sums::of_word(intent.index, word) ^ body;
            if intent.sums.contains(&found) {
                sum.store(found, Ordering::Release);
            }
        }
        sums::clear(state);
    }

    /// Notes the parts in which nothing is left.
    fn note_vacant_parts(&self) {
        for page in self.pages() {
            let is_empty = |index| {
                let word = Word(self.words.hidden(index).load(Ordering::Relaxed));
                word.content() == Content::Empty
            };
            if slots_of(page).all(is_empty) {
                self.words.note_vacant(page * WORDS_PER_PAGE);
            }
        }
    }

    /// Clears the lock bits of all slots, and their claims; also of those that the last page has behind the end.
    fn unlock_all(&self) {
        for index in self.pages().flat_map(slots_of) {
            let word = self.words.hidden(index);
            let left = Word(word.load(Ordering::Relaxed));
            // The jobs that claimed contents are gone, too.
            let free = left.data().with_claimed(false);
            // Most have none, and a page that is not written to stays clean.
            if left != free {
                word.store(free.0, Ordering::Release);
            }
        }
    }

    /// All slots that have a word or a sum.
    fn all_unverified(&self) -> Unverified {
        let is_unverified = |index: u64| {
            // The last group may have more slots than the table.
            let word = (index < self.len()).then(|| self.words.get(index)).flatten();
            word.is_some_and(|word| {
                let sum = self.words.sum(index).map_or(0, |sum| sum.load(Ordering::Relaxed));
                word.load(Ordering::Relaxed) != 0 || sum != 0
            })
        };
        let mut next = 0;
        let groups = std::iter::from_fn(|| {
            let index = self.words.next_existing(next);
            next = (index / GROUP + 1) * GROUP;
            (index < self.len()).then_some(index / GROUP)
        });
        Unverified::new(groups, is_unverified)
    }

    /// Publishes what a slot holds from now on, releases it, and returns what it held. `body` is what
    /// [`Self::body_sum`] says of the object that `new` names, 0 if it names none. `published` is the
    /// caller's failpoint behind the release.
    ///
    /// # Safety
    /// The caller owns the object that `new` names, and gives it to the slot. The caller owns the object that
    /// the slot held from the return on.
    #[allow(unsafe_code)]
    pub unsafe fn publish(
        &self,
        guard: SlotGuard<'_>,
        new: Content,
        body: u32,
        published: &'static str,
    ) -> Replaced {
        let (index, old, word) = (guard.index(), guard.word().content(), Word::new(new));
        self.change(guard, word, |index, _| sums::of_word(index, word) ^ body);
        failpoint::reach(published);
        // Not before: a thread that finds the slot verified reads its word without the lock.
        self.mark_verified(index);
        Replaced { old, vacated: new == Content::Empty && self.words.note_vacant(index) }
    }

    /// Publishes that a slot's object is at another place, and releases the slot. It stays as unverified as
    /// it was.
    ///
    /// # Safety
    /// As for [`Self::publish`]: the object at `to` is the caller's, with the bytes of the slot's, which
    /// has an object. The caller owns the one that the slot had from the return on.
    #[allow(unsafe_code)]
    pub unsafe fn publish_moved(&self, guard: SlotGuard<'_>, to: Place) {
        let old = guard.word();
        let word = old.moved_to(to);
        self.change(guard, word, |index, sum| {
            sum ^ sums::of_word(index, old) ^ sums::of_word(index, word)
        });
    }

    /// Claims the content of a locked slot for a job, and releases it; see `slot/claims.rs`. `None` if another job
    /// has it.
    pub fn claim(&self, guard: SlotGuard<'_>) -> Option<Claim> {
        assert!(guard.is_of(&self.lot), "a slot of another table");
        self.claims.claim(guard)
    }

    /// Whether a locked slot still has the content that was claimed.
    pub fn holds(&self, guard: &SlotGuard<'_>, claim: &Claim) -> bool {
        assert!(guard.is_of(&self.lot), "a slot of another table");
        self.claims.holds(guard, claim)
    }

    /// Ends a claim whose slot has another content by now, or is locked by `guard`: that is released, and if the
    /// claim holds, with the marks that `mark` makes of its word.
    pub fn end_claim(
        &self,
        claim: Claim,
        guard: Option<SlotGuard<'_>>,
        mark: impl FnOnce(Word) -> Word,
    ) {
        self.claims.end(claim, guard, mark);
    }

    /// Changes the marks of a locked page, which has an object, and releases it. What it holds stays, and so does
    /// its sum, which is not of marks.
    pub fn mark(&self, guard: SlotGuard<'_>, mark: impl FnOnce(Word) -> Word) {
        let word = guard.word();
        let marked = mark(word);
        debug_assert!(word.is_object() && marked.essence() == word.essence());
        guard.release(marked);
    }

    fn change(&self, guard: SlotGuard<'_>, word: Word, sum: impl FnOnce(u64, u32) -> u32) {
        assert!(guard.is_of(&self.lot), "a slot of another table");
        let index = guard.index();
        match (&self.kept, self.words.sum(index)) {
            (Some(kept), Some(place)) => {
                let new = sum(index, place.load(Ordering::Relaxed));
                kept.intents.change(&kept.state, index, place, new, || guard.release(word));
            }
            _ => guard.release(word),
        }
    }

    /// What an object adds to its slot's sum; 0 where there are no sums.
    pub fn body_sum(&self, bytes: &[u8]) -> u32 {
        if self.kept.is_some() { sums::of_bytes(bytes) } else { 0 }
    }

    fn is_unverified(&self, index: u64) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.unverified.has(index))
    }

    fn mark_verified(&self, index: u64) {
        if let Some(kept) = &self.kept {
            kept.unverified.mark_verified(index);
        }
    }

    /// The content of a slot that the caller has locked, and the bytes of its object, none if it has none.
    /// `bytes` says where those are. If an earlier process left the slot and it was not verified since, its sum
    /// is checked first.
    ///
    /// # Errors
    /// The slot is damaged.
    #[inline(always)]
    pub fn held<'g>(
        &self,
        guard: &'g SlotGuard<'_>,
        bytes: impl FnOnce(Object) -> &'g [u8],
    ) -> Result<(Content, &'g [u8]), Damaged> {
        assert!(guard.is_of(&self.lot), "a slot of another table");
        let content = guard.word().content();
        let bytes = content.object().map_or(&[][..], bytes);
        let index = guard.index();
        if self.is_unverified(index) {
            self.verify(index, guard.word(), bytes)?;
        }
        Ok((content, bytes))
    }

    #[cold]
    fn verify(&self, index: u64, word: Word, bytes: &[u8]) -> Result<(), Damaged> {
        let Some(sum) = self.words.sum(index) else { return Ok(()) };
        if sums::of_word(index, word) ^ sums::of_bytes(bytes) != sum.load(Ordering::Relaxed) {
            return Err(Damaged);
        }
        self.mark_verified(index);
        Ok(())
    }

    /// Number of slots, which is pages of the disk.
    pub fn len(&self) -> u64 {
        self.words.len()
    }

    /// The content of a slot that can be had without its lock: empty and same-filled pages, of
    /// which the word says everything. `None` if there is an object to be read under the lock, or a sum to
    /// be checked.
    pub fn peek(&self, index: u64) -> Option<Content> {
        self.readers.assert_inside();
        if self.is_unverified(index) {
            return None;
        }
        let Some(word) = self.words.get(index) else { return Some(Content::Empty) };
        let word = Word(word.load(Ordering::Acquire));
        // Most are, and one comparison says so.
        if word.is_object() {
            return None;
        }
        let content = word.content();
        content.object().is_none().then_some(content)
    }

    /// The word of a slot as it is at this moment, read without its lock, `None` if it is in a part of the table that
    /// does not exist. For reports: it may be another one already. Any index is allowed.
    #[cfg(not(any(loom, shuttle)))]
    pub fn glance(&self, index: u64) -> Option<Word> {
        self.readers.assert_inside();
        let word = (index < self.len()).then(|| self.words.get(index)).flatten()?;
        Some(Word(word.load(Ordering::Relaxed)))
    }

    /// Has the word of a slot fetched that will be used soon, of any index.
    #[cfg(not(any(loom, shuttle)))]
    pub fn prefetch(&self, index: u64) {
        self.words.prefetch(index);
    }

    /// The object that a slot names at this moment, read without its lock: a hint of what will be read. Any
    /// index is allowed.
    #[cfg(not(any(loom, shuttle)))]
    pub fn hint(&self, index: u64) -> Option<Object> {
        self.readers.assert_inside();
        let word = (index < self.len()).then(|| self.words.get(index)).flatten()?;
        Word(word.load(Ordering::Relaxed)).content().object()
    }

    /// Takes the lock of a slot, or queues for it; `None` if the slot is in a part of the table
    /// that does not exist, so it is empty. The rules stand at the top of `slot/lock.rs`.
    pub fn poll_lock<'a>(
        &'a self,
        index: u64,
        waiter: &mut Option<Waiter<'a>>,
        cx: &Context<'_>,
    ) -> Poll<Option<SlotGuard<'a>>> {
        self.readers.assert_inside();
        match self.slot(index) {
            Some(slot) => slot.poll_lock(waiter, cx).map(Some),
            None => {
                // It may have been waiting for the slot when that was there.
                *waiter = None;
                Poll::Ready(None)
            }
        }
    }

    /// Takes the lock of a slot if it is free and exists; any index is allowed.
    pub fn try_lock(&self, index: u64) -> Option<SlotGuard<'_>> {
        (index < self.len()).then(|| self.slot(index))??.try_lock()
    }

    /// Makes the part of the table exist in which `index` lies, so that the slot can be written.
    /// `reserve` is asked for the bytes that it takes more, `release` is told of those that could not
    /// be had after all.
    ///
    /// # Errors
    /// `reserve` refuses, or the host has no memory for it. Nothing more exists then.
    pub fn ensure<E: From<StoreError>>(
        &self,
        index: u64,
        reserve: impl Fn(u64) -> Result<(), E>,
        release: impl Fn(u64),
    ) -> Result<(), E> {
        let make = || {
            let grow = |count| {
                let bytes = self.words.growth_bytes(index, count);
                reserve(bytes)?;
                self.words.populate(index, count).map_err(|error| {
                    release(bytes);
                    error.into()
                })
            };
            let count = self.words.growth(index);
            // There may be room for what is needed but not for more.
            grow(count).or_else(|error| if count > 1 { grow(1) } else { Err(error) })
        };
        self.coming.ensure(&self.parts(), &self.lot, index / WORDS_PER_PAGE, make)
    }

    /// What a thread needs to read slots while parts of the table go. [`Self::peek`],
    /// [`Self::poll_lock`] and [`Self::try_lock`] are called inside of one, if any thread calls
    /// [`Self::give_back`] meanwhile.
    pub fn reader(&self) -> Reader {
        self.readers.reader()
    }

    /// Gives parts of the table in which nothing is left back to the host: all, or some of them. Called
    /// outside of all readers of the thread. `wait` is called while others are at slots that they
    /// may have found before; it says whether to wait on. Nothing happens if another thread is
    /// doing this.
    pub fn give_back(&self, all: bool, mut wait: impl FnMut() -> bool) -> GivenBack {
        let mut candidates = self.words.take_vacant();
        let (mut bytes, mut busy) = (0, Vec::new());
        loop {
            let mut looked_at = 0;
            let some = candidates.by_ref().inspect(|_| looked_at += 1);
            let gone =
                self.coming.give_back(&self.parts(), &self.lot, &self.readers, some, &mut wait);
            bytes += gone.bytes;
            busy.extend(gone.busy);
            if !all || looked_at == 0 {
                break;
            }
        }
        for page in &busy {
            self.words.note_vacant(page * WORDS_PER_PAGE);
        }
        GivenBack { bytes, more: !busy.is_empty() }
    }

    /// Makes the slot exist, whatever that takes.
    #[cfg(test)]
    pub(crate) fn make(&self, index: u64) {
        self.ensure::<StoreError>(index, |_| Ok(()), |_| ()).expect("memory");
    }

    /// Whether the part of the table exists in which `index` lies.
    pub fn exists(&self, index: u64) -> bool {
        self.words.get(index).is_some()
    }

    /// The table with nothing known of it but what its mapping says.
    #[cfg(test)]
    pub(crate) fn reopened(self) -> Result<Self, StateError> {
        Ok(Self::new(self.words.reopened()?))
    }

    /// The first slot at or after `index` that lies in a part of the table that exists; `len()`
    /// if there is none. What is skipped is empty.
    pub fn next_existing(&self, index: u64) -> u64 {
        self.words.next_existing(index)
    }

    /// Bytes of the words that exist, and of their sums.
    pub fn bytes(&self) -> u64 {
        self.words.existing_bytes()
    }

    /// What the table takes.
    pub fn usage(&self) -> TableUsage {
        let unverified = self.kept.as_ref().map_or(0, |kept| kept.unverified.heap_bytes());
        TableUsage {
            words: self.words.resident_bytes(),
            index: self.words.index_bytes() + unverified + self.age_bytes(),
        }
    }

    /// Bytes of ages where the table is.
    fn age_bytes(&self) -> u64 {
        self.ages.as_ref().map_or(0, |_| Ages::bytes(self.words.groups_of_four()))
    }

    /// Bytes of the ages of `len` slots.
    pub fn most_ages(len: u64) -> u64 {
        Ages::full_bytes(len)
    }

    /// Bytes of words and sums of a table of `len` slots, `kept` in a state or not, if all of it exists.
    pub fn full_bytes(len: u64, kept: bool) -> u64 {
        Words::full_bytes(len, kept)
    }

    /// Most bytes of heap of such a table.
    pub fn most_heap(len: u64, kept: bool) -> u64 {
        let groups = len.div_ceil(GROUP);
        let unverified = if kept { Unverified::most_heap(groups) } else { 0 };
        Words::index_bytes_of(len) + unverified
    }

    /// Calls `visit` with every slot that is not empty, in order, without locking. Exact when
    /// no thread writes; for tests, reports, and a table that is taken over.
    pub fn for_each(&self, mut visit: impl FnMut(u64, Word)) {
        self.for_each_word(|index, word| {
            if word.content() != Content::Empty {
                visit(index, word);
            }
        });
    }

    fn for_each_word(&self, mut visit: impl FnMut(u64, Word)) {
        let mut index = self.next_existing(0);
        while index < self.len() {
            if let Some(word) = self.words.get(index) {
                visit(index, Word(word.load(Ordering::Acquire)));
            }
            index = self.next_existing(index + 1);
        }
    }

    fn parts(&self) -> Parts<'_> {
        Parts { words: &self.words, ages: self.ages.as_ref() }
    }

    fn slot(&self, index: u64) -> Option<Slot<'_>> {
        let word = self.words.get(index)?;
        Some(Slot { word, lot: &self.lot, index })
    }
}

/// The slots of a page of words, all of them, also behind the last slot of the table: it may grow into them while they
/// are taken.
fn slots_of(page: u64) -> Range<u64> {
    page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE
}

/// What comes and goes with parts of a table.
struct Parts<'t> {
    words: &'t Words,
    ages: Option<&'t Ages>,
}

impl Pages for Parts<'_> {
    fn slots(&self, page: u64) -> Range<u64> {
        slots_of(page)
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        self.words.hidden(index)
    }

    fn is_bare(&self, index: u64) -> bool {
        !self.words.has_sum(index)
    }

    fn is_shown(&self, page: u64) -> bool {
        self.words.has_page(page)
    }

    fn show(&self, page: u64) {
        self.words.set_existing(page, true);
    }

    fn hide(&self, page: u64) {
        self.words.set_existing(page, false);
    }

    fn give_back(&self, run: Range<u64>) -> std::io::Result<u64> {
        let bytes = self.words.give_back(run.start, run.end - run.start)?;
        if let Some(ages) = self.ages {
            ages.forget(run, |page| self.words.has_page(page));
        }
        Ok(bytes)
    }
}
