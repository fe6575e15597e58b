//! How long requests take, from the taking of their heads to the publishing of their completions.
//!
//! The clock is read twice a batch: when it is taken, and when something is published.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock;
use crate::device::{Device, Timed};
use crate::virtq::elem::{Head, UsedElem};

/// What a request does, by [`Timed`], in the lowest bits of an entry.
const KINDS: [Timed; 5] =
    [Timed::Read, Timed::Write, Timed::Discard, Timed::WriteZeroes, Timed::Flush];
const KIND_BITS: u32 = 3;
const KIND: u64 = (1 << KIND_BITS) - 1;
/// In place of a kind: a request whose time is not counted, or not yet.
const NONE: u64 = KIND;

/// When the requests of a ring were taken.
#[derive(Debug)]
pub(super) struct Timing {
    /// By head: when it was taken, in nanoseconds, and what it does.
    taken: Vec<u64>,
}

impl Timing {
    /// For the heads of a ring of `size`.
    pub(super) fn new(size: u16) -> Self {
        Self { taken: vec![NONE; usize::from(size)] }
    }

    /// A batch was taken.
    pub(super) fn take(&mut self, batch: &VecDeque<Head>) {
        let now = nanos(clock::since_start());
        for head in batch {
            if let Some(taken) = self.taken.get_mut(usize::from(head.index())) {
                *taken = now << KIND_BITS | NONE;
            }
        }
    }

    /// It turned out what the request of this head does.
    pub(super) fn begin(&mut self, head: u16, timed: Timed) {
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = *taken & !KIND | timed as u64;
        }
    }

    /// Counts what is published now.
    pub(super) fn publish(&self, batch: &[UsedElem], device: &Device) {
        let now = nanos(clock::since_start());
        // Most of a batch was taken together and does the same.
        for alike in batch.chunk_by(|one, other| self.entry(one) == self.entry(other)) {
            let entry = alike.first().map_or(NONE, |first| self.entry(first));
            if let Some(timed) = KINDS.get((entry & KIND) as usize) {
                let time = Duration::from_nanos(now.saturating_sub(entry >> KIND_BITS));
                device.took(*timed, time, alike.len() as u32);
            }
        }
    }

    fn entry(&self, element: &UsedElem) -> u64 {
        self.taken.get(usize::from(element.head)).copied().unwrap_or(NONE)
    }
}

/// A time since the start, of which 61 bits are more than anything lives.
fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}
