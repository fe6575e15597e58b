//! Guest memory: memfd-backed regions that the back end maps too.
//!
//! A [`Region`] is the unit of everything fast here: a ring, a request arena and its buffers live in one
//! region, so that an access is one subtraction and one bounds check, without a search.

use std::{
    fs::File,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::libc::{MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::{Error, Result, io_err};

/// One piece of guest memory in a memfd of its own, mapped shared.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    file: Arc<File>,
    file_offset: u64,
    map: MmapRegion,
    next: AtomicU64,
}

impl Region {
    /// Creates a region of `len` bytes at guest-physical address `gpa` in a new memfd.
    ///
    /// # Errors
    ///
    /// When the memfd cannot be made or mapped.
    pub fn new(gpa: u64, len: u64) -> Result<Arc<Self>> {
        let file = File::from(
            memfd_create("frontend-ram", MFdFlags::MFD_CLOEXEC).map_err(io_err("memfd_create"))?,
        );
        file.set_len(len).map_err(io_err("set_len"))?;
        Self::from_file(gpa, Arc::new(file), 0, len)
    }

    /// Maps `len` bytes of `file` from `file_offset` as the region at `gpa`.
    ///
    /// # Errors
    ///
    /// When the range cannot be mapped, for instance because the file is shorter.
    pub fn from_file(gpa: u64, file: Arc<File>, file_offset: u64, len: u64) -> Result<Arc<Self>> {
        let map = MmapRegion::from_file(
            FileOffset::from_arc(Arc::clone(&file), file_offset),
            len as usize,
        )
        .map_err(|e| Error::Io { what: "mmap", source: std::io::Error::other(e) })?;
        Ok(Arc::new(Self { gpa, file, file_offset, map, next: AtomicU64::new(0) }))
    }

    /// A region of `len` bytes in a new memfd that is mapped private here, as QEMU maps one with
    /// `share=off`: what is written here does not show in the file, which is what the back end maps.
    ///
    /// # Errors
    ///
    /// When the memfd cannot be made or mapped.
    pub fn not_shared(gpa: u64, len: u64) -> Result<Arc<Self>> {
        let shared = Self::new(gpa, len)?;
        let place = FileOffset::from_arc(Arc::clone(&shared.file), 0);
        let prot = PROT_READ | PROT_WRITE;
        let flags = MAP_PRIVATE | MAP_NORESERVE;
        let map = MmapRegion::build(Some(place), len as usize, prot, flags)
            .map_err(|e| Error::Io { what: "mmap", source: std::io::Error::other(e) })?;
        let (file, next) = (Arc::clone(&shared.file), AtomicU64::new(0));
        Ok(Arc::new(Self { gpa, file, file_offset: 0, map, next }))
    }

    /// First guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.map.size() as u64
    }

    /// Whether the region has no bytes (it never does).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First address after the region.
    pub fn end(&self) -> u64 {
        self.gpa + self.len()
    }

    /// Address of the mapping in this process: the "user address" of vhost-user messages.
    pub fn user_addr(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// Pointer to the guest-physical address `addr`, for callers that hand it to the kernel (io_uring).
    ///
    /// # Errors
    ///
    /// When `len` bytes from `addr` are not all inside.
    pub fn host_ptr(&self, addr: u64, len: u64) -> Result<*mut u8> {
        let offset = self.offset(addr, len)?;
        Ok(self.map.as_ptr().wrapping_add(offset))
    }

    /// User address of a guest-physical address of this region, unchecked on purpose: hostile tests need
    /// addresses outside too.
    pub fn to_user(&self, gpa: u64) -> u64 {
        gpa.wrapping_sub(self.gpa).wrapping_add(self.user_addr())
    }

    /// The memfd.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Cuts the memfd down to `len` bytes while it is mapped here and in the back end. No thread may touch
    /// what lies behind it afterwards: it is a SIGBUS.
    ///
    /// # Errors
    ///
    /// When the file cannot be resized.
    pub fn truncate(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(io_err("truncate"))
    }

    /// The description that `SET_MEM_TABLE` and `ADD_MEM_REG` send.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.gpa,
            memory_size: self.len(),
            userspace_addr: self.user_addr(),
            mmap_offset: self.file_offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Takes `len` bytes aligned to `align` (a power of two) that no other caller got; returns the
    /// guest-physical address. Nothing is ever given back.
    ///
    /// # Errors
    ///
    /// When the region has no room left.
    pub fn alloc(&self, len: u64, align: u64) -> Result<u64> {
        let mut start = 0;
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                start = (self.gpa + next).next_multiple_of(align) - self.gpa;
                start.checked_add(len).filter(|end| *end <= self.len())
            })
            .map_err(|_| Error::Full("memory region"))?;
        Ok(self.gpa + start)
    }

    fn offset(&self, addr: u64, len: u64) -> Result<usize> {
        let offset = addr.wrapping_sub(self.gpa);
        if offset <= self.len() && len <= self.len() - offset {
            Ok(offset as usize)
        } else {
            Err(Error::Address { addr, len })
        }
    }

    /// The bytes at `addr` as a volatile slice.
    ///
    /// # Errors
    ///
    /// When they are not all inside.
    pub fn slice(&self, addr: u64, len: u64) -> Result<VolatileSlice<'_>> {
        let offset = self.offset(addr, len)?;
        self.map.get_slice(offset, len as usize).map_err(|_| Error::Address { addr, len })
    }

    /// Copies `data` to guest-physical address `addr`.
    ///
    /// # Errors
    ///
    /// When the range is not all inside.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<()> {
        self.slice(addr, data.len() as u64)?.copy_from(data);
        Ok(())
    }

    /// Copies from guest-physical address `addr` to `data`.
    ///
    /// # Errors
    ///
    /// When the range is not all inside.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Result<()> {
        self.slice(addr, data.len() as u64)?.copy_to(data);
        Ok(())
    }

    /// Copies `len` bytes from guest-physical address `addr` to a new vector.
    ///
    /// # Errors
    ///
    /// When the range is not all inside.
    pub fn read_vec(&self, addr: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.read(addr, &mut data)?;
        Ok(data)
    }

    /// Stores one aligned integer atomically.
    ///
    /// # Errors
    ///
    /// When it is misaligned or not all inside.
    pub fn store<T: AtomicAccess>(&self, addr: u64, value: T, order: Ordering) -> Result<()> {
        self.map
            .as_volatile_slice()
            .store(value, addr.wrapping_sub(self.gpa) as usize, order)
            .map_err(|_| Error::Address { addr, len: size_of::<T>() as u64 })
    }

    /// Loads one aligned integer atomically.
    ///
    /// # Errors
    ///
    /// When it is misaligned or not all inside.
    pub fn load<T: AtomicAccess>(&self, addr: u64, order: Ordering) -> Result<T> {
        self.map
            .as_volatile_slice()
            .load(addr.wrapping_sub(self.gpa) as usize, order)
            .map_err(|_| Error::Address { addr, len: size_of::<T>() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_disjoint_and_bounded() {
        let region = Region::new(0x4000_0000, 0x3000).unwrap();
        let a = region.alloc(1, 1).unwrap();
        let b = region.alloc(0x1000, 0x1000).unwrap();
        assert_eq!((a, b), (0x4000_0000, 0x4000_1000));
        assert!(region.alloc(0x1001, 1).is_err());
        assert_eq!(region.alloc(0x1000, 1).unwrap(), 0x4000_2000);
    }

    #[test]
    fn accesses_outside_are_refused() {
        let region = Region::new(0x1000, 0x1000).unwrap();
        assert!(region.write(0x1fff, &[1, 2]).is_err());
        assert!(region.write(0xfff, &[1]).is_err());
        assert!(region.load::<u64>(0x1ffc, Ordering::Relaxed).is_err());
        region.write(0x1ffe, &[1, 2]).unwrap();
        assert_eq!(region.read_vec(0x1ffe, 2).unwrap(), [1, 2]);
    }
}
