//! One page of a request: its way from the guest to its slot, or back.
//!
//! ```text
//! read    Start ---------------> Lock -> [Codec] -> deliver
//! write   Start -> [Codec] ----> Lock -> install
//! modify  Start ---------------> Lock -> [Codec] -> change -> [Codec] -> install
//! free    Start ---------------> Lock -> install
//! ```
//!
//! Each step is a function that ends in the next one, so a page that need not wait takes no detour. A step that
//! has to wait keeps all that it needs in [`Step`]: the request may be polled by any thread then, and
//! another page of it may be begun meanwhile.
//!
//! No waits form a circle: a page holds its slot while it waits only if it is a *modify*, and then
//! it waits for the engine, which needs no slot. A place in a slot's queue is the page's own and
//! ends with it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::content::NewContent;
use super::request::{IoError, Payload, WaitReason};
use super::{Device, WorkerContext};
use crate::engine::{Engine, Job, Pending, Work};
use crate::failpoint;
use crate::slot::{Content, SlotGuard, Waiter};
use crate::units::PAGE_SIZE;

/// What is done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A part of it, or all, goes to the payload.
    Read,
    /// All of it comes from the payload.
    Write,
    /// A part of it comes from the payload, or is zeroed. The slot is locked throughout.
    Modify {
        /// The part is zeroed.
        zero: bool,
    },
    /// It is empty afterwards.
    Free,
}

/// A page that was begun and is not finished.
pub(super) struct PageOp<'d> {
    kind: Kind,
    /// Number of the page.
    index: u64,
    /// The bytes of the page that are meant, and where they are in the payload.
    part: Range<usize>,
    offset: u64,
    /// Its place in the queue of its slot.
    waiter: Option<Waiter<'d>>,
    step: Step<'d>,
}

/// What a poll of a page comes to.
type Done = Poll<Result<(), IoError>>;

