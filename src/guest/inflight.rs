//! The in-flight region: shared memory that says which requests a ring has in flight, and that the
//! front end keeps while the daemon dies (vhost-user, "Inflight I/O tracking", split virtqueues).
//!
//! ```text
//! part of a queue: header of 16 bytes, then 16 bytes for each descriptor; a multiple of 64 bytes
//! header:  0 u64 features, 0 | 8 u16 version | 10 u16 entries | 12 u16 last batch head | 14 u16 used index
//! entry:   0 u8 in flight    | 6 u16 next    |  8 u64 counter
//! ```
//!
//! What a dead process has stored is seen by the next one as far as it came and in the order of its
//! instructions, so all stores here are release stores: the compiler keeps their order. That order
//! is the protocol, and [`Ledger`] has it; what a new process makes of it is in `recovery`.
//!
//! The file is the front end's, which may write to it whenever it likes and cut it short. While a
//! ring runs nothing is read from it, and it is watched as guest memory is.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{AtomicAccess, AtomicInteger, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use super::config::GuestOptions;
use super::request::{Finished, Taken};
use super::sigbus::Watch;
use crate::crash;

/// The layout that this code writes; 0 is a part that no ring was started with.
pub(super) const VERSION: u16 = 1;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const PART_ALIGN: usize = 64;

// Offsets in a header.
const FEATURES: usize = 0;
const VERSION_AT: usize = 8;
const ENTRIES: usize = 10;
const LAST_HEAD: usize = 12;
const USED_INDEX: usize = 14;
// Offsets in an entry.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    #[error("an in-flight region for {asked} queues: there are {max}")]
    Queues { asked: u16, max: u16 },
    #[error("an in-flight region for queues of {asked}: a size is a power of two up to {max}")]
    QueueSize { asked: u16, max: u16 },
    #[error("an in-flight region of {found} bytes, of which its queues need {needed}")]
    TooSmall { needed: u64, found: u64 },
    #[error("an in-flight region that ends beyond all files")]
    Range,
    #[error("an in-flight region that is no file")]
    NoFile,
    #[error("an in-flight region that ends at byte {needed} of a file of {found} bytes")]
    FileTooShort { needed: u64, found: u64 },
    #[error("the file of an in-flight region cannot be asked for its size")]
    File(#[source] std::io::Error),
    #[error("an in-flight region cannot be made")]
    Make(#[source] std::io::Error),
    #[error("an in-flight region cannot be mapped")]
    Map(#[source] MmapRegionError),
    #[error("an in-flight region cannot be watched")]
    Watch(#[source] std::io::Error),
}

/// Numbers of queues and of their entries that can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    queues: u16,
    queue_size: u16,
}

impl Shape {
    fn check(asked: &VhostUserInflight, options: &GuestOptions) -> Result<Self, InflightError> {
        let (queues, queue_size) = (asked.num_queues, asked.queue_size);
        if queues == 0 || queues > options.num_queues {
            return Err(InflightError::Queues { asked: queues, max: options.num_queues });
        }
        if !queue_size.is_power_of_two() || queue_size > options.max_queue_size {
            let max = options.max_queue_size;
            return Err(InflightError::QueueSize { asked: queue_size, max });
        }
        Ok(Self { queues, queue_size })
    }

    /// Bytes of one queue's part.
    fn stride(self) -> usize {
        let bytes = HEADER_BYTES + ENTRY_BYTES * usize::from(self.queue_size);
        bytes.next_multiple_of(PART_ALIGN)
    }

    /// Bytes of all parts; at most 64 of half a MiB.
    fn bytes(self) -> usize {
        usize::from(self.queues) * self.stride()
    }
}

/// Makes a region for the front end to keep. Its size is sealed, so nobody can cut it short.
pub(super) fn create(
    asked: &VhostUserInflight,
    options: &GuestOptions,
) -> Result<(VhostUserInflight, File), InflightError> {
    let shape = Shape::check(asked, options)?;
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

#[derive(Debug)]
struct Mapped {
    // Before the mapping: what is unmapped must not be watched any more.
    watch: Watch,
    mapping: MmapRegion,
}

/// A region that the front end gave, mapped.
#[derive(Debug)]
pub(super) struct Inflight {
    mapped: Arc<Mapped>,
    shape: Shape,
}

impl Inflight {
    /// Maps the parts of the queues out of `file`; a loss of it is signalled through `alarm`.
    pub(super) fn map(
        given: &VhostUserInflight,
        file: File,
        options: &GuestOptions,
        alarm: &Arc<EventFd>,
    ) -> Result<Self, InflightError> {
        let shape = Shape::check(given, options)?;
        let needed = shape.bytes() as u64;
        if given.mmap_size < needed {
            return Err(InflightError::TooSmall { needed, found: given.mmap_size });
        }
        let end = given.mmap_offset.checked_add(given.mmap_size).ok_or(InflightError::Range)?;
        let meta = file.metadata().map_err(InflightError::File)?;
        if !meta.is_file() {
            return Err(InflightError::NoFile);
        }
        if meta.len() < end {
            return Err(InflightError::FileTooShort { needed: end, found: meta.len() });
        }
        // Only what is used: the size that the front end names may be anything.
        let place = FileOffset::new(file, given.mmap_offset);
        let mapping = MmapRegion::from_file(place, shape.bytes()).map_err(InflightError::Map)?;
        let watch = Watch::new(mapping.as_ptr() as usize, shape.bytes(), alarm);
        let watch = watch.map_err(InflightError::Watch)?;
        Ok(Self { mapped: Arc::new(Mapped { watch, mapping }), shape })
    }

    /// The part of queue `ring`, if the region has one.
    pub(super) fn part(&self, ring: usize) -> Option<Part> {
        (ring < usize::from(self.shape.queues)).then(|| Part {
            mapped: Arc::clone(&self.mapped),
            at: ring * self.shape.stride(),
            size: self.shape.queue_size,
        })
    }

    /// Whether any queue was used: a request was taken, whatever became of it.
    pub(super) fn shows_use(&self) -> bool {
        let parts = (0..usize::from(self.shape.queues)).filter_map(|ring| self.part(ring));
        parts.filter_map(|part| part.read()).any(|contents| contents.shows_use())
    }

    /// Whether a piece of the file is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.mapped.watch.faulted()
    }
}

/// What a part says of one head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) in_flight: u8,
    pub(super) next: u16,
    pub(super) counter: u64,
}

/// All that a part says, read once; none of it is to be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) features: u64,
    pub(super) version: u16,
    /// Number of entries, as the header has it.
    pub(super) size: u16,
    pub(super) last_head: u16,
    pub(super) used_index: u16,
    pub(super) entries: Vec<Entry>,
}

