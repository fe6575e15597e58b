//! Where the parts of a region lie, and which regions are refused.

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::virtq::part::{Contents, Entry};

pub(crate) use crate::virtq::part::tests::{overwrite, watch_stores};

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

/// A region made for small rings has room for large ones. A daemon that does not know large parts finds
/// the small parts where it expects them: one after another, as they were requested.
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
        assert_eq!((asked.offset(), asked.capacity()), (ring * 2112, 128));
        assert_eq!(
            (large.offset(), large.capacity()),
            (3 * 2112 + ring * (64 + 16 * 32768), 1 << 15)
        );
        assert!(large.is_untouched() && !asked.is_untouched());
        for size in [2, 128, 256, 1 << 15] {
            let (part, others) = region.parts(ring).unwrap().choose(size);
            assert_eq!(
                part.map(|part| part.offset()),
                Some([asked.offset(), large.offset()][usize::from(size > 128)])
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
        Shape::given(&VhostUserInflight::new(mmap_size, 0, queues, size), limits(4, 128)).unwrap()
    };
    for (queues, size) in [(1, 128), (4, 1024), (2, 1 << 15)] {
        for largest in [0, 64, 128, 1024, 4096, 1 << 15] {
            let asked = VhostUserInflight::new(0, 0, queues, size);
            let made = Shape::asked(&asked, limits(4, 128), largest).unwrap();
            assert_eq!(shape(made.bytes() as u64, queues, size), made);
            assert_eq!(made.large, if largest > size { largest } else { 0 });
        }
        // A region that a daemon has rounded up has only the parts that were requested.
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
fn a_file_that_is_cut_short_is_lost_and_kills_no_process() {
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
