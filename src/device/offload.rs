//! Pages of a request whose codec work the engine does.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::content::NewContent;
use super::io::{Io, IoError, PAGE, Payload};
use super::{Device, Lane};
use crate::clock::Share;
use crate::engine::{Engine, Job, JobError, Output, Pending};
use crate::failpoint;
use crate::slot::Waiter;

/// Pages of one request that may be in the engine at once: what a request of 128 KiB has. Each takes
/// some 8 KiB meanwhile.
pub const WINDOW: usize = 32;

/// What a request has in the engine. Allocates nothing as long as that is nothing.
#[derive(Default)]
pub(super) struct Offload<'d> {
    pages: Vec<Page<'d>>,
    /// Jobs that are still to be submitted, oldest first.
    unsent: VecDeque<Arc<Job>>,
}

/// A page that was begun and is not finished.
struct Page<'d> {
    index: u64,
    stage: Stage<'d>,
}

enum Stage<'d> {
    /// The engine decompresses it, for this part of it to go to this offset of the payload.
    Decompress {
        pending: Pending,
        offset: u64,
        part: Range<usize>,
    },
    /// The engine compresses it.
    Compress(Pending),
    /// It is stored, and waits for its slot.
    Install {
        prepared: Option<NewContent<'d>>,
        waiter: Option<Waiter<'d>>,
    },
    Over,
}

impl Offload<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.unsent.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.pages.len() >= WINDOW
    }

    /// A slot that a finished page waits for.
    pub(super) fn slot_waited_for(&self) -> Option<u64> {
        let waits = |page: &&Page<'_>| matches!(&page.stage, Stage::Install { waiter, .. } if waiter.is_some());
        self.pages.iter().find(waits).map(|page| page.index)
    }

    /// Pages that may be begun now.
    pub(super) fn room(&self) -> usize {
        WINDOW - self.pages.len()
    }

    /// A page is to be compressed and written.
    pub(super) fn compress(&mut self, job: Arc<Job>, index: u64, cx: &Context<'_>) {
        let pending = self.queue(job, cx);
        self.pages.push(Page { index, stage: Stage::Compress(pending) });
    }

    /// An object is to be decompressed and delivered.
    pub(super) fn decompress(
        &mut self,
        job: Arc<Job>,
        index: u64,
        offset: u64,
        part: Range<usize>,
        cx: &Context<'_>,
    ) {
        let pending = self.queue(job, cx);
        self.pages.push(Page { index, stage: Stage::Decompress { pending, offset, part } });
    }

    /// A job whose result somebody else waits for is to be submitted.
    pub(super) fn submit_later(&mut self, job: Arc<Job>) {
        self.unsent.push_back(job);
    }

    fn queue(&mut self, job: Arc<Job>, cx: &Context<'_>) -> Pending {
        let mut pending = Engine::pending(&job);
        // Not done yet, but this leaves the waker.
        let _ = pending.poll(cx);
        self.unsent.push_back(job);
        pending
    }
}

impl<P: Payload> Io<'_, P> {
    /// Submits what is to be submitted. True if some of that was done inline instead, so there is a
    /// result already.
    pub(super) fn send(&mut self, lane: &mut Lane) -> bool {
        let Device { engine, codecs, .. } = self.device;
        engine.submit(&mut self.offload.unsent);
        // One at a time: whoever polls counts the time that it takes.
        let Some(job) = self.offload.unsent.pop_front() else { return false };
        engine.count_fallback(None);
        job.finish(job.run(codecs, &mut lane.workspace));
        true
    }

    /// Goes on with all pages that the engine is done with. False if its share of the thread's time
    /// is over before; it is woken then.
    pub(super) fn finish_pages(
        &mut self,
        share: &mut Share,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Result<bool, IoError> {
        let mut at = 0;
        while at < self.offload.pages.len() {
            if !self.finish_page(at, lane, cx)? {
                at += 1;
                continue;
            }
            self.offload.pages.swap_remove(at);
            // The work may have been done over here.
            if share.spend(PAGE) {
                cx.waker().wake_by_ref();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes on with one page. True if it is finished.
    fn finish_page(
        &mut self,
        at: usize,
        lane: &mut Lane,
        cx: &Context<'_>,
    ) -> Result<bool, IoError> {
        let device = self.device;
        let page = &mut self.offload.pages[at];
        let index = page.index;
        if let Stage::Decompress { pending, .. } | Stage::Compress(pending) = &mut page.stage {
            let Poll::Ready(result) = pending.poll(cx) else { return Ok(false) };
            match std::mem::replace(&mut page.stage, Stage::Over) {
                Stage::Decompress { pending, offset, part } => {
                    device.decoded(index, &pending, result, lane)?;
                    pending.recycle(&mut lane.spares);
                    self.payload.deliver(offset, &lane.page[part])?;
                    return Ok(true);
                }
                Stage::Compress(pending) => {
                    let stored = device.encoded(index, &pending, result, lane)?;
                    pending.recycle(&mut lane.spares);
                    page.stage = Stage::Install { prepared: Some(stored), waiter: None };
                }
                Stage::Install { .. } | Stage::Over => unreachable!("it was with the engine"),
            }
        }
        let Stage::Install { prepared, waiter } = &mut page.stage else { return Ok(false) };
        let guard = loop {
            match device.table.poll_lock(index, waiter, cx) {
                Poll::Ready(Some(guard)) => break guard,
                // Nothing was in its part of the table, so that went meanwhile.
                Poll::Ready(None) => device.ensure(index, &lane.reader)?,
                Poll::Pending => return Ok(false),
            }
        };
        let Some(prepared) = prepared.take() else { unreachable!("the page was stored") };
        failpoint::reach("write.prepared");
        device.replace(guard, prepared, failpoint::WRITE);
        Ok(true)
    }
}

impl Device {
    /// The content of a page that was to be compressed, done over again if the engine could not.
    pub(super) fn encoded(
        &self,
        index: u64,
        pending: &Pending,
        result: Result<Output, JobError>,
        lane: &mut Lane,
    ) -> Result<NewContent<'_>, IoError> {
        let job = pending.job();
        match result {
            Ok(output) => {
                let codec = job.work().codec();
                let stored = match output.length {
                    Some(length) => {
                        self.store_compressed(index, codec, &output.bytes[..length], &lane.reader)
                    }
                    None => self.store_raw(index, job.page(), &lane.reader),
                };
                lane.spares.keep(output.bytes);
                stored
            }
            Err(error) => {
                self.engine.count_fallback(Some(&error));
                lane.page.copy_from_slice(job.page());
                self.encode_page(index, lane)
            }
        }
    }

    /// Brings a page that was to be decompressed into `lane.page`, likewise.
    pub(super) fn decoded(
        &self,
        index: u64,
        pending: &Pending,
        result: Result<Output, JobError>,
        lane: &mut Lane,
    ) -> Result<(), IoError> {
        match result {
            Ok(output) => {
                lane.spares.keep(std::mem::replace(&mut lane.page, output.bytes));
                Ok(())
            }
            Err(error) => {
                self.engine.count_fallback(Some(&error));
                let job = pending.job();
                self.decompress(index, job.work().codec(), job.input(), lane)
            }
        }
    }
}
