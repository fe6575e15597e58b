//! Starts and stops of rings, and changes of the memory that they lie in.
//!
//! A ring is stopped, and checked and started anew, after any change.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::channel;

use vhost::vhost_user::{Error, Result};
use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::{Handler, Phase};
use crate::blk::config::F_PROTOCOL_FEATURES;
use crate::blk::mailbox::Command;
use crate::blk::queue::SHARE_IT;
use crate::causes::with_causes;
use crate::ratelimit::Kind;
use crate::vhost_user::admission::{AdmissionError, Contents};
use crate::virtq::inflight_log::{InflightLog, Record};
use crate::virtq::memory::{MemoryError, MemoryMap};
use crate::virtq::position::{self, PositionError};

/// Why a ring is not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Position(#[from] PositionError),
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

impl Handler {
    /// Stops a ring: when this returns, all that was taken from it is published.
    pub(super) fn stop(&mut self, ring: usize) -> Result<()> {
        if !self.staged[ring].started {
            return Ok(());
        }
        let (stopped, wait) = channel();
        self.worker(ring)?.send(Command::Stop { ring, stopped });
        wait.recv().map_err(|_| Error::BackendInternalError)?;
        self.vrings[ring].set_queue_ready(false);
        self.staged[ring].started = false;
        Ok(())
    }

    /// Starts a ring if the front end has sent all the settings that this requires.
    pub(super) fn start_if_complete(&mut self, ring: usize) -> Result<()> {
        let staged = &self.staged[ring];
        let (Some([table, used, available]), Some(kick)) = (staged.addresses, &staged.kick) else {
            return Ok(());
        };
        let kick = kick.try_clone().map_err(Error::ReqHandlerError)?;
        let error_event = staged.error_event.as_ref().map(File::try_clone).transpose();
        let error_event = error_event.map_err(Error::ReqHandlerError)?;
        let translate = |addr| self.memory.guest_address(addr);
        let (Some(table), Some(used), Some(available)) =
            (translate(table), translate(used), translate(available))
        else {
            return self.refuse(format_args!(
                "the ring of queue {ring} lies outside of guest memory, which may be shared in part \
                 only: {SHARE_IT}"
            ));
        };
        let vring = &self.vrings[ring];
        if vring.set_queue_info(table, available, used).is_err() {
            return self.refuse(format_args!("the ring of queue {ring} is not aligned"));
        }
        // Before the ring is changed: starting a thread may fail.
        if let Err(error) = self.workers.of(ring) {
            return self.refuse(format_args!("queue {ring}: {}", with_causes(&error)));
        }
        vring.set_queue_ready(true);
        let (inflight_log, record) = match self.position(ring) {
            Ok(found) => found,
            Err(error) => {
                vring.set_queue_ready(false);
                if matches!(error, StartError::Admission(AdmissionError::NeverServed { .. })) {
                    self.admission.dispute();
                }
                return self.refuse(format_args!("queue {ring}: {error}"));
            }
        };
        vring.set_queue_event_idx(self.acked_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1);
        if self.acked_features & F_PROTOCOL_FEATURES == 0 {
            // Without protocol features there is no enable message (vhost-user, "Ring states").
            vring.set_enabled(true);
        }
        let staged = &mut self.staged[ring];
        (staged.started, staged.lost) = (true, false);
        self.admission.started(ring, record);
        self.worker(ring)?.send(Command::Start { ring, kick, error_event, inflight_log });
        Ok(())
    }

