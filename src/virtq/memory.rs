//! The guest's memory as the front end describes it.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserSingleMemoryRegion};
use vm_memory::bitmap::BS;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionMmap, GuestUsize, MemoryRegionAddress,
    VolatileSlice,
};
use vmm_sys_util::eventfd::EventFd;

use crate::virtq::handed::{Handed, HandedError, Mapped};
use crate::virtq::sigbus::{self, Watch};

/// Regions that a front end may have mapped at once (the crate's own bound for ADD_MEM_REG).
pub(crate) const MAX_REGIONS: usize = 509;

/// All regions of guest memory at one moment.
///
/// Each request looks several addresses up. So the bounds of all regions lie together, and an access goes to
/// the region alone that it concerns.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// First addresses of the regions, in order.
    starts: Vec<u64>,
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// Memory of some regions, which are in order.
    ///
    /// # Errors
    /// Two of them overlap.
    fn of(regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        let starts: Vec<_> = regions.iter().map(|region| region.start_addr().0).collect();
        let follows = |pair: &[Arc<Region>]| pair[0].last_addr() < pair[1].start_addr();
        if !regions.windows(2).all(follows) {
            return Err(MemoryError::Overlap);
        }
        Ok(Self { starts, regions })
    }
}

impl GuestMemoryBackend for Memory {
    type R = Region;

    fn num_regions(&self) -> usize {
        self.regions.len()
    }

    #[inline]
    fn find_region(&self, addr: GuestAddress) -> Option<&Region> {
        let below = self.starts.partition_point(|start| *start <= addr.0);
        let region = self.regions.get(below.checked_sub(1)?)?;
        (addr.0 - region.start < region.len).then_some(region)
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map(Arc::as_ref)
    }
}

/// Whether a part of guest memory was lost, so that bytes read from it may be wrong, and the guest may not
/// see bytes written to it. To be called after the bytes were moved, and not before.
#[inline]
pub(crate) fn is_lost(memory: &Memory) -> bool {
    sigbus::has_faulted() && memory.iter().any(Region::is_lost)
}

/// The memory that queue threads take a snapshot of for each batch.
pub(crate) type SharedMemory = GuestMemoryAtomic<Memory>;

/// A region of guest memory, mapped, and watched for the loss of its file.
#[derive(Debug)]
pub(crate) struct Region {
    // Dropped before the mapping: an unmapped range must not be watched any more.
    watch: Watch,
    mapping: GuestRegionMmap,
    /// Its first address, and its bytes.
    start: u64,
    len: u64,
}

impl Region {
    /// Whether a part of the file was truncated, so that bytes read from here may be wrong.
    pub(crate) fn is_lost(&self) -> bool {
        self.watch.faulted()
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    #[inline]
    fn len(&self) -> GuestUsize {
        self.len
    }

    #[inline]
    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) -> BS<'_, ()> {
        self.mapping.bitmap();
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.mapping.get_host_address(addr)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.mapping.file_offset()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        self.mapping.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for Region {}

/// Why a region of guest memory was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a memory region cannot be mapped")]
    Map(#[from] HandedError),
    #[error("a memory region ends beyond the address space")]
    Address,
    #[error("memory regions overlap")]
    Overlap,
    #[error("the front end has more than {MAX_REGIONS} memory regions")]
    TooMany,
    #[error("the memory region does not exist")]
    Unknown,
}

/// Where a region lies, in the guest and in the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) guest_addr: u64,
    pub(crate) user_addr: u64,
    pub(crate) size: u64,
    pub(crate) file_offset: u64,
}

impl From<&VhostUserMemoryRegion> for Layout {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        Self {
            guest_addr: region.guest_phys_addr,
            user_addr: region.user_addr,
            size: region.memory_size,
            file_offset: region.mmap_offset,
        }
    }
}

impl From<&VhostUserSingleMemoryRegion> for Layout {
    fn from(region: &VhostUserSingleMemoryRegion) -> Self {
        Self {
            guest_addr: region.guest_phys_addr,
            user_addr: region.user_addr,
            size: region.memory_size,
            file_offset: region.mmap_offset,
        }
    }
}

