//! A sparse shared mapping of a file in memory. The only place that maps the disk's memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{Whence, lseek64};

use super::{HOST_PAGE, MemoryKind, StoreError};
use crate::prefetch;
use crate::sync::{AtomicU32, AtomicU64};

/// A part of a file, mapped shared and writable, whose pages exist only once populated or written.
#[derive(Debug)]
pub(super) struct Mapping {
    file: Arc<File>,
    /// Where the part begins in the file, in bytes; a multiple of [`HOST_PAGE`].
    start: u64,
    base: NonNull<u8>,
    /// Bytes; a multiple of [`HOST_PAGE`], not 0.
    len: usize,
}

// SAFETY: the mapping is memory that belongs to this value alone. Safe methods access it atomically
// or by system calls; the others say in their contract which bytes may be accessed when.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of `len` bytes, rounded up to a host page, of a new file of its own: all holes.
    pub(super) fn new(what: &'static str, len: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        let len = len.max(1).next_multiple_of(HOST_PAGE);
        let fail = |source: io::Error| StoreError::Map { what, bytes: len, source };
        let file = kind.file(what).map_err(fail)?;
        file.set_len(len).map_err(fail)?;
        let mapping = Self::over(&Arc::new(file), what, 0, len, kind.is_locked())?;
        mapping.try_out()?;
        Ok(mapping)
    }

    /// A mapping of `len` bytes of `file` from `start` on; both are multiples of a host page, and
    /// the file is that long. If `locked`, its pages never leave memory once they exist.
    pub(super) fn over(
        file: &Arc<File>,
        what: &'static str,
        start: u64,
        len: u64,
        locked: bool,
    ) -> Result<Self, StoreError> {
        let fail = |source: io::Error| StoreError::Map { what, bytes: len, source };
        let size = usize::try_from(len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, over no other memory.
        let base = unsafe { mmap(None, size, prot, flags, file.as_fd(), start.cast_signed()) }
            .map_err(|errno| fail(errno.into()))?;
        let mapping = Self { file: Arc::clone(file), start, base: base.cast(), len: size.get() };
        // A huge page would make 2 MiB exist where 4 KiB were asked for, uncounted by any limit. A
        // kernel without huge pages does not know the advice, and needs none.
        // SAFETY: advice about our own mapping, which changes no byte.
        let _ = unsafe { madvise(base.cast(), size.get(), MmapAdvise::MADV_NOHUGEPAGE) };
        if locked {
            // SAFETY: locking pages of our own mapping, as they come to exist, changes no byte.
            let locked = unsafe { libc::mlock2(base.as_ptr(), size.get(), libc::MLOCK_ONFAULT) };
            if locked != 0 {
                return Err(lock_error(what, len, io::Error::last_os_error()));
            }
            mapping.fault_in().map_err(|source| lock_error(what, len, source))?;
        }
        Ok(mapping)
    }

    /// Brings the pages into the mapping that an earlier process left: only what is mapped is locked.
    fn fault_in(&self) -> io::Result<()> {
        let mut start = self.next_existing(0)?;
        while start < self.len() {
            let end = self.next_hole(start)?;
            let range = self.range(start, end - start).cast();
            // SAFETY: the range lies in our mapping, and populating for reads changes no byte.
            unsafe { madvise(range, (end - start) as usize, MmapAdvise::MADV_POPULATE_READ) }?;
            start = self.next_existing(end)?;
        }
        Ok(())
    }

    /// Populates a page of a mapping in which nothing is yet, and gives it back: a kernel before
    /// 5.14 cannot, and it is better told now than at every write.
    pub(super) fn try_out(&self) -> Result<(), StoreError> {
        self.populate(0, HOST_PAGE)?;
        self.punch(0, HOST_PAGE).map_err(|source| StoreError::Populate { bytes: HOST_PAGE, source })
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    /// Bytes of the whole file that exist, by the count of the file system.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.blocks() * 512)
    }

    /// Makes pages exist, zeroed if they did not, so that a store cannot end in a SIGBUS.
    ///
    /// `offset` and `len` are multiples of [`HOST_PAGE`] within the mapping.
    pub(super) fn populate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let fail = |errno: nix::Error| {
            // Where a store would raise SIGBUS: the file system is full.
            let errno = if errno == nix::Error::EFAULT { nix::Error::ENOSPC } else { errno };
            StoreError::Populate { bytes: len, source: errno.into() }
        };
        let start = self.range(offset, len).cast();
        // SAFETY: the range lies in our mapping, and populating changes no byte that exists.
        unsafe { madvise(start, len as usize, MmapAdvise::MADV_POPULATE_WRITE) }.map_err(fail)
    }

    /// Gives pages back to the host; they read as zeroes if touched again.
    ///
    /// `offset` and `len` are multiples of [`HOST_PAGE`] within the mapping.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = self.range(offset, len);
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = (self.start + offset).cast_signed();
        fallocate(&*self.file, mode, offset, len.cast_signed()).map_err(Into::into)
    }

    /// Offset of the first page at or after `offset` that exists, or `len()`.
    pub(super) fn next_existing(&self, offset: u64) -> io::Result<u64> {
        self.seek(offset, Whence::SeekData)
    }

    /// Offset of the first page at or after `offset` that does not exist, or `len()`.
    pub(super) fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.seek(offset, Whence::SeekHole)
    }

    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64> {
        match lseek64(&*self.file, (self.start + offset).cast_signed(), whence) {
            Ok(found) => {
                let found = found.cast_unsigned() / HOST_PAGE * HOST_PAGE;
                // What comes after this part in the file is not ours.
                Ok((found - self.start).min(self.len()))
            }
            Err(nix::Error::ENXIO) => Ok(self.len()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Copies `bytes` in at `offset`.
    ///
    /// # Safety
    /// Until this returns no other thread accesses these bytes of the mapping, and no slice of them
    /// lives.
    pub(super) unsafe fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.range(offset, bytes.len() as u64);
        // SAFETY: `range` checked the bounds, the source is not part of the target, of which no slice
        // lives, and no other thread accesses the target.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// The bytes at `offset`.
    ///
    /// # Safety
    /// While the slice lives no thread changes these bytes of the mapping, by a store or by
    /// [`Self::punch`].
    pub(super) unsafe fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        let at = self.range(offset, len as u64);
        // SAFETY: `range` checked the bounds, the mapping lives as long as `self`, any bytes are
        // valid `u8`, and no thread changes them (the contract of this function).
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }

    /// The half word of 4 bytes at `offset`, a multiple of 4.
    pub(super) fn half_word(&self, offset: u64) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "a half word at {offset}");
        let at = self.range(offset, 4).cast::<AtomicU32>();
        // SAFETY: within the mapping, aligned to 4 (the base is page-aligned), any bytes are a
        // valid value. All safe access to the mapping is atomic, and callers of `bytes` and `write`
        // answer for theirs.
        unsafe { at.as_ref() }
    }

    /// The word of 8 bytes with this number.
    pub(super) fn word(&self, number: u64) -> &AtomicU64 {
        let at = self.range(number * 8, 8).cast::<AtomicU64>();
        // SAFETY: within the mapping, aligned to 8 (the base is page-aligned), any bytes are a
        // valid value. All safe access to the mapping is atomic, and callers of `bytes` and `write`
        // answer for theirs.
        unsafe { at.as_ref() }
    }

    /// Has bytes fetched that will be used soon. What lies outside of the mapping is ignored.
    pub(super) fn prefetch(&self, offset: u64, len: usize) {
        prefetch::fetch(self.base.as_ptr().wrapping_add(offset as usize), len);
    }

    fn range(&self, offset: u64, len: u64) -> NonNull<u8> {
        let fits = offset <= self.len() && len <= self.len() - offset;
        assert!(fits, "{len} bytes at {offset} are outside of a mapping of {}", self.len);
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.base.add(offset as usize) }
    }
}

fn lock_error(what: &'static str, bytes: u64, source: io::Error) -> StoreError {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft);
    let limit = limit.filter(|limit| *limit != RLIM_INFINITY);
    StoreError::Lock { what, bytes, limit, source }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len) } {
            log::error!("cannot unmap {} bytes: {errno}", self.len);
        }
    }
}
