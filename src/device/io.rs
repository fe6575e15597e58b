//! Requests of a device: ranges of sectors, worked off page by page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::page_op::{Kind, PageOp, Plan, Turn};
use super::request::{IoError, Op, Payload, WaitReason};
use super::{Device, WorkerContext};
use crate::checker;
use crate::clock::TimeSlice;
use crate::engine::Job;
use crate::units::{PAGE_SIZE, SECTOR_SIZE};

/// Pages that one poll works off at most before it lets others have the thread.
const PAGES_PER_POLL: u32 = 256;

/// Time after which it does so with fewer pages.
const TIME_PER_POLL: Duration = Duration::from_millis(1);
/// Bytes of a poll before the clock is read: small requests never read it.
const FIRST_LOOK: u64 = 4 * PAGE;

/// Pages of one request that may be with the engine at once: what a request of 128 KiB has. Each takes
/// some 8 KiB meanwhile.
pub const WINDOW: usize = 32;

/// Bytes of a page, as an address on the disk counts them.
const PAGE: u64 = PAGE_SIZE as u64;

/// A request under way.
///
/// Poll it until it is ready. One that is dropped before leaves each of its pages either done or
/// untouched.
///
/// Its pages are begun in order. Those whose codec work is handed to the engine are finished as
/// they come back, and what is begun after them does not wait.
pub struct Io<'d, P> {
    device: &'d Device,
    payload: P,
    cursor: Cursor,
    /// The page at the cursor, if it was begun and keeps those behind it from beginning.
    current: Option<PageOp<'d>>,
    /// Pages before the cursor that are with the engine, or were. Allocates nothing as long as it is empty.
    window: Vec<PageOp<'d>>,
    /// Jobs of these pages that are still to be submitted, oldest first.
    jobs: VecDeque<Arc<Job>>,
    plan: Plan,
    /// The owner of its guards, to the lock checker. Dropped last.
    task: checker::Task,
}

/// How far a request is.
struct Cursor {
    op: Op,
    /// First byte of the range on the disk.
    start: u64,
    /// Next byte to be begun.
    at: u64,
    /// One past the last byte.
    end: u64,
}

