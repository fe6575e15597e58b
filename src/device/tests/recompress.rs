//! Pages that are compressed again: which, how, and beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::reopen::Home;
use super::*;

const ALL: Wanted = Wanted { pages: Pages::All, threshold: 0, max_pages: None, priority: 1 };

/// A page of which zstd makes less than lz4 does: so many bytes of letters, and zeroes.
fn letters(seed: u64, length: usize) -> Vec<u8> {
    let mut page = text(seed, length);
    page.resize(PAGE_SIZE, 0);
    page
}

fn put(device: &Device, context: &mut WorkerContext, page: u64, bytes: Vec<u8>) {
    run(device, context, Op::Write, page * 8, bytes).unwrap();
}

fn recompress(device: &Device, wanted: Wanted) -> Recompression {
    device.recompress(wanted, |_| true).unwrap()
}

/// What a page's line in `block_state` says.
fn state(device: &Arc<Device>, page: u64) -> SlotState {
    let mut found = SlotState::default();
    let mut slots = Slots::new(Arc::clone(device));
    while slots.visit_some(|index, state| {
        if index == page {
            found = state;
        }
    }) {}
    found
}

fn by_zstd(pages: u64) -> Arc<Device> {
    let device = device(pages);
    device.set_secondary(1, "zstd(level=9)".parse().unwrap()).unwrap();
    device.into()
}

#[test]
fn pages_are_replaced_by_what_is_smaller_and_read_as_before() {
    let device = by_zstd(64);
    let mut context = device.worker_context().unwrap();
    for page in 0..32 {
        put(&device, &mut context, page, letters(page, 4000));
    }
    put(&device, &mut context, 40, noise(1, PAGE_SIZE));
    put(&device, &mut context, 41, vec![7; PAGE_SIZE]);
    put(&device, &mut context, 42, b"12345678".repeat(512));
    let before = device.report();
    let done = recompress(&device, ALL);
    let expected = Recompression { found: 33, tried: 33, replaced: 32, ..done };
    assert_eq!(done, expected);
    let after = device.report();
    assert!(after.compr_data_size < before.compr_data_size);
    assert!(done.saved_bytes > 32 * 100, "{done:?}");
    let figures =
        [after.recompression_attempts, after.recompressed_pages, after.recompression_saved_bytes];
    assert_eq!(figures, [33, 32, done.saved_bytes]);
    assert!(state(&device, 3).recompressed && !state(&device, 40).recompressed);
    // What did not pay is marked by the last priority, until it is written again.
    assert!(state(&device, 40).incompressible && !state(&device, 3).incompressible);
    assert_eq!(recompress(&device, ALL), Recompression::default(), "there is nothing more to do");
    put(&device, &mut context, 40, noise(2, PAGE_SIZE));
    assert!(!state(&device, 40).incompressible);
    assert_eq!(recompress(&device, ALL).tried, 1);
    for page in 0..32 {
        assert_eq!(read(&device, &mut context, page * 8, 8), letters(page, 4000));
    }
    assert_eq!(read(&device, &mut context, 40 * 8, 8), noise(2, PAGE_SIZE));
    device.check().unwrap();
}

