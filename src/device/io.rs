//! Requests of a device: ranges of sectors, worked off page by page.

use std::ops::Range;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::content::NewContent;
use super::modify::Modify;
use super::offload::Offload;
use super::{Device, Lane};
use crate::checker;
use crate::clock::Share;
use crate::codec::CodecError;
use crate::engine::{Job, Work};
use crate::failpoint;
use crate::pool::PoolError;
use crate::slot::{Content, Waiter};
use crate::store::StoreError;
use crate::units::{PAGE_SIZE, SECTOR_SIZE};

/// Pages that one poll works off at most before it lets others have the thread.
const PAGES_PER_POLL: u32 = 256;

/// Time after which it does so with fewer pages.
const TIME_PER_POLL: Duration = Duration::from_millis(1);
/// Bytes of a poll before the clock is looked at: small requests never do.
const FIRST_LOOK: u64 = 4 * PAGE;

/// Bytes of a page, as an address on the disk counts them.
pub(super) const PAGE: u64 = PAGE_SIZE as u64;

/// What a request does with its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Delivers the range's bytes to the payload.
    Read,
    /// Takes the range's bytes from the payload.
    Write,
    /// Frees the whole pages of the range. They read as zeroes afterwards; ragged edges stay.
    Discard,
    /// Frees the whole pages of the range, and zeroes its ragged edges.
    WriteZeroes,
}

/// The bytes of a request could not be moved, because the memory they lie in is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request's memory cannot be reached")]
pub struct PayloadFault;

/// Where a request's bytes come from or go to. Each byte is moved once.
pub trait Payload {
    /// Copies the bytes from `offset` of the request on into `into`.
    ///
    /// # Errors
    /// The memory is gone.
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault>;

    /// Copies `from` to the request's bytes from `offset` on.
    ///
    /// # Errors
    /// The memory is gone.
    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault>;
}

/// Why a request failed. What it had not got to by then is as it was.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The range does not lie within the disk; nothing was done.
    #[error("sectors from {sector} on, {bytes} bytes, do not lie within the disk")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length.
        bytes: u64,
    },
    /// The length is not a multiple of a sector; nothing was done.
    #[error("a length of {bytes} bytes is not a multiple of a sector")]
    Unaligned {
        /// Length.
        bytes: u64,
    },
    /// The request's own memory is gone.
    #[error(transparent)]
    Payload(#[from] PayloadFault),
    /// A page could not be compressed.
    #[error("a page cannot be compressed")]
    Compress(#[source] CodecError),
    /// A stored page could not be decompressed: its object is damaged.
    #[error("page {index} cannot be decompressed")]
    Decompress {
        /// Number of the page.
        index: u64,
        /// What the codec says.
        source: CodecError,
    },
    /// A page that an earlier process left is not what that had stored.
    #[error("page {index} is damaged: its check sum does not match")]
    Damaged {
        /// Number of the page.
        index: u64,
    },
    /// An object could not be stored.
    #[error("a page cannot be stored")]
    Pool(#[from] PoolError),
    /// The slot table could not grow.
    #[error("the slot table cannot grow")]
    Table(#[from] StoreError),
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The slot of this number, which somebody else holds.
    Slot(u64),
    /// The engine.
    Engine,
    /// The engine, while it holds the slot of this number for a change of a part of its page.
    EngineWithSlot(u64),
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Obstacle::Slot(index) => write!(f, "slot {index}"),
            Obstacle::Engine => write!(f, "the engine"),
            Obstacle::EngineWithSlot(index) => {
                write!(f, "the engine, holding slot {index} to change a part of it")
            }
        }
    }
}

/// A request under way.
///
/// Poll it until it is ready. One that is dropped before leaves each of its pages either done or
/// untouched.
///
/// Its pages are begun in order. Those whose codec work is handed to the engine are finished as
/// they come back, and what is begun after them does not wait.
pub struct Io<'d, P> {
    pub(super) device: &'d Device,
    pub(super) op: Op,
    pub(super) payload: P,
    /// First byte of the range on the disk.
    pub(super) start: u64,
    /// Next byte to be begun.
    pub(super) at: u64,
    /// One past the last byte.
    end: u64,
    /// Pages below this one are handed over, those from there to `planned` are not.
    handed: u64,
    planned: u64,
    pub(super) waiter: Option<Waiter<'d>>,
    prepared: Option<NewContent<'d>>,
    pub(super) modify: Option<Modify<'d>>,
    pub(super) offload: Offload<'d>,
    /// Who holds its guards, to the lock checker. Dropped last.
    task: checker::Task,
}

