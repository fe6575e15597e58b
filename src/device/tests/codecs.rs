//! Disks whose pages are of several codecs.

use super::reopen::Home;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::codec::CodecSpec;
use crate::store::scratch::{Image, edit};

const PAGES: u64 = 64;
const TABLE: u64 = 64;
const ENTRY: u64 = 64;

/// What every level of every codec compresses.
fn bytes_of(page: u64) -> Vec<u8> {
    text(page + 1, 512).repeat(PAGE_SIZE / 512)
}

/// The number of the codec that a slot names.
fn codec_of(home: &Home, page: u64) -> u64 {
    home.word(page) >> 7 & 0xf
}

fn set_codec(home: &mut Home, codec: &str) {
    home.config.codec = codec.parse().unwrap();
}

fn expect_all(device: &Device, context: &mut WorkerContext) {
    for page in 0..PAGES {
        // Twice: with a check of its sum, and without.
        for _ in 0..2 {
            assert_eq!(read(device, context, page * 8, 8), bytes_of(page), "page {page}");
        }
    }
}

#[test]
fn old_pages_are_read_and_new_ones_written_by_the_codec_of_each_start() {
    for policy in [Policy::Inline, Policy::Offload] {
        let mut home = Home::new(PAGES, "lz4");
        home.config.engine.policy = policy;
        let device = home.make();
        let mut context = device.worker_context().unwrap();
        for page in 0..PAGES {
            run(&device, &mut context, Op::Write, page * 8, bytes_of(page)).unwrap();
        }
        let mut expected = [0; PAGES as usize];
        drop((context, device));
        // Forth, back, and forth: entries are found again.
        for (round, (codec, number)) in
            (0..).zip([("zstd", 1), ("lz4", 0), ("zstd(level=-4)", 2), ("zstd", 1), ("lz4", 0)])
        {
            set_codec(&mut home, codec);
            let device = home.open().unwrap();
            assert_eq!(device.codec().to_string(), codec);
            let mut context = device.worker_context().unwrap();
            expect_all(&device, &mut context);
            for page in (round..PAGES).step_by(7) {
                run(&device, &mut context, Op::Write, page * 8, bytes_of(page)).unwrap();
                expected[page as usize] = number;
            }
            // A part of a page: read by one codec, written by another.
            let page = round + 8;
            let part = bytes_of(page)[512..1024].to_vec();
            run(&device, &mut context, Op::Write, page * 8 + 1, part).unwrap();
            expected[page as usize] = number;
            expect_all(&device, &mut context);
            compact(&device);
            expect_all(&device, &mut context);
            device.check().unwrap();
            let numbers: Vec<u64> = (0..PAGES).map(|page| codec_of(&home, page)).collect();
            assert_eq!(numbers, expected, "{codec}");
        }
    }
}

/// A disk with a page each of 16 codecs.
fn full() -> Home {
    let mut home = Home::new(PAGES, "zstd(level=-1)");
    drop(home.make());
    for number in 0..16 {
        set_codec(&mut home, &format!("zstd(level=-{})", number + 1));
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        run(&device, &mut context, Op::Write, number * 8, bytes_of(number)).unwrap();
        drop((context, device));
        assert_eq!(codec_of(&home, number), number);
    }
    home
}

#[test]
fn a_full_table_has_room_again_when_no_page_names_an_entry() {
    let mut home = full();
    set_codec(&mut home, "lz4");
    let before = Image::of(home.dir.path());
    let error = home.open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("lz4 cannot be added to the state's codec table, which is full: the state has pages of zstd(level=-1), "), "{error}");
    assert!(Image::of(home.dir.path()) == before, "a refused state was changed");
    // The state is served by a codec that it has, and one of its codecs loses its last page.
    set_codec(&mut home, "zstd(level=-3)");
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    free(&device, &mut context, Op::Discard, 9 * 8, 8);
    // A raw page names entry 0 and is of no codec.
    run(&device, &mut context, Op::Write, 0, noise(1, PAGE_SIZE)).unwrap();
    drop((context, device));
    for (codec, number) in [("lz4", 0), ("lz4-flex", 9)] {
        set_codec(&mut home, codec);
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        run(&device, &mut context, Op::Write, (40 + number) * 8, bytes_of(40 + number)).unwrap();
        for page in (1..16).filter(|page| *page != 9) {
            assert_eq!(read(&device, &mut context, page * 8, 8), bytes_of(page), "page {page}");
        }
        assert_eq!(read(&device, &mut context, 0, 8), noise(1, PAGE_SIZE));
        drop((context, device));
        assert_eq!(codec_of(&home, 40 + number), number);
    }
    set_codec(&mut home, "lz4(acceleration=2)");
    assert!(home.open().is_err(), "all entries are named again");
}

