//! An empty ring that is polled. While that lasts, the driver is not asked for kicks: its flag to be quiet
//! stays set, or the index at which it is to kick stays behind it.

use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_queue::QueueT;

use super::{QueueServer, is_served};
use crate::virtq::memory::Memory;

impl QueueServer<'_> {
    /// Sets whether the thread polls the ring when the next turn leaves it empty. If so, that turn does not
    /// ask the driver for kicks, and ends with [`Turn::Poll`](super::Turn::Poll).
    pub(crate) fn set_polled(&mut self, polled: bool) {
        self.polled = polled;
    }

    /// Whether the next turn finds something new in the ring: heads, or that it cannot be read. `memory` is
    /// guest memory as it is since the thread last paused.
    ///
    /// The ring is at the same place until the next command to the thread: the session stops a ring, or
    /// pauses the thread, before it changes where the ring lies.
    pub(crate) fn has_news(&self, memory: &Memory) -> bool {
        if !self.running || !self.begun {
            return false;
        }
        let state = self.vring.get_ref();
        let queue = state.get_queue();
        is_served(&state)
            && queue
                .avail_idx(memory, Ordering::Relaxed)
                .map_or(true, |index| index.0 != queue.next_avail())
    }
}
