//! A sparse shared mapping of a file in memory. The only place that maps the disk's memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{Whence, lseek64};

use super::{HOST_PAGE, MemoryKind, StoreError};
use crate::prefetch;
use crate::sync::{AtomicU32, AtomicU64};

/// A part of a file, mapped shared and writable, whose pages exist only once populated or written.
#[derive(Debug)]
pub(super) struct Mapping {
    file: Arc<File>,
    what: &'static str,
    /// Where the part begins in the file, in bytes; a multiple of [`HOST_PAGE`].
    start: u64,
    base: NonNull<u8>,
    /// Bytes that are mapped, those with room for a growth included; a multiple of [`HOST_PAGE`], not 0.
    len: usize,
    /// Pages that are in use never leave memory once they exist.
    locked: bool,
}

/// How much of a file is mapped, in bytes; multiples of a host page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// What is used from now on.
    pub(super) len: u64,
    /// What may be used later, `len` included: it is mapped if the host allows so much address space.
    pub(super) room: u64,
}

impl Extent {
    /// One without room for more.
    pub(super) fn fixed(len: u64) -> Self {
        Self { len, room: len }
    }
}

// SAFETY: the mapping is memory that belongs to this value alone. Safe methods access it atomically
// or by system calls; the others say in their contract which bytes may be accessed when.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of a new file of its own: all holes.
    pub(super) fn new(
        what: &'static str,
        extent: Extent,
        kind: &MemoryKind,
    ) -> Result<Self, StoreError> {
        let fail = |source: io::Error| StoreError::Map { what, bytes: extent.len, source };
        let file = kind.file(what).map_err(fail)?;
        file.set_len(extent.room).map_err(fail)?;
        let mapping = Self::over(&Arc::new(file), what, 0, extent, kind.is_locked())?;
        mapping.try_out()?;
        Ok(mapping)
    }

    /// A mapping of `file` from `start` on, a multiple of a host page; the file has all of the room. If
    /// `locked`, the pages of what is used never leave memory once they exist.
    pub(super) fn over(
        file: &Arc<File>,
        what: &'static str,
        start: u64,
        extent: Extent,
        locked: bool,
    ) -> Result<Self, StoreError> {
        let Extent { len, room } = extent;
        let fail = |source: io::Error| StoreError::Map { what, bytes: len, source };
        let map = |bytes: u64| -> io::Result<(NonNull<u8>, usize)> {
            let size = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
            let size = size.ok_or(io::ErrorKind::OutOfMemory)?;
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
            // SAFETY: a new mapping at an address of the kernel's choice, over no other memory.
            let base = unsafe { mmap(None, size, prot, flags, file.as_fd(), start.cast_signed()) };
            Ok((base?.cast(), size.get()))
        };
        // Without the room a disk can be served, and not grow.
        let mapped = map(room).or_else(|error| if room > len { map(len) } else { Err(error) });
        let (base, size) = mapped.map_err(fail)?;
        let mapping = Self { file: Arc::clone(file), what, start, base, len: size, locked };
        // A huge page would make 2 MiB exist where 4 KiB were asked for, uncounted by any limit. A
        // kernel without huge pages does not know the advice, and needs none.
        // SAFETY: advice about our own mapping, which changes no byte.
        let _ = unsafe { madvise(base.cast(), size, MmapAdvise::MADV_NOHUGEPAGE) };
        // A core dump would make every hole exist.
        // SAFETY: as above.
        let _ = unsafe { madvise(base.cast(), size, MmapAdvise::MADV_DONTDUMP) };
        mapping.use_up_to(len)?;
        mapping.fault_in(len).map_err(|source| lock_error(what, len, source))?;
        Ok(mapping)
    }

    /// Has the first `len` bytes of the mapping used from now on: locks them if they are to be.
    ///
    /// # Errors
    /// So much cannot be locked.
    pub(super) fn use_up_to(&self, len: u64) -> Result<(), StoreError> {
        if !self.locked {
            return Ok(());
        }
        let start = self.range(0, len).as_ptr().cast::<libc::c_void>();
        // SAFETY: locking pages of our own mapping, as they come to exist, changes no byte.
        match unsafe { libc::mlock2(start, len as usize, libc::MLOCK_ONFAULT) } {
            0 => Ok(()),
            _ => Err(lock_error(self.what, len, io::Error::last_os_error())),
        }
    }

    /// Brings the pages of the first `len` bytes into the mapping that an earlier process left, if they are to be
    /// locked: only what is mapped is.
    fn fault_in(&self, len: u64) -> io::Result<()> {
        let mut start = if self.locked { self.next_existing(0)? } else { len };
        while start < len {
            let end = self.next_hole(start)?.min(len);
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

    /// Bytes that are mapped.
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

/// Words of this process alone, zero until they are written, which take memory only where they were.
///
/// For what is noted beside a mapping: there can be as many of them as its room has use for.
#[derive(Debug)]
pub struct Notes {
    base: NonNull<u8>,
    /// Words.
    count: usize,
}

// SAFETY: the mapping is memory that belongs to this value alone, and is accessed atomically.
unsafe impl Send for Notes {}
// SAFETY: as above.
unsafe impl Sync for Notes {}

impl Notes {
    /// `count` words, all zero; an empty one has none.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(count: u64) -> Result<Self, StoreError> {
        let bytes = count.saturating_mul(8);
        let fail = |source| StoreError::Map { what: "notes", bytes, source };
        let size = usize::try_from(bytes).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let Some(size) = NonZeroUsize::new(size) else {
            return Ok(Self { base: NonNull::dangling(), count: 0 });
        };
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, over no other memory.
        let base = unsafe { mmap_anonymous(None, size, prot, flags) };
        let base = base.map_err(|errno| fail(errno.into()))?.cast();
        // A huge page would make 2 MiB exist for one word.
        // SAFETY: advice about our own mapping, which changes no byte.
        let _ = unsafe { madvise(base.cast(), size.get(), MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(Self { base, count: size.get() / 8 })
    }

    /// The word of this number, if there is one.
    #[inline]
    pub fn get(&self, number: usize) -> Option<&AtomicU64> {
        if number >= self.count {
            return None;
        }
        // SAFETY: just checked to lie within the mapping.
        let at = unsafe { self.base.cast::<AtomicU64>().add(number) };
        // SAFETY: as above; the mapping is aligned to pages, any bytes are a valid value, and all access is
        // atomic.
        Some(unsafe { at.as_ref() })
    }

    /// The number of 2 bytes at this place, if there is one: four of them are a word, and are used instead of it.
    #[inline]
    pub fn quarter(&self, number: u64) -> Option<&AtomicU16> {
        if number / 4 >= self.count as u64 {
            return None;
        }
        // SAFETY: just checked to lie within the mapping.
        let at = unsafe { self.base.cast::<AtomicU16>().add(number as usize) };
        // SAFETY: as above, for 2 bytes.
        Some(unsafe { at.as_ref() })
    }

    /// Gives the memory of some bytes back, multiples of [`HOST_PAGE`] that lie within the words: they are zero again.
    ///
    /// # Errors
    /// The host refuses.
    pub fn forget(&self, start: u64, bytes: u64) -> io::Result<()> {
        let end = start.saturating_add(bytes);
        assert!(end <= (self.count as u64 * 8).next_multiple_of(HOST_PAGE), "notes up to {end}");
        if self.count == 0 || bytes == 0 {
            return Ok(());
        }
        // SAFETY: just checked to lie within the mapping, which is of whole pages.
        let at = unsafe { self.base.add(start as usize) };
        // SAFETY: the pages are our own, private and of no file, and all access to them is atomic.
        unsafe { madvise(at.cast(), bytes as usize, MmapAdvise::MADV_DONTNEED) }?;
        Ok(())
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.count * 8) } {
            log::error!("cannot unmap {} words: {errno}", self.count);
        }
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