/// Marks by `idle`, which any access takes away, and kinds of pages.
#[test]
fn idle_and_huge_pages_are_those_that_are_meant() {
    let device = by_zstd(64);
    let mut context = device.worker_context().unwrap();
    // Six bits a byte: raw to lz4, and less to zstd.
    let huge = |seed| noise(seed, PAGE_SIZE).iter().map(|byte| byte & 63).collect::<Vec<_>>();
    for page in 0..4 {
        put(&device, &mut context, page, letters(page, 4000));
        put(&device, &mut context, 8 + page, huge(page));
    }
    put(&device, &mut context, 20, vec![1; PAGE_SIZE]);
    assert_eq!(device.mark_idle(None, || true), Ok(8), "no same-filled page");
    assert_eq!(device.mark_idle(None, || true), Ok(0));
    // Looked at by compaction and reports, they stay idle.
    compact(&device);
    assert!((0..4).all(|page| state(&device, page).idle && state(&device, 8 + page).huge));
    read(&device, &mut context, 0, 8);
    read(&device, &mut context, 8 * 8, 1);
    run(&device, &mut context, Op::Write, 8 + 3, vec![1; 512]).unwrap();
    put(&device, &mut context, 9, huge(9));
    let idle = |page| state(&device, page).idle;
    assert!([0, 8, 1, 9].into_iter().all(|page| !idle(page)) && idle(2) && idle(10));
    let tried = |pages| recompress(&device, Wanted { pages, max_pages: Some(0), ..ALL }).found;
    assert_eq!(tried(Pages::All), 8);
    assert_eq!(tried(Pages::Idle), 4);
    assert_eq!(tried(Pages::Huge), 4);
    assert_eq!(tried(Pages::HugeIdle), 2);
    let done = recompress(&device, Wanted { pages: Pages::HugeIdle, ..ALL });
    assert_eq!((done.tried, done.replaced), (2, 2));
    for page in [10, 11] {
        let SlotState { huge, idle, recompressed, .. } = state(&device, page);
        assert_eq!((huge, idle, recompressed), (false, false, true), "page {page}");
        assert_eq!(read(&device, &mut context, page * 8, 8), noise_of_six(page - 8));
    }
    assert_eq!(recompress(&device, Wanted { pages: Pages::Idle, ..ALL }).tried, 2);
    assert!(!idle(2) && !idle(3));
    device.check().unwrap();
}

fn noise_of_six(seed: u64) -> Vec<u8> {
    noise(seed, PAGE_SIZE).iter().map(|byte| byte & 63).collect()
}

#[test]
fn the_largest_come_first_and_attempts_are_counted() {
    let device = by_zstd(64);
    let mut context = device.worker_context().unwrap();
    for page in 0..32 {
        put(&device, &mut context, page, letters(page, 500 + 100 * page as usize));
    }
    let mut last = 32;
    for _ in 0..4 {
        let done = recompress(&device, Wanted { max_pages: Some(5), ..ALL });
        assert_eq!((done.tried, done.replaced), (5, 5));
        let done: Vec<u64> = (0..32).filter(|page| state(&device, *page).recompressed).collect();
        last -= 5;
        assert_eq!(done, (last..32).collect::<Vec<_>>());
    }
    // Only objects of so many bytes, and only if they become less.
    let length = |page: u64| {
        let word = context.reader.inside(|| device.table.glance(page)).unwrap();
        word.content().object().unwrap().length
    };
    let (small, large) = (length(4), length(5));
    let wanted = Wanted { threshold: large, ..ALL };
    assert_eq!(recompress(&device, wanted).tried, 12 - 5);
    assert!(!state(&device, 4).recompressed && state(&device, 5).recompressed);
    assert!(length(5) < large && length(4) == small);
    // The smaller one becomes less, and not less than that.
    let wanted = Wanted { threshold: 2, ..ALL };
    let done = recompress(&device, wanted);
    assert_eq!((done.tried, done.replaced), (5, 0));
    assert!(state(&device, 4).incompressible, "no algorithm is left that could do it");
}

#[test]
fn priorities_go_up_and_the_last_one_marks_what_does_not_pay() {
    let device: Arc<Device> = device(16).into();
    let mut context = device.worker_context().unwrap();
    let none = device.recompress(ALL, |_| true).unwrap_err();
    assert!(matches!(none, RecompressError::NoAlgorithm(1)), "{none}");
    device.set_secondary(1, "zstd(level=1)".parse().unwrap()).unwrap();
    device.set_secondary(3, "zstd(level=19)".parse().unwrap()).unwrap();
    assert_eq!(
        device.secondaries().map(|codec| codec.map(CodecSpec::level)),
        [Some(1), None, Some(19)]
    );
    put(&device, &mut context, 0, letters(0, 4000));
    put(&device, &mut context, 1, noise(1, PAGE_SIZE));
    assert_eq!(recompress(&device, ALL).replaced, 1);
    assert!(!state(&device, 1).incompressible, "another algorithm may do it");
    assert_eq!(recompress(&device, ALL).tried, 1, "what it has done is done");
    assert!(device.recompress(Wanted { priority: 2, ..ALL }, |_| true).is_err());
    assert_eq!(recompress(&device, Wanted { priority: 3, ..ALL }).tried, 2);
    assert!(state(&device, 1).incompressible);
    assert_eq!(recompress(&device, ALL).tried, 0, "nothing goes down");
    device.forget_secondaries();
    assert_eq!(device.secondaries(), [None; 3]);
    assert!(!state(&device, 0).recompressed, "by no algorithm of today");
    assert_eq!(read(&device, &mut context, 0, 8), letters(0, 4000));
    device.check().unwrap();
}