impl Device {
    /// A request for `bytes` bytes from `sector` on.
    ///
    /// # Errors
    /// The length is not a multiple of 512, or the range does not lie within the disk. The request
    /// is refused as a whole then, and counted as failed.
    pub fn request<P: Payload>(
        &self,
        op: Op,
        sector: u64,
        bytes: u64,
        payload: P,
    ) -> Result<Io<'_, P>, IoError> {
        self.check_range(sector, bytes).inspect_err(|_| self.figures().refused(Some(op)))?;
        let start = sector * SECTOR_SIZE;
        let end = start + bytes;
        Ok(Io {
            device: self,
            op,
            payload,
            start,
            at: start,
            end,
            handed: 0,
            planned: 0,
            waiter: None,
            prepared: None,
            modify: None,
            offload: Offload::default(),
            task: checker::Task::default(),
        })
    }

    fn check_range(&self, sector: u64, bytes: u64) -> Result<(), IoError> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(IoError::Unaligned { bytes });
        }
        let capacity = self.sectors();
        if sector > capacity || bytes / SECTOR_SIZE > capacity - sector {
            return Err(IoError::OutOfRange { sector, bytes });
        }
        Ok(())
    }

    fn count_success(&self, op: Op) {
        let figures = self.figures();
        let counter = match op {
            Op::Read => &figures.reads,
            Op::Write => &figures.writes,
            Op::Discard => &figures.discards,
            Op::WriteZeroes => &figures.write_zeroes,
        };
        counter.inc();
    }
}

impl<'d, P: Payload> Io<'d, P> {
    /// Works the request off as far as it goes without waiting.
    ///
    /// `Pending` means that it waits for a slot or for the engine, or gave the thread back after a
    /// fair share of work; the waker of `cx` fires when it can go on. Not to be called again once
    /// ready.
    ///
    /// # Errors
    /// See [`IoError`]. The request is over then.
    pub fn poll(&mut self, lane: &mut Lane, cx: &Context<'_>) -> Poll<Result<(), IoError>> {
        let _turn = self.task.enter();
        lane.reader.enter();
        let done = self.work(lane, cx);
        lane.reader.leave();
        let done = ready!(done);
        match &done {
            Ok(()) => self.device.count_success(self.op),
            Err(_) => self.device.figures().failed(self.op),
        }
        Poll::Ready(done)
    }

    /// What it waits for, if it waits for anything but its turn.
    pub fn waits_for(&self) -> Option<Obstacle> {
        let slot = self.waiter.as_ref().map(|_| self.at / PAGE);
        let slot = slot.or_else(|| self.offload.slot_waited_for());
        let held = self.modify.as_ref().map(|_| Obstacle::EngineWithSlot(self.at / PAGE));
        let engine = || held.or((!self.offload.is_empty()).then_some(Obstacle::Engine));
        slot.map(Obstacle::Slot).or_else(engine)
    }

    /// Bytes of the range that are not begun.
    pub fn left(&self) -> u64 {
        self.end - self.at
    }

    /// The payload, to be had back when the request is over.
    pub fn into_payload(self) -> P {
        self.payload
    }

