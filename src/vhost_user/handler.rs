//! The messages of a vhost-user session, and what they do to rings and memory.
//!
//! Runs on the session's thread. It reaches queue threads only through their mailboxes, and pauses them
//! before it changes anything that they use.

mod rings;

use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vhost_user_backend::VringT;
use vmm_sys_util::eventfd::EventFd;

use crate::blk::config::ConfigSpace;
use crate::blk::mailbox::Command;
use crate::blk::queue::{Shared, Vring};
use crate::blk::worker::Worker;
use crate::blk::workers::Workers;
use crate::causes::with_causes;
use crate::ratelimit::Kind;
use crate::vhost_user::admission::Admission;
use crate::vhost_user::events;
use crate::virtq::inflight::{self, Inflight};
use crate::virtq::memory::{Layout, MAX_REGIONS, MemoryMap};

/// The front end's settings of one ring. They are kept apart from the ring itself, so that a ring can be
/// stopped, checked and started anew after any change.
#[derive(Default)]
struct Staged {
    /// Descriptor table, used ring and available ring, in the front end's address space.
    addresses: Option<[u64; 3]>,
    kick: Option<File>,
    error_event: Option<File>,
    /// A queue thread serves it.
    started: bool,
    /// Its rings were in guest memory that was removed, and may be in memory that is added.
    lost: bool,
}

/// The progress of a session. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The front end does not own the session yet (SET_OWNER).
    Begun,
    /// It owns the session, and has sent only what any front end asks.
    Owned,
    /// It has sent a message about rings or memory, as QEMU does for each queue before its guest runs.
    InUse,
}

/// The front end's requests, carried out.
pub(crate) struct Handler {
    shared: Arc<Shared>,
    memory: MemoryMap,
    /// The region for the in-flight logs of rings that are started next.
    inflight: Option<Inflight>,
    /// The file of an earlier region was truncated.
    lost_region: bool,
    admission: Admission,
    config: ConfigSpace,
    vrings: Vec<Vring>,
    staged: Vec<Staged>,
    workers: Workers,
    acked_features: u64,
    phase: Phase,
    soft_refusal: bool,
    /// The last message was a good SET_BACKEND_REQ_FD.
    channel_given: bool,
}

impl Handler {
    /// A handler for rings `vrings`. `trouble` is signalled if a queue thread dies.
    pub(crate) fn new(
        shared: Arc<Shared>,
        memory: MemoryMap,
        vrings: Vec<Vring>,
        trouble: EventFd,
    ) -> Self {
        let workers = Workers::new(Arc::clone(&shared), vrings.clone(), trouble);
        let device = &shared.device;
        let config = ConfigSpace::new(&shared.options, device.sectors(), device.block_size());
        let staged = vrings.iter().map(|_| Staged::default()).collect();
        let admission = Admission::new(Arc::clone(device), vrings.len());
        Self {
            shared,
            memory,
            inflight: None,
            lost_region: false,
            admission,
            config,
            vrings,
            staged,
            workers,
            acked_features: 0,
            phase: Phase::Begun,
            soft_refusal: false,
            channel_given: false,
        }
    }

    /// Whether the last message handed a channel over.
    pub(crate) fn take_channel_given(&mut self) -> bool {
        std::mem::take(&mut self.channel_given)
    }

    /// Whether a guest uses a ring, of a disk that its front end may know to be smaller than it is.
    pub(crate) fn may_know_old_size(&self) -> bool {
        self.shared.device.has_grown() && self.staged.iter().any(|staged| staged.started)
    }

    /// Whether the last error was a refusal that was reported to the front end, and does not end the
    /// session.
    pub(crate) fn take_soft_refusal(&mut self) -> bool {
        std::mem::take(&mut self.soft_refusal)
    }

    #[cfg(test)]
    pub(crate) fn vring(&self, ring: usize) -> Vring {
        self.vrings[ring].clone()
    }

    /// The front end's progress.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether memory of the front end was lost.
    pub(crate) fn memory_is_lost(&self) -> bool {
        let region = self.inflight.as_ref().is_some_and(Inflight::is_lost);
        self.memory.is_lost() || region || self.lost_region
    }

    /// Finishes and publishes all that was taken, and ends the queue threads. Returns false if one of them
    /// had died.
    pub(crate) fn shut_down(&mut self) -> bool {
        let healthy = self.workers.shut_down();
        self.admission.end(!healthy);
        healthy
    }

    /// The vhost crate's error for a request that cannot be carried out; logs the reason.
    fn refuse<T>(&self, why: impl std::fmt::Display) -> Result<T> {
        let line = format_args!("a message of the front end is refused: {why}");
        self.shared.log.warn(Kind::Messages, line);
        Err(Error::InvalidParam)
    }

    /// The thread of a ring that was started.
    fn worker(&self, ring: usize) -> Result<&Worker> {
        self.workers.running_for(ring).ok_or(Error::BackendInternalError)
    }