/// One queue's part of a region.
#[derive(Debug)]
pub(super) struct Part {
    mapped: Arc<Mapped>,
    /// Offset of the header.
    at: usize,
    /// Number of entries.
    size: u16,
}

impl Part {
    /// Reads all of it, or nothing if a piece of the file is gone.
    pub(super) fn read(&self) -> Option<Contents> {
        let entry = |head: u16| {
            let at = entry_at(head);
            Entry {
                in_flight: self.load(at + IN_FLIGHT),
                next: self.load(at + NEXT),
                counter: self.load(at + COUNTER),
            }
        };
        let contents = Contents {
            features: self.load(FEATURES),
            version: self.load(VERSION_AT),
            size: self.load(ENTRIES),
            last_head: self.load(LAST_HEAD),
            used_index: self.load(USED_INDEX),
            entries: (0..self.size).map(entry).collect(),
        };
        // What is lost reads as zeroes, which would look like a fresh part.
        (!self.mapped.watch.faulted()).then_some(contents)
    }

    /// Makes a fresh part one of a ring that stands at `used`.
    pub(super) fn begin(&self, used: u16) {
        self.store(ENTRIES, self.size);
        // Left at 0 it would make the next start believe in a last batch of `used` entries.
        self.store(USED_INDEX, used);
        // Last, so that a part with a version is whole.
        self.store(VERSION_AT, VERSION);
    }

    /// Ends the giving back of a batch that is in the used ring, up to the index `used`.
    pub(super) fn end_batch(&self, heads: impl IntoIterator<Item = u16>, used: u16) {
        let mut first = true;
        for head in heads {
            self.store(entry_at(head) + IN_FLIGHT, 0_u8);
            if std::mem::take(&mut first) {
                crash::point("ring.cleared");
            }
        }
        self.store(USED_INDEX, used);
    }

    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let place = self.mapped.mapping.get_atomic_ref::<T::A>(self.at + offset);
        // All offsets lie in the mapping, and are aligned.
        place.map_or_else(|_| T::default(), |place| place.load(Ordering::Acquire).into())
    }

    #[inline]
    fn store<T: AtomicAccess>(&self, offset: usize, value: T) {
        #[cfg(test)]
        tests::before_store();
        let place = self.mapped.mapping.get_atomic_ref::<T::A>(self.at + offset);
        debug_assert!(place.is_ok(), "offset {offset} lies outside");
        if let Ok(place) = place {
            place.store(value.into(), Ordering::Release);
        }
    }
}

