//! A size class: all objects of one shape.

use std::ops::Range;

use super::bits::Bits;
use super::budget::Budget;
use super::layout::{SPAN_OBJECTS, Shape, region_of};
use super::region::Regions;
use super::span::Span;
use super::{PoolError, RebuildError, raw};
use crate::checker;
use crate::failpoint;
use crate::store::{Arena, HOST_PAGE, Place};

/// Pages committed ahead of a growing class, at most: a batch of host pages costs a third a page
/// of what single ones do.
const MOST_AHEAD: u64 = 16;

/// A class commits, and under load keeps, this part of its pages more than it needs.
const SPARE_PART: u64 = 64;

/// The mutexes of all classes of all pools, to the lock checker.
pub(super) static CLASS: checker::Class = checker::Class::mutex("pool class");

/// What all classes of a pool share.
#[derive(Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) arena: &'a Arena,
    pub(super) budget: &'a Budget,
    pub(super) regions: &'a Regions,
}

/// Number of an object in its class: its span's number and its own there. Ordered as they are
/// filled, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number {
    pub(super) span: usize,
    pub(super) object: u32,
}

impl Number {
    /// Above all objects.
    pub(super) const END: Number = Number { span: usize::MAX, object: 0 };
}

/// An object that may be moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) number: Number,
    pub(super) place: Place,
    /// The number of its owner, if it has an owner at all.
    pub(super) owner: u32,
}

/// The state of a class, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Objects in use, cached places included.
    pub(super) objects: u64,
    /// Host pages committed.
    pub(super) pages: u64,
    /// Whole pages more than the objects would need if they lay side by side.
    pub(super) excess: u64,
    /// How often the class was changed.
    pub(super) changes: u64,
}

impl Load {
    /// Pages that a class in use may have too many.
    pub(super) fn spare(self) -> u64 {
        self.pages / SPARE_PART
    }
}

/// All spans of one class. A class is used under its mutex.
pub(super) struct Class {
    number: usize,
    shape: Shape,
    /// Where its spans lie: `region_spans` of them in each region.
    regions: Vec<u32>,
    spans: Vec<Span>,
    /// Spans with an object that is not in use.
    open: Bits,
    /// Spans that may have committed pages without objects.
    loose: Bits,
    objects: u64,
    pages: u64,
    changes: u64,
}

impl Class {
    pub(super) fn new(number: usize, shape: Shape) -> Self {
        Self {
            number,
            shape,
            regions: Vec::new(),
            spans: Vec::new(),
            open: Bits::default(),
            loose: Bits::default(),
            objects: 0,
            pages: 0,
            changes: 0,
        }
    }

    pub(super) fn load(&self) -> Load {
        let needed = (self.objects * self.shape.object_bytes()).div_ceil(HOST_PAGE);
        Load {
            objects: self.objects,
            pages: self.pages,
            excess: self.pages - needed,
            changes: self.changes,
        }
    }

    /// Takes the lowest place that is not in use; its memory is committed.
    pub(super) fn allocate(&mut self, common: Common<'_>) -> Result<Place, PoolError> {
        let span = match self.open.first() {
            Some(span) => span,
            None => self.grow(common)?,
        };
        let object = self.spans[span].first_free();
        let Some(object) = object else { unreachable!("an open span has a free object") };
        let number = Number { span, object };
        if let Err(error) = self.commit(number, common) {
            self.drop_bare_end(common.regions);
            // Higher up there may be a hole that costs no memory.
            let other = self.first_committed(Number::END).ok_or(error)?;
            return Ok(self.take(other));
        }
        Ok(self.take(number))
    }

    /// The lowest place below `end` that is not in use and whose memory is committed. Slow: for
    /// when memory is short.
    fn first_committed(&self, end: Number) -> Option<Number> {
        if self.load().excess == 0 {
            return None;
        }
        for (number, span) in self.spans.iter().enumerate() {
            if number > end.span {
                return None;
            }
            if span.is_full() || span.pages() == 0 {
                continue;
            }
            let is_free = |object: &u32| {
                let mut pages = self.shape.pages_of(*object);
                !span.is_used(*object) && pages.all(|page| span.is_committed(page))
            };
            if let Some(object) = (0..SPAN_OBJECTS).find(is_free) {
                let found = Number { span: number, object };
                return (found < end).then_some(found);
            }
        }
        None
    }

