//! Disks that outlive their process: whatever was done before, all of it is found again.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::engine::Policy;
use crate::store::scratch::{Image, Scratch, edit, set_word, word};

/// A disk's state in a directory, and how to open it.
pub(super) struct Home {
    pub(super) dir: Scratch,
    pub(super) config: DeviceConfig,
}

impl Home {
    pub(super) fn new(pages: u64, codec: &str) -> Self {
        // One thread that does nothing: hundreds of these disks are opened.
        let engine =
            EngineConfig { policy: Policy::Inline, workers: Some(1), ..EngineConfig::default() };
        let config = DeviceConfig {
            size: pages * PAGE_SIZE as u64,
            block_size: BlockChoice::default(),
            codec: codec.parse().unwrap(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine,
        };
        Self { dir: Scratch::new(), config }
    }

    /// Makes the disk.
    pub(super) fn make(&self) -> Device {
        let state = self.config.state_in(self.dir.path(), true, None).unwrap();
        assert!(state.is_new());
        let device = Device::with_state(&self.config, state).unwrap();
        device.set_complete();
        device
    }

    /// Opens what is there.
    pub(super) fn open(&self) -> Result<Device, DeviceError> {
        let state = self.config.state_in(self.dir.path(), false, None)?;
        assert!(!state.is_new());
        Device::with_state(&self.config, state)
    }

    /// The state as it is at this moment, with no process that has it open.
    pub(super) fn died(self) -> Self {
        self.copy()
    }

    /// Another one like it.
    pub(super) fn copy(&self) -> Self {
        let dir = Scratch::new();
        Image::of(self.dir.path()).restore(dir.path());
        Self { dir, config: self.config.clone() }
    }

    /// Where the table's file has a slot's word.
    pub(super) fn word_at(index: u64) -> u64 {
        index * 8
    }

    /// Where the table's file has a slot's check sum, 4 bytes.
    pub(super) fn sum_at(&self, index: u64) -> u64 {
        // Behind the words of the largest disk that this one can grow to.
        self.config.capacity().unwrap() / PAGE_SIZE as u64 * 8 + index * 4
    }

    pub(super) fn word(&self, index: u64) -> u64 {
        word(&self.dir.join("table"), Self::word_at(index))
    }

    pub(super) fn set_word(&self, index: u64, value: u64) {
        set_word(&self.dir.join("table"), Self::word_at(index), value);
    }

    pub(super) fn sum(&self, index: u64) -> u32 {
        // Its half of a word.
        let both = word(&self.dir.join("table"), self.sum_at(index) / 8 * 8);
        (both >> (index % 2 * 32)) as u32
    }

    pub(super) fn set_sum(&self, index: u64, value: u32) {
        edit(&self.dir.join("table"), self.sum_at(index), 4, |sum| {
            sum.copy_from_slice(&value.to_le_bytes());
        });
    }
}

/// What is the same before and after.
fn kept(device: &Device) -> [u64; 6] {
    let report = device.report();
    [
        report.orig_data_size,
        report.compr_data_size,
        report.same_pages,
        report.huge_pages,
        report.table_bytes,
        report.state_bytes,
    ]
}

#[test]
fn each_kind_of_page_is_found_again() {
    for codec in ["lz4", "lz4-flex", "zstd"] {
        let home = Home::new(600, codec);
        let pages = [
            vec![0; PAGE_SIZE],
            vec![0xa5; PAGE_SIZE],
            b"12345678".repeat(PAGE_SIZE / 8),
            text(1, PAGE_SIZE),
            noise(2, PAGE_SIZE),
        ];
        let device = home.make();
        assert!(device.outlives_process());
        let mut context = device.worker_context().unwrap();
        for (page, bytes) in (0..).zip(&pages) {
            run(&device, &mut context, Op::Write, page * 130 * 8, bytes.clone()).unwrap();
        }
        let before = kept(&device);
        drop((context, device));
        for round in 0..3 {
            let device = home.open().unwrap();
            device.check().unwrap();
            assert_eq!(kept(&device), before, "{codec}, round {round}");
            let mut context = device.worker_context().unwrap();
            for page in 0..600 {
                let expected = match pages.get(page / 130) {
                    Some(bytes) if page % 130 == 0 => bytes.clone(),
                    _ => vec![0; PAGE_SIZE],
                };
                // Twice: with a check of its sum, and without.
                for _ in 0..2 {
                    let got = read(&device, &mut context, page as u64 * 8, 8);
                    assert_eq!(got, expected, "{codec}, {page}");
                }
            }
            assert_eq!(kept(&device), before);
        }
    }
}

/// Each start of the walk's daemon has one of them for new pages.
const CODECS: [&str; 5] = ["lz4", "zstd", "lz4-flex", "zstd(level=-3)", "lz4(acceleration=9)"];

/// A step of the walk: operation, first sector, sectors, kind of data, seed.
fn any_step() -> impl Strategy<Value = (u8, u64, usize, u8, u64)> {
    (0..16_u8, 0..32 * 8_u64, 1..40_usize, 0..4_u8, any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a plain vector of bytes; the disk is closed, or its process dies, again and again.
    #[test]
    fn a_random_walk_with_deaths_agrees_with_a_plain_model(
        codec in 0..CODECS.len(),
        // At the start, across pages of the table and of its sums, and at the end.
        base in prop_oneof![Just(0), Just(500_u64), Just(1010), Just(5000 - 32)],
        steps in prop::collection::vec(any_step(), 1..100),
    ) {
        let mut home = Home::new(5000, CODECS[codec]);
        let mut device = home.make();
        let mut context = device.worker_context().unwrap();
        let mut model = vec![0; 32 * PAGE_SIZE];
        let mut served = false;
        for (op, at, sectors, kind, seed) in steps {
            let sectors = sectors.min(256 - at as usize);
            let range = at as usize * SECTOR..(at as usize + sectors) * SECTOR;
            let sector = base * 8 + at;
            match op {
                0..=6 => change(&device, &mut context, sector, &mut model[range], (op, kind, seed)),
                7 => compact(&device),
                8 => {
                    served = seed.is_multiple_of(2);
                    if served { device.mark_served() } else { device.forget_served() }
                }
                9 | 10 => {
                    let before = kept(&device);
                    drop(context);
                    drop(device);
                    home.config.codec = CODECS[seed as usize % CODECS.len()].parse().unwrap();
                    device = home.open().unwrap();
                    context = device.worker_context().unwrap();
                    prop_assert_eq!(kept(&device), before);
                }
                11 | 12 => {
                    // A slot is held; a request has stored an object, and waits for it.
                    let index = sector / 8;
                    let bytes = noise(seed, PAGE_SIZE);
                    let mut io =
                        device.request(Op::Write, index * 8, 4096, Buffer::new(bytes)).unwrap();
                    let cx = Context::from_waker(Waker::noop());
                    let held = device.hold(index);
                    if held.is_some() {
                        prop_assert!(io.poll(&mut context, &cx).is_pending());
                    }
                    home = home.died();
                    home.config.codec = CODECS[seed as usize % CODECS.len()].parse().unwrap();
                    drop(io);
                    drop(held);
                    let before = kept(&device);
                    drop(context);
                    drop(device);
                    device = home.open().unwrap();
                    context = device.worker_context().unwrap();
                    prop_assert_eq!(kept(&device), before);
                    prop_assert_eq!(home.word(index) & 3, 0, "a lock was left");
                }
                _ => prop_assert_eq!(read(&device, &mut context, sector, sectors), &model[range]),
            }
            prop_assert_eq!(device.has_served(), served);
            prop_assert_eq!(device.check(), Ok(()));
        }
        prop_assert_eq!(&read(&device, &mut context, base * 8, 256), &model);
        drop((context, device));
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        prop_assert_eq!(read(&device, &mut context, base * 8, 256), model);
        compact(&device);
        prop_assert_eq!(device.check(), Ok(()));
    }
}

#[test]
fn locks_of_a_process_that_is_gone_are_free() {
    let home = Home::new(8, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    let mut model = Vec::new();
    for page in 0..8_u64 {
        let bytes = match page / 2 {
            0 => vec![0; PAGE_SIZE],
            1 => vec![page as u8; PAGE_SIZE],
            2 => text(page, PAGE_SIZE),
            _ => noise(page, PAGE_SIZE),
        };
        // Page 0 was never written.
        if page > 0 {
            run(&device, &mut context, Op::Write, page * 8, bytes.clone()).unwrap();
        }
        model.extend(bytes);
    }
    drop((context, device));
    let clean: Vec<u64> = (0..8).map(|index| home.word(index)).collect();
    for bits in 1..4 {
        for index in 0..8 {
            home.set_word(index, clean[index as usize] | bits);
        }
        let device = home.open().unwrap();
        let words: Vec<u64> = (0..8).map(|index| home.word(index)).collect();
        assert_eq!(words, clean);
        device.check().unwrap();
        let mut context = device.worker_context().unwrap();
        assert_eq!(read(&device, &mut context, 0, 64), model);
    }
    // Nor is there a wait for owners that would have released them.
    for index in 0..8 {
        home.set_word(index, clean[index as usize] | 3);
    }
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    for page in 0..8 {
        run(&device, &mut context, Op::Write, page * 8 + 3, vec![9; SECTOR]).unwrap();
        model[page as usize * PAGE_SIZE + 3 * SECTOR..][..SECTOR].fill(9);
    }
    assert_eq!(read(&device, &mut context, 0, 64), model);
    device.check().unwrap();
}

#[test]
fn that_a_guest_was_served_is_remembered() {
    let home = Home::new(8, "lz4");
    let device = home.make();
    assert!(!device.has_served());
    device.mark_served();
    drop(device);
    for _ in 0..2 {
        assert!(home.open().unwrap().has_served());
    }
    let device = home.open().unwrap();
    device.forget_served();
    let home = home.died();
    assert!(!home.open().unwrap().has_served());
}

#[test]
fn a_limit_below_what_is_stored_keeps_nothing_from_being_read() {
    let mut home = Home::new(64, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    let mut model = vec![0; 64 * PAGE_SIZE];
    for page in 0..32_u64 {
        let bytes = noise(page, PAGE_SIZE);
        model[page as usize * PAGE_SIZE..][..PAGE_SIZE].copy_from_slice(&bytes);
        run(&device, &mut context, Op::Write, page * 8, bytes).unwrap();
    }
    drop((context, device));
    home.config.mem_limit = 4 * PAGE_SIZE as u64;
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    assert_eq!(device.report().mem_limit, 4 * PAGE_SIZE as u64);
    assert!(device.report().mem_used_total > 32 * PAGE_SIZE as u64);
    device.check().unwrap();
    assert_eq!(read(&device, &mut context, 0, 512), model);
    // It takes nothing more, until there is room.
    let refused = run(&device, &mut context, Op::Write, 40 * 8, noise(99, PAGE_SIZE));
    assert!(matches!(refused, Err(IoError::Pool(_))), "{refused:?}");
    assert_eq!(read(&device, &mut context, 0, 512), model);
    run(&device, &mut context, Op::Write, 40 * 8, vec![1; PAGE_SIZE]).unwrap();
    free(&device, &mut context, Op::Discard, 0, 31 * 8);
    run(&device, &mut context, Op::Write, 50 * 8, noise(99, PAGE_SIZE)).unwrap();
    compact(&device);
    assert!(device.report().mem_used_total <= 4 * PAGE_SIZE as u64);
    device.check().unwrap();
    assert_eq!(read(&device, &mut context, 31 * 8, 8), noise(31, PAGE_SIZE));
}

/// What a process had stored and not named yet goes with it.
#[test]
fn memory_that_no_word_names_is_given_back() {
    let home = Home::new(64, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for page in 0..32_u64 {
        run(&device, &mut context, Op::Write, page * 8, noise(page, PAGE_SIZE)).unwrap();
    }
    // Freed, and not given back yet.
    free(&device, &mut context, Op::Discard, 0, 30 * 8);
    for _ in 0..10 {
        device.pool.put(&noise(77, PAGE_SIZE), 3).unwrap();
    }
    let home = home.died();
    let arena = || {
        use std::os::unix::fs::MetadataExt;
        home.dir.join("arena").metadata().unwrap().blocks() * 512
    };
    let before = arena();
    let device = home.open().unwrap();
    // Two objects of a page and a tag, each on two pages at most; and the seal.
    assert!(arena() <= 5 * 4096 && before >= 32 * 4096, "{before} became {}", arena());
    device.check().unwrap();
    let mut context = device.worker_context().unwrap();
    for page in 30..32 {
        assert_eq!(read(&device, &mut context, page * 8, 8), noise(page, PAGE_SIZE));
    }
}

/// Pages that were not read since the state was opened are moved like others, and stay what they were.
#[test]
fn what_was_not_read_yet_can_be_moved_and_die_again() {
    let mut home = Home::new(512, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    let page_of =
        |page: u64| if page.is_multiple_of(3) { noise(page, 4096) } else { text(page, 4096) };
    for page in 0..512 {
        run(&device, &mut context, Op::Write, page * 8, page_of(page)).unwrap();
    }
    drop((context, device));
    let mut moves = 0;
    for round in 1..4 {
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        // Holes for the rest to be moved to.
        for page in (0..512).filter(|page| page % 8 == round) {
            free(&device, &mut context, Op::Discard, page * 8, 8);
        }
        moves += device.compact(&mut Compactor::default(), Effort::Full, |_| true).moves;
        device.check().unwrap();
        home = home.died();
    }
    assert!(moves > 100, "{moves} moves");
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    for page in 0..512 {
        let freed = (1..4).contains(&(page % 8));
        let expected = if freed { vec![0; 4096] } else { page_of(page) };
        assert_eq!(read(&device, &mut context, page * 8, 8), expected, "{page}");
    }
}

#[test]
fn requests_that_the_engine_works_for_are_found_again() {
    let mut home = Home::new(64, "zstd");
    home.config.engine = EngineConfig {
        policy: Policy::Offload,
        workers: Some(2),
        model: Some("reorder=4,refuse=20%,fail=5%,seed=3".parse().unwrap()),
        ..EngineConfig::default()
    };
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    let mut model = text(5, 64 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, model.clone()).unwrap();
    drop((context, device));
    for round in 0..4_u64 {
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        // Parts of pages that were not read yet, so that they are checked before they change.
        let (at, sectors) = (round as usize * 100 + 3, 37);
        let bytes = noise(round, sectors * SECTOR);
        model[at * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
        run(&device, &mut context, Op::Write, at as u64, bytes).unwrap();
        assert_eq!(read(&device, &mut context, 0, 512), model);
        device.check().unwrap();
    }
}

/// Many threads want the same slots, each changes sectors of its own, and objects are moved meanwhile.
#[test]
fn slots_that_many_wait_for_are_found_again() {
    const ROUNDS: u64 = 300;
    let home = Home::new(4, "lz4");
    for epoch in 0..3 {
        let device = if epoch == 0 { home.make() } else { home.open().unwrap() };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (device, over) = (&device, &over);
            let compactor = scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    compact(device);
                }
            });
            let writers: Vec<_> = (0..8_u64)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut context = device.worker_context().unwrap();
                        for round in 0..ROUNDS {
                            let sector = round % 4 * 8 + thread;
                            let bytes = noise(epoch * 1000 + sector * 77 + round, SECTOR);
                            run(device, &mut context, Op::Write, sector, bytes.clone()).unwrap();
                            assert_eq!(read(device, &mut context, sector, 1), bytes);
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            compactor.join().unwrap();
        });
        device.check().unwrap();
        drop(device);
        let device = home.open().unwrap();
        device.check().unwrap();
        let mut context = device.worker_context().unwrap();
        for sector in 0..32 {
            let round = ROUNDS - 4 + sector / 8;
            let expected = noise(epoch * 1000 + sector * 77 + round, SECTOR);
            assert_eq!(read(&device, &mut context, sector, 1), expected, "{epoch}, {sector}");
        }
    }
}

/// What a disk over a layer leaves: a page that hides what lies below.
#[test]
fn a_discarded_page_reads_as_zeroes_and_counts_as_nothing() {
    let home = Home::new(600, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    let before = kept(&device);
    drop((context, device));
    const DISCARDED: u64 = 1 << 11;
    for index in 1..4_u64 {
        home.set_word(index, DISCARDED);
        home.set_sum(
            index,
            crc32fast::hash(&[index.to_le_bytes(), DISCARDED.to_le_bytes()].concat()),
        );
    }
    for _ in 0..2 {
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        assert_eq!(kept(&device), before);
        for index in 1..4 {
            assert_eq!(home.word(index), DISCARDED, "opening leaves it");
            assert_eq!(read(&device, &mut context, index * 8, 8), vec![0; PAGE_SIZE]);
        }
    }
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    assert_eq!(read(&device, &mut context, 8, 8), vec![0; PAGE_SIZE], "so it is verified");
    free(&device, &mut context, Op::WriteZeroes, 8 + 1, 2);
    assert_eq!(home.word(1), DISCARDED, "zeroes are there already");
    // A part of it, all of it, and once more discarded: nothing is below, so it is empty then.
    run(&device, &mut context, Op::Write, 9, vec![7; SECTOR]).unwrap();
    let mut expected = vec![0; PAGE_SIZE];
    expected[SECTOR..2 * SECTOR].fill(7);
    assert_eq!(read(&device, &mut context, 8, 8), expected);
    run(&device, &mut context, Op::Write, 2 * 8, text(2, PAGE_SIZE)).unwrap();
    free(&device, &mut context, Op::Discard, 3 * 8, 8);
    assert_eq!(home.word(3), 0);
    let [stored, ..] = kept(&device);
    assert_eq!(stored, 3 * PAGE_SIZE as u64);
    free(&device, &mut context, Op::WriteZeroes, 0, 600 * 8);
    compact(&device);
    device.check().unwrap();
    assert_eq!((device.report().orig_data_size, device.table.bytes()), (0, 0));
}
