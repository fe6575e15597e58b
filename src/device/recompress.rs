//! Recompression: pages that are there are compressed again, by a slower algorithm that makes less of them.
//!
//! The largest objects come first, by the kernel's buckets of 64 bytes: a walk over the table for each bucket that
//! has any. Nothing is kept of a page but a copy while it is worked on, and no lock is held then: its content is
//! *claimed* (`slot/claims.rs`), and replaced if it is the same by the time that the codec is done.
//!
//! The codec's work goes to the engine if that has nothing to do for guests, and is done here, in the background, if
//! not, or if the engine fails.

use std::collections::VecDeque;
use std::sync::Arc;

use super::page::MAX_OBJECT;
use super::{Device, DeviceError, WorkerContext};
use crate::codec::{Codec, CodecSpec, ENTRIES};
use crate::engine::{Engine, Job, JobError, Output};
use crate::failpoint;
use crate::pool::PoolError;
use crate::slot::{Claim, Content, Reader, SlotGuard, Word};
use crate::sync;
use crate::units::PAGE_SIZE;

/// Algorithms beside the primary one, by their priorities 1 to 3.
pub const SECONDARIES: usize = 3;

/// Bytes of the objects of one bucket.
const BUCKET: usize = 64;
const BUCKETS: usize = PAGE_SIZE.div_ceil(BUCKET);

/// Slots that are looked at in one go.
const AT_ONCE: u64 = 1024;

/// Pages that are worked on at the same time, at most; no more than the engine has workers.
const BATCH: usize = 8;

/// Tries for a slot before it is passed over. It is not waited for: a slot that is in use is not idle.
const TRIES: usize = 50;

/// Which pages are to be compressed again, by the marks that they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// All.
    #[default]
    All,
    /// Those that are idle.
    Idle,
    /// Those that are stored raw.
    Huge,
    /// Those that are both.
    HugeIdle,
}

/// What a recompression is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Which pages.
    pub pages: Pages,
    /// Only objects of at least so many bytes, and only if they become shorter than that. 0 is any; less than
    /// [`Self::MOST_THRESHOLD`].
    pub threshold: usize,
    /// Pages that are tried at most.
    pub max_pages: Option<u64>,
    /// Priority of the algorithm, 1 to [`SECONDARIES`].
    pub priority: usize,
}

impl Wanted {
    /// Objects of so many bytes and more are stored raw.
    pub const MOST_THRESHOLD: usize = MAX_OBJECT;
}

/// What a recompression did so far, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recompression {
    /// Those that it found at its begin.
    pub found: u64,
    /// Those that it tried; the other counts are of these.
    pub tried: u64,
    /// Those that were replaced.
    pub replaced: u64,
    /// Bytes of memory that these took before, and do not any more.
    pub saved_bytes: u64,
    /// Those that were changed or used meanwhile, and left alone.
    pub left_alone: u64,
    /// Those that are damaged.
    pub damaged: u64,
}

