//! The in-flight region: shared memory that says which requests a ring has in flight, and that the
//! front end keeps while the daemon dies (vhost-user, "Inflight I/O tracking", split virtqueues).
//!
//! ```text
//! part of a queue: header of 16 bytes, then 16 bytes for each descriptor; a multiple of 64 bytes
//! header:  0 u64 features, 0 | 8 u16 version | 10 u16 entries | 12 u16 last batch head | 14 u16 used index
//! entry:   0 u8 in flight    | 6 u16 next    |  8 u64 counter
//! ```
//!
//! A front end asks for a region before it says how large its rings are, and some ask for fewer
//! entries than a ring then has (QEMU up to 11.0 with virtio-mmio, and Debian's 10.0.13: 128 for a
//! ring of 1024). Only sizes and place travel back with the region, so its length is ours to choose:
//!
//! ```text
//! region: a part for each queue with the entries that were asked for
//!         a large part for each queue, for rings with more descriptors; memory that is not touched
//! ```
//!
//! So a daemon that knows nothing of large parts finds the others where it looks for them, and this
//! one finds those that such a daemon has made. A large part says in its header how many entries
//! count, and no more of it is touched.
//!
//! What a dead process has stored is seen by the next one as far as it came and in the order of its
//! instructions, so all stores here are release stores: the compiler keeps their order. That order
//! is the protocol, and `region_log` has it; what a new process makes of it is in `recovery`.
//!
//! The file is the front end's, which may write to it whenever it likes and cut it short. While a
//! ring runs nothing is read from it, and it is watched as guest memory is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{AtomicAccess, AtomicInteger, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::failpoint;
use crate::virtq::handed::{Handed, HandedError, Mapped};

/// The layout that this code writes; 0 is a part that no ring was started with.
pub(crate) const VERSION: u16 = 1;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const PART_ALIGN: usize = 64;
/// Entries of the largest split virtqueue (VIRTIO 1.2, 2.7).
pub(crate) const MAX_ENTRIES: u16 = 1 << 15;

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
pub(crate) enum InflightError {
    #[error("an in-flight region for {asked} queues: there are {max}")]
    Queues { asked: u16, max: u16 },
    #[error("an in-flight region for queues of {asked}: a size is a power of two up to {max}")]
    QueueSize { asked: u16, max: u16 },
    #[error("an in-flight region of {found} bytes, of which its queues need {needed}")]
    TooSmall { needed: u64, found: u64 },
    #[error("an in-flight region that ends beyond all files")]
    Range,
    #[error("an in-flight region cannot be made")]
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
    /// The shape of a region that is asked for, with large parts for rings of up to `largest`.
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
        // One of any other length has parts as asked for, and something behind them.
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

/// Makes a region for the front end to keep. Its size is sealed, so nobody can cut it short.
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

/// A region that the front end gave, mapped.
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
        // First: no file may be closed before it was looked at.
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
        // Only what is used: the size that the front end names may be anything.
        let mapped = handed.map_at_least(given.mmap_offset, needed, alarm)?;
        Ok(Self { mapped: Arc::new(mapped), shape })
    }

    /// The parts of queue `ring`, if the region has any.
    pub(crate) fn parts(&self, ring: usize) -> Option<Parts> {
        if ring >= usize::from(self.shape.queues) {
            return None;
        }
        let part = |at, capacity, is_large| Part {
            mapped: Arc::clone(&self.mapped),
            at,
            capacity,
            is_large,
        };
        let size = self.shape.queue_size;
        let large = self.shape.large;
        Some(Parts {
            asked: part(ring * Shape::stride(size), size, false),
            large: (large > 0).then(|| part(self.shape.large_at(ring), large, true)),
        })
    }

    /// Whether any queue was used: a request was taken, whatever became of it.
    pub(crate) fn shows_use(&self) -> bool {
        let parts = (0..usize::from(self.shape.queues)).filter_map(|ring| self.parts(ring));
        let parts = parts.flat_map(Parts::into_all).filter(|part| !part.is_untouched());
        parts.filter_map(|part| part.read(0)).any(|contents| contents.shows_use())
    }

    /// Whether a piece of the file is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapped.watch.faulted()
    }
}

