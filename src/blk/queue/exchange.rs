//! What a queue exchanges with its ring: heads that it takes and puts back, used elements that it publishes.

use std::io::Write;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringState;
use virtio_queue::QueueT;

use super::{BLIND_KICKS, Next, QueueServer, SHARE_IT, Turn, is_served};
use crate::blk::request::Snapshot;
use crate::events::Tally;
use crate::ratelimit::Kind;
use crate::virtq::elem::Head;
use crate::virtq::memory::{Memory, SharedMemory};
use crate::virtq::position;
use crate::virtq::ring::{self, RingError};

impl QueueServer<'_> {
    /// Publishes what is finished, and takes a batch of heads unless the turn is `over`.
    pub(super) fn exchange(
        &mut self,
        state: &mut VringState<SharedMemory>,
        memory: &Snapshot,
        over: bool,
    ) -> Result<Next, RingError> {
        let unreachable = |_| RingError::Unreachable;
        if !self.scratch.taken.is_empty() {
            // The turn that takes these heads again meets what ended the batch.
            self.fault = None;
            self.put_back(state);
        }
        let wrong = self.stuck.take().or(self.fault.take());
        self.publish(state, memory)?;
        self.put_back_large(state.get_queue_mut(), memory);
        wrong.map_or(Ok(()), Err)?;
        // A driver that is not served now is not asked for kicks either: the turn that makes room
        // also reads the ring.
        let full = !self.parked.has_room();
        let resubmit = self.inflight_log.has_resubmits();
        if over || full || !(self.running || resubmit) || !is_served(state) {
            return Ok(Next::Rest(self.rest(over && !full && !self.is_held())));
        }
        if resubmit {
            self.has_begun();
            self.take_resubmits();
            self.note_taken();
            return Ok(Next::Work);
        }
        if self.is_held() {
            return Ok(Next::Rest(self.rest(false)));
        }
        if !self.begun {
            self.follow_cleared(state, memory);
        }
        if !self.quiet {
            state.disable_notification().map_err(unreachable)?;
            self.quiet = true;
        }
        let (queue, taken) = (state.get_queue_mut(), &mut self.scratch.taken);
        let in_use = queue.next_avail() != 0;
        let outcome = ring::take_batch(queue, memory, &mut self.heads, ring::BATCH, taken);
        if taken.is_empty() {
            self.wait_no_more();
            if let Err(error) = outcome {
                self.may_be_half_cleared(in_use, error)?;
                self.quiet = false;
                state.enable_notification().map_err(unreachable)?;
                // Asking for kicks writes to the ring too: to one that is cleared by now it has to be done again.
                return match position::was_cleared(state.get_queue(), memory) {
                    true => Ok(Next::Work),
                    false => Ok(Next::Rest(self.rest(false))),
                };
            }
            // Of a ring that was not used yet, the driver's kicks are counted.
            if self.polled && self.begun {
                return Ok(Next::Rest(if self.has_woken() { Turn::More } else { Turn::Poll }));
            }
            self.quiet = false;
            if !state.enable_notification().map_err(unreachable)? {
                if !self.begun {
                    ring::ask_for_first_kick(state.get_queue(), memory)?;
                }
                self.found_nothing(in_use);
                return Ok(Next::Rest(self.rest(false)));
            }
        } else {
            self.fault = outcome.err();
            self.scratch.resubmit = false;
            // From now on the disk is one that a guest has used. This is recorded before anything
            // else can show it.
            self.shared.device.mark_served();
            self.inflight_log.take(taken);
            self.has_begun();
            self.note_taken();
        }
        Ok(Next::Work)
    }

    /// Begins where the driver does, if it has cleared the ring since the start.
    fn follow_cleared(&mut self, state: &mut VringState<SharedMemory>, memory: &Memory) {
        if !position::was_cleared(state.get_queue(), memory) {
            return;
        }
        log::debug!("queue {}: the guest has cleared its ring since the start", self.index);
        let queue = state.get_queue_mut();
        queue.set_next_avail(0);
        queue.set_next_used(0);
        self.signalled = 0;
        if let Some(region_log) = self.inflight_log.region_log() {
            region_log.end_batch(&[], 0);
        }
    }

    /// Whether an available index that makes no sense may be one of a ring that the guest is about to clear, of
    /// which only a part is cleared: the ring was in use when it was started, no head was taken since, and no
    /// kick is certain to be the driver's, which kicks when its ring is ready.
    fn may_be_half_cleared(&mut self, in_use: bool, error: RingError) -> Result<(), RingError> {
        if std::mem::take(&mut self.kicked) {
            self.blind_kicks = self.blind_kicks.saturating_add(1);
        }
        let may_be = in_use && error == RingError::AvailableIndex && !self.begun;
        if may_be && self.blind_kicks < BLIND_KICKS { Ok(()) } else { Err(error) }
    }

    /// A head was taken.
    fn has_begun(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.shared.seen.store(true, Ordering::Relaxed);
        }
    }

    /// The ring has no new head. If that happens after each kick, the guest writes its ring to other
    /// memory than the one shared here. A ring that was `in_use` when it was started is in shared memory. So
    /// is the ring of an unused queue if the guest uses another queue: front ends kick unused queues, too.
    fn found_nothing(&mut self, in_use: bool) {
        let kicked = std::mem::take(&mut self.kicked);
        if !kicked || self.begun || in_use || self.shared.seen.load(Ordering::Relaxed) {
            return;
        }
        self.blind_kicks = self.blind_kicks.saturating_add(1);
        if self.blind_kicks == BLIND_KICKS {
            self.shared.device.figures().blind_queues.inc();
            self.shared.device.events().count(Tally::QueuesBlind);
            self.warn(
                Kind::Queues,
                format_args!(
                    "the guest has kicked {BLIND_KICKS} times and shows no request, so its memory is \
                     probably not shared: {SHARE_IT}"
                ),
            );
        }
    }

    /// Notes when the batch was taken, if times are counted.
    fn note_taken(&mut self) {
        if let Some(timing) = &mut self.timing {
            timing.take(&self.scratch.taken);
        }
    }

    /// Takes a batch of what an earlier process had in flight.
    fn take_resubmits(&mut self) {
        self.scratch.resubmit = true;
        let Some(region_log) = self.inflight_log.region_log() else { return };
        while self.scratch.taken.len() < ring::BATCH
            && let Some(head) = region_log.next_resubmit()
        {
            self.heads.take(head);
            self.scratch.taken.push_back(Head::new(head));
        }
    }

    /// Puts what was taken and not begun back to where it was taken from.
    fn put_back(&mut self, state: &mut VringState<SharedMemory>) {
        let taken = &mut self.scratch.taken;
        if !std::mem::take(&mut self.scratch.resubmit) {
            self.inflight_log.put_back(taken);
            ring::put_back(state.get_queue_mut(), &mut self.heads, taken);
        } else if let Some(region_log) = self.inflight_log.region_log() {
            for taken in taken.drain(..).rev() {
                let head = taken.put_back();
                self.heads.give_back(head);
                region_log.put_back_resubmit(head);
            }
        }
    }

    /// How a turn ends, if there may be `more` heads to be taken.
    pub(super) fn rest(&self, more: bool) -> Turn {
        if more || self.has_woken() { Turn::More } else { Turn::Idle }
    }

    pub(super) fn publish(
        &mut self,
        state: &mut VringState<SharedMemory>,
        memory: &Memory,
    ) -> Result<(), RingError> {
        let finished = &mut self.scratch.finished;
        self.inflight_log.release(finished);
        if finished.is_empty() {
            return Ok(());
        }
        if let Some(timing) = &self.timing {
            timing.publish(finished, &self.shared.device);
        }
        let region_log = self.inflight_log.region_log();
        ring::put_batch(state.get_queue_mut(), memory, &mut self.heads, region_log, finished)?;
        self.shared.announce_first();
        if ring::wants_interrupt(state.get_queue(), memory, &mut self.signalled)? {
            // A full eventfd is signalled already.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }

    /// Stops a ring that contradicts itself, or has a request that cannot be answered, and reports it.
    pub(super) fn break_down(&mut self, error: RingError) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        self.shared.device.figures().broken_queues.inc();
        self.shared.device.events().count(Tally::QueuesBroken);
        self.shared
            .log
            .warn(Kind::Queues, format_args!("queue {} is stopped: {error}", self.index));
        self.running = false;
        self.wait_no_more();
        if let Some(region_log) = self.inflight_log.region_log() {
            region_log.leave_resubmits();
        }
        if let Some(event) = &mut self.error_event {
            #[expect(
                clippy::disallowed_methods,
                reason = "the kernel counts in its own byte order"
            )]
            let _ = event.write(&1_u64.to_ne_bytes());
        }
    }
}