/// Why a recompression does not begin, or ended early. What it did stays.
#[derive(Debug, thiserror::Error)]
pub enum RecompressError {
    /// There is no algorithm of this priority.
    #[error("there is no algorithm of priority {0} to recompress by: set one by recomp_algorithm")]
    NoAlgorithm(usize),
    /// Its thread cannot be set up.
    #[error("the thread that recompresses cannot be set up")]
    Context(#[from] DeviceError),
    /// There is no memory for a smaller object beside the one that it is to replace.
    #[error("there is no memory for what a page is to become")]
    Memory(#[from] PoolError),
}

/// What decides on a page.
struct Plan {
    wanted: Wanted,
    codec: u8,
    /// The priority of each codec, by its number.
    priorities: [usize; ENTRIES],
    /// No algorithm of the disk has a higher priority.
    is_last: bool,
}

/// A page that is worked on.
struct Begun {
    index: u64,
    claim: Claim,
    length: usize,
    job: Arc<Job>,
    /// The page is stored raw: the job's input is it.
    is_huge: bool,
}

impl Plan {
    /// The bytes of the page's object, if it is one that is to be tried.
    fn length_of(&self, word: Word) -> Option<usize> {
        let Content::Object(codec, object) = word.content() else { return None };
        let Wanted { pages, threshold, priority, .. } = self.wanted;
        let is_meant = match pages {
            Pages::All => true,
            Pages::Idle => word.is_idle(),
            Pages::Huge => object.is_huge(),
            Pages::HugeIdle => word.is_idle() && object.is_huge(),
        };
        let is_done =
            !object.is_huge() && self.priorities[usize::from(codec) % ENTRIES] >= priority;
        let is_excluded = word.is_incompressible() || word.is_claimed() || is_done;
        (is_meant && !is_excluded && object.length >= threshold).then_some(object.length)
    }
}

fn bucket_of(length: usize) -> usize {
    (length - 1) / BUCKET
}

impl Device {
    /// The algorithms that pages are recompressed by, by their priorities from 1 on.
    pub fn secondaries(&self) -> [Option<CodecSpec>; SECONDARIES] {
        let numbers = *sync::lock(&self.secondaries);
        numbers.map(|number| self.codecs.get(number?).ok().map(Codec::spec))
    }

    /// Sets the algorithm of this priority, 1 to [`SECONDARIES`].
    ///
    /// # Errors
    /// As for [`Self::set_codec`].
    pub fn set_secondary(&self, priority: usize, spec: CodecSpec) -> Result<(), DeviceError> {
        let number = self.codec_number(spec)?;
        if let Some(place) = priority.checked_sub(1) {
            sync::lock(&self.secondaries)[place % SECONDARIES] = Some(number);
        }
        Ok(())
    }

    /// There are none any more. Pages that they compressed stay as they are.
    pub fn forget_secondaries(&self) {
        *sync::lock(&self.secondaries) = [None; SECONDARIES];
    }

    /// The priority of each codec, by its number; 0 is any other than those.
    fn priorities(&self) -> [usize; ENTRIES] {
        let mut priorities = [0; ENTRIES];
        for (number, priority) in sync::lock(&self.secondaries).iter().zip(1..) {
            if let Some(number) = number {
                priorities[usize::from(*number) % ENTRIES] = priority;
            }
        }
        priorities
    }

    /// The codecs of recompressed pages, one bit for each number.
    pub(super) fn recompressed(&self) -> u16 {
        let primary = self.codecs.primary().number();
        let numbers = *sync::lock(&self.secondaries);
        let others = numbers.into_iter().flatten().filter(|number| *number != primary);
        others.fold(0, |bits, number| bits | 1 << number)
    }

    /// Compresses pages again while requests continue. `go_on` is asked every now and then, and told what was
    /// done so far.
    ///
    /// # Errors
    /// It does not begin, or ends early; see [`RecompressError`].
    pub fn recompress(
        &self,
        wanted: Wanted,
        mut go_on: impl FnMut(&Recompression) -> bool,
    ) -> Result<Recompression, RecompressError> {
        let numbers = *sync::lock(&self.secondaries);
        let place = wanted.priority.wrapping_sub(1);
        let codec = numbers.get(place).copied().flatten();
        let plan = Plan {
            wanted,
            codec: codec.ok_or(RecompressError::NoAlgorithm(wanted.priority))?,
            priorities: self.priorities(),
            is_last: numbers.iter().rposition(Option::is_some) == Some(place),
        };
        let mut context = self.worker_context()?;
        let mut done = Recompression::default();
        let buckets = self.count_by_bucket(&plan, &context.reader);
        done.found = buckets.iter().sum();
        let most = wanted.max_pages.unwrap_or(u64::MAX);
        for bucket in (0..BUCKETS).rev().filter(|bucket| buckets[*bucket] > 0) {
            let mut next = 0;
            while next < self.table.len() {
                if done.tried >= most || !go_on(&done) {
                    return Ok(done);
                }
                let room = (most - done.tried).min(self.engine.workers().clamp(1, BATCH) as u64);
                let pages = self.some_of(bucket, &plan, room as usize, &mut next, &context.reader);
                self.recompress_some(&pages, &plan, &mut context, &mut done)?;
            }
        }
        Ok(done)
    }

    /// How many pages of each bucket are to be tried.
    fn count_by_bucket(&self, plan: &Plan, reader: &Reader) -> [u64; BUCKETS] {
        let (mut buckets, mut next) = ([0; BUCKETS], 0);
        while next < self.table.len() {
            self.look(&mut next, reader, |_, word| {
                if let Some(length) = plan.length_of(word) {
                    buckets[bucket_of(length)] += 1;
                }
                true
            });
        }
        buckets
    }

    /// The next pages of a bucket, from `next` on, at most `most`.
    fn some_of(
        &self,
        bucket: usize,
        plan: &Plan,
        most: usize,
        next: &mut u64,
        reader: &Reader,
    ) -> Vec<u64> {
        let mut pages = Vec::with_capacity(most);
        while *next < self.table.len() && pages.len() < most {
            self.look(next, reader, |index, word| {
                if plan.length_of(word).is_some_and(|length| bucket_of(length) == bucket) {
                    pages.push(index);
                }
                pages.len() < most
            });
        }
        pages
    }

    /// Calls `visit` with some slots that exist, from `next` on, without their locks, as long as it returns true.
    pub(super) fn look(
        &self,
        next: &mut u64,
        reader: &Reader,
        mut visit: impl FnMut(u64, Word) -> bool,
    ) {
        reader.inside(|| {
            for _ in 0..AT_ONCE {
                let index = self.table.next_existing(*next);
                *next = index + 1;
                let Some(word) = self.table.glance(index) else { return };
                if !visit(index, word) {
                    return;
                }
            }
        });
    }

    fn recompress_some(
        &self,
        pages: &[u64],
        plan: &Plan,
        context: &mut WorkerContext,
        done: &mut Recompression,
    ) -> Result<(), RecompressError> {
        done.tried += pages.len() as u64;
        self.figures().recompression_attempts.add(pages.len() as i64);
        let mut begun = Vec::with_capacity(pages.len());
        for index in pages {
            begun.extend(self.begin(*index, plan, context, done));
        }
        // Pages first, of those that are objects.
        let objects = begun.iter().filter(|page| !page.is_huge).map(|page| Arc::clone(&page.job));
        let mut decoded = self.work(objects.collect(), context).into_iter();
        let mut ready = Vec::with_capacity(begun.len());
        for mut page in begun {
            if !page.is_huge {
                let Some(Ok(output)) = decoded.next() else {
                    done.damaged += 1;
                    self.give_up(page, context, |word| word);
                    continue;
                };
                let limit = page.length.min(MAX_OBJECT);
                page.job = Job::compress(output.bytes, plan.codec, limit, &mut context.spares);
            }
            ready.push(page);
        }
        let outputs = self.work(ready.iter().map(|page| Arc::clone(&page.job)).collect(), context);
        let mut ended = Ok(());
        for (page, output) in ready.into_iter().zip(outputs) {
            // After an error the claims of the others have to be ended, too.
            let output = output.ok().filter(|_| ended.is_ok());
            if let Err(error) = self.end(page, output, plan, context, done) {
                ended = Err(error.into());
            }
        }
        ended
    }

    /// Copies a page out and claims it. `None` if it is in use, or not one that is to be tried any more.
    fn begin(
        &self,
        index: u64,
        plan: &Plan,
        context: &mut WorkerContext,
        done: &mut Recompression,
    ) -> Option<Begun> {
        let WorkerContext { reader, spares, .. } = context;
        reader.inside(|| {
            let guard = (0..TRIES).find_map(|_| {
                self.table.try_lock(index).or_else(|| {
                    std::thread::yield_now();
                    None
                })
            });
            let guard = guard.filter(|guard| plan.length_of(guard.word()).is_some());
            let Some(guard) = guard else {
                done.left_alone += 1;
                return None;
            };
            let Ok((Content::Object(codec, object), bytes)) = self.held(&guard) else {
                done.damaged += 1;
                return None;
            };
            let job = if object.is_huge() {
                let mut page = spares.take();
                page.copy_from_slice(bytes);
                Job::compress(page, plan.codec, MAX_OBJECT, spares)
            } else {
                Job::decompress(bytes, codec, spares)
            };
            let Some(claim) = self.table.claim(guard) else {
                done.left_alone += 1;
                return None;
            };
            failpoint::reach("recompress.claimed");
            Some(Begun { index, claim, length: object.length, job, is_huge: object.is_huge() })
        })
    }

    /// Has jobs done, by the engine or here, and returns their results in order.
    fn work(
        &self,
        jobs: Vec<Arc<Job>>,
        context: &mut WorkerContext,
    ) -> Vec<Result<Output, JobError>> {
        let pending: Vec<_> = jobs.iter().map(Engine::pending).collect();
        let mut left = VecDeque::from(jobs);
        self.engine.submit_behind(&mut left);
        for job in left {
            job.finish(job.run(&self.codecs, &mut context.workspace));
        }
        let results = pending.into_iter().map(|mut pending| {
            let result = match sync::block_on(|cx| pending.poll(cx)) {
                // The codec's word is final; an engine that fails is not.
                Err(error) if !matches!(error, JobError::Codec(_)) => {
                    self.engine.count_fallback(Some(&error));
                    pending.job().run(&self.codecs, &mut context.workspace)
                }
                result => result,
            };
            pending.recycle(&mut context.spares);
            result
        });
        results.collect()
    }

    /// Replaces a page, if it is still the same and it paid.
    fn end(
        &self,
        page: Begun,
        output: Option<Output>,
        plan: &Plan,
        context: &mut WorkerContext,
        done: &mut Recompression,
    ) -> Result<(), PoolError> {
        let Some(output) = output else {
            self.give_up(page, context, |word| word);
            return Ok(());
        };
        let threshold = plan.wanted.threshold;
        let is_better = |length: &usize| {
            self.pool.saves(page.length, *length) > 0 && (threshold == 0 || *length < threshold)
        };
        let Some(length) = output.length.filter(is_better) else {
            let is_last = plan.is_last;
            let mark = |word: Word| if is_last { word.with_incompressible() } else { word };
            self.give_up(page, context, mark);
            context.spares.keep(output.bytes);
            return Ok(());
        };
        let object = match self.store_behind(page.index, &output.bytes[..length], &context.reader) {
            Ok(object) => object,
            Err(error) => {
                self.give_up(page, context, |word| word);
                return Err(error);
            }
        };
        failpoint::reach("recompress.stored");
        let new = self.content_of(object, |object| Content::Object(plan.codec, object));
        let guard = self.lock_waiting(page.index, &context.reader);
        match guard.filter(|guard| self.table.holds(guard, &page.claim)) {
            Some(guard) => {
                let saved = self.pool.saves(page.length, length);
                self.replace(guard, new, failpoint::RECOMPRESS);
                done.replaced += 1;
                done.saved_bytes += saved;
                let figures = self.figures();
                figures.recompressed_pages.inc();
                figures.recompression_saved_bytes.add(saved.cast_signed());
            }
            None => done.left_alone += 1,
        }
        self.table.end_claim(page.claim, None, |word| word);
        context.spares.keep(output.bytes);
        Ok(())
    }

    /// Leaves a page as it is, and changes its marks if it is still the same: it is not idle any more.
    fn give_up(&self, page: Begun, context: &WorkerContext, mark: impl FnOnce(Word) -> Word) {
        let guard = self.lock_waiting(page.index, &context.reader);
        self.table.end_claim(page.claim, guard, |word| mark(word).with_idle(false));
        failpoint::reach("recompress.marked");
    }

    /// The lock of a slot, which is waited for; `None` if the slot does not exist any more.
    fn lock_waiting(&self, index: u64, reader: &Reader) -> Option<SlotGuard<'_>> {
        let mut waiter = None;
        sync::block_on(|cx| reader.inside(|| self.table.poll_lock(index, &mut waiter, cx)))
    }
}
