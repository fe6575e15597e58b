//! Changing a part of a page: read, modify and write with the slot held throughout.
//!
//! Where the codec's work is handed over, the request sleeps and keeps the slot: an owner may sleep.
//! It waits for the engine alone then, which waits for no slot, so nobody waits in a circle; that is
//! also why such a page is begun only when no other page of the request is under way.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Lane;
use super::io::{Io, IoError, Op, Payload};
use crate::engine::{Engine, Job, Pending, Work};
use crate::failpoint;
use crate::slot::{Content, SlotGuard};

/// A page that is being changed, its slot held, while the engine works on it.
pub(super) struct Modify<'d> {
    guard: SlotGuard<'d>,
    pending: Pending,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Decoding,
    Encoding,
}

impl<'d, P: Payload> Io<'d, P> {
    /// Changes a part of the page `index`.
    pub(super) fn modify(
        &mut self,
        index: u64,
        part: Range<usize>,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        if self.modify.is_some() {
            return self.go_on(index, part, lane, cx);
        }
        if !self.offload.is_empty() {
            // Their wakers are set; this comes after them.
            return Poll::Pending;
        }
        let device = self.device;
        let peeked = || device.table.peek(index);
        if self.op == Op::WriteZeroes
            && matches!(peeked(), Some(Content::Empty | Content::Discarded))
        {
            self.waiter = None;
            return Poll::Ready(Ok(()));
        }
        let guard = loop {
            match ready!(device.table.poll_lock(index, &mut self.waiter, cx)) {
                Some(guard) => break guard,
                None => device.ensure(index, &lane.reader)?,
            }
        };
        // An early return drops the guard: the slot keeps what it has.
        failpoint::reach("modify.locked");
        let (content, bytes) = device.held(&guard)?;
        if let Content::Object(codec, object) = content
            && !object.is_huge()
            && device.engine.share(Work::Decompress { codec }, 1) > 0
        {
            let job = Job::decompress(bytes, codec, &mut lane.spares);
            return self.hand_over(job, guard, Stage::Decoding, cx);
        }
        device.decode(index, content, bytes, lane)?;
        self.change(index, part, guard, lane, cx)
    }

    /// Goes on with what the engine has done.
    fn go_on(
        &mut self,
        index: u64,
        part: Range<usize>,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let Some(mut modify) = self.modify.take() else { return Poll::Pending };
        let Poll::Ready(result) = modify.pending.poll(cx) else {
            self.modify = Some(modify);
            return Poll::Pending;
        };
        let Modify { guard, pending, stage } = modify;
        match stage {
            Stage::Decoding => {
                self.device.decoded(index, &pending, result, lane)?;
                pending.recycle(&mut lane.spares);
                self.change(index, part, guard, lane, cx)
            }
            Stage::Encoding => {
                let new = self.device.encoded(index, &pending, result, lane)?;
                pending.recycle(&mut lane.spares);
                failpoint::reach("modify.prepared");
                self.device.replace(guard, new, failpoint::MODIFY);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Changes the page in `lane.page`, and stores it.
    fn change(
        &mut self,
        index: u64,
        part: Range<usize>,
        guard: SlotGuard<'d>,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let device = self.device;
        failpoint::reach("modify.decoded");
        if self.op == Op::WriteZeroes {
            lane.page[part].fill(0);
        } else {
            self.payload.fetch(self.at - self.start, &mut lane.page[part])?;
        }
        let new = match device.encode_same(index, lane)? {
            Some(same) => same,
            None if device.engine.share(device.compression(), 1) > 0 => {
                let job = lane.compress_later(device.codecs.primary().number());
                return self.hand_over(job, guard, Stage::Encoding, cx);
            }
            None => device.encode_page(index, lane)?,
        };
        failpoint::reach("modify.prepared");
        device.replace(guard, new, failpoint::MODIFY);
        Poll::Ready(Ok(()))
    }

    fn hand_over(
        &mut self,
        job: Arc<Job>,
        guard: SlotGuard<'d>,
        stage: Stage,
        cx: &Context<'_>,
    ) -> Poll<Result<(), IoError>> {
        let mut pending = Engine::pending(&job);
        // Not done yet, but this leaves the waker.
        let _ = pending.poll(cx);
        self.modify = Some(Modify { guard, pending, stage });
        self.offload.submit_later(job);
        Poll::Pending
    }
}
