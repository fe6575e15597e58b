//! Large requests of a queue that stops: they go back into the available ring.
//!
//! A message that stops a ring, or adds or replaces guest memory, waits until nothing of the ring is in flight.
//! A back end has to complete what is in flight before it answers GET_VRING_BASE (vhost-user,
//! "Front-end message types"), and the front end may continue the ring with another back end, from the
//! base that the answer names. So a request can be abandoned between two of its pages only if the base
//! can go back before it: if each request that was taken after it goes back, too. One behind which a
//! later request was completed is finished.
//!
//! Repeating a request is safe: the guest was not told of a completion, and each page of a write is
//! done or untouched.

use std::collections::VecDeque;

use virtio_queue::{Queue, QueueT};

use super::QueueServer;
use crate::blk::parked::InFlight;
use crate::virtq::elem::Head;
use crate::virtq::memory::{self, Memory};
use crate::virtq::ring::{self, Heads};

impl QueueServer<'_> {
    /// Puts the earliest large request that can go back into the available ring, and all that were
    /// taken after it. The ring's next start, or its next turn, takes them again.
    pub(crate) fn put_back_large(&mut self, queue: &mut Queue, memory: &Memory) {
        if !self.stopping || !self.parked.has_large() {
            return;
        }
        let heads = self.retractable(queue, memory);
        let mut rest: VecDeque<Head> = VecDeque::with_capacity(heads.len());
        for head in heads {
            let parked = self.parked.take(head).map(|in_flight| in_flight.head);
            rest.push_front(parked.unwrap_or_else(|| Head::new(head)));
        }
        self.inflight_log.put_back(&rest);
        ring::put_back(queue, &mut self.heads, &mut rest);
    }

    /// Heads that can go back, the last one first, ending with the earliest large request.
    fn retractable(&self, queue: &Queue, memory: &Memory) -> Vec<u16> {
        let mut seen = Heads::new(queue.size());
        let (mut heads, mut count) = (Vec::new(), 0);
        let in_flight = queue.next_avail().wrapping_sub(queue.next_used());
        for back in 1..=in_flight.min(queue.size()) {
            // The driver does not overwrite an entry at or behind the used index.
            let head = ring::available(queue, memory, queue.next_avail().wrapping_sub(back));
            let Some(head) = head.filter(|head| *head < queue.size() && seen.take(*head)) else {
                break;
            };
            let parked = self.parked.get(head);
            if parked.is_none() && !self.inflight_log.is_early(head) {
                break;
            }
            heads.push(head);
            if parked.is_some_and(InFlight::is_large) {
                count = heads.len();
            }
        }
        // Entries that were read from lost memory are zeroes.
        heads.truncate(if memory::is_lost(memory) { 0 } else { count });
        heads
    }
}