fn entry_at(head: u16) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(head)
}

/// What one running ring has in flight, kept in its part of the region.
///
/// Heads are marked in the order of the available ring and unmarked, when they are put back, in the
/// reverse order, by one thread. So at any instant those of the ring's heads that are marked or in
/// the used ring are a prefix of what was made available: as many as the used index and the number
/// of marked ones say together. That sum is where the next process goes on to take.
#[derive(Debug)]
pub(super) struct Ledger {
    part: Part,
    /// Of the next head that is taken. From 1 on, so that a counter other than 0 says that the
    /// ring was used.
    counter: u64,
    /// The head that ends the chain of batches; what the region has of it may be changed by others.
    last_head: u16,
    /// Heads that an earlier process took and did not give back, in the order in which it took them.
    /// They are marked.
    again: VecDeque<u16>,
}

impl Ledger {
    /// A ledger that goes on with `counter`, and with the heads `again`, which are marked.
    pub(super) fn new(part: Part, counter: u64, again: Vec<u16>) -> Self {
        Self { part, counter, last_head: 0, again: again.into() }
    }

    /// Marks what was taken from the available ring, in its order.
    pub(super) fn take(&mut self, batch: &VecDeque<Taken>) {
        for taken in batch {
            let at = entry_at(taken.head());
            self.part.store(at + COUNTER, self.counter);
            self.part.store(at + IN_FLIGHT, 1_u8);
            self.counter = self.counter.wrapping_add(1);
        }
        crash::point("ring.marked");
    }

    /// Unmarks the rest of what was taken last, which goes back into the available ring.
    pub(super) fn put_back(&mut self, rest: &VecDeque<Taken>) {
        for taken in rest.iter().rev() {
            let at = entry_at(taken.head());
            self.part.store(at + IN_FLIGHT, 0_u8);
            // It was not done, and must not look as if it had been.
            self.part.store(at + COUNTER, 0_u64);
            self.counter = self.counter.wrapping_sub(1);
        }
    }

    /// Chains a batch that is about to be put into the used ring.
    pub(super) fn chain(&mut self, batch: &[Finished]) {
        for finished in batch {
            self.part.store(entry_at(finished.head) + NEXT, self.last_head);
            self.part.store(LAST_HEAD, finished.head);
            self.last_head = finished.head;
        }
        crash::point("ring.chained");
    }

    /// Unmarks a batch that is in the used ring, up to the index `used`.
    pub(super) fn end_batch(&mut self, batch: &[Finished], used: u16) {
        self.part.end_batch(batch.iter().map(|finished| finished.head), used);
        crash::point("ring.synced");
    }

