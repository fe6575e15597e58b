//! What a disk may hold after requests that overlapped, failed, or were under way when it died.
//!
//! Each sector has the changes that it may be of. A change that is acknowledged rules out all that
//! were acknowledged before it was submitted; of changes that were in flight together any may be
//! the last. What failed, and what will never be acknowledged, may have happened or not, page by
//! page. A read rules out all that it did not find, once nothing is in flight on its sectors.

use std::ops::Range;

use crate::common::disk::SECTOR_LEN;
use crate::contents::{self, PAGE};

/// The number of a change. 0 is the making of the disk, which leaves it empty.
pub type Number = u32;

/// A moment: so many things were submitted and completed before.
type Time = u64;

const NEVER: Time = Time::MAX;

/// What a request does to its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Write,
    /// Zeroes whole pages. The rest of the sectors may be zeroed, or left.
    Discard,
    /// Zeroes all sectors.
    Zero,
}

#[derive(Debug, Clone)]
struct Change {
    what: What,
    sectors: Range<usize>,
    submitted: Time,
    /// When it was over: acknowledged, failed or lost.
    over: Time,
}

impl Change {
    /// Whether it covers all of the page that `sector` lies in.
    fn has_page(&self, sector: usize) -> bool {
        let page = sector / PAGE * PAGE;
        self.sectors.start <= page && page + PAGE <= self.sectors.end
    }

    /// Whether it cannot leave the sector as it was.
    fn surely_changes(&self, sector: usize) -> bool {
        self.sectors.contains(&sector) && (self.what != What::Discard || self.has_page(sector))
    }
}

/// A change that a sector may be of.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    number: Number,
    /// When it was ruled out. It stays for reads that began before.
    gone: Time,
}

/// A read in flight.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading {
    sectors: Range<usize>,
    submitted: Time,
}

/// The disk as it may be.
pub struct Model {
    now: Time,
    changes: Vec<Change>,
    sectors: Vec<Vec<Candidate>>,
    /// When reads that are in flight were submitted.
    reading: Vec<Time>,
}