/// What a part says of one head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) in_flight: u8,
    pub(crate) next: u16,
    pub(crate) counter: u64,
}

/// All that a part says, read once; none of it is to be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) features: u64,
    pub(crate) version: u16,
    /// Number of entries, as the header has it.
    pub(crate) size: u16,
    pub(crate) last_head: u16,
    pub(crate) used_index: u16,
    pub(crate) entries: Vec<Entry>,
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
        let fits = all.iter().position(|part| part.capacity >= size);
        (fits.map(|fits| all.remove(fits)), all)
    }

    fn into_all(self) -> Vec<Part> {
        std::iter::once(self.asked).chain(self.large).collect()
    }
}

/// Entries for one queue's descriptors.
#[derive(Debug)]
pub(crate) struct Part {
    mapped: Arc<Mapped>,
    /// Offset of the header.
    at: usize,
    /// Number of entries that there is room for.
    capacity: u16,
    is_large: bool,
}

impl Part {
    pub(crate) fn capacity(&self) -> u16 {
        self.capacity
    }

    /// Whether a large part is as it was made: not a byte of its header was written. Asked of the
    /// file, since a look through the mapping would give memory to each part that nobody uses.
    pub(crate) fn is_untouched(&self) -> bool {
        let Some(place) = self.mapped.mapping.file_offset().filter(|_| self.is_large) else {
            return false;
        };
        let mut header = [0; HEADER_BYTES];
        let read = place.file().read_exact_at(&mut header, place.start() + self.at as u64);
        read.is_ok() && header == [0; HEADER_BYTES]
    }

    /// Reads all of it, or nothing if a piece of the file is gone. Of a large part that is what its
    /// header says, and at least the entries of a ring of `size`.
    pub(crate) fn read(&self, size: u16) -> Option<Contents> {
        let entry = |head: u16| {
            let at = entry_at(head);
            Entry {
                in_flight: self.load(at + IN_FLIGHT),
                next: self.load(at + NEXT),
                counter: self.load(at + COUNTER),
            }
        };
        let said = self.load(ENTRIES);
        let count = if self.is_large { size.max(said).min(self.capacity) } else { self.capacity };
        let contents = Contents {
            features: self.load(FEATURES),
            version: self.load(VERSION_AT),
            size: said,
            last_head: self.load(LAST_HEAD),
            used_index: self.load(USED_INDEX),
            entries: (0..count).map(entry).collect(),
        };
        // What is lost reads as zeroes, which would look like a fresh part.
        (!self.mapped.watch.faulted()).then_some(contents)
    }

    /// Makes a fresh part one of a ring of `size` that stands at `used`.
    pub(crate) fn begin(&self, size: u16, used: u16) {
        // All of a part that was asked for, as daemons do that know of no others.
        self.store(ENTRIES, if self.is_large { size } else { self.capacity });
        // Left at 0 it would make the next start believe in a last batch of `used` entries.
        self.store(USED_INDEX, used);
        // Last, so that a part with a version is whole.
        self.store(VERSION_AT, VERSION);
    }

    /// Marks a head as taken, with its counter.
    pub(crate) fn mark(&self, head: u16, counter: u64) {
        let at = entry_at(head);
        self.store(at + COUNTER, counter);
        self.store(at + IN_FLIGHT, 1_u8);
    }

    /// Unmarks a head that was not done, and must not look as if it had been.
    pub(crate) fn unmark(&self, head: u16) {
        let at = entry_at(head);
        self.store(at + IN_FLIGHT, 0_u8);
        self.store(at + COUNTER, 0_u64);
    }

    /// Chains a head that is about to be put into the used ring to the one before it.
    pub(crate) fn chain(&self, head: u16, before: u16) {
        self.store(entry_at(head) + NEXT, before);
        self.store(LAST_HEAD, head);
    }