#[test]
fn the_codec_changes_while_pages_are_written_and_read() {
    const CODECS: [&str; 7] =
        ["zstd", "deflate(winbits=15)", "lz4hc", "lzo", "lz4", "deflate", "zstd(level=-4)"];
    for policy in [Policy::Inline, Policy::Offload] {
        let mut home = Home::new(PAGES, "lz4");
        home.config.engine.policy = policy;
        let device = home.make();
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let (device, stop) = (&device, &stop);
            for thread in 0..2 {
                threads.spawn(move || {
                    let mut context = device.worker_context().unwrap();
                    // Once at least, however late the thread begins.
                    loop {
                        for page in (thread..PAGES).step_by(2) {
                            let bytes = bytes_of(page);
                            run(device, &mut context, Op::Write, page * 8, bytes).unwrap();
                            assert_eq!(read(device, &mut context, page * 8, 8), bytes_of(page));
                        }
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            for codec in CODECS.iter().cycle().take(100) {
                device.set_codec(codec.parse().unwrap()).unwrap();
                assert_eq!(device.codec().to_string(), *codec);
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        // What was changed back is found again, and not added once more.
        let mut context = device.worker_context().unwrap();
        for (number, codec) in (1..).zip(["zstd", "deflate(winbits=15)", "lz4hc", "lzo"]) {
            device.set_codec(codec.parse().unwrap()).unwrap();
            run(&device, &mut context, Op::Write, number * 8, bytes_of(number)).unwrap();
            assert_eq!(codec_of(&home, number), number, "{codec}");
        }
        expect_all(&device, &mut context);
        device.check().unwrap();
        drop((context, device));
        // A later process has the codec of its command line for new pages, and reads all.
        let device = home.open().unwrap();
        assert_eq!(device.codec().to_string(), "lz4");
        expect_all(&device, &mut device.worker_context().unwrap());
    }
}

#[test]
fn a_disk_has_room_for_16_codecs_at_a_time() {
    let home = full();
    let device = home.open().unwrap();
    let found = |level: i32| device.set_codec(CodecSpec::Zstd { level });
    let error = crate::causes::with_causes(&device.set_codec(CodecSpec::Lzo).unwrap_err());
    assert!(
        error.contains("lzo cannot be added to the disk's codec table, which is full"),
        "{error}"
    );
    assert!(error.contains("zstd(level=-7), "), "{error}");
    // Nothing changed, and those that are there can be had.
    assert_eq!(device.codec().to_string(), "zstd(level=-16)");
    found(-3).unwrap();
    assert_eq!(device.codec().to_string(), "zstd(level=-3)");
    assert!(device.set_codec(CodecSpec::Zstd { level: 23 }).is_err(), "there is no such level");
    assert_eq!(device.codec().to_string(), "zstd(level=-3)");
}

/// Makes the entry of this number another one, as a program of another version does.
fn edit_entry(home: &Home, number: u64, change: impl FnOnce(&mut [u8])) {
    edit(&home.dir.join("superblock"), TABLE + number * ENTRY, ENTRY as usize, |entry| {
        change(entry);
        let bytes = [&[number as u8], &entry[8..]].concat();
        entry[..4].copy_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        entry[4..8].copy_from_slice(b"used");
    });
}

#[test]
fn a_codec_of_another_program_is_refused_where_pages_need_it() {
    let two = || {
        let mut home = Home::new(PAGES, "lz4");
        drop(home.make());
        set_codec(&mut home, "zstd");
        let device = home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        run(&device, &mut context, Op::Write, 0, bytes_of(0)).unwrap();
        drop((context, device));
        home
    };
    type Change = fn(&mut [u8]);
    let changes: [(Change, &str); 4] = [
        (|entry| entry[8..12].copy_from_slice(b"zxtd"), "zxtd(level=3)"),
        (|entry| entry[32] = 23, "zstd(level=23)"),
        (|entry| entry[37] = 1, "zstd(level=3,parameters=0x100)"),
        (|entry| entry[40] = 7, "zstd(level=3,dictionary=7)"),
    ];
    for (change, name) in changes {
        let home = two();
        edit_entry(&home, 1, change);
        let before = Image::of(home.dir.path());
        let error = home.open().map(|_| ()).unwrap_err().to_string();
        let text =
            format!("the state has pages compressed by {name}, which this program does not know");
        assert_eq!(error, text);
        assert!(Image::of(home.dir.path()) == before, "a refused state was changed");
        // The other entry has no pages, so what it says does not matter.
        let mut home = two();
        edit_entry(&home, 0, change);
        for codec in ["zstd", "lz4"] {
            set_codec(&mut home, codec);
            let device = home.open().unwrap();
            assert_eq!(read(&device, &mut device.worker_context().unwrap(), 0, 8), bytes_of(0));
        }
    }
}

/// A page whose word names an entry that is free, with a check sum that says that this is right.
#[test]
fn a_page_that_names_no_codec_is_damage_of_that_page_alone() {
    for policy in [Policy::Inline, Policy::Offload] {
        let mut home = Home::new(PAGES, "lz4");
        home.config.engine.policy = policy;
        let device = home.make();
        let mut context = device.worker_context().unwrap();
        for page in 0..3 {
            run(&device, &mut context, Op::Write, page * 8, bytes_of(page)).unwrap();
        }
        drop((context, device));
        let word = home.word(1);
        let changed = word | 1 << 7;
        let part = |word: u64| {
            let essence = word & !(0b111 << 4 | 0b11);
            crc32fast::hash(&[1_u64.to_le_bytes(), essence.to_le_bytes()].concat())
        };
        home.set_word(1, changed);
        home.set_sum(1, home.sum(1) ^ part(word) ^ part(changed));
        // The next start adds a codec: not as the entry that the page names. Nor does a change.
        set_codec(&mut home, "zstd");
        let device = home.open().unwrap();
        device.set_codec(CodecSpec::Lzo).unwrap();
        device.set_codec("zstd".parse().unwrap()).unwrap();
        let mut context = device.worker_context().unwrap();
        for _ in 0..2 {
            let buffer = || Buffer::new(vec![0; PAGE_SIZE]);
            let mut io = device.request(Op::Read, 8, PAGE_SIZE as u64, buffer()).unwrap();
            let error = sync::block_on(|cx| io.poll(&mut context, cx)).unwrap_err();
            assert!(matches!(error, IoError::Decompress { index: 1, .. }), "{error:?}");
            assert_eq!(
                crate::causes::with_causes(&error),
                "page 1 cannot be decompressed: the disk's codec table has no entry 1"
            );
            let part = device.request(Op::Write, 9, 512, Buffer::new(vec![1; 512]));
            let mut part = part.unwrap();
            assert!(sync::block_on(|cx| part.poll(&mut context, cx)).is_err(), "a part of it");
            for page in [0, 2] {
                assert_eq!(read(&device, &mut context, page * 8, 8), bytes_of(page));
            }
        }
        // Written anew it is whole.
        run(&device, &mut context, Op::Write, 8, bytes_of(9)).unwrap();
        assert_eq!(read(&device, &mut context, 8, 8), bytes_of(9));
        device.check().unwrap();
        drop((context, device));
        assert_eq!(codec_of(&home, 1), 2, "1 was named by a page when zstd was added");
    }
}