impl Model {
    /// An empty disk of so many sectors.
    pub fn new(sectors: usize) -> Self {
        assert!(sectors <= contents::MOST_PAGES * PAGE);
        let empty = Change { what: What::Discard, sectors: 0..sectors, submitted: 0, over: 0 };
        Self {
            now: 0,
            changes: vec![empty],
            sectors: vec![vec![Candidate { number: 0, gone: NEVER }]; sectors],
            reading: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    /// The disk has `sectors` sectors from now on; those that are new are empty.
    pub fn grow(&mut self, sectors: usize) {
        assert!(sectors >= self.len() && sectors <= contents::MOST_PAGES * PAGE);
        self.sectors.resize_with(sectors, || vec![Candidate { number: 0, gone: NEVER }]);
        self.changes[0].sectors = 0..sectors;
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    /// When the first of the reads that are in flight was submitted. What was gone by then, no read
    /// can see any more.
    fn oldest_read(&self) -> Time {
        self.reading.iter().copied().min().unwrap_or(NEVER)
    }

    /// A change is submitted: from now on, and not before, it may be seen.
    pub fn submit(&mut self, what: What, sectors: Range<usize>) -> Number {
        let submitted = self.tick();
        let number = self.changes.len() as Number;
        assert!(number < contents::MOST_CHANGES);
        for candidates in &mut self.sectors[sectors.clone()] {
            candidates.push(Candidate { number, gone: NEVER });
        }
        self.changes.push(Change { what, sectors, submitted, over: NEVER });
        number
    }

    /// A change is acknowledged.
    pub fn done(&mut self, number: Number) {
        let now = self.tick();
        let oldest = self.oldest_read();
        let change = &mut self.changes[number as usize];
        assert_eq!(change.over, NEVER, "change {number} is acknowledged twice");
        change.over = now;
        let change = &self.changes[number as usize];
        for sector in change.sectors.clone().filter(|sector| change.surely_changes(*sector)) {
            self.sectors[sector].retain_mut(|candidate| {
                let over = self.changes[candidate.number as usize].over;
                if candidate.gone == NEVER && over < change.submitted {
                    candidate.gone = now;
                }
                candidate.gone == NEVER || candidate.gone > oldest
            });
        }
    }

    /// A change has failed, or will never be acknowledged: each of its pages is done or not.
    pub fn given_up(&mut self, number: Number) {
        let now = self.tick();
        let change = &mut self.changes[number as usize];
        assert_eq!(change.over, NEVER, "change {number} is over twice");
        change.over = now;
    }

    /// A read is submitted.
    pub fn begin_read(&mut self, sectors: Range<usize>) -> Reading {
        let submitted = self.tick();
        self.reading.push(submitted);
        Reading { sectors, submitted }
    }

    /// A read will never be acknowledged.
    pub fn forget_read(&mut self, reading: &Reading) {
        self.reading.retain(|submitted| *submitted != reading.submitted);
    }

    /// A read is over and gave `got`: compares it, and learns from it.
    pub fn end_read(&mut self, reading: &Reading, got: &[u8]) -> Result<(), String> {
        self.tick();
        self.forget_read(reading);
        assert_eq!(got.len(), reading.sectors.len() * SECTOR_LEN);
        let mut page = Page::default();
        for (sector, got) in reading.sectors.clone().zip(got.chunks(SECTOR_LEN)) {
            if sector % PAGE == 0 {
                page = Page::default();
            }
            let found = self.compare(sector, reading.submitted, got)?;
            if let Some(number) = found {
                self.check_whole(&mut page, sector, number)?;
            }
        }
        Ok(())
    }

    /// Compares the bytes of a sector. Gives the change that they are of, if that is certain.
    fn compare(
        &mut self,
        sector: usize,
        submitted: Time,
        got: &[u8],
    ) -> Result<Option<Number>, String> {
        let candidates = &self.sectors[sector];
        let may_be_seen = |candidate: &Candidate| candidate.gone >= submitted;
        let matches = |candidate: &Candidate| {
            may_be_seen(candidate) && self.is_of(sector, candidate.number, got)
        };
        // Nearly always there is one that matches, and no other.
        if let [only] = candidates[..] {
            let found = matches(&only);
            return if found { Ok(Some(only.number)) } else { Err(self.wrong(sector, got)) };
        }
        let found: Vec<_> = candidates.iter().copied().filter(matches).collect();
        let [first, rest @ ..] = &found[..] else { return Err(self.wrong(sector, got)) };
        let first = rest.is_empty().then_some(first.number);
        let live = candidates.iter().filter(|one| one.gone == NEVER);
        let over = live.map(|one| self.changes[one.number as usize].over).max();
        if let Some(over) = over.filter(|over| *over < submitted) {
            // Nothing has changed since then, so it was what it is now. Reads that began before may
            // still have seen something else.
            let found: Vec<_> = found.iter().map(|one| one.number).collect();
            let oldest = self.oldest_read();
            self.sectors[sector].retain_mut(|one| {
                if one.gone == NEVER && !found.contains(&one.number) {
                    one.gone = over;
                }
                one.gone == NEVER || one.gone > oldest
            });
        }
        Ok(first)
    }

    fn is_of(&self, sector: usize, number: Number, got: &[u8]) -> bool {
        match self.changes[number as usize].what {
            What::Write => contents::bytes(sector, number) == got,
            What::Discard | What::Zero => got.iter().all(|byte| *byte == 0),
        }
    }

    /// A page is changed in one step. So where a sector of it is of one change, no other that this
    /// one covers is of what was there before.
    fn check_whole(&self, page: &mut Page, sector: usize, number: Number) -> Result<(), String> {
        let mine = &self.changes[number as usize];
        for (other, its_number) in &page.found {
            let its = &self.changes[*its_number as usize];
            let torn = |new: &Change, at: usize, old: &Change| {
                new.surely_changes(at) && old.over < new.submitted
            };
            if torn(mine, *other, its) || torn(its, sector, mine) {
                return Err(format!(
                    "a page in part: sector {sector} is of change {number} {mine:?}, sector \
                     {other} of change {its_number} {its:?}"
                ));
            }
        }
        page.found.push((sector, number));
        Ok(())
    }

    fn wrong(&self, sector: usize, got: &[u8]) -> String {
        let candidates: Vec<_> = self.sectors[sector]
            .iter()
            .map(|candidate| {
                let change = &self.changes[candidate.number as usize];
                let gone = if candidate.gone == NEVER { "" } else { ", gone" };
                format!("change {} {change:?}{gone}", candidate.number)
            })
            .collect();
        format!("sector {sector} holds {} in place of {candidates:?}", contents::describe(got))
    }

    /// How many pages hold something, zeroes that were written included: at least and at most. Says
    /// nothing while changes are in flight.
    pub fn stored_pages(&self) -> (u64, u64) {
        let (mut least, mut most) = (0, 0);
        for (page, sectors) in self.sectors.chunks(PAGE).enumerate() {
            let live = |all: &[Candidate]| -> Vec<Candidate> {
                all.iter().copied().filter(|one| one.gone == NEVER).collect()
            };
            let sectors = || (page * PAGE..).zip(sectors.iter().map(|all| live(all)));
            let is_write = |sector: usize, candidate: &Candidate| {
                let change = &self.changes[candidate.number as usize];
                let zero = [0; SECTOR_LEN];
                change.what == What::Write && contents::bytes(sector, candidate.number) != zero
            };
            // What frees the whole page leaves nothing behind; all else may be a page of zeroes.
            let frees = |sector: usize, candidate: &Candidate| {
                let change = &self.changes[candidate.number as usize];
                change.what != What::Write && change.has_page(sector)
            };
            let sure = sectors().any(|(sector, all)| all.iter().all(|one| is_write(sector, one)));
            let free = sectors().all(|(sector, all)| all.iter().all(|one| frees(sector, one)));
            least += u64::from(sure);
            most += u64::from(!free);
        }
        (least, most)
    }
}

/// What was found in the sectors of a page so far.
#[derive(Default)]
struct Page {
    found: Vec<(usize, Number)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes that write something else than zeroes to page 0: numbers that are used up until the next
    /// one is such a change.
    fn submit(model: &mut Model, sectors: Range<usize>) -> Number {
        loop {
            let number = model.changes.len() as Number;
            if contents::bytes(sectors.start, number) != [0; SECTOR_LEN] {
                return model.submit(What::Write, sectors);
            }
            let number = model.submit(What::Write, 0..0);
            model.done(number);
        }
    }

    fn read(model: &mut Model, of: &[Option<Number>]) -> Result<(), String> {
        let reading = model.begin_read(0..of.len());
        model.end_read(&reading, &bytes(of))
    }

    fn bytes(of: &[Option<Number>]) -> Vec<u8> {
        let sectors = of.iter().enumerate();
        sectors
            .flat_map(|(at, of)| of.map_or([0; SECTOR_LEN], |of| contents::bytes(at, of)))
            .collect()
    }

    #[test]
    fn the_last_of_changes_one_after_the_other_is_there() {
        let mut model = Model::new(8);
        assert!(read(&mut model, &[None; 8]).is_ok());
        let a = submit(&mut model, 0..8);
        model.done(a);
        assert!(read(&mut model, &[None; 8]).is_err());
        let b = submit(&mut model, 0..8);
        model.done(b);
        assert!(read(&mut model, &[Some(a); 8]).is_err());
        assert!(read(&mut model, &[Some(b); 8]).is_ok());
        assert_eq!(model.sectors[0].len(), 1);
    }

    #[test]
    fn of_changes_at_the_same_time_any_may_be_there_until_a_read() {
        for acknowledged_first in [0, 1] {
            for last in [0, 1] {
                let mut model = Model::new(8);
                let both = [submit(&mut model, 0..8), submit(&mut model, 0..8)];
                model.done(both[acknowledged_first]);
                model.done(both[1 - acknowledged_first]);
                assert!(read(&mut model, &[None; 8]).is_err());
                assert!(read(&mut model, &[Some(both[last]); 8]).is_ok());
                assert!(read(&mut model, &[Some(both[1 - last]); 8]).is_err());
            }
        }
    }

    #[test]
    fn one_that_began_before_another_was_acknowledged_may_outlast_it() {
        let mut model = Model::new(8);
        let a = submit(&mut model, 0..8);
        let b = submit(&mut model, 0..8);
        model.done(b);
        let c = submit(&mut model, 0..8);
        model.done(c);
        // B is ruled out by C; A, which is in flight, is not.
        assert!(read(&mut model, &[Some(b); 8]).is_err());
        assert!(read(&mut model, &[Some(c); 8]).is_ok());
        model.done(a);
        assert!(read(&mut model, &[Some(a); 8]).is_ok());
        assert!(read(&mut model, &[Some(c); 8]).is_err());
    }

    #[test]
    fn what_is_given_up_is_done_or_not_but_in_whole_pages() {
        let mut model = Model::new(16);
        let a = submit(&mut model, 0..16);
        model.done(a);
        let b = submit(&mut model, 0..16);
        model.given_up(b);
        let half = |at| if at < 8 { Some(a) } else { Some(b) };
        let torn = |at| if at < 12 { Some(a) } else { Some(b) };
        assert!(read(&mut model, &std::array::from_fn::<_, 16, _>(torn)).is_err());
        // A model that found something wrong is of no more use.
        let mut model = Model::new(16);
        assert_eq!(submit(&mut model, 0..16), a);
        model.done(a);
        assert_eq!(submit(&mut model, 0..16), b);
        model.given_up(b);
        assert!(read(&mut model, &std::array::from_fn::<_, 16, _>(half)).is_ok());
        assert!(read(&mut model, &[Some(a); 16]).is_err(), "it changes no more");
    }

    #[test]
    fn parts_of_a_page_by_several_changes_are_not_torn() {
        let mut model = Model::new(8);
        let a = submit(&mut model, 0..8);
        let b = submit(&mut model, 2..4);
        model.done(a);
        model.given_up(b);
        let mixed = |at| if (2..4).contains(&at) { Some(b) } else { Some(a) };
        assert!(read(&mut model, &std::array::from_fn::<_, 8, _>(mixed)).is_ok());
    }

    #[test]
    fn discards_leave_or_zero_their_ragged_ends() {
        let mut model = Model::new(24);
        let a = submit(&mut model, 0..24);
        model.done(a);
        let number = model.submit(What::Discard, 4..20);
        model.done(number);
        let whole = |at| if (8..16).contains(&at) { None } else { Some(a) };
        assert!(read(&mut model, &[Some(a); 24]).is_err());
        assert!(read(&mut model, &std::array::from_fn::<_, 24, _>(whole)).is_ok());
        let zeroes = model.submit(What::Zero, 4..20);
        model.done(zeroes);
        let all = |at| if (4..20).contains(&at) { None } else { Some(a) };
        assert!(read(&mut model, &std::array::from_fn::<_, 24, _>(all)).is_ok());
        assert_eq!(model.stored_pages(), (2, 2));
    }

    #[test]
    fn a_read_sees_any_change_between_its_ends_and_none_before() {
        let mut model = Model::new(8);
        let a = submit(&mut model, 0..8);
        model.done(a);
        let early = model.begin_read(0..8);
        let b = submit(&mut model, 0..8);
        model.done(b);
        let late = model.begin_read(0..8);
        let c = submit(&mut model, 0..8);
        model.done(c);
        let a = bytes(&[Some(a); 8]);
        let b = bytes(&[Some(b); 8]);
        assert!(model.end_read(&early, &a).is_ok());
        assert!(model.end_read(&late, &b).is_ok());
        let late = model.begin_read(0..8);
        assert!(model.end_read(&late, &b).is_err());
        let mut model = Model::new(8);
        let a = submit(&mut model, 0..8);
        model.done(a);
        let b = submit(&mut model, 0..8);
        let during = model.begin_read(0..8);
        model.done(b);
        assert!(model.end_read(&during, &bytes(&[Some(a); 8])).is_ok());
        let after = model.begin_read(0..8);
        assert!(model.end_read(&after, &bytes(&[Some(a); 8])).is_err());
    }

    #[test]
    fn what_one_read_has_not_found_another_that_began_before_may_have() {
        let mut model = Model::new(8);
        let a = submit(&mut model, 0..8);
        let b = submit(&mut model, 0..8);
        let early = [model.begin_read(0..8), model.begin_read(0..8)];
        model.done(b);
        model.done(a);
        let late = [model.begin_read(0..8), model.begin_read(0..8)];
        assert!(model.end_read(&late[0], &bytes(&[Some(a); 8])).is_ok());
        assert!(model.end_read(&early[0], &bytes(&[Some(b); 8])).is_ok());
        assert!(model.end_read(&early[1], &bytes(&[Some(a); 8])).is_ok());
        assert!(model.end_read(&late[1], &bytes(&[Some(b); 8])).is_err());
    }

    #[test]
    fn pages_that_hold_something_are_counted() {
        let mut model = Model::new(40);
        assert_eq!(model.stored_pages(), (0, 0));
        let a = submit(&mut model, 0..8);
        model.done(a);
        let b = submit(&mut model, 8..9);
        model.given_up(b);
        // Zeroes in a part of a page may leave a page of zeroes.
        let c = model.submit(What::Zero, 17..18);
        model.done(c);
        let d = model.submit(What::Zero, 24..40);
        model.done(d);
        assert_eq!(model.stored_pages(), (1, 3));
    }
}