/// A page that has an owner, and one that a job of a process has that died.
#[test]
fn a_claim_ends_with_its_process_and_with_any_change() {
    let home = Home::new(16, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for page in 0..3 {
        put(&device, &mut context, page, letters(page, 3000));
    }
    device.mark_idle(None, || true).unwrap();
    drop((context, device));
    home.set_word(1, home.word(1) | 1 << 5);
    let device: Arc<Device> = home.open().unwrap().into();
    assert_eq!(home.word(1) >> 5 & 1, 0, "its job is gone");
    assert!((0..3).all(|page| state(&device, page).idle), "marks outlive the process");
    device.set_secondary(1, "zstd".parse().unwrap()).unwrap();
    let mut context = device.worker_context().unwrap();
    let claim = |page| {
        let guard = context.reader.inside(|| device.table.try_lock(page)).unwrap();
        device.table.claim(guard)
    };
    let (first, second) = (claim(0).unwrap(), claim(1).unwrap());
    assert!(claim(0).is_none(), "it has an owner");
    assert_eq!(recompress(&device, ALL).tried, 1, "the one that nobody has");
    // Moved, it is the same content; written with the same bytes, it is another one.
    compact(&device);
    put(&device, &mut context, 1, letters(1, 3000));
    for (page, claim, holds) in [(0, first, true), (1, second, false)] {
        let guard = context.reader.inside(|| device.table.try_lock(page)).unwrap();
        assert_eq!(device.table.holds(&guard, &claim), holds, "page {page}");
        device.table.end_claim(claim, Some(guard), |word| word);
    }
    assert_eq!(recompress(&device, ALL).replaced, 2);
    drop((context, device));
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    for page in 0..3 {
        for _ in 0..2 {
            assert_eq!(read(&device, &mut context, page * 8, 8), letters(page, 3000));
        }
    }
    device.check().unwrap();
}

/// Damaged pages are left as they are: errors of their own.
#[test]
fn a_damaged_page_stays_damaged() {
    let home = Home::new(16, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    put(&device, &mut context, 0, letters(0, 3000));
    put(&device, &mut context, 1, letters(1, 3000));
    drop((context, device));
    home.set_sum(1, home.sum(1) ^ 1);
    let device = home.open().unwrap();
    device.set_secondary(1, "zstd".parse().unwrap()).unwrap();
    let done = recompress(&device, ALL);
    assert_eq!((done.tried, done.replaced, done.damaged), (2, 1, 1));
    let mut context = device.worker_context().unwrap();
    let buffer = Buffer::new(vec![0; PAGE_SIZE]);
    let mut io = device.request(Op::Read, 8, PAGE_SIZE as u64, buffer).unwrap();
    let error = sync::block_on(|cx| io.poll(&mut context, cx)).unwrap_err();
    assert!(matches!(error, IoError::Damaged { index: 1 }), "{error:?}");
    assert_eq!(read(&device, &mut context, 0, 8), letters(0, 3000));
}

/// No memory is left for anything: what there is stays.
#[test]
fn at_the_limit_pages_are_replaced_or_stay() {
    let device = device_with(512, "lz4", 600 << 10);
    device.set_secondary(1, "zstd(level=9)".parse().unwrap()).unwrap();
    let mut context = device.worker_context().unwrap();
    let mut pages = 0;
    while run(&device, &mut context, Op::Write, pages * 8, letters(pages, 4000)).is_ok() {
        pages += 1;
    }
    assert!(pages > 50);
    match device.recompress(ALL, |_| true) {
        Ok(done) => assert!(done.replaced > 0),
        Err(error) => assert!(matches!(error, RecompressError::Memory(_)), "{error}"),
    }
    for page in 0..pages {
        assert_eq!(read(&device, &mut context, page * 8, 8), letters(page, 4000));
    }
    device.check().unwrap();
    // Nothing is claimed any more.
    device.set_mem_limit(0);
    recompress(&device, ALL);
    for page in 0..pages {
        let word = context.reader.inside(|| device.table.glance(page)).unwrap();
        assert!(!word.is_claimed(), "page {page}");
    }
}

fn worst_engine() -> EngineConfig {
    EngineConfig {
        policy: Policy::Offload,
        workers: Some(2),
        model: Some("reorder=4,refuse=20%,fail=20%,corrupt=10%,die=2%,seed=7".parse().unwrap()),
        ..EngineConfig::default()
    }
}

/// Guests write, read and discard while jobs mark, recompress and compact, inline and by an engine at its worst.
#[test]
fn recompression_beside_requests_loses_and_mixes_up_nothing() {
    const PAGES: u64 = 256;
    const ROUNDS: u64 = if cfg!(debug_assertions) { 3_000 } else { 30_000 };
    for engine in [None, Some(worst_engine())] {
        let mut home = Home::new(2 * PAGES, "lz4");
        home.config.engine = engine.unwrap_or(home.config.engine);
        let device = home.make();
        for (priority, codec) in [(1, "zstd(level=1)"), (2, "deflate"), (3, "zstd(level=12)")] {
            device.set_secondary(priority, codec.parse().unwrap()).unwrap();
        }
        let over = AtomicBool::new(false);
        let mut replaced = 0;
        std::thread::scope(|scope| {
            let (device, over) = (&device, &over);
            let job = scope.spawn(move || {
                let mut replaced = 0;
                for round in 0.. {
                    let pages = [Pages::All, Pages::Idle, Pages::Huge][round % 3];
                    let wanted = Wanted { pages, priority: 1 + round % 3, ..ALL };
                    let mut left = 40 + round % 50;
                    let go_on = |_: &Recompression| {
                        left = left.saturating_sub(1);
                        left > 0
                    };
                    replaced += device.recompress(wanted, go_on).unwrap().replaced;
                    if over.load(Ordering::Relaxed) {
                        return replaced;
                    }
                }
                unreachable!("the loop has no end")
            });
            let marks = scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    device.mark_idle(None, || true).unwrap();
                    compact(device);
                }
            });
            let guests: Vec<_> = (0..2_u64)
                .map(|guest| {
                    scope.spawn(move || {
                        let mut context = device.worker_context().unwrap();
                        let mut random = Random::new(guest);
                        let mut known = vec![None; PAGES as usize];
                        let contents = |seed: Option<u64>| match seed {
                            None => vec![0; PAGE_SIZE],
                            Some(seed) if seed % 5 == 0 => noise_of_six(seed),
                            Some(seed) => letters(seed, 1000 + seed as usize % 3000),
                        };
                        for round in 0..ROUNDS {
                            let page = random.below(PAGES);
                            let sector = (guest * PAGES + page) * 8;
                            let known = &mut known[page as usize];
                            match random.below(8) {
                                0 => {
                                    free(device, &mut context, Op::Discard, sector, 8);
                                    *known = None;
                                }
                                // Mostly what was there already.
                                1..4 => {
                                    let seed = known.filter(|_| random.below(2) == 0);
                                    let seed = seed.unwrap_or(round);
                                    let bytes = contents(Some(seed));
                                    run(device, &mut context, Op::Write, sector, bytes).unwrap();
                                    *known = Some(seed);
                                }
                                _ => {
                                    let found = read(device, &mut context, sector, 8);
                                    assert!(found == contents(*known), "page {page}");
                                }
                            }
                        }
                    })
                })
                .collect();
            for guest in guests {
                guest.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            replaced = job.join().unwrap();
            marks.join().unwrap();
        });
        assert!(replaced > 0);
        device.check().unwrap();
        let reader = device.table.reader();
        for page in 0..2 * PAGES {
            let word = reader.inside(|| device.table.glance(page));
            assert!(word.is_none_or(|word| !word.is_claimed()), "page {page} is claimed");
        }
        drop((reader, device));
        home.open().unwrap().check().unwrap();
    }
}

