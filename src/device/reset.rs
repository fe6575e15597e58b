//! A reset: all pages are freed, and the figures begin anew.

use super::{Device, DeviceError, IoError, Op, Payload, PayloadFault};
use crate::failpoint;
use crate::sync;
use crate::units::{PAGE_SIZE, SECTOR_SIZE};

/// Pages that are freed between two questions whether to go on.
const CHUNK_PAGES: u64 = 1024;

/// Why a disk is not reset. What was freed is gone, and the next reset goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ResetFailed {
    /// The codec cannot be set up.
    #[error("the thread that resets the disk cannot be set up")]
    Context(#[from] DeviceError),
    /// A page cannot be freed.
    #[error("a page cannot be freed")]
    Page(#[from] IoError),
    /// The process is to end. If the disk has a state, the next process finishes the reset.
    #[error("the daemon is to end")]
    Stopped,
}

/// Nothing is moved to or from a discard.
struct Nothing;

impl Payload for Nothing {
    fn fetch(&mut self, _: u64, _: &mut [u8]) -> Result<(), PayloadFault> {
        Err(PayloadFault)
    }

    fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
        Err(PayloadFault)
    }
}

impl Device {
    /// Frees all pages, forgets that a guest was served, and has the figures begin anew. No guest is served
    /// meanwhile; `go_on` is asked every now and then.
    ///
    /// A state says from the first step on that it is being reset. A process that dies before the last one
    /// leaves it to the next process, which empties the disk before it uses it: no guest ever sees a disk of
    /// which a part was freed.
    ///
    /// # Errors
    /// See [`ResetFailed`].
    pub fn reset(&self, mut go_on: impl FnMut() -> bool) -> Result<(), ResetFailed> {
        let mut context = self.worker_context()?;
        if let Some(state) = &self.state {
            state.set_resetting();
        }
        failpoint::reach("reset.begun");
        self.forget_served();
        let mut next = self.table.next_existing(0);
        while next < self.table.len() {
            if !go_on() {
                return Err(ResetFailed::Stopped);
            }
            let pages = CHUNK_PAGES.min(self.table.len() - next);
            let (sector, bytes) = (next * PAGE_SIZE as u64 / SECTOR_SIZE, pages * PAGE_SIZE as u64);
            let mut request = self.request(Op::Discard, sector, bytes, Nothing)?;
            sync::block_on(|cx| request.poll(&mut context, cx))?;
            failpoint::reach("reset.freed");
            next = self.table.next_existing(next + pages);
        }
        self.restart_figures();
        failpoint::reach("reset.counted");
        if let Some(state) = &self.state {
            state.set_complete();
        }
        failpoint::reach("reset.done");
        Ok(())
    }

    /// What counts from the start on counts from here on.
    fn restart_figures(&self) {
        self.figures.each(super::Figures::restart);
        self.restart_latencies();
        self.pool.restart_figures();
        self.engine.restart_figures();
    }
}