    /// Takes the lowest place that is not in use and whose memory is committed already, if that is
    /// the lowest of all.
    pub(super) fn allocate_committed(&mut self) -> Option<Place> {
        let span = self.open.first()?;
        let object = self.spans[span].first_free()?;
        let mut pages = self.shape.pages_of(object);
        pages
            .all(|page| self.spans[span].is_committed(page))
            .then(|| self.take(Number { span, object }))
    }

    /// Takes the lowest place that is not in use, if it is lower than the object at `place`.
    pub(super) fn allocate_below(
        &mut self,
        place: Place,
        common: Common<'_>,
    ) -> Result<Option<Place>, PoolError> {
        let Some(limit) = self.find(place, common.regions) else { return Ok(None) };
        let Some(span) = self.open.first() else { return Ok(None) };
        let Some(object) = self.spans[span].first_free() else { return Ok(None) };
        let mut number = Number { span, object };
        if number >= limit {
            return Ok(None);
        }
        if let Err(error) = self.commit(number, common) {
            number = self.first_committed(limit).ok_or(error)?;
        }
        Ok(Some(self.take(number)))
    }

    /// Frees the object at `place`. Its memory stays until it is trimmed, or used again.
    pub(super) fn free(&mut self, place: Place, regions: &Regions) {
        let number = self.find(place, regions);
        let number = number.unwrap_or_else(|| panic!("{place:?} is not an object of this class"));
        self.spans[number.span].give_back(number.object);
        self.objects -= 1;
        self.changes += 1;
        self.open.set(number.span);
        self.loose.set(number.span);
    }

    /// Gives pages without objects back to the host, those of the highest spans first, until there
    /// are at most `keep` pages more than needed, or `most` were given back or found not to be
    /// bare. Returns how many were given back, and whether it got to the end.
    pub(super) fn trim(
        &mut self,
        keep: u64,
        most: u64,
        common: Common<'_>,
    ) -> std::io::Result<(u64, bool)> {
        let before = self.pages;
        let (mut end, mut spans) = (usize::MAX, 0);
        let mut over = true;
        while self.load().excess > keep
            && let Some(span) = self.loose.last_below(end)
        {
            let given = before - self.pages;
            if given + spans >= most {
                over = false;
                break;
            }
            end = span;
            spans += 1;
            let least = self.load().excess.saturating_sub(most - given);
            if self.trim_span(span, keep.max(least), common)? {
                self.loose.clear(span);
            } else if least > keep {
                over = false;
                break;
            }
        }
        self.drop_bare_end(common.regions);
        Ok((before - self.pages, over))
    }

    /// The highest objects in use below `end`, highest first, at most `most` of them, with the
    /// numbers of their owners. Those are read here, where no thread trims: an object in use lies on
    /// pages that exist.
    pub(super) fn uppermost(
        &self,
        mut end: Number,
        most: usize,
        arena: &Arena,
        into: &mut Vec<Candidate>,
    ) {
        into.clear();
        while into.len() < most {
            if end.object == 0 || end.span >= self.spans.len() {
                let Some(span) = end.span.min(self.spans.len()).checked_sub(1) else { return };
                end = Number { span, object: SPAN_OBJECTS };
            }
            let found = self.spans[end.span].last_used_below(end.object);
            end.object = found.unwrap_or(0);
            if let Some(object) = found {
                let place = self.place(Number { span: end.span, object });
                let owner = raw::owner(arena, place);
                into.push(Candidate { number: end, place, owner });
            }
        }
    }

    /// Takes the place of an object that a table names, at a rebuild. Its pages count as committed.
    pub(super) fn adopt(&mut self, place: Place, common: Common<'_>) -> Result<(), RebuildError> {
        let region = region_of(place);
        let overlap = RebuildError::Overlap { offset: place.offset() };
        match common.regions.owner(region) {
            Some((class, _)) if class != self.number => return Err(overlap),
            Some(_) => {}
            None => {
                if !common.regions.claim(region, self.number, self.regions.len()) {
                    return Err(overlap);
                }
                self.regions.push(region);
            }
        }
        let Some(number) = self.number_of(place, common.regions) else { return Err(overlap) };
        while self.spans.len() <= number.span {
            self.open.set(self.spans.len());
            self.spans.push(Span::default());
        }
        let span = &mut self.spans[number.span];
        if span.is_used(number.object) {
            return Err(overlap);
        }
        for page in self.shape.pages_of(number.object) {
            if !span.is_committed(page) {
                span.set_committed(page..page + 1, true);
                self.pages += 1;
                common.budget.adopt(HOST_PAGE);
            }
        }
        self.take(number);
        Ok(())
    }

