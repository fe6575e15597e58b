//! What one running ring has in flight, as it is kept in its part of the in-flight region: the order
//! of the stores is the protocol.

use std::collections::VecDeque;

use crate::failpoint;
use crate::virtq::elem::{Finished, Taken};
use crate::virtq::inflight::Part;

/// What one running ring has in flight, kept in its part of the region.
///
/// Heads are marked in the order of the available ring and unmarked, when they are put back, in the
/// reverse order, by one thread. So at any instant those of the ring's heads that are marked or in
/// the used ring are a prefix of what was made available: as many as the used index and the number
/// of marked ones say together. That sum is where the next process goes on to take.
#[derive(Debug)]
pub(crate) struct Ledger {
    part: Part,
    /// Of the next head that is taken. From 1 on, so that a counter other than 0 says that the
    /// ring was used.
    counter: u64,
    /// The head that ends the chain of batches; what the region has of it may be changed by others.
    last_head: u16,
    /// Heads that an earlier process took and did not give back, in the order in which it took them.
    /// They are marked.
    again: VecDeque<u16>,
}

impl Ledger {
    /// A ledger that goes on with `counter`, and with the heads `again`, which are marked.
    pub(crate) fn new(part: Part, counter: u64, again: Vec<u16>) -> Self {
        Self { part, counter, last_head: 0, again: again.into() }
    }

    /// Marks what was taken from the available ring, in its order.
    pub(crate) fn take(&mut self, batch: &VecDeque<Taken>) {
        for taken in batch {
            self.part.mark(taken.head(), self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
        failpoint::reach("ring.marked");
    }

    /// Unmarks the rest of what was taken last, which goes back into the available ring.
    pub(crate) fn put_back(&mut self, rest: &VecDeque<Taken>) {
        for taken in rest.iter().rev() {
            self.part.unmark(taken.head());
            self.counter = self.counter.wrapping_sub(1);
        }
    }

    /// Chains a batch that is about to be put into the used ring.
    pub(crate) fn chain(&mut self, batch: &[Finished]) {
        for finished in batch {
            self.part.chain(finished.head, self.last_head);
            self.last_head = finished.head;
        }
        failpoint::reach("ring.chained");
    }

    /// Unmarks a batch that is in the used ring, up to the index `used`.
    pub(crate) fn end_batch(&mut self, batch: &[Finished], used: u16) {
        self.part.end_batch(batch.iter().map(|finished| finished.head), used);
        failpoint::reach("ring.synced");
    }

    /// Whether there are heads to be taken again.
    pub(crate) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// The next head to be taken again.
    pub(crate) fn next_again(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    /// Puts a head back that came from [`Self::next_again`]: the last one first.
    pub(crate) fn put_again(&mut self, head: u16) {
        self.again.push_front(head);
    }

    /// Leaves the heads that are to be taken again to the next start of the ring.
    pub(crate) fn leave_again(&mut self) {
        self.again.clear();
    }
}
