//! Files that a front end hands over to be mapped: guest memory, and the in-flight region.
//!
//! This is the only module that maps them. `sigbus` may have to replace a mapping, and its owner unmaps it.
//! Both operations work on whole pages, which on hugetlbfs are huge. So only whole pages are mapped, and
//! anything else is refused here.
//!
//! A file that is mapped is *memory*: a memfd, a file on tmpfs or hugetlbfs, or secret memory. The kernel
//! alone serves it. A file of another file system may wait for a disk, a network, or a server in user space
//! (FUSE), which the front end can stop. A thread that queries such a file then waits without end, and even
//! SIGKILL does not end it. Hence the order of the queries, tried with a stopped FUSE server:
//!
//! * F_GET_SEALS is answered without the file system, and for shmem and hugetlbfs only;
//! * statx(2) with AT_STATX_DONT_SYNC returns cached data, and the device number is the kernel's own;
//! * fstat, fstatfs, mmap, and **close** (FUSE_FLUSH) all ask the server. The first three are used only
//!   for files that are known to be memory. A refused file is closed by a thread that does nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::virtq::sigbus::Watch;
use crate::virtq::sys;

/// Bytes of a page of memory that is not huge.
const PAGE: u64 = 4096;

/// Why a file is not mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandedError {
    #[error(
        "its file is {0}, and guest memory is a memfd, a file on tmpfs or hugetlbfs, or secret memory \
         (memfd_secret)"
    )]
    Kind(&'static str),
    #[error("the type of its file cannot be read")]
    Ask(#[source] io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it begins at byte {offset} of its file, which is not a multiple of {page}")]
    Offset { offset: u64, page: u64 },
    #[error(
        "it has {len} bytes, and its file has pages of {page}, of which it has to be a multiple"
    )]
    Length { len: u64, page: u64 },
    #[error("it ends beyond the largest file offset")]
    Range,
    #[error("it ends at byte {needed} of a file of {found} bytes")]
    FileTooShort { needed: u64, found: u64 },
    #[error("{0} bytes cannot be mapped")]
    Map(u64, #[source] MmapRegionError),
    #[error("it cannot be watched")]
    Watch(#[source] io::Error),
}

/// A file that is memory.
#[derive(Debug)]
pub(crate) struct Handed {
    file: File,
    /// Bytes of its pages: a power of two.
    page: u64,
    /// Bytes of the file.
    len: u64,
}

/// A piece of such a file, mapped, and watched for the loss of its file.
#[derive(Debug)]
pub(crate) struct Mapped {
    // Dropped before the mapping: an unmapped range must not be watched any more.
    pub(crate) watch: Watch,
    pub(crate) mapping: MmapRegion,
}

impl Handed {
    /// Checks a file that was handed over.
    ///
    /// # Errors
    /// It is not memory; it is closed then, by another thread.
    pub(crate) fn new(file: File) -> Result<Self, HandedError> {
        if let Err(error) = check_kind(&file) {
            discard(file);
            return Err(error);
        }
        let kind = fstatfs(&file).map_err(|errno| HandedError::Ask(errno.into()))?;
        let page = if kind.filesystem_type() == HUGETLBFS_MAGIC {
            u64::try_from(kind.block_size()).unwrap_or(0).max(PAGE).next_power_of_two()
        } else {
            PAGE
        };
        let len = file.metadata().map_err(HandedError::Ask)?.len();
        Ok(Self { file, page, len })
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The smallest number of bytes from `len` on that can be mapped.
    fn whole(&self, len: u64) -> u64 {
        // Of pages that are not huge the kernel maps, replaces and unmaps the last one whole.
        if self.page == PAGE { len } else { len.next_multiple_of(self.page) }
    }

    /// Like [`Self::map`]; on hugetlbfs what is mapped extends to the end of a page.
    ///
    /// # Errors
    /// Those of [`Self::map`].
    pub(crate) fn map_at_least(
        self,
        offset: u64,
        len: u64,
        alarm: &Arc<EventFd>,
    ) -> Result<Mapped, HandedError> {
        let whole = self.whole(len);
        self.map(offset, whole, alarm)
    }

    /// Maps `len` bytes from `offset` on; a loss of the file is signalled through `alarm`.
    ///
    /// # Errors
    /// It cannot be mapped, or the mapping could not be replaced or unmapped as a whole.
    pub(crate) fn map(
        self,
        offset: u64,
        len: u64,
        alarm: &Arc<EventFd>,
    ) -> Result<Mapped, HandedError> {
        let page = self.page;
        if len == 0 {
            return Err(HandedError::Empty);
        }
        if !offset.is_multiple_of(page) {
            return Err(HandedError::Offset { offset, page });
        }
        if self.whole(len) != len {
            return Err(HandedError::Length { len, page });
        }
        // Beyond the end of the file the mapping would succeed, and every access would raise SIGBUS.
        let needed = offset.checked_add(len).ok_or(HandedError::Range)?;
        if self.len < needed {
            return Err(HandedError::FileTooShort { needed, found: self.len });
        }
        let size = usize::try_from(len).map_err(|_| HandedError::Range)?;
        let mapping = MmapRegion::from_file(FileOffset::new(self.file, offset), size)
            .map_err(|error| HandedError::Map(len, error))?;
        let page = usize::try_from(page).map_err(|_| HandedError::Range)?;
        let watch = Watch::new(mapping.as_ptr() as usize, size.next_multiple_of(page), page, alarm);
        Ok(Mapped { watch: watch.map_err(HandedError::Watch)?, mapping })
    }
}

/// Whether a file is memory. Asks only the kernel, and never a file system in user space.
fn check_kind(file: &File) -> Result<(), HandedError> {
    match kind(file.as_fd()) {
        Kind::Memory => Ok(()),
        Kind::Kernel(what) | Kind::Foreign(what) => Err(HandedError::Kind(what)),
    }
}

/// What a descriptor is, if it is of a file system that may have a server in user space. A thread that
/// makes other queries, or closes it, may wait without end.
pub(crate) fn foreign(file: BorrowedFd<'_>) -> Option<&'static str> {
    match kind(file) {
        Kind::Memory | Kind::Kernel(_) => None,
        Kind::Foreign(what) => Some(what),
    }
}

/// What a descriptor is, in this order of trust.
enum Kind {
    Memory,
    /// Not memory, and served by the kernel.
    Kernel(&'static str),
    /// Not memory, and perhaps of a file system in user space.
    Foreign(&'static str),
}

/// Major number of the kernel's memory devices: null, zero and others.
const MEMORY_DEVICES: u32 = 1;

fn kind(file: BorrowedFd<'_>) -> Kind {
    // Only memory answers a query for seals, even if it was created without sealing.
    if fcntl(file, FcntlArg::F_GET_SEALS).is_ok() {
        return Kind::Memory;
    }
    let Some(Cached { kind, device, major }) = cached(file) else {
        return Kind::Foreign("of an unknown kind (statx fails)");
    };
    match kind {
        FileType::RegularFile if secret_device() == Some(device) => Kind::Memory,
        FileType::CharacterDevice if major == MEMORY_DEVICES => Kind::Kernel("a device"),
        FileType::RegularFile => Kind::Foreign("of another file system"),
        FileType::Directory => Kind::Foreign("a directory"),
        FileType::Symlink => Kind::Foreign("a symbolic link"),
        // CUSE has servers in user space for devices.
        FileType::CharacterDevice | FileType::BlockDevice => Kind::Foreign("a device"),
        FileType::Fifo => Kind::Kernel("a pipe"),
        FileType::Socket => Kind::Kernel("a socket"),
        // An anonymous inode.
        FileType::Unknown => Kind::Kernel("of no kind that can be mapped"),
    }
}

/// What the kernel knows of a file by itself.
struct Cached {
    kind: FileType,
    /// Major and minor number of the device that the file lies on.
    device: (u32, u32),
    /// Major number of the device that the file represents.
    major: u32,
}

fn cached(file: BorrowedFd<'_>) -> Option<Cached> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(file, c"", flags, StatxFlags::TYPE).ok()?;
    Some(Cached {
        kind: FileType::from_raw_mode(found.stx_mode.into()),
        device: (found.stx_dev_major, found.stx_dev_minor),
        major: found.stx_rdev_major,
    })
}

/// The number of the device on which all secret memory of this host lies, if it has any.
fn secret_device() -> Option<(u32, u32)> {
    let own: OwnedFd = sys::secret_memory().ok()?;
    Some(cached(own.as_fd())?.device)
}

/// Closes a file of any file system without waiting for it: the last writer of a FUSE file waits until
/// its server has answered (FUSE_FLUSH).
///
/// If the server does not answer, the closing thread waits for ever, and later files stay in its queue. The
/// process cannot end entirely as long as that lasts, but no other thread of it waits.
pub(crate) fn discard(file: File) {
    static CLOSER: LazyLock<Option<Sender<File>>> = LazyLock::new(|| {
        let (sender, receiver) = channel::<File>();
        let body = move || receiver.into_iter().for_each(drop);
        thread::Builder::new().name("closer".into()).spawn(body).ok()?;
        Some(sender)
    });
    match &*CLOSER {
        Some(closer) => drop(closer.send(file)),
        // A descriptor that stays open is better than a thread that waits.
        None => std::mem::forget(file),
    }
}