    /// Positions a ring, if the disk serves it.
    fn position(&self, ring: usize) -> std::result::Result<(InflightLog, Record), StartError> {
        let terms = self.admission.terms(ring);
        let parts = self.inflight.as_ref().and_then(|inflight| inflight.parts(ring));
        let vring = &self.vrings[ring];
        let shown = {
            let shared = self.memory.shared();
            let state = vring.get_ref();
            position::read(state.get_queue(), &shared.memory(), parts)?
        };
        let (verdict, record) = terms.judge(&shown)?;
        let too_small = shown.too_small;
        let found = shown.begin(record).map_err(AdmissionError::from)?;
        log::debug!("queue {ring}: {verdict}, from index {}", found.next_used);
        let (resubmit, later) = (found.resubmit, found.later);
        if resubmit > 0 {
            self.shared.log.info(
                Kind::Queues,
                format_args!(
                    "queue {ring}: resubmits {resubmit} requests in flight, {later} later ones had \
                 been completed"
                ),
            );
        }
        if let Some(entries) = too_small {
            let ordered = terms.contents == Contents::Outlive;
            let order = if ordered { ", and completes requests in order" } else { "" };
            self.shared.log.warn(Kind::Queues, format_args!(
                "queue {ring}: the in-flight region has {entries} entries, too few for this ring, \
                 which continues without it{order}"
            ));
        }
        vring.set_queue_next_avail(found.next_avail);
        vring.set_queue_next_used(found.next_used);
        Ok((found.inflight_log, record))
    }

    /// Changes the settings of a ring; a running one is stopped, and started anew.
    pub(super) fn change_ring(
        &mut self,
        ring: usize,
        change: impl FnOnce(&mut Self),
    ) -> Result<()> {
        let started = self.staged[ring].started;
        self.stop(ring)?;
        change(self);
        if started { self.start_if_complete(ring) } else { Ok(()) }
    }

    /// Changes guest memory while all queue threads are paused with nothing in flight. Rings that no longer
    /// lie in it are stopped. If memory is removed (`takes_away`), what is in flight is finished first and
    /// not put back: a front end that changes a region removes it and adds it again, and a request that is
    /// taken again in between would be refused.
    pub(super) fn change_memory(
        &mut self,
        takes_away: bool,
        change: impl FnOnce(&mut MemoryMap) -> std::result::Result<(), MemoryError>,
    ) -> Result<()> {
        let mut resting = Vec::new();
        for worker in self.workers.running() {
            let (paused, wait) = channel();
            let (keep, resume) = channel();
            worker.send(Command::Pause { finish: takes_away, paused, resume });
            resting.push((wait, keep));
        }
        for (wait, _) in &resting {
            wait.recv().map_err(|_| Error::BackendInternalError)?;
        }
        let changed = change(&mut self.memory);
        self.phase = if changed.is_ok() { Phase::InUse } else { self.phase };
        let gone: Vec<usize> = (0..self.vrings.len())
            .filter(|ring| self.staged[*ring].started && !self.still_lies_in_memory(*ring))
            .collect();
        for ring in &gone {
            self.vrings[*ring].set_queue_ready(false);
        }
        drop(resting);
        for ring in gone {
            self.shared.log.warn(
                Kind::Queues,
                format_args!("queue {ring} is stopped: its ring no longer lies in guest memory"),
            );
            self.stop(ring)?;
            self.staged[ring].lost = true;
            if let Some(event) = &mut self.staged[ring].error_event {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the kernel counts in its own byte order"
                )]
                let _ = event.write(&1_u64.to_ne_bytes());
            }
        }
        // A front end that changes a region removes it and adds it again, and sends no more
        // messages about the rings in it.
        for ring in 0..self.vrings.len() {
            if self.staged[ring].lost && self.still_lies_in_memory(ring) {
                self.start_if_complete(ring)?;
            }
        }
        changed.or_else(|error| self.refuse(with_causes(&error)))
    }

    /// Whether a ring's addresses still mean what they meant when it was started.
    fn still_lies_in_memory(&self, ring: usize) -> bool {
        let Some(addresses) = self.staged[ring].addresses else { return false };
        let state = self.vrings[ring].get_ref();
        let queue = state.get_queue();
        let shared = self.memory.shared();
        let now = addresses.map(|addr| self.memory.guest_address(addr));
        // `is_valid` requires a ring that is ready, which a lost one is not. It is checked again
        // when it is started.
        now == [Some(queue.desc_table()), Some(queue.used_ring()), Some(queue.avail_ring())]
            && (!queue.ready() || queue.is_valid(&*shared.memory()))
    }
}