/// A step of a random walk.
#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Part(u64, u64),
    Read(u64),
    Discard(u64),
    Idle,
    Recompress(Pages, usize, u64),
    Codec(usize),
    Compact,
}

fn any_step() -> impl Strategy<Value = Step> {
    let pages =
        prop_oneof![Just(Pages::All), Just(Pages::Idle), Just(Pages::Huge), Just(Pages::HugeIdle)];
    prop_oneof![
        4 => (0..24_u64, 0..64_u64).prop_map(|(page, seed)| Step::Write(page, seed)),
        1 => (0..24_u64, 0..64_u64).prop_map(|(page, seed)| Step::Part(page, seed)),
        2 => (0..24_u64).prop_map(Step::Read),
        1 => (0..24_u64).prop_map(Step::Discard),
        1 => Just(Step::Idle),
        3 => (pages, 1..4_usize, 0..30_u64)
            .prop_map(|(pages, priority, most)| Step::Recompress(pages, priority, most)),
        1 => (0..4_usize).prop_map(Step::Codec),
        1 => Just(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a plain array, and a note of which pages are idle.
    #[test]
    fn a_disk_that_is_recompressed_is_a_plain_array(
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        const CODECS: [&str; 4] = ["lz4", "zstd(level=1)", "deflate", "lz4hc"];
        let device: Arc<Device> = device(24).into();
        let mut context = device.worker_context().unwrap();
        for (priority, codec) in [(1, "zstd(level=1)"), (2, "deflate"), (3, "zstd(level=19)")] {
            device.set_secondary(priority, codec.parse().unwrap()).unwrap();
        }
        let mut model = vec![vec![0; PAGE_SIZE]; 24];
        let mut idle = [false; 24];
        for step in steps {
            match step {
                Step::Write(page, seed) => {
                    let bytes = match seed % 4 {
                        0 => noise_of_six(seed),
                        1 => vec![seed as u8; PAGE_SIZE],
                        2 => noise(seed, PAGE_SIZE),
                        _ => letters(seed, 300 + 50 * seed as usize),
                    };
                    put(&device, &mut context, page, bytes.clone());
                    (model[page as usize], idle[page as usize]) = (bytes, false);
                }
                Step::Part(page, seed) => {
                    let bytes = noise(seed, SECTOR);
                    run(&device, &mut context, Op::Write, page * 8 + seed % 8, bytes.clone())?;
                    let start = (seed % 8) as usize * SECTOR;
                    model[page as usize][start..start + SECTOR].copy_from_slice(&bytes);
                    idle[page as usize] = false;
                }
                Step::Read(page) => {
                    let found = read(&device, &mut context, page * 8, 8);
                    prop_assert!(found == model[page as usize], "page {}", page);
                    idle[page as usize] = false;
                }
                Step::Discard(page) => {
                    free(&device, &mut context, Op::Discard, page * 8, 8);
                    model[page as usize].fill(0);
                    idle[page as usize] = false;
                }
                Step::Idle => {
                    device.mark_idle(None, || true).unwrap();
                    for (page, idle) in (0..).zip(&mut idle) {
                        let state = state(&device, page);
                        *idle = state != SlotState::default() && !state.same;
                    }
                }
                Step::Recompress(pages, priority, most) => {
                    let before = device.report();
                    let wanted = Wanted { pages, priority, max_pages: Some(most), ..ALL };
                    let done = recompress(&device, wanted);
                    let after = device.report();
                    prop_assert!(done.tried <= most && done.replaced <= done.tried);
                    prop_assert_eq!(done.left_alone + done.damaged, 0);
                    prop_assert!(after.compr_data_size <= before.compr_data_size);
                    prop_assert_eq!(after.orig_data_size, before.orig_data_size);
                    // It takes the mark of what it tries, and gives none.
                    for (page, idle) in (0..).zip(&mut idle) {
                        let now = state(&device, page).idle;
                        prop_assert!(*idle || !now);
                        *idle = now;
                    }
                }
                Step::Codec(number) => device.set_codec(CODECS[number].parse()?)?,
                Step::Compact => compact(&device),
            }
            device.check().map_err(TestCaseError::fail)?;
            for (page, idle) in (0..).zip(idle) {
                prop_assert_eq!(state(&device, page).idle, idle, "page {}", page);
            }
        }
        for (page, bytes) in (0..).zip(model) {
            prop_assert!(read(&device, &mut context, page * 8, 8) == bytes, "page {}", page);
        }
    }
}
