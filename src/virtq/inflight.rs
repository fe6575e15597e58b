//! The in-flight region: shared memory that records which requests each ring has in flight. The front end
//! keeps it while the daemon dies (vhost-user, "Inflight I/O tracking", split virtqueues). This file has
//! the region's layout and its mapping; `part` has the entries of one queue.
//!
//! A front end requests a region before it sets the sizes of its rings. Some ask for fewer entries than
//! a ring then has (QEMU up to 11.0 with virtio-mmio, and Debian's 10.0.13: 128 for a ring of 1024).
//! Only sizes and place travel back with the region, so the daemon chooses its length:
//!
//! ```text
//! region: a part for each queue with the entries that were asked for
//!         a large part for each queue, for rings with more descriptors; memory that is not touched
//! ```
//!
//! A daemon that does not know large parts finds the other parts where it expects them, and this daemon
//! finds the parts that such a daemon has made. The header of a large part names the number of its entries
//! in use; the rest of it is not touched.
//!
//! The file is the front end's, which may write to it and truncate it at any time. While a ring runs
//! nothing is read from the file, and its mapping is watched as guest memory is.

use std::fs::File;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vmm_sys_util::eventfd::EventFd;

use crate::virtq::handed::{Handed, HandedError, Mapped};
use crate::virtq::part::{ENTRY_BYTES, HEADER_BYTES, Part};

const PART_ALIGN: usize = 64;
/// Entries of the largest split virtqueue (VIRTIO 1.2, 2.7).
pub(crate) const MAX_ENTRIES: u16 = 1 << 15;

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("an in-flight region was asked for {asked} queues: the device has {max}")]
    Queues { asked: u16, max: u16 },
    #[error(
        "an in-flight region was asked for queues of {asked} descriptors: a queue size is a power of two up to {max}"
    )]
    QueueSize { asked: u16, max: u16 },
    #[error("an in-flight region is too small: it has {found} bytes, its queues need {needed}")]
    TooSmall { needed: u64, found: u64 },
    #[error("an in-flight region ends beyond the largest file offset")]
    Range,
    #[error("an in-flight region cannot be created")]
    Make(#[source] std::io::Error),
    #[error("an in-flight region cannot be mapped")]
    Map(#[from] HandedError),
}

/// Numbers of queues and of their entries, and so where the parts lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    queues: u16,
    queue_size: u16,
    /// Entries of the large parts, more than `queue_size`; 0 if there are none.
    large: u16,
}

impl Shape {
    /// The shape of a region that is requested, with large parts for rings of up to `largest`.
    fn asked(
        asked: &VhostUserInflight,
        limits: Limits,
        largest: u16,
    ) -> Result<Self, InflightError> {
        let (queues, queue_size) = (asked.num_queues, asked.queue_size);
        if queues == 0 || queues > limits.num_queues {
            return Err(InflightError::Queues { asked: queues, max: limits.num_queues });
        }
        // Whatever rings may have: a region is none, and one of another daemon may be larger.
        if !queue_size.is_power_of_two() {
            return Err(InflightError::QueueSize { asked: queue_size, max: MAX_ENTRIES });
        }
        let large = if largest > queue_size { largest } else { 0 };
        Ok(Self { queues, queue_size, large })
    }

    /// The shape of a region that a daemon made, perhaps another one than this.
    fn given(given: &VhostUserInflight, limits: Limits) -> Result<Self, InflightError> {
        let plain = Self::asked(given, limits, 0)?;
        // A region of any other length has parts as requested, and other data after them.
        let larger = (0..16).map(|power| 1_u16 << power).filter(|large| *large > plain.queue_size);
        let mut shapes = larger.map(|large| Self { large, ..plain });
        let fits = shapes.find(|shape| shape.bytes() as u64 == given.mmap_size);
        Ok(fits.unwrap_or(plain))
    }

    /// Bytes of a part with so many entries.
    fn stride(entries: u16) -> usize {
        let bytes = HEADER_BYTES + ENTRY_BYTES * usize::from(entries);
        if entries == 0 { 0 } else { bytes.next_multiple_of(PART_ALIGN) }
    }

    /// Bytes of all parts; at most 64 of one MiB.
    fn bytes(self) -> usize {
        self.large_at(usize::from(self.queues))
    }