    fn ring(&mut self, index: u32) -> Result<usize> {
        let ring = index as usize;
        if ring >= self.vrings.len() {
            return self.refuse(format_args!("queue {index} does not exist"));
        }
        self.phase = Phase::InUse;
        Ok(ring)
    }

    /// A descriptor for events of a ring.
    fn event(&self, ring: usize, what: &str, file: File) -> Result<File> {
        let event = events::event(file);
        event.or_else(|error| {
            self.refuse(format_args!("{what} of queue {ring}: {}", with_causes(&error)))
        })
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        self.phase = self.phase.max(Phase::Owned);
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        for ring in 0..self.vrings.len() {
            self.stop(ring)?;
            self.vrings[ring].set_enabled(false);
            self.staged[ring] = Staged::default();
        }
        self.acked_features = 0;
        self.inflight = None;
        self.admission.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("RESET_DEVICE is not offered"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.shared.options.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.shared.options.features() != 0 {
            return self
                .refuse(format_args!("features {features:#x} contain some that were not offered"));
        }
        self.acked_features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(crate::blk::config::GuestOptions::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !crate::blk::config::GuestOptions::protocol_features().bits() != 0 {
            return self.refuse(format_args!(
                "protocol features {features:#x} contain some that were not offered"
            ));
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(Layout::from).zip(files).collect();
        self.change_memory(false, |memory| memory.set(regions))?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.change_memory(false, |memory| memory.add(Layout::from(region), file))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change_memory(true, |memory| memory.remove(Layout::from(region)))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let ring = self.ring(index)?;
        let max = self.shared.options.max_queue_size;
        let size = u16::try_from(num).ok().filter(|size| *size <= max && size.is_power_of_two());
        let Some(size) = size else {
            return self
                .refuse(format_args!("{num} is not a queue size: a power of two up to {max}"));
        };
        self.change_ring(ring, |this| this.vrings[ring].set_queue_size(size))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = self.ring(index)?;
        let addresses = Some([descriptor, used, available]);
        self.stop(ring)?;
        self.staged[ring].addresses = addresses;
        self.start_if_complete(ring)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let ring = self.ring(index)?;
        let Ok(base) = u16::try_from(base) else {
            return self.refuse(format_args!("{base} is not an index of a ring"));
        };
        self.change_ring(ring, |this| this.vrings[ring].set_queue_next_avail(base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        self.stop(ring)?;
        // A kick descriptor starts the ring again, and only a new one (vhost-user, "Ring states").
        self.staged[ring].kick = None;
        let vring = &self.vrings[ring];
        vring.set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(vring.queue_next_avail())))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        let Some(fd) = fd else {
            return self.refuse(format_args!(
                "queue {ring} has no kick descriptor, and polling is not offered"
            ));
        };
        let kick = self.event(ring, "kicks", fd)?;
        self.stop(ring)?;
        self.staged[ring].kick = Some(kick);
        self.start_if_complete(ring)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        let call = fd.map(|fd| self.event(ring, "calls", fd)).transpose()?;
        let vring = &self.vrings[ring];
        vring.set_call(call);
        // The interrupt for the elements in the used ring may have been lost with an earlier session.
        let _ = vring.signal_used_queue();
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        let error_event = fd.map(|fd| self.event(ring, "errors", fd)).transpose()?;
        self.change_ring(ring, |this| this.staged[ring].error_event = error_event)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let ring = self.ring(index)?;
        self.vrings[ring].set_enabled(enable);
        if enable && self.staged[ring].started {
            self.worker(ring)?.send(Command::Poll { ring });
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.config.set_sectors(self.shared.device.sectors());
        Ok(self.config.read(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.config.write(offset, bytes).map_err(|error| {
            log::debug!("{error}");
            self.soft_refusal = true;
            Error::InvalidParam
        })
    }

    fn set_backend_req_fd(&mut self, _: Backend) {
        // Which has no message for us, and no way to its socket.
        self.channel_given = true;
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is a disk"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("SHARED_OBJECT is not offered"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        inflight::create(asked, self.shared.options.region_limits())
            .or_else(|error| self.refuse(with_causes(&error)))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let options = &self.shared.options;
        let inflight = Inflight::map(given, file, options.region_limits(), self.memory.alarm());
        let inflight = inflight.or_else(|error| self.refuse(with_causes(&error)))?;
        let (queues, size) = (given.num_queues, given.queue_size);
        log::debug!("an in-flight region for {queues} queues of {size}");
        // A front end sends it before its rings. If it does not, the rings are started anew with it.
        let running: Vec<usize> =
            (0..self.vrings.len()).filter(|ring| self.staged[*ring].started).collect();
        running.iter().try_for_each(|ring| self.stop(*ring))?;
        // Before any of its rings runs, and of all its queues: a queue in use is evidence for the others.
        self.admission.region_given(inflight.shows_use());
        // The loss of a region that is replaced may not have been handled yet.
        let old = self.inflight.replace(inflight);
        self.lost_region |= old.is_some_and(|old| old.is_lost());
        running.iter().try_for_each(|ring| self.start_if_complete(*ring))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("SHMEM is not offered"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD is not offered"))
    }
}