/// What comes next.
enum Step<'d> {
    /// It was not polled yet, or never had to wait.
    Start,
    /// The engine has to finish its work. A modify keeps its slot meanwhile.
    Codec { pending: Pending, guard: Option<SlotGuard<'d>> },
    /// The slot has to be locked: to install this, or else to see what it holds.
    Lock(Option<NewContent<'d>>),
    /// It is over, after it had to wait.
    Done,
}

/// What a page needs of its request, and of the thread that polls it.
pub(super) struct Turn<'t, 'd, P> {
    pub(super) device: &'d Device,
    pub(super) payload: &'t mut P,
    pub(super) context: &'t mut WorkerContext,
    pub(super) plan: &'t mut Plan,
    /// Jobs that are to be submitted to the engine, oldest first.
    pub(super) jobs: &'t mut VecDeque<Arc<Job>>,
    /// One past the last page of the request.
    pub(super) last: u64,
    /// Pages that may be with the engine beside those that are.
    pub(super) room: usize,
}

/// Which of the next pages go to the engine.
#[derive(Default)]
pub(super) struct Plan {
    /// Pages below this one do, those from there to `planned` do not.
    handed: u64,
    planned: u64,
}

impl<P: Payload> Turn<'_, '_, P> {
    /// Whether the engine does this work for the page.
    #[inline(always)]
    fn hands_over(&mut self, page: &PageOp<'_>, work: Work) -> bool {
        let engine = &self.device.engine;
        if let Kind::Modify { .. } = page.kind {
            return engine.share(work, 1) > 0;
        }
        if page.index >= self.plan.planned {
            let pages = (self.last - page.index).min(self.room as u64);
            let handed = engine.share(work, pages as usize) as u64;
            (self.plan.handed, self.plan.planned) = (page.index + handed, page.index + pages);
        }
        page.index < self.plan.handed
    }
}

impl<'d> PageOp<'d> {
    /// An operation on the bytes `part` of the page `index`, which lie at `offset` of the payload.
    #[inline]
    pub(super) fn new(kind: Kind, index: u64, part: Range<usize>, offset: u64) -> Self {
        Self { kind, index, part, offset, waiter: None, step: Step::Start }
    }

    /// Bytes of the page that are meant.
    pub(super) fn len(&self) -> u64 {
        self.part.len() as u64
    }

    /// Ends a page that is done. One that never waited has nothing to drop, which the compiler cannot know:
    /// it would call a function for each page.
    #[inline(always)]
    pub(super) fn end(self) {
        if matches!(self.step, Step::Start) && self.waiter.is_none() {
            std::mem::forget(self);
        }
    }

    /// Whether it may hold its slot while it waits, so that no other page of the request may wait beside.
    pub(super) fn has_to_be_alone(&self) -> bool {
        matches!(self.kind, Kind::Modify { .. })
    }

    /// Whether it waits for nothing but the engine and holds no slot, so that pages behind it may be begun.
    pub(super) fn lets_others_begin(&self) -> bool {
        matches!(self.step, Step::Codec { guard: None, .. })
    }

    /// What it waits for, after a poll that was pending.
    pub(super) fn waits_for(&self) -> Option<WaitReason> {
        match &self.step {
            Step::Codec { guard: Some(_), .. } => Some(WaitReason::EngineWithSlot(self.index)),
            Step::Codec { guard: None, .. } => Some(WaitReason::Engine),
            Step::Lock(_) => Some(WaitReason::Slot(self.index)),
            Step::Start | Step::Done => None,
        }
    }

    /// Works the page off as far as it goes without waiting; else the waker of `cx` fires when there is
    /// more to do. Not to be called again once ready.
    ///
    /// # Errors
    /// The page is over, and its slot as it was.
    #[inline]
    pub(super) fn poll<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
    ) -> Done {
        // Each step ends in the next one. One that has to wait notes itself here, and what it needs.
        let done = match self.step {
            Step::Start => self.start(turn, cx),
            _ => self.resume(turn, cx),
        };
        if self.kind == Kind::Free && done.is_ready() {
            turn.device.figures().notify_free.inc();
        }
        done
    }

    #[cold]
    fn resume<P: Payload>(&mut self, turn: &mut Turn<'_, 'd, P>, cx: &Context<'_>) -> Done {
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Codec { pending, guard } => self.codec(turn, cx, pending, guard),
            Step::Lock(new) => self.lock(turn, cx, new),
            Step::Start | Step::Done => Poll::Ready(Ok(())),
        }
    }

    #[inline(always)]
    fn start<P: Payload>(&mut self, turn: &mut Turn<'_, 'd, P>, cx: &Context<'_>) -> Done {
        let device = turn.device;
        match self.kind {
            Kind::Read => {
                device.table.touch(self.index, turn.context.now);
                match self.peek(device) {
                    Some(content) => {
                        device.decode(self.index, content, &[], turn.context)?;
                        self.deliver(turn)
                    }
                    None => self.lock(turn, cx, None),
                }
            }
            // All that takes time or can fail comes before the lock.
            Kind::Write => {
                // The guest may change its buffer at any time: one copy, and all that follows from it.
                turn.payload.fetch(self.offset, &mut turn.context.page[..])?;
                failpoint::reach("write.fetched");
                device.ensure(self.index, &turn.context.reader)?;
                self.encode(turn, cx, None)
            }
            Kind::Modify { zero: true }
                if matches!(self.peek(device), Some(Content::Empty | Content::Discarded)) =>
            {
                Poll::Ready(Ok(()))
            }
            Kind::Free if self.peek(device) == Some(Content::Empty) => Poll::Ready(Ok(())),
            Kind::Modify { .. } => self.lock(turn, cx, None),
            Kind::Free => self.lock(turn, cx, Some(NewContent::EMPTY)),
        }
    }

    #[inline(always)]
    fn peek(&self, device: &Device) -> Option<Content> {
        device.table.peek(self.index)
    }

    /// Locks the slot, to install `new`, or else to see what it holds.
    #[inline(always)]
    fn lock<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        new: Option<NewContent<'d>>,
    ) -> Done {
        let device = turn.device;
        loop {
            match (device.table.poll_lock(self.index, &mut self.waiter, cx), self.kind) {
                (Poll::Ready(Some(guard)), _) => {
                    return match new {
                        Some(new) => self.install(turn, guard, new),
                        None => self.open(turn, cx, guard),
                    };
                }
                // The slot does not exist, which is all that these have to know.
                (Poll::Ready(None), Kind::Free) => return Poll::Ready(Ok(())),
                (Poll::Ready(None), Kind::Read) => {
                    device.decode(self.index, Content::Empty, &[], turn.context)?;
                    return self.deliver(turn);
                }
                // Nothing was in its part of the table, so that went meanwhile.
                (Poll::Ready(None), _) => device.ensure(self.index, &turn.context.reader)?,
                (Poll::Pending, _) => {
                    self.step = Step::Lock(new);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads what the slot holds. An early return drops the guard: the slot keeps what it has.
    #[inline(always)]
    fn open<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        guard: SlotGuard<'d>,
    ) -> Done {
        let is_read = self.kind == Kind::Read;
        if !is_read {
            failpoint::reach("modify.locked");
        }
        let (content, bytes) = turn.device.held(&guard)?;
        if let Content::Object(codec, object) = content {
            if object.is_huge() {
                if is_read {
                    // Stored as it is: straight from the arena to where it is wanted.
                    let done = turn.payload.deliver(self.offset, &bytes[self.part.clone()]);
                    return Poll::Ready(done.map_err(Into::into));
                }
            } else if turn.hands_over(self, Work::Decompress { codec }) {
                let job = Job::decompress(bytes, codec, &mut turn.context.spares);
                // A read has a copy of the object, so that no task waits for the slot meanwhile.
                return self.submit(turn, cx, job, (!is_read).then_some(guard));
            } else if is_read && self.part.len() == PAGE_SIZE {
                // The slot stays locked while the guest's memory is written, as for a page that is stored raw. A
                // page fault there makes other requests for this page wait, and no others.
                let to = (&mut *turn.payload, self.offset);
                let sampler = &mut turn.context.sampler;
                if turn.device.decompress_to(self.index, codec, bytes, to, sampler)? {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        turn.device.decode(self.index, content, bytes, turn.context)?;
        if is_read {
            // The slot is free before its bytes are copied to the guest.
            drop(guard);
            return self.deliver(turn);
        }
        self.change(turn, cx, Some(guard))
    }

    #[inline(always)]
    fn deliver<P: Payload>(&self, turn: &mut Turn<'_, 'd, P>) -> Done {
        let done = turn.payload.deliver(self.offset, &turn.context.page[self.part.clone()]);
        Poll::Ready(done.map_err(Into::into))
    }

    /// Changes a part of the page in `context.page`.
    fn change<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        guard: Option<SlotGuard<'d>>,
    ) -> Done {
        failpoint::reach("modify.decoded");
        let part = &mut turn.context.page[self.part.clone()];
        if self.kind == (Kind::Modify { zero: true }) {
            part.fill(0);
        } else {
            turn.payload.fetch(self.offset, part)?;
        }
        self.encode(turn, cx, guard)
    }

    /// Makes a content of the page in `context.page`.
    #[inline]
    fn encode<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        guard: Option<SlotGuard<'d>>,
    ) -> Done {
        let device = turn.device;
        let new = match device.encode_same(self.index, turn.context)? {
            Some(same) => same,
            None if turn.hands_over(self, device.compression()) => {
                let job = turn.context.compress_later(device.codecs.primary().number());
                return self.submit(turn, cx, job, guard);
            }
            None => device.encode_page(self.index, turn.context)?,
        };
        self.encoded(turn, cx, new, guard)
    }

    #[inline(always)]
    fn encoded<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        new: NewContent<'d>,
        guard: Option<SlotGuard<'d>>,
    ) -> Done {
        match guard {
            Some(guard) => self.install(turn, guard, new),
            None => self.lock(turn, cx, Some(new)),
        }
    }

    #[inline(always)]
    fn install<P>(
        &mut self,
        turn: &Turn<'_, 'd, P>,
        guard: SlotGuard<'d>,
        new: NewContent<'d>,
    ) -> Done {
        let (reached, steps) = match self.kind {
            Kind::Free => ("discard.locked", failpoint::DISCARD),
            Kind::Modify { .. } => ("modify.prepared", failpoint::MODIFY),
            Kind::Read | Kind::Write => ("write.prepared", failpoint::WRITE),
        };
        failpoint::reach(reached);
        if self.kind != Kind::Free {
            // While the slot is locked: who has it next sees the time.
            turn.device.table.touch(self.index, turn.context.now);
        }
        turn.device.replace(guard, new, steps);
        Poll::Ready(Ok(()))
    }

    /// Hands a job to the engine.
    #[cold]
    fn submit<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        job: Arc<Job>,
        guard: Option<SlotGuard<'d>>,
    ) -> Done {
        let pending = Engine::pending(&job);
        turn.jobs.push_back(job);
        // Not done yet, but this leaves the waker.
        self.codec(turn, cx, pending, guard)
    }

    /// Continues with what the engine has done. What it could not do is done over again here.
    #[cold]
    fn codec<P: Payload>(
        &mut self,
        turn: &mut Turn<'_, 'd, P>,
        cx: &Context<'_>,
        mut pending: Pending,
        guard: Option<SlotGuard<'d>>,
    ) -> Done {
        let Poll::Ready(result) = pending.poll(cx) else {
            self.step = Step::Codec { pending, guard };
            return Poll::Pending;
        };
        let (device, context) = (turn.device, &mut *turn.context);
        if let Err(error) = &result {
            device.engine.count_fallback(Some(error));
        }
        let job = pending.job();
        let new = match (job.work(), result) {
            (Work::Decompress { .. }, Ok(output)) => {
                context.spares.keep(std::mem::replace(&mut context.page, output.bytes));
                None
            }
            (Work::Decompress { codec }, Err(_)) => {
                device.decompress(self.index, codec, job.input(), context)?;
                None
            }
            (Work::Compress { codec, .. }, Ok(output)) => {
                let object = output.length.map(|length| (codec, &output.bytes[..length]));
                let new = device.store_encoded(self.index, object, job.page(), &context.reader);
                context.spares.keep(output.bytes);
                Some(new?)
            }
            (Work::Compress { .. }, Err(_)) => {
                context.page.copy_from_slice(job.page());
                Some(device.encode_page(self.index, context)?)
            }
        };
        pending.recycle(&mut context.spares);
        match new {
            Some(new) => self.encoded(turn, cx, new, guard),
            None if self.kind == Kind::Read => self.deliver(turn),
            None => self.change(turn, cx, guard),
        }
    }
}