    /// Ends the giving back of a batch that is in the used ring, up to the index `used`.
    pub(crate) fn end_batch(&self, heads: impl IntoIterator<Item = u16>, used: u16) {
        let mut first = true;
        for head in heads {
            self.store(entry_at(head) + IN_FLIGHT, 0_u8);
            if std::mem::take(&mut first) {
                failpoint::reach("ring.cleared");
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

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    thread_local! {
        static BEFORE_STORE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// Has `look` called before each store of this thread to a region, until this is called with
    /// `None`.
    pub(crate) fn watch_stores(look: Option<Box<dyn FnMut()>>) {
        BEFORE_STORE.set(look);
    }

    pub(crate) fn before_store() {
        BEFORE_STORE.with_borrow_mut(|look| {
            if let Some(look) = look {
                look();
            }
        });
    }

    pub(crate) fn limits(num_queues: u16, max_queue_size: u16) -> Limits {
        Limits { num_queues, max_queue_size }
    }

    pub(crate) fn alarm() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }

    /// A region as a front end gets it and gives it back.
    pub(crate) fn region(queues: u16, size: u16) -> Inflight {
        let limits = limits(queues, size);
        let (info, file) = create(&VhostUserInflight::new(0, 0, queues, size), limits).unwrap();
        Inflight::map(&info, file, limits, &alarm()).unwrap()
    }

    impl Inflight {
        /// The part of the entries that were asked for.
        pub(crate) fn part(&self, ring: usize) -> Option<Part> {
            self.parts(ring).map(|parts| parts.asked)
        }
    }

    /// Has a part say something else, as another process would have left it.
    pub(crate) fn overwrite(part: &Part, contents: &Contents) {
        assert_eq!(contents.entries.len(), usize::from(part.capacity));
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
            let (info, file) = create(&asked, limits(4, 1)).unwrap();
            assert_eq!((info.mmap_size, info.mmap_offset), (bytes, 0));
            assert_eq!(file.metadata().unwrap().len(), bytes);
            file.set_len(bytes - 1).unwrap_err();
            file.set_len(bytes + 1).unwrap_err();
            let region = Inflight::map(&info, file, limits(4, 1), &alarm()).unwrap();
            assert!(region.part(usize::from(queues)).is_none());
            for ring in 0..usize::from(queues) {
                let part = region.part(ring).unwrap();
                let full = Entry { in_flight: 0xff, next: 0xffff, counter: u64::MAX };
                let entries = vec![full; usize::from(size)];
                let (version, last_head, used_index) = (0xffff, 0xffff, 0xffff);
                let features = u64::MAX;
                let all = Contents { features, version, size, last_head, used_index, entries };
                let next = region.part(ring + 1);
                let before = next.as_ref().map(|next| next.read(0).unwrap());
                overwrite(&part, &all);
                assert_eq!(part.read(0).unwrap(), all);
                assert_eq!(next.map(|next| next.read(0).unwrap()), before);
            }
        }
    }

    /// A region made for small rings has room for large ones, and a daemon that knows nothing of that
    /// finds the small parts where it looks for them: one behind the other, as they were asked for.
    #[test]
    fn large_parts_lie_behind_those_that_were_asked_for() {
        let limits = limits(4, 1 << 15);
        let (info, file) = create(&VhostUserInflight::new(0, 0, 3, 128), limits).unwrap();
        assert_eq!(info.mmap_size, 3 * 2112 + 3 * (64 + 16 * 32768));
        assert_eq!((info.num_queues, info.queue_size), (3, 128));
        let clone = file.try_clone().unwrap();
        let region = Inflight::map(&info, clone, limits, &alarm()).unwrap();
        for ring in 0..3 {
            let Parts { asked, large } = region.parts(ring).unwrap();
            let large = large.unwrap();
            assert_eq!((asked.at, asked.capacity), (ring * 2112, 128));
            assert_eq!((large.at, large.capacity), (3 * 2112 + ring * (64 + 16 * 32768), 1 << 15));
            assert!(large.is_untouched() && !asked.is_untouched());
            for size in [2, 128, 256, 1 << 15] {
                let (part, others) = region.parts(ring).unwrap().choose(size);
                assert_eq!(
                    part.map(|part| part.at),
                    Some([asked.at, large.at][usize::from(size > 128)])
                );
                assert_eq!(others.len(), 1);
            }
            large.begin(1024, 7);
            large.mark(1023, 1);
            assert!(!large.is_untouched());
            assert_eq!(large.read(0).unwrap().entries.len(), 1024);
            assert_eq!(large.read(2048).unwrap().entries.len(), 2048);
            assert_eq!(
                asked.read(0).unwrap(),
                Contents { entries: vec![Entry::default(); 128], ..Contents::default() }
            );
            assert!(region.shows_use());
            large.unmark(1023);
            assert!(!region.shows_use());
        }
        // What counts is all that has memory.
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks <= 8 * 32, "{blocks} blocks of 512 bytes");
    }

    /// A region of a daemon that asks for less or more room is read as that one has made it.
    #[test]
    fn the_length_of_a_region_tells_how_it_is_laid_out() {
        let shape = |mmap_size, queues, size| {
            Shape::given(&VhostUserInflight::new(mmap_size, 0, queues, size), limits(4, 128))
                .unwrap()
        };
        for (queues, size) in [(1, 128), (4, 1024), (2, 1 << 15)] {
            for largest in [0, 64, 128, 1024, 4096, 1 << 15] {
                let asked = VhostUserInflight::new(0, 0, queues, size);
                let made = Shape::asked(&asked, limits(4, 128), largest).unwrap();
                assert_eq!(shape(made.bytes() as u64, queues, size), made);
                assert_eq!(made.large, if largest > size { largest } else { 0 });
            }
            // Of whoever rounds it up, there is only what was asked for.
            let odd = u64::from(queues) * 64 + (1 << 21);
            assert_eq!(shape(odd, queues, size).large, 0);
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let asked = |queues, size| VhostUserInflight::new(1 << 30, 0, queues, size);
        let limits = limits(4, 128);
        for (queues, size) in
            [(0, 64), (5, 64), (u16::MAX, 64), (1, 0), (1, 3), (1, 32769), (1, u16::MAX)]
        {
            assert!(create(&asked(queues, size), limits).is_err());
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(1 << 30).unwrap();
            Inflight::map(&asked(queues, size), file, limits, &alarm()).unwrap_err();
        }
    }

    #[test]
    fn a_place_that_is_not_in_the_file_is_refused() {
        let map = |size: u64, offset: u64, length: u64| {
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(length).unwrap();
            let given = VhostUserInflight::new(size, offset, 1, 128);
            Inflight::map(&given, file, limits(1, 128), &alarm())
        };
        map(2112, 0, 2112).unwrap();
        map(2112, 4096, 8192).unwrap();
        assert!(matches!(map(2111, 0, 8192), Err(InflightError::TooSmall { .. })));
        assert!(matches!(
            map(2112, 0, 2111),
            Err(InflightError::Map(HandedError::FileTooShort { .. }))
        ));
        assert!(matches!(
            map(2112, 4096, 4096),
            Err(InflightError::Map(HandedError::FileTooShort { .. }))
        ));
        assert!(matches!(map(2112, u64::MAX - 100, 8192), Err(InflightError::Range)));
        assert!(matches!(map(u64::MAX, 1, 8192), Err(InflightError::Range)));
        let unaligned = map(2112, 8, 8192);
        assert!(matches!(
            unaligned,
            Err(InflightError::Map(HandedError::Offset { offset: 8, page: 4096 }))
        ));
        let given = VhostUserInflight::new(2112, 0, 1, 128);
        let file = File::open("/dev/zero").unwrap();
        let mapped = Inflight::map(&given, file, limits(1, 128), &alarm());
        assert!(matches!(mapped, Err(InflightError::Map(HandedError::Kind("a device")))));
    }

    #[test]
    fn a_file_that_is_cut_short_is_lost_and_kills_nobody() {
        let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let (given, alarm) = (VhostUserInflight::new(8192, 0, 1, 128), alarm());
        let clone = file.try_clone().unwrap();
        let region = Inflight::map(&given, clone, limits(1, 128), &alarm).unwrap();
        let part = region.part(0).unwrap();
        assert!(part.read(0).is_some() && !region.is_lost());
        file.set_len(0).unwrap();
        assert_eq!((part.read(0), region.is_lost()), (None, true));
        part.begin(128, 7);
        assert!(alarm.read().is_ok());
    }
}