    /// The runs of its pages that count as committed, as offsets and lengths in bytes.
    pub(super) fn committed(&self) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (number, span) in self.spans.iter().enumerate() {
            for run in runs(0..self.shape.span_pages(), |page| span.is_committed(page)) {
                let (offset, len) =
                    (self.page_offset(number, run.start), run.len() as u64 * HOST_PAGE);
                match found.last_mut() {
                    Some((start, before)) if *start + *before == offset => *before += len,
                    _ => found.push((offset, len)),
                }
            }
        }
        found
    }

    /// Gives back all memory of the class's regions that no object lies on, committed or not: what
    /// an earlier process left behind.
    pub(super) fn punch_unused(&self, common: Common<'_>) -> std::io::Result<()> {
        for (position, region) in self.regions.iter().enumerate() {
            for within in 0..self.shape.region_spans() {
                let span = self.spans.get(position * self.shape.region_spans() + within);
                for bare in runs(0..self.shape.span_pages(), |page| {
                    span.is_none_or(|span| !span.is_committed(page))
                }) {
                    let offset = self.shape.page_offset(*region, within, bare.start);
                    raw::decommit(common.arena, offset, bare.len() as u64 * HOST_PAGE)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let spans = self.spans.capacity() * size_of::<Span>();
        let regions = self.regions.capacity() * size_of::<u32>();
        (spans + regions) as u64 + self.open.heap_bytes() + self.loose.heap_bytes()
    }

    /// The number of the object at `place`, if a span of this class has it.
    fn find(&self, place: Place, regions: &Regions) -> Option<Number> {
        self.number_of(place, regions).filter(|number| number.span < self.spans.len())
    }

    fn number_of(&self, place: Place, regions: &Regions) -> Option<Number> {
        let (class, position) = regions.owner(region_of(place))?;
        if class != self.number {
            return None;
        }
        let (span, object) = self.shape.position(place)?;
        Some(Number { span: position * self.shape.region_spans() + span, object })
    }

    fn place(&self, number: Number) -> Place {
        let per_region = self.shape.region_spans();
        let region = self.regions[number.span / per_region];
        self.shape.place(region, number.span % per_region, number.object)
    }

    /// Adds a span, which is bare, and a region for it if need be.
    fn grow(&mut self, common: Common<'_>) -> Result<usize, PoolError> {
        let span = self.spans.len();
        if span == self.regions.len() * self.shape.region_spans() {
            self.regions.push(common.regions.take(self.number, self.regions.len())?);
        }
        self.spans.push(Span::default());
        self.open.set(span);
        Ok(span)
    }

    fn take(&mut self, number: Number) -> Place {
        let span = &mut self.spans[number.span];
        span.take(number.object);
        if span.is_full() {
            self.open.clear(number.span);
        }
        self.objects += 1;
        self.changes += 1;
        self.place(number)
    }

    /// Makes the pages of an object exist, and some ahead of it.
    fn commit(&mut self, number: Number, common: Common<'_>) -> Result<(), PoolError> {
        let needed = self.shape.pages_of(number.object);
        let span = &self.spans[number.span];
        if needed.clone().all(|page| span.is_committed(page)) {
            return Ok(());
        }
        let missing = runs(needed.clone(), |page| !span.is_committed(page));
        for run in missing {
            // Ahead only where the class grows, not in the holes of lower spans.
            let mut ahead = run.end;
            let more = most_ahead(self.pages);
            let grows = run.end == needed.end && number.span + 1 == self.spans.len();
            if grows && common.budget.is_roomy(more * HOST_PAGE) {
                let most = run.end + more as u32;
                let span = &self.spans[number.span];
                let most = most.min(self.shape.span_pages());
                while ahead < most && !span.is_committed(ahead) {
                    ahead += 1;
                }
            }
            let more = self.commit_run(number.span, run.start..ahead, common);
            match more {
                // There may be room for what is needed but not for more.
                Err(_) if ahead > run.end => self.commit_run(number.span, run, common)?,
                other => other?,
            }
        }
        Ok(())
    }

    fn commit_run(
        &mut self,
        span: usize,
        pages: Range<u32>,
        common: Common<'_>,
    ) -> Result<(), PoolError> {
        let bytes = pages.len() as u64 * HOST_PAGE;
        common.budget.reserve(bytes)?;
        let offset = self.page_offset(span, pages.start);
        if let Err(error) = common.arena.commit(offset, bytes) {
            // Some of the pages may exist now. No count has them.
            if let Err(error) = raw::decommit(common.arena, offset, bytes) {
                log::warn!("{bytes} bytes that are not used cannot be given back: {error}");
            }
            common.budget.release(bytes);
            return Err(error.into());
        }
        self.pages += pages.len() as u64;
        self.loose.set(span);
        self.spans[span].set_committed(pages, true);
        Ok(())
    }

    /// Gives pages of one span back, from its end on. False if it keeps some that no object lies
    /// on.
    fn trim_span(&mut self, number: usize, keep: u64, common: Common<'_>) -> std::io::Result<bool> {
        let span = &self.spans[number];
        if span.pages() == 0 {
            return Ok(true);
        }
        let bare = runs(0..self.shape.span_pages(), |page| {
            span.is_committed(page) && !span.any_used(self.shape.objects_on(page))
        });
        for run in bare.into_iter().rev() {
            let excess = self.load().excess.saturating_sub(keep);
            let given = run.end - (run.len() as u64).min(excess) as u32..run.end;
            if !given.is_empty() {
                let bytes = given.len() as u64 * HOST_PAGE;
                raw::decommit(common.arena, self.page_offset(number, given.start), bytes)?;
                failpoint::reach("compact.trimmed");
                common.budget.release(bytes);
                self.pages -= given.len() as u64;
                self.spans[number].set_committed(given.clone(), false);
            }
            if given != run {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn drop_bare_end(&mut self, regions: &Regions) {
        let before = self.spans.len();
        while self.spans.last().is_some_and(Span::is_bare) {
            self.spans.pop();
        }
        if self.spans.len() == before {
            return;
        }
        self.open.truncate(self.spans.len());
        self.loose.truncate(self.spans.len());
        while self.regions.len() > self.spans.len().div_ceil(self.shape.region_spans()) {
            let region = self.regions.pop();
            region.into_iter().for_each(|region| regions.give_back(region));
        }
        // What a mass of freed objects needed is not kept for ever.
        if self.spans.capacity() > 64 && self.spans.len() < self.spans.capacity() / 4 {
            self.spans.shrink_to(self.spans.len() * 2);
        }
    }

    fn page_offset(&self, span: usize, page: u32) -> u64 {
        let per_region = self.shape.region_spans();
        self.shape.page_offset(self.regions[span / per_region], span % per_region, page)
    }
}

/// Pages that a class with this many commits ahead, at most.
pub(super) fn most_ahead(pages: u64) -> u64 {
    (pages / SPARE_PART).min(MOST_AHEAD)
}

/// The runs of neighbouring pages of a range for which `wanted` holds.
fn runs(range: Range<u32>, wanted: impl Fn(u32) -> bool) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for page in range.filter(|page| wanted(*page)) {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

#[cfg(test)]
impl Class {
    /// Compares what is written down twice; the first contradiction is the error.
    pub(super) fn check(&self, regions: &Regions) -> Result<(), String> {
        let fail = |what: &str| Err(format!("class {}: {what}", self.number));
        let count: u64 = self.spans.iter().map(|span| u64::from(span.count())).sum();
        if count != self.objects {
            return fail(&format!("{count} objects in spans, {} counted", self.objects));
        }
        let pages: u64 = self.spans.iter().map(|span| u64::from(span.pages())).sum();
        if pages != self.pages {
            return fail(&format!("{pages} pages in spans, {} counted", self.pages));
        }
        if self.regions.len() != self.spans.len().div_ceil(self.shape.region_spans()) {
            return fail("there are more regions than spans need");
        }
        for (position, region) in self.regions.iter().enumerate() {
            if regions.owner(*region) != Some((self.number, position)) {
                return fail("a region has another owner");
            }
        }
        for (number, span) in self.spans.iter().enumerate() {
            if self.open.contains(number) == span.is_full() {
                return fail(&format!("span {number} is open and full, or neither"));
            }
            for page in 0..self.shape.span_pages() {
                let used = span.any_used(self.shape.objects_on(page));
                if used && !span.is_committed(page) {
                    return fail("an object lies on a page that is not committed");
                }
                if !used && span.is_committed(page) && !self.loose.contains(number) {
                    return fail("a bare page that no trim will find");
                }
            }
        }
        Ok(())
    }
}
