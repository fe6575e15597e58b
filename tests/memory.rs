//! What the disk's memory is, how it is bounded, and that it comes back.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir},
    disk::{expect_pattern, expect_zeroes, write_pattern},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vhost_user_zram_frontend::{Blk, Op, Random, Shape, Status};

const MIB: u64 = 1 << 20;
/// Sectors of a page.
const PAGE: u64 = 8;

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..512).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

/// Writes a page that does not compress; false if the daemon says that it cannot.
fn write_noise(blk: &mut Blk, page: u64) -> bool {
    match blk.run_with(Op::Out, page * PAGE, &noise(page)).unwrap().status {
        Status::Ok => true,
        Status::IoErr => false,
        other => panic!("{other:?}"),
    }
}

fn is_noise(blk: &mut Blk, page: u64) -> bool {
    let mut data = vec![0; 4096];
    blk.read(page * PAGE, &mut data).unwrap();
    data == noise(page)
}

/// A field of `/proc/PID/status` in bytes.
fn memory(daemon: &Daemon, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn freed_memory_comes_back_by_itself() {
    let mut daemon = Daemon::start("64M", &[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 32 << 11, 1);
    assert!(daemon.stats()["mem_used_total"] > 8 * MIB);
    client.blk().discard(0, 64 << 11).unwrap();
    let began = Instant::now();
    while daemon.stats()["mem_used_total"] > 0 {
        assert!(began.elapsed() < LIMIT, "the memory does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Same-filled pages all over a large disk take table and nothing else: the limit bounds that, and it
/// comes back.
#[test]
fn the_table_of_a_large_disk_is_bounded_and_comes_back() {
    const NUMBER: u64 = 40_000;
    let mut daemon = Daemon::start("1T", &["--mem-limit", "1M", "--host-reserve", "0"]);
    let before = memory(&daemon, "RssShmem");
    let mut client = daemon.client();
    let blk = client.blk();
    let spread = |number: u64| number * ((1 << 28) / NUMBER) * PAGE;
    let mut write = |number: u64| {
        let done = blk.run_with(Op::Out, spread(number), &[7; 4096]).unwrap().status;
        assert!(matches!(done, Status::Ok | Status::IoErr), "{done:?}");
        done == Status::Ok
    };
    // A part of them: a write that is refused takes its time, since it looks for room everywhere.
    assert_eq!((0..NUMBER / 20).filter(|number| write(*number)).count(), 256);
    let stats = daemon.stats();
    assert_eq!(stats["table_bytes"] + stats["mem_used_total"], MIB);
    let now = memory(&daemon, "RssShmem");
    assert!(now <= before + 2 * MIB, "{before} {now}");
    // All of the disk, of which a discard takes 1 GiB at a time.
    (0..1024).for_each(|gib| client.blk().discard(gib << 21, 1 << 21).unwrap());
    let began = Instant::now();
    while daemon.stats()["table_bytes"] > 0 {
        assert!(began.elapsed() < LIMIT, "the table does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(daemon.stats()["mem_used_total"], 0);
    // As good as new.
    for number in NUMBER - 256..NUMBER {
        client.blk().write(spread(number), &[9; 4096]).unwrap();
        let mut data = [0; 4096];
        client.blk().read(spread(number), &mut data).unwrap();
        assert_eq!(data, [9; 4096]);
    }
}

#[test]
fn sigusr2_compacts_at_once() {
    let mut daemon = Daemon::start("64M", &[]);
    let mut client = daemon.client();
    for page in 0..2048 {
        assert!(write_noise(client.blk(), page));
    }
    for page in (0..2048).step_by(2) {
        client.blk().discard(page * PAGE, 8).unwrap();
    }
    daemon.signal(Signal::SIGUSR2);
    let line = daemon.stdout.wait_for("compacted:", 0, LIMIT).expect("a line when it is done");
    assert!(line.contains("pages=") && line.contains("objects="), "{line}");
    let stats = daemon.stats();
    assert!(stats["mem_used_total"] <= 1024 * 4112 + 4096, "{stats:?}");
    // Half of 2064. Upkeep may have begun before all was freed, and what got bare then without a move
    // does not count.
    assert!((256..=1036).contains(&stats["pages_compacted"]), "{stats:?}");
    for page in (1..2048).step_by(2) {
        assert!(is_noise(client.blk(), page));
    }
}

/// In a mount namespace of its own, on a tmpfs of 8 MiB: what does not fit is an error, and all else
/// is as it was. A daemon that touched a page without asking would be killed by SIGBUS.
#[test]
fn a_tmpfs_too_small_for_the_disk_gives_errors_and_loses_nothing() {
    let dir = TempDir::new();
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-euc"]);
    command.arg(r#"mount -t tmpfs -o size=8m none "$1"; shift; exec "$@""#).arg("sh").arg(&small);
    command.arg(BINARY).arg("--socket-path").arg(dir.join("socket"));
    command.args(["--size", "1G", "--memory-dir"]).arg(&small);
    let mut daemon = Daemon::spawn(command, dir);
    let mut client = daemon.client();
    let blk = client.blk();
    // Far apart, so that the table grows too: a page of it for each.
    let spread = |number: u64| number * 512 % (1 << 18) + number / 512;
    let stored: Vec<bool> = (0..4096).map(|number| write_noise(blk, spread(number))).collect();
    let count = stored.iter().filter(|stored| **stored).count();
    assert!((1000..2048).contains(&count), "{count} pages in 8 MiB");
    for (number, stored) in (0..).zip(&stored) {
        if *stored {
            assert!(is_noise(blk, spread(number)));
        } else {
            expect_zeroes(blk, spread(number) * PAGE, 8);
        }
    }
    // Same-filled pages of a part of the table that exists need nothing.
    blk.write(spread(0) * PAGE, &[7; 4096]).unwrap();
    // What is freed makes room again.
    for (number, stored) in (0..).zip(&stored) {
        if *stored && number % 2 == 1 {
            blk.discard(spread(number) * PAGE, 8).unwrap();
        }
    }
    daemon.signal(Signal::SIGUSR2);
    daemon.stdout.wait_for("compacted:", 0, LIMIT).expect("compaction");
    let again = (0..).zip(&stored).filter(|(_, stored)| !**stored).map(|(number, _)| number);
    for number in again.take(count / 4) {
        assert!(write_noise(blk, spread(number)), "page {number}");
    }
    let stats = daemon.stats();
    assert_eq!(stats["failed_writes"], 4096 - count as u64);
    assert_eq!(stats["failed_reads"], 0);
    assert!(stats["mem_used_total"] + stats["table_bytes"] <= 8 * MIB);
    assert!(daemon.is_alive());
}

/// The same with a state, and with a daemon that comes back to a tmpfs without a free page.
#[test]
fn a_tmpfs_too_small_for_a_state_gives_errors_and_loses_nothing() {
    let dir = TempDir::new();
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    let script = r#"mount -t tmpfs -o size=8m none "$1"; shift
        "$@" || true
        dd if=/dev/zero of="$0/fill" bs=4k 2>/dev/null || true
        exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-euc", script]).arg(&small).arg(&small);
    command.arg(BINARY).arg("--socket-path").arg(dir.join("socket"));
    command.args(["--size", "1G", "--create", "--state-dir"]).arg(small.join("state"));
    let mut daemon = Daemon::spawn(command, dir);
    let spread = |number: u64| number * 512 % (1 << 18) + number / 512;
    let mut client = daemon.client();
    let stored: Vec<bool> =
        (0..4096).map(|number| write_noise(client.blk(), spread(number))).collect();
    let count = stored.iter().filter(|stored| **stored).count();
    assert!((500..2048).contains(&count), "{count} pages in 8 MiB");
    drop(client);
    let first = child(daemon.pid());
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    daemon.stdout.wait_for("ready", 1, LIMIT).expect("a second daemon");
    let mut client = daemon.client();
    let blk = client.blk();
    for round in 0..2 {
        for (number, stored) in (0..).zip(&stored) {
            if *stored {
                assert!(is_noise(blk, spread(number)), "{round} {number}");
                // Where there is no room for its like it stays as it is.
                write_noise(blk, spread(number));
            } else {
                expect_zeroes(blk, spread(number) * PAGE, 8);
            }
        }
    }
    assert!(daemon.is_alive());
    let _ = kill(Pid::from_raw(child(daemon.pid())), Signal::SIGKILL);
}

/// The process itself, or the child it waits for.
fn child(pid: u32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().map_or(pid as i32, |child| child.parse().unwrap())
}

#[test]
fn a_memory_directory_has_to_be_on_a_tmpfs() {
    let dir = TempDir::new();
    let start = |memory: &str| {
        let output = Command::new(BINARY)
            .arg("--socket-path")
            .arg(dir.join("socket"))
            .args(["--size", "1M", "--memory-dir", memory])
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(output.status.code(), Some(1));
        stderr
    };
    // No file system of a build is a tmpfs, or this says so.
    let elsewhere = start(env!("CARGO_TARGET_TMPDIR"));
    assert!(
        elsewhere.contains("is not on a tmpfs") || elsewhere.contains("not supported"),
        "{elsewhere}"
    );
    assert!(start("/nowhere").contains("/nowhere: No such file"));
}

#[test]
fn locked_pages_are_counted_as_locked() {
    let daemon = Daemon::start("64M", &["--mlock"]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 8 << 11, 1);
    expect_pattern(client.blk(), 0, 8 << 11, 1);
    // The mappings count with all their address space, and only pages that exist are there.
    assert!(memory(&daemon, "VmLck") >= 64 * MIB);
    assert!(memory(&daemon, "VmRSS") < 32 * MIB);
}

/// What an earlier daemon stored is locked too, and not only what is touched from then on.
#[test]
fn pages_of_a_state_are_locked_when_it_is_opened() {
    let state = TempDir::in_memory();
    let args = ["--mlock", "--create", "--state-dir", state.path().to_str().unwrap()];
    let daemon = Daemon::start("64M", &args);
    let mut client = daemon.client();
    (0..1024).for_each(|page| assert!(write_noise(client.blk(), page)));
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let mut daemon = Daemon::start("64M", &args);
    let stats = daemon.stats();
    // They are there, and none was stored since the start.
    assert_eq!((stats["huge_pages"], stats["huge_pages_since"]), (1024, 0));
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let arena = smaps.split_once("/arena").unwrap().1;
    let locked = arena.split_once("Locked:").unwrap().1.split_whitespace().next().unwrap();
    assert!(locked.parse::<u64>().unwrap() * 1024 >= 4 * MIB, "{locked} KiB are locked");
}

#[test]
fn a_host_that_would_fall_below_its_reserve_gets_errors() {
    let mut daemon = Daemon::start("64M", &["--host-reserve", "1000T"]);
    let mut client = daemon.client();
    for page in 0..16 {
        assert!(!write_noise(client.blk(), page));
    }
    // A page of zeroes needs no object, and a part of the table all the same.
    let zeroes = client.blk().run_with(Op::Out, 0, &[0; 4096]).unwrap();
    assert_eq!(zeroes.status, Status::IoErr);
    client.blk().discard(0, 64).unwrap();
    expect_zeroes(client.blk(), 0, 16 * 8);
    let done = client.blk().run(Op::Flush, 0, 0, &Shape::default()).unwrap();
    assert_eq!(done.status, Status::Ok);
    assert_eq!(daemon.stats()["mem_used_total"], 0);
}

#[test]
fn a_large_disk_starts_with_next_to_no_memory_and_reading_adds_none() {
    let mut daemon = Daemon::start("1T", &[]);
    let before = daemon.stats();
    assert_eq!(before["mem_used_total"] + before["table_bytes"], 0);
    let resident = memory(&daemon, "RssAnon") + memory(&daemon, "RssShmem");
    let mut client = daemon.client();
    for gib in 0..1024 {
        expect_zeroes(client.blk(), gib << 21, 256);
    }
    let after = daemon.stats();
    assert_eq!(after["metadata_bytes"], before["metadata_bytes"]);
    drop(client);
    let now = memory(&daemon, "RssAnon") + memory(&daemon, "RssShmem");
    assert!(now < resident + 8 * MIB, "{resident} {now}");
}

/// A control group with a limit on memory, gone at the end.
struct Group(PathBuf);

impl Group {
    /// A group below this process's own, of either version; `None` where none can be made.
    fn new(limit: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let (top, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            let parent = Path::new(top).join(path.trim_start_matches('/'));
            let dir = parent.join(format!("zram-test-{}", std::process::id()));
            fs::create_dir(&dir).ok()?;
            let group = Self(dir);
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Busy until the last process in it is gone.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The kernel would kill it: a memfd has no size of its own.
#[test]
fn a_daemon_in_a_small_control_group_refuses_writes_and_lives() {
    const LIMIT_BYTES: u64 = 64 * MIB;
    let Some(group) = Group::new(LIMIT_BYTES) else {
        eprintln!("SKIPPED: no control group with a memory controller can be made here");
        return;
    };
    let dir = TempDir::new();
    let mut command = Command::new("sh");
    command.args(["-euc", r#"echo $$ >"$1"; shift; exec "$@""#, "sh"]);
    command.arg(group.0.join("cgroup.procs")).arg(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "1G"]);
    let mut daemon = Daemon::spawn(command, dir);
    let mut client = daemon.client();
    let blk = client.blk();
    let pages = LIMIT_BYTES / 4096 + 4096;
    let stored: Vec<bool> = (0..pages).map(|page| write_noise(blk, page)).collect();
    let count = stored.iter().filter(|stored| **stored).count() as u64;
    // Most of it, but for the reserve and what the daemon itself needs.
    assert!((pages / 3..LIMIT_BYTES / 4096).contains(&count), "{count} of {pages} pages");
    for (page, stored) in (0..).zip(&stored) {
        if *stored {
            assert!(is_noise(blk, page), "page {page}");
        }
    }
    assert!(daemon.stats()["failed_writes"] >= pages - count);
    assert!(daemon.is_alive());
}