/// The regions of one session.
pub(crate) struct MemoryMap {
    regions: Vec<(Layout, Arc<Region>)>,
    shared: SharedMemory,
    alarm: Arc<EventFd>,
}

impl MemoryMap {
    /// No memory yet; a region that is lost later is signalled through `alarm`.
    pub(crate) fn new(alarm: EventFd) -> Self {
        Self {
            regions: Vec::new(),
            shared: SharedMemory::new(Memory::default()),
            alarm: Arc::new(alarm),
        }
    }

    /// The memory as queue threads see it; follows all changes.
    pub(crate) fn shared(&self) -> SharedMemory {
        self.shared.clone()
    }

    /// Replaces all regions.
    pub(crate) fn set(&mut self, regions: Vec<(Layout, File)>) -> Result<(), MemoryError> {
        // All files first: no file may be closed before its type was checked.
        let handed: Vec<_> =
            regions.into_iter().map(|(layout, file)| (layout, Handed::new(file))).collect();
        let mapped = handed.into_iter().map(|(layout, handed)| self.map(layout, handed?));
        let mapped: Result<Vec<_>, MemoryError> = mapped.collect();
        self.install(mapped?)
    }

    /// Adds a region.
    pub(crate) fn add(&mut self, layout: Layout, file: File) -> Result<(), MemoryError> {
        let mapped = self.map(layout, Handed::new(file)?)?;
        let mut regions = self.regions.clone();
        regions.push(mapped);
        self.install(regions)
    }

    /// Removes a region, named by its addresses and size.
    pub(crate) fn remove(&mut self, layout: Layout) -> Result<(), MemoryError> {
        let mut regions = self.regions.clone();
        let at = regions.iter().position(|(known, _)| {
            (known.guest_addr, known.user_addr, known.size)
                == (layout.guest_addr, layout.user_addr, layout.size)
        });
        regions.remove(at.ok_or(MemoryError::Unknown)?);
        self.install(regions)
    }

    /// The guest address of an address in the front end's own space, in which it names the rings.
    pub(crate) fn guest_address(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|(layout, _)| {
            let offset = user_addr.checked_sub(layout.user_addr)?;
            (offset < layout.size).then(|| layout.guest_addr + offset)
        })
    }

    /// The event that signals the loss of a region.
    pub(crate) fn alarm(&self) -> &Arc<EventFd> {
        &self.alarm
    }

    /// Whether a region was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.regions.iter().any(|(_, region)| region.is_lost())
    }

    fn map(&self, layout: Layout, handed: Handed) -> Result<(Layout, Arc<Region>), MemoryError> {
        if layout.guest_addr.checked_add(layout.size).is_none()
            || layout.user_addr.checked_add(layout.size).is_none()
        {
            return Err(MemoryError::Address);
        }
        let Mapped { watch, mapping } = handed.map(layout.file_offset, layout.size, &self.alarm)?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(layout.guest_addr));
        let mapping = mapping.ok_or(MemoryError::Address)?;
        let (start, len) = (mapping.start_addr().0, mapping.len());
        Ok((layout, Arc::new(Region { watch, mapping, start, len })))
    }

    fn install(&mut self, mut regions: Vec<(Layout, Arc<Region>)>) -> Result<(), MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        regions.sort_by_key(|(layout, _)| layout.guest_addr);
        let memory = Memory::of(regions.iter().map(|(_, region)| Arc::clone(region)).collect())?;
        // No other thread writes: the map belongs to the session's thread. A poisoned lock can still
        // be used, since it guards no data of its own.
        let guard = self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.replace(memory);
        self.regions = regions;
        Ok(())
    }
}

/// Memory of one region of a file of its own, for tests and fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) fn for_tests(start: u64, size: u64) -> MemoryMap {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let alarm = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    let mut map = MemoryMap::new(alarm);
    let layout = Layout { guest_addr: start, user_addr: start + (1 << 32), size, file_offset: 0 };
    map.add(layout, file).unwrap();
    map
}
