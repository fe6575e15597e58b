//! States of each version of the format, kept as text: today's program reads them, or refuses them by
//! their version, and never misreads them.
//!
//! A failure here says that the format has changed. Then it needs a new version (`VERSION` in
//! `src/store/superblock.rs`), a file of that version beside the old one, and a decision what becomes of
//! disks of the old one.

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::Command,
};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::expect_same,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::Random;

/// Never released.
const V1: &str = include_str!("states/v1.txt");
const V2: &str = include_str!("states/v2.txt");
/// As it was before disks could grow.
const V2_WITHOUT_ROOM: &str = include_str!("states/v2-without-room.txt");

/// The disk of version 2: lz4, and zstd for one page. It was made with this size.
const SIZE: &str = "128K";
const MADE_PAGES: u64 = 32;
/// And has grown to this one.
const GROWN: &str = "160K";
const PAGES: u64 = 40;
const PAGE: usize = 4096;
/// Where the table has its sums: behind the words of the 64 GiB that it can grow to.
const SUMS: u64 = (64 << 30) / PAGE as u64 * 8;
/// What the superblock says of the growth.
const GROWTH: u64 = 3088;
/// A page whose slot is locked, with a waiter.
const LOCKED: u64 = 6;
/// A page whose change was cut short: its sum is the new one, its word is not.
const CUT_SHORT: u64 = 7;
/// The intent that says so.
const INTENT: u64 = 9;
/// A page by the second codec of the disk.
const BY_ZSTD: u64 = 31;
/// A page that the disk did not have when it was made.
const NEW: u64 = 39;
/// A discarded page of a disk over a layer, as no disk of today has one.
const DISCARDED: u64 = 30;

fn page(number: u64) -> Vec<u8> {
    match number {
        // A raw one.
        1 => {
            let mut bytes = vec![0; PAGE];
            Random::new(1).fill(&mut bytes);
            bytes
        }
        // The same 4 bytes, the same 8, and zeroes.
        2 => 0xdead_beef_u32.to_le_bytes().repeat(PAGE / 4),
        3 => b"12345678".repeat(PAGE / 8),
        4 => vec![0; PAGE],
        // Compressed ones.
        0 | LOCKED | CUT_SHORT | BY_ZSTD | NEW => {
            let line = format!("This is page {number} of a disk that outlives its daemon. ");
            line.bytes().cycle().take(PAGE).collect()
        }
        // 5 and the rest: never written.
        _ => vec![0; PAGE],
    }
}

fn is_written(number: u64) -> bool {
    (0..8).contains(&number) && number != 5 || number == BY_ZSTD || number == NEW
}

/// The files of a state.
#[derive(Default)]
struct Golden(BTreeMap<String, GoldenFile>);

/// A file: its length, and the bytes that are not zero.
#[derive(Default)]
struct GoldenFile {
    length: u64,
    runs: Vec<(u64, Vec<u8>)>,
}

impl Golden {
    /// Lines of a file's name, an offset and bytes in hexadecimal, or the name, "size" and bytes.
    fn parse(text: &str) -> Self {
        let mut golden = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, at, what] = words[..] else { panic!("{line}") };
            let file = golden.0.entry(name.into()).or_default();
            if at == "size" {
                file.length = what.parse().expect("bytes");
                continue;
            }
            let byte = |at| u8::from_str_radix(&what[at..at + 2], 16).expect("a byte");
            let bytes = (0..what.len()).step_by(2).map(byte).collect();
            file.runs.push((at.parse().expect("an offset"), bytes));
        }
        golden
    }

    fn restore(&self, dir: &Path) {
        for (name, GoldenFile { length, runs }) in &self.0 {
            let file =
                File::options().write(true).create_new(true).mode(0o600).open(dir.join(name));
            let file = file.expect("file");
            file.set_len(*length).expect("length");
            for (at, bytes) in runs {
                file.write_all_at(bytes, *at).expect("write");
            }
        }
    }
}

/// A directory with the state of a text.
fn restored(text: &str) -> TempDir {
    let dir = TempDir::in_memory();
    Golden::parse(text).restore(dir.path());
    dir
}

fn command(dir: &TempDir, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--size", SIZE]).args(more);
    command.arg("--state-dir").arg(dir.path());
    command
}

fn start(dir: &TempDir, more: &[&str]) -> Daemon {
    let home = TempDir::new();
    let mut command = command(dir, more);
    command.arg("--socket-path").arg(home.join("socket"));
    Daemon::spawn(command, home)
}