    /// Whether there are heads to be taken again.
    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// The next head to be taken again.
    pub(super) fn next_again(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    /// Puts a head back that came from [`Self::next_again`]: the last one first.
    pub(super) fn put_again(&mut self, head: u16) {
        self.again.push_front(head);
    }

    /// Leaves the heads that are to be taken again to the next start of the ring.
    pub(super) fn leave_again(&mut self) {
        self.again.clear();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::guest::watchdog::Patience;

    thread_local! {
        static BEFORE_STORE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// Has `look` called before each store of this thread to a region, until this is called with
    /// `None`.
    pub(in super::super) fn watch_stores(look: Option<Box<dyn FnMut()>>) {
        BEFORE_STORE.set(look);
    }

    pub(super) fn before_store() {
        BEFORE_STORE.with_borrow_mut(|look| {
            if let Some(look) = look {
                look();
            }
        });
    }

    pub(in super::super) fn options(num_queues: u16, max_queue_size: u16) -> GuestOptions {
        GuestOptions {
            num_queues,
            max_queue_size,
            threads: 1,
            serial: String::new(),
            read_only: false,
            patience: Patience::default(),
        }
    }

    pub(in super::super) fn alarm() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }

    /// A region as a front end gets it and gives it back.
    pub(in super::super) fn region(queues: u16, size: u16) -> Inflight {
        let options = options(queues, size);
        let (info, file) = create(&VhostUserInflight::new(0, 0, queues, size), &options).unwrap();
        Inflight::map(&info, file, &options, &alarm()).unwrap()
    }

    /// Has a part say something else, as another process would have left it.
    pub(in super::super) fn overwrite(part: &Part, contents: &Contents) {
        assert_eq!(contents.entries.len(), usize::from(part.size));
        part.store(FEATURES, contents.features);
        part.store(VERSION_AT, contents.version);
        part.store(ENTRIES, contents.size);
        part.store(LAST_HEAD, contents.last_head);
        part.store(USED_INDEX, contents.used_index);
        for (head, entry) in (0..).zip(&contents.entries) {
            part.store(entry_at(head) + IN_FLIGHT, entry.in_flight);
            part.store(entry_at(head) + NEXT, entry.next);
            part.store(entry_at(head) + COUNTER, entry.counter);
        }
    }

    #[test]
    fn parts_lie_one_behind_the_other_and_end_with_the_file() {
        for (queues, size, bytes) in [(1, 2, 64), (1, 4, 128), (3, 128, 3 * 2112), (2, 1, 128)] {
            let asked = VhostUserInflight::new(7, 7, queues, size);
            let (info, file) = create(&asked, &options(4, 128)).unwrap();
            assert_eq!((info.mmap_size, info.mmap_offset), (bytes, 0));
            assert_eq!(file.metadata().unwrap().len(), bytes);
            file.set_len(bytes - 1).unwrap_err();
            file.set_len(bytes + 1).unwrap_err();
            let region = Inflight::map(&info, file, &options(4, 128), &alarm()).unwrap();
            assert!(region.part(usize::from(queues)).is_none());
            for ring in 0..usize::from(queues) {
                let part = region.part(ring).unwrap();
                let full = Entry { in_flight: 0xff, next: 0xffff, counter: u64::MAX };
                let entries = vec![full; usize::from(size)];
                let (version, last_head, used_index) = (0xffff, 0xffff, 0xffff);
                let features = u64::MAX;
                let all = Contents { features, version, size, last_head, used_index, entries };
                let next = region.part(ring + 1);
                let before = next.as_ref().map(|next| next.read().unwrap());
                overwrite(&part, &all);
                assert_eq!(part.read().unwrap(), all);
                assert_eq!(next.map(|next| next.read().unwrap()), before);
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let asked = |queues, size| VhostUserInflight::new(1 << 30, 0, queues, size);
        let options = options(4, 128);
        for (queues, size) in [(0, 64), (5, 64), (u16::MAX, 64), (1, 0), (1, 3), (1, 256)] {
            assert!(create(&asked(queues, size), &options).is_err());
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(1 << 30).unwrap();
            Inflight::map(&asked(queues, size), file, &options, &alarm()).unwrap_err();
        }
    }

    #[test]
    fn a_place_that_is_not_in_the_file_is_refused() {
        let map = |size: u64, offset: u64, length: u64| {
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(length).unwrap();
            let given = VhostUserInflight::new(size, offset, 1, 128);
            Inflight::map(&given, file, &options(1, 128), &alarm())
        };
        map(2112, 0, 2112).unwrap();
        map(2112, 4096, 8192).unwrap();
        assert!(matches!(map(2111, 0, 8192), Err(InflightError::TooSmall { .. })));
        assert!(matches!(map(2112, 0, 2111), Err(InflightError::FileTooShort { .. })));
        assert!(matches!(map(2112, 4096, 4096), Err(InflightError::FileTooShort { .. })));
        assert!(matches!(map(2112, u64::MAX - 100, 8192), Err(InflightError::Range)));
        assert!(matches!(map(u64::MAX, 1, 8192), Err(InflightError::Range)));
        assert!(matches!(map(2112, 8, 8192), Err(InflightError::Map(_))), "not of a page");
        let given = VhostUserInflight::new(2112, 0, 1, 128);
        let file = File::open("/dev/zero").unwrap();
        let mapped = Inflight::map(&given, file, &options(1, 128), &alarm());
        assert!(matches!(mapped, Err(InflightError::NoFile)));
    }

    #[test]
    fn a_file_that_is_cut_short_is_lost_and_kills_nobody() {
        let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let (given, alarm) = (VhostUserInflight::new(8192, 0, 1, 128), alarm());
        let clone = file.try_clone().unwrap();
        let region = Inflight::map(&given, clone, &options(1, 128), &alarm).unwrap();
        let part = region.part(0).unwrap();
        assert!(part.read().is_some() && !region.is_lost());
        file.set_len(0).unwrap();
        assert_eq!((part.read(), region.is_lost()), (None, true));
        part.begin(7);
        assert!(alarm.read().is_ok());
    }
}