impl Cursor {
    /// The operation on the next page. None if there is nothing to be done with it, or with a run of pages that do
    /// not exist: the cursor is behind them then.
    #[inline]
    fn begin(&mut self, device: &Device) -> Option<PageOp<'static>> {
        let (index, within) = (self.at / PAGE, (self.at % PAGE) as usize);
        let length = (self.end - self.at).min(PAGE - within as u64) as usize;
        let whole = length == PAGE_SIZE;
        let kind = match self.op {
            Op::Read => Kind::Read,
            Op::Write if whole => Kind::Write,
            Op::Write => Kind::Modify { zero: false },
            Op::Discard | Op::WriteZeroes if whole => {
                // Up to the last whole page: a ragged one after it is not freed.
                let next = device.table.next_existing(index).min(self.end / PAGE);
                if next > index {
                    device.figures().notify_free.add((next - index).cast_signed());
                    self.at = next * PAGE;
                    return None;
                }
                Kind::Free
            }
            Op::WriteZeroes => Kind::Modify { zero: true },
            Op::Discard => {
                self.at += length as u64;
                return None;
            }
        };
        Some(PageOp::new(kind, index, within..within + length, self.at - self.start))
    }
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
            payload,
            cursor: Cursor { op, start, at: start, end },
            current: None,
            window: Vec::new(),
            jobs: VecDeque::new(),
            plan: Plan::default(),
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
    /// fair share of work; the waker of `cx` fires when it can continue. Not to be called again once
    /// ready.
    ///
    /// # Errors
    /// See [`IoError`]. The request is over then.
    pub fn poll(
        &mut self,
        context: &mut WorkerContext,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let _turn = self.task.enter();
        context.reader.enter();
        context.now = self.device.table.now();
        let done = self.work(context, cx);
        context.reader.leave();
        let done = ready!(done);
        match &done {
            Ok(()) => self.device.count_success(self.cursor.op),
            Err(_) => self.device.figures().failed(self.cursor.op),
        }
        Poll::Ready(done)
    }

    /// What it waits for, if it waits for anything but its turn: a slot first, which may take longest.
    pub fn waits_for(&self) -> Option<WaitReason> {
        let reasons = || self.current.iter().chain(&self.window).filter_map(PageOp::waits_for);
        let slot = reasons().find(|reason| matches!(reason, WaitReason::Slot(_)));
        slot.or_else(|| reasons().next())
    }

    /// Bytes of the range that are not begun.
    pub fn left(&self) -> u64 {
        self.cursor.end - self.cursor.at
    }

    /// The payload, to be had back when the request is over.
    pub fn into_payload(self) -> P {
        self.payload
    }

    fn work(&mut self, context: &mut WorkerContext, cx: &Context<'_>) -> Poll<Result<(), IoError>> {
        let mut slice = TimeSlice::new(TIME_PER_POLL, FIRST_LOOK);
        loop {
            if !self.poll_window(&mut slice, context, cx)? {
                return Poll::Pending;
            }
            self.begin_pages(&mut slice, context, cx)?;
            // Before it sleeps, all that it waits for has to be under way.
            if self.submit(context) {
                continue;
            }
            let is_over = self.cursor.at == self.cursor.end && self.window.is_empty();
            return if is_over { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
    }

    /// Polls all pages that were begun before the cursor. False if its slice of the thread's time is over
    /// before; it is woken then.
    fn poll_window(
        &mut self,
        slice: &mut TimeSlice,
        context: &mut WorkerContext,
        cx: &Context<'_>,
    ) -> Result<bool, IoError> {
        let mut at = 0;
        while at < self.window.len() {
            let (mut turn, Parts { window, .. }) = self.turn(context);
            if window[at].poll(&mut turn, cx)?.is_pending() {
                at += 1;
                continue;
            }
            window.swap_remove(at);
            // The work may have been done over here.
            if slice.spend(PAGE) {
                cx.waker().wake_by_ref();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins pages until all are begun, one has to wait, or the engine has as many of them as it may.
    fn begin_pages(
        &mut self,
        slice: &mut TimeSlice,
        context: &mut WorkerContext,
        cx: &Context<'_>,
    ) -> Result<(), IoError> {
        let mut pages = PAGES_PER_POLL;
        let (mut turn, Parts { cursor, current, window }) = self.turn(context);
        while cursor.at < cursor.end && window.len() < WINDOW {
            if pages == 0 || slice.spend(PAGE) {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            pages -= 1;
            let mut page = match current.take() {
                Some(page) => page,
                None => match cursor.begin(turn.device) {
                    // Their wakers are set; this comes after them.
                    Some(page) if page.has_to_be_alone() && !window.is_empty() => return Ok(()),
                    Some(page) => page,
                    None => continue,
                },
            };
            if page.poll(&mut turn, cx)?.is_ready() {
                cursor.at += page.len();
                page.end();
            } else if page.lets_others_begin() {
                cursor.at += page.len();
                window.push(page);
                turn.room -= 1;
            } else {
                *current = Some(page);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Submits what is to be submitted. True if some of that was done inline instead, so there is a
    /// result already.
    fn submit(&mut self, context: &mut WorkerContext) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let Device { engine, codecs, .. } = self.device;
        engine.submit(&mut self.jobs);
        // One at a time: the thread that polls counts the time that it takes.
        let Some(job) = self.jobs.pop_front() else { return false };
        engine.count_fallback(None);
        job.finish(job.run(codecs, &mut context.workspace));
        true
    }

    /// What a page needs of the request, and the rest of it.
    #[inline]
    fn turn<'t>(&'t mut self, context: &'t mut WorkerContext) -> (Turn<'t, 'd, P>, Parts<'t, 'd>) {
        let Self { device, payload, cursor, current, window, jobs, plan, .. } = self;
        let (last, room) = (cursor.end.div_ceil(PAGE), WINDOW - window.len());
        let turn = Turn { device, payload, context, plan, jobs, last, room };
        (turn, Parts { cursor, current, window })
    }
}

/// The pages of a request.
struct Parts<'t, 'd> {
    cursor: &'t mut Cursor,
    current: &'t mut Option<PageOp<'d>>,
    window: &'t mut Vec<PageOp<'d>>,
}