fn refused(dir: &TempDir, words: &[&str]) {
    let home = TempDir::new();
    for more in [&[][..], &["--create"]] {
        let mut command = command(dir, more);
        command.arg("--socket-path").arg(home.join("socket"));
        let (code, line) = refusal(command);
        assert_eq!(code, 1, "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
}

fn get<const N: usize>(path: &Path, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    File::open(path).expect("file").read_exact_at(&mut bytes, at).expect("read");
    bytes
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("file");
    file.write_all_at(bytes, at).expect("write");
}

/// Makes the check sum of a superblock's first 64 bytes right, or that of a seal.
fn sum_again(path: &Path, at: u64, length: usize) {
    put(path, at + 12, &[0; 4]);
    let mut bytes = vec![0; length];
    File::open(path).expect("file").read_exact_at(&mut bytes, at).expect("read");
    put(path, at + 12, &crc32fast::hash(&bytes).to_le_bytes());
}

fn expect_pages(daemon: &Daemon, pages: u64) {
    let mut client = daemon.client();
    for number in 0..pages {
        let got = client.blk().read_vec(number * 8, PAGE).expect("read");
        expect_same(number * 8, &got, &page(number));
    }
}

#[test]
fn a_state_of_version_2_is_read() {
    is_read(V2, PAGES);
    is_read(V2_WITHOUT_ROOM, MADE_PAGES);
}

#[test]
fn a_state_without_room_does_not_grow() {
    let dir = restored(V2_WITHOUT_ROOM);
    let home = TempDir::new();
    let mut command = Command::new(BINARY);
    command.args(["--size", GROWN, "--state-dir"]).arg(dir.path());
    command.arg("--socket-path").arg(home.join("socket"));
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("room for 131072 bytes") && line.contains("163840"), "{line}");
    expect_pages(&start(&dir, &[]), MADE_PAGES);
}

fn is_read(text: &str, pages: u64) {
    let dir = restored(text);
    let (table, superblock) = (dir.join("table"), dir.join("superblock"));
    let intent = 4096 + INTENT * 16;
    assert_eq!(get::<1>(&table, LOCKED * 8)[0] & 3, 3, "locked, with a waiter");
    assert_eq!(get(&superblock, intent), (CUT_SHORT + 1).to_le_bytes());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut daemon = start(&dir, &[]);
        assert_eq!(daemon.origin(), "opened");
        let stats = daemon.stats();
        let written = (0..pages).filter(|number| is_written(*number)).count() as u64;
        assert_eq!(stats["orig_data_size"], written * 4096);
        assert_eq!((stats["same_pages"], stats["huge_pages"]), (3, 1));
        // Of the time when there was no other, which its guests know it by.
        let config = daemon.session().blk_config().unwrap();
        assert_eq!((config.blk_size, config.capacity), (4096, pages * 8));
        expect_pages(&daemon, pages);
        daemon.signal(signal);
        daemon.wait();
        // What an earlier process was at is over.
        assert_eq!(get::<1>(&table, LOCKED * 8)[0] & 3, 0);
        assert_eq!(get(&superblock, intent), [0; 8]);
    }
    // It served a guest, so one that has its ring in use may continue; and can be written to.
    assert_eq!(get(&superblock, 3080), *b"served..");
    let daemon = start(&dir, &["--create"]);
    let mut client = daemon.client();
    for number in (0..pages).rev() {
        client.blk().write(number * 8, &page(pages - 1 - number)).expect("write");
    }
    for number in 0..pages {
        let got = client.blk().read_vec(number * 8, PAGE).expect("read");
        expect_same(number * 8, &got, &page(pages - 1 - number));
    }
}

#[test]
fn a_state_of_version_1_is_refused_by_its_version() {
    let dir = restored(V1);
    let before = get::<8192>(&dir.join("superblock"), 0);
    refused(&dir, &["version 1,", "version 2"]);
    assert!(get(&dir.join("superblock"), 0) == before);
}

#[test]
fn the_same_bytes_under_another_version_are_refused() {
    for version in [0, 1, 3, 1 << 24, u32::MAX] {
        let dir = restored(V2);
        let superblock = dir.join("superblock");
        put(&superblock, 8, &version.to_le_bytes());
        let number = format!("version {version},");
        refused(&dir, &[&number, "version 2"]);
        sum_again(&superblock, 0, 64);
        refused(&dir, &[&number, "version 2"]);
        for name in ["table", "arena"] {
            let dir = restored(V2);
            let file = dir.join(name);
            let seal = fs::metadata(&file).expect("file").len() - 4096;
            put(&file, seal + 8, &version.to_le_bytes());
            sum_again(&file, seal, 48);
            refused(&dir, &[&number, "version 2"]);
        }
    }
}