    /// Offset of the large part of queue `ring`.
    fn large_at(self, ring: usize) -> usize {
        let small = usize::from(self.queues) * Self::stride(self.queue_size);
        small + ring * Self::stride(self.large)
    }
}

/// The rings that a region may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Number of virtqueues, 1..=64.
    pub(crate) num_queues: u16,
    /// Largest virtqueue, a power of two, 2..=32768 descriptors.
    pub(crate) max_queue_size: u16,
}

/// Makes a region for the front end to keep. Its size is sealed, so no process can truncate it.
pub(crate) fn create(
    asked: &VhostUserInflight,
    limits: Limits,
) -> Result<(VhostUserInflight, File), InflightError> {
    let shape = Shape::asked(asked, limits, limits.max_queue_size)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("vhost-user-inflight", flags).map(File::from);
    let file = file.map_err(|errno| InflightError::Make(errno.into()))?;
    let bytes = shape.bytes() as u64;
    file.set_len(bytes).map_err(InflightError::Make)?;
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    let sealed = fcntl(&file, FcntlArg::F_ADD_SEALS(seals));
    sealed.map_err(|errno| InflightError::Make(errno.into()))?;
    Ok((VhostUserInflight::new(bytes, 0, shape.queues, shape.queue_size), file))
}

/// A region that the front end sent, mapped.
#[derive(Debug)]
pub(crate) struct Inflight {
    mapped: Arc<Mapped>,
    shape: Shape,
}

impl Inflight {
    /// Maps the parts of the queues out of `file`; a loss of it is signalled through `alarm`.
    pub(crate) fn map(
        given: &VhostUserInflight,
        file: File,
        limits: Limits,
        alarm: &Arc<EventFd>,
    ) -> Result<Self, InflightError> {
        // First: no file may be closed before its type was checked.
        let handed = Handed::new(file)?;
        let shape = Shape::given(given, limits)?;
        let needed = shape.bytes() as u64;
        if given.mmap_size < needed {
            return Err(InflightError::TooSmall { needed, found: given.mmap_size });
        }
        let end = given.mmap_offset.checked_add(given.mmap_size).ok_or(InflightError::Range)?;
        if handed.len() < end {
            let found = handed.len();
            return Err(HandedError::FileTooShort { needed: end, found }.into());
        }
        // Only the parts: the size that the front end names may be any number.
        let mapped = handed.map_at_least(given.mmap_offset, needed, alarm)?;
        Ok(Self { mapped: Arc::new(mapped), shape })
    }

    /// The parts of queue `ring`, if the region has any.
    pub(crate) fn parts(&self, ring: usize) -> Option<Parts> {
        if ring >= usize::from(self.shape.queues) {
            return None;
        }
        let part =
            |at, capacity, is_large| Part::new(Arc::clone(&self.mapped), at, capacity, is_large);
        let size = self.shape.queue_size;
        let large = self.shape.large;
        Some(Parts {
            asked: part(ring * Shape::stride(size), size, false),
            large: (large > 0).then(|| part(self.shape.large_at(ring), large, true)),
        })
    }

    /// Whether any queue was used: a request was taken, finished or not.
    pub(crate) fn shows_use(&self) -> bool {
        let parts = (0..usize::from(self.shape.queues)).filter_map(|ring| self.parts(ring));
        let parts = parts.flat_map(Parts::into_all).filter(|part| !part.is_untouched());
        parts.filter_map(|part| part.read(0)).any(|contents| contents.shows_use())
    }

    /// Whether a piece of the file was truncated.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapped.watch.faulted()
    }
}

/// One queue's parts of a region. A ring is kept in the first one that has an entry for each of its
/// descriptors, and nothing may be in flight in the other one.
#[derive(Debug)]
pub(crate) struct Parts {
    /// With the entries that the front end asked for.
    pub(crate) asked: Part,
    /// For larger rings.
    pub(crate) large: Option<Part>,
}

impl Parts {
    /// The part for a ring of `size`, if there is one, and the rest.
    pub(crate) fn choose(self, size: u16) -> (Option<Part>, Vec<Part>) {
        let mut all = self.into_all();
        let fits = all.iter().position(|part| part.capacity() >= size);
        (fits.map(|fits| all.remove(fits)), all)
    }

    fn into_all(self) -> Vec<Part> {
        std::iter::once(self.asked).chain(self.large).collect()
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
pub(crate) mod tests;