    fn work(&mut self, lane: &mut Lane, cx: &Context<'_>) -> Poll<Result<(), IoError>> {
        let mut share = Share::new(TIME_PER_POLL, FIRST_LOOK);
        loop {
            if !self.finish_pages(&mut share, lane, cx)? {
                return Poll::Pending;
            }
            let begun = self.begin_pages(&mut share, lane, cx)?;
            // Before it sleeps, all that it waits for has to be under way.
            if self.send(lane) {
                continue;
            }
            if begun.is_ready() && self.at == self.end && self.offload.is_empty() {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    }

    /// Begins pages until there are none left, or the engine has as many of them as it may.
    fn begin_pages(
        &mut self,
        share: &mut Share,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Result<Poll<()>, IoError> {
        let mut pages = PAGES_PER_POLL;
        while self.at < self.end && !self.offload.is_full() {
            if pages == 0 || share.spend(PAGE) {
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            pages -= 1;
            match self.step(lane, cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Begins one page, or a run of pages that do not exist.
    fn step(&mut self, lane: &mut Lane, cx: &Context<'_>) -> Poll<Result<(), IoError>> {
        let index = self.at / PAGE;
        let within = (self.at % PAGE) as usize;
        let length = (self.end - self.at).min(PAGE - within as u64) as usize;
        let part = within..within + length;
        let whole = length == PAGE_SIZE;
        let done = match self.op {
            Op::Read => ready!(self.read(index, part, lane, cx)),
            Op::Write if whole => ready!(self.write_page(index, lane, cx)),
            Op::Write => ready!(self.modify(index, part, lane, cx)),
            Op::Discard | Op::WriteZeroes if whole => {
                ready!(self.free_pages(index, cx));
                return Poll::Ready(Ok(()));
            }
            Op::Discard => Ok(()),
            Op::WriteZeroes => ready!(self.modify(index, part, lane, cx)),
        };
        if done.is_ok() {
            self.at += length as u64;
        }
        Poll::Ready(done)
    }

    /// Whether the work of the next page is handed to the engine.
    fn hands_over(&mut self, work: Work) -> bool {
        if self.at >= self.planned {
            let pages = (self.end.div_ceil(PAGE) - self.at / PAGE).min(self.offload.room() as u64);
            let handed = self.device.engine.share(work, pages as usize) as u64;
            self.handed = self.at / PAGE + handed;
            self.planned = (self.at / PAGE + pages) * PAGE;
        }
        self.at / PAGE < self.handed
    }

    fn read(
        &mut self,
        index: u64,
        part: Range<usize>,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let device = self.device;
        let offset = self.at - self.start;
        let content = match device.table.peek(index) {
            Some(content) => {
                // It may have been waiting for it when it had an object.
                self.waiter = None;
                device.decode(index, content, &[], lane)
            }
            None => match ready!(device.table.poll_lock(index, &mut self.waiter, cx)) {
                Some(guard) => {
                    let (content, bytes) = device.held(&guard)?;
                    if let Content::Object(codec, object) = content {
                        if object.is_huge() {
                            // Stored as it is: straight from the arena to where it is wanted.
                            let done = self.payload.deliver(offset, &bytes[part]);
                            return Poll::Ready(done.map_err(Into::into));
                        }
                        if self.hands_over(Work::Decompress { codec }) {
                            // From a copy, so that nobody waits for the slot meanwhile.
                            let job = Job::decompress(bytes, codec, &mut lane.spares);
                            drop(guard);
                            self.offload.decompress(job, index, offset, part, cx);
                            return Poll::Ready(Ok(()));
                        }
                    }
                    device.decode(index, content, bytes, lane)
                }
                None => device.decode(index, Content::Empty, &[], lane),
            },
        };
        let done = content.and_then(|()| Ok(self.payload.deliver(offset, &lane.page[part])?));
        Poll::Ready(done)
    }

    /// Writes a whole page: everything that takes time or can fail comes before the lock.
    fn write_page(
        &mut self,
        index: u64,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let device = self.device;
        if self.prepared.is_none() {
            // The guest may change its buffer at any time: one copy, and all that follows from it.
            self.payload.fetch(self.at - self.start, &mut lane.page[..])?;
            failpoint::reach("write.fetched");
            device.ensure(index, &lane.reader)?;
            let same = device.encode_same(index, lane)?;
            if same.is_none() && self.hands_over(device.compression()) {
                self.offload.compress(
                    lane.compress_later(device.codecs.primary().number()),
                    index,
                    cx,
                );
                return Poll::Ready(Ok(()));
            }
            let stored = same.map_or_else(|| device.encode_page(index, lane), Ok)?;
            self.prepared = Some(stored);
        }
        let guard = loop {
            match ready!(device.table.poll_lock(index, &mut self.waiter, cx)) {
                Some(guard) => break guard,
                // Nothing was in its part of the table, so that went meanwhile.
                None => device.ensure(index, &lane.reader)?,
            }
        };
        let Some(prepared) = self.prepared.take() else { unreachable!("the page was prepared") };
        failpoint::reach("write.prepared");
        device.replace(guard, prepared, failpoint::WRITE);
        Poll::Ready(Ok(()))
    }

    /// Frees the page `index`, or skips as many pages of the range as do not exist.
    fn free_pages(&mut self, index: u64, cx: &Context<'_>) -> Poll<()> {
        let device = self.device;
        // Whole pages of the range from here on; the last one may be ragged and is not ours.
        let end = self.end / PAGE;
        let next = device.table.next_existing(index).min(end);
        let freed = if next > index {
            next - index
        } else {
            if device.table.peek(index) != Some(Content::Empty)
                && let Some(guard) = ready!(device.table.poll_lock(index, &mut self.waiter, cx))
            {
                failpoint::reach("discard.locked");
                device.replace(guard, NewContent::EMPTY, failpoint::DISCARD);
            }
            1
        };
        self.waiter = None;
        device.figures().notify_free.add(freed.cast_signed());
        self.at += freed * PAGE;
        Poll::Ready(())
    }
}