/// What today's program writes is version 2 to the byte, but for what is random or says whose it is.
#[test]
fn a_new_state_has_the_layout_of_version_2() {
    let old = restored(V2);
    let new = TempDir::in_memory();
    write_golden(&new);
    for name in ["superblock", "table", "arena"] {
        let (old, new) = (old.join(name), new.join(name));
        let length = |path: &Path| fs::metadata(path).expect("file").len();
        assert_eq!(length(&old), length(&new), "{name}");
        let seal = if name == "superblock" { 0 } else { length(&old) - 4096 };
        let bytes = |path: &Path| {
            let mut bytes = get::<4096>(path, seal);
            // Its check sum, and the state's own number.
            bytes[12..32].fill(0);
            if seal == 0 {
                // The growth's check sum.
                bytes[GROWTH as usize + 4..][..4].fill(0);
            }
            bytes
        };
        assert!(bytes(&old) == bytes(&new), "{name}");
    }
    // The growth, whose check sum is of the state's own number, too.
    let growth = |dir: &TempDir| get::<4>(&dir.join("superblock"), GROWTH);
    assert_eq!((growth(&old), growth(&new)), ([PAGES as u8, 0, 0, 0], [PAGES as u8, 0, 0, 0]));
    // All slots but for where objects lie and how long they are, which is up to codec and pool.
    for number in 0..PAGES {
        let word = |dir: &TempDir| u64::from_le_bytes(get(&dir.join("table"), number * 8));
        let is_object = word(&old) >> 2 & 3 == 2 || word(&old) >> 11 & 0xfff == 8;
        let mask = if is_object { 0x7ff } else { u64::MAX };
        assert_eq!(word(&old) & mask, word(&new) & mask, "page {number}");
        let sum = |dir: &TempDir| get::<4>(&dir.join("table"), SUMS + number * 4);
        if word(&old) == word(&new) && !is_object {
            assert_eq!(sum(&old), sum(&new), "page {number}");
        }
    }
}

/// Makes the state of the text, as today's program writes it.
fn write_golden(dir: &TempDir) {
    let daemon = start(dir, &["--create"]);
    let mut client = daemon.client();
    for number in (0..MADE_PAGES).filter(|number| is_written(*number)) {
        client.blk().write(number * 8, &page(number)).expect("write");
    }
    drop(client);
    let (status, ..) = daemon.terminate();
    assert!(status.success());
    let daemon = {
        let home = TempDir::new();
        let mut command = Command::new(BINARY);
        command.args(["--size", GROWN, "--algorithm", "zstd", "--state-dir"]).arg(dir.path());
        command.arg("--socket-path").arg(home.join("socket"));
        Daemon::spawn(command, home)
    };
    let mut client = daemon.client();
    client.blk().write(NEW * 8, &page(NEW)).expect("write");
    client.blk().write(BY_ZSTD * 8, &page(BY_ZSTD)).expect("write");
    // A page that is empty again is like one that never was anything.
    client.blk().write(5 * 8, &page(0)).expect("write");
    client.blk().discard(5 * 8, 8).expect("discard");
    drop(client);
    let (status, ..) = daemon.terminate();
    assert!(status.success());
    let (table, superblock) = (dir.join("table"), dir.join("superblock"));
    let word = u64::from_le_bytes(get(&table, LOCKED * 8));
    put(&table, LOCKED * 8, &(word | 3).to_le_bytes());
    let discarded = 1_u64 << 11;
    put(&table, DISCARDED * 8, &discarded.to_le_bytes());
    let sum = crc32fast::hash(&[DISCARDED.to_le_bytes(), discarded.to_le_bytes()].concat());
    put(&table, SUMS + DISCARDED * 4, &sum.to_le_bytes());
    let old: [u8; 4] = get(&table, SUMS + CUT_SHORT * 4);
    let new = [0x11, 0x22, 0x33, 0x44];
    put(&table, SUMS + CUT_SHORT * 4, &new);
    let intent = 4096 + INTENT * 16;
    put(&superblock, intent, &(CUT_SHORT + 1).to_le_bytes());
    put(&superblock, intent + 8, &[old, new].concat());
}

/// Writes the file again, which only a new version of the format is a reason for:
/// `cargo test --test states -- --ignored`.
#[test]
#[ignore = "writes tests/states"]
fn write_the_state_again() {
    let dir = TempDir::in_memory();
    write_golden(&dir);
    let mut text = "# A state of format version 2. See tests/states.rs.\n".to_owned();
    for name in ["superblock", "table", "arena"] {
        let file = File::open(dir.join(name)).expect("file");
        let length = file.metadata().expect("file").len();
        writeln!(text, "{name} size {length}").expect("text");
        let mut at = 0;
        while let Ok(data) = nix::unistd::lseek64(&file, at, nix::unistd::Whence::SeekData) {
            let mut bytes = vec![0; PAGE];
            file.read_exact_at(&mut bytes, data as u64).expect("read");
            for (number, line) in bytes.chunks(32).enumerate() {
                if line.iter().any(|byte| *byte != 0) {
                    let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
                    writeln!(text, "{name} {} {hex}", data as usize + number * 32).expect("text");
                }
            }
            at = data + PAGE as i64;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/states/v2.txt");
    fs::write(path, text).expect("tests/states/v2.txt");
}
