//! The in-flight log of one running ring in its part of the in-flight region. The order of the stores is
//! the protocol.

use std::collections::VecDeque;

use crate::failpoint;
use crate::virtq::elem::{Head, UsedElem};
use crate::virtq::part::Part;

/// The log of one running ring.
///
/// Heads are marked in the order of the available ring and unmarked, when they are put back, in the
/// reverse order, by one thread. So at any instant those of the ring's heads that are marked or in
/// the used ring are a prefix of what was made available: as many as the used index and the number
/// of marked ones add up to. That sum is where the next process continues to take.
#[derive(Debug)]
pub(crate) struct RegionLog {
    part: Part,
    /// The counter of the next head that is taken. It starts at 1, so a counter other than 0 shows that the
    /// ring was used.
    counter: u64,
    /// The head that ends the chain of batches. Its copy in the region may be changed by other processes.
    last_head: u16,
    /// Heads that an earlier process took and did not give back, in the order in which it took them.
    /// They are marked.
    resubmit: VecDeque<u16>,
}

impl RegionLog {
    /// A log that continues with `counter`, and with the heads `resubmit`, which are marked.
    pub(crate) fn new(part: Part, counter: u64, resubmit: Vec<u16>) -> Self {
        Self { part, counter, last_head: 0, resubmit: resubmit.into() }
    }

    /// Marks what was taken from the available ring, in its order.
    pub(crate) fn take(&mut self, batch: &VecDeque<Head>) {
        for taken in batch {
            self.part.mark(taken.index(), self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
        failpoint::reach("ring.marked");
    }

    /// Unmarks the rest of what was taken last, which goes back into the available ring.
    pub(crate) fn put_back(&mut self, rest: &VecDeque<Head>) {
        for taken in rest.iter().rev() {
            self.part.unmark(taken.index());
            self.counter = self.counter.wrapping_sub(1);
        }
    }

    /// Chains a batch that is about to be put into the used ring.
    pub(crate) fn chain(&mut self, batch: &[UsedElem]) {
        for finished in batch {
            self.part.chain(finished.head, self.last_head);
            self.last_head = finished.head;
        }
        failpoint::reach("ring.chained");
    }

    /// Unmarks a batch that is in the used ring, up to the index `used`.
    pub(crate) fn end_batch(&mut self, batch: &[UsedElem], used: u16) {
        self.part.end_batch(batch.iter().map(|finished| finished.head), used);
        failpoint::reach("ring.synced");
    }

    /// Whether there are heads to resubmit.
    pub(crate) fn has_resubmits(&self) -> bool {
        !self.resubmit.is_empty()
    }

    /// The next head to resubmit.
    pub(crate) fn next_resubmit(&mut self) -> Option<u16> {
        self.resubmit.pop_front()
    }

    /// Puts a head back that came from [`Self::next_resubmit`]: the last one first.
    pub(crate) fn put_back_resubmit(&mut self, head: u16) {
        self.resubmit.push_front(head);
    }

    /// Leaves the heads to resubmit to the next start of the ring.
    pub(crate) fn leave_resubmits(&mut self) {
        self.resubmit.clear();
    }
}
