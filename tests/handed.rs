//! Files that a front end hands over to be mapped, guest memory and in-flight regions. Whatever they are,
//! and whatever becomes of them, the daemon serves the next one; what cannot be is refused with a line
//! that says what can.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    LIMIT,
    daemon::{Daemon, TempDir},
    disk::{expect_served, mark},
    handed::{ACCEPTED, ALL, hand_over},
    raw::{GPA, MEMORY, Raw, SIZE},
    wait_until,
};
use nix::{
    fcntl::OFlag,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
        statfs::{TMPFS_MAGIC, statfs},
    },
};
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight};
use vhost_user_zram_frontend::{Queue, Region};

const ONE_QUEUE: &[&str] = &["--num-queues", "1"];
const HUGE: u64 = 2 << 20;

fn victim() -> Daemon {
    let daemon = Daemon::start("16M", ONE_QUEUE);
    mark(&daemon);
    daemon
}

fn memfd(len: u64, flags: MFdFlags) -> File {
    let file = File::from(memfd_create("handed", MFdFlags::MFD_CLOEXEC | flags).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn what_is_not_memory_is_refused_and_the_line_says_what_is() {
    let mut daemon = victim();
    let dir = TempDir::new();
    let on_disk = File::create_new(dir.join("file")).unwrap();
    on_disk.set_len(MEMORY).unwrap();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    let mut both = OpenOptions::new();
    both.read(true).write(true);
    let mut cases: Vec<(&str, OwnedFd)> = vec![
        ("a pipe's end to read", reader),
        ("a pipe's end to write", writer),
        ("a socket", socket.into()),
        ("an eventfd", event.into()),
        ("a directory", File::open("/").unwrap().into()),
        ("a directory on a tmpfs", File::open("/dev/shm").unwrap().into()),
        ("/dev/zero", both.open("/dev/zero").unwrap().into()),
        ("/proc/self/mem", both.open("/proc/self/mem").unwrap().into()),
    ];
    if statfs(dir.path()).unwrap().filesystem_type() == TMPFS_MAGIC {
        eprintln!("skipped: {} is on a tmpfs, so nothing on a disk is tried", dir.path().display());
    } else {
        cases.push(("a file on a disk", on_disk.into()));
    }
    match both.open("/dev/mem") {
        Ok(file) => cases.push(("/dev/mem", file.into())),
        Err(e) => eprintln!("skipped: /dev/mem: {e}"),
    }
    let memory = memfd(MEMORY, MFdFlags::empty());
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let nothing = OFlag::O_PATH.bits();
    let path_only = OpenOptions::new().read(true).custom_flags(nothing).open(&path).unwrap();
    cases.push(("memory that cannot be read", path_only.into()));
    cases.push(("memory that cannot be written", File::open(&path).unwrap().into()));
    for (name, file) in &cases {
        for code in ALL {
            assert!(!hand_over(&daemon, code, file, MEMORY, 0), "{name}, {code:?}");
        }
        expect_served(&mut daemon);
    }
    for code in ALL {
        assert!(hand_over(&daemon, code, &memory, MEMORY, 0), "{code:?}");
    }
    expect_served(&mut daemon);

    // Of a fresh daemon, which has said nothing yet that keeps it from saying more.
    let fresh = victim();
    assert!(!hand_over(&fresh, FrontendReq::SET_MEM_TABLE, &cases[0].1, MEMORY, 0));
    let (_, _, stderr) = fresh.terminate();
    let lines = stderr.iter().filter(|line| line.contains(ACCEPTED) && line.contains("a pipe"));
    assert_eq!(lines.count(), 1, "{stderr:?}");
}

#[test]
fn lengths_and_offsets_that_cannot_be_mapped_whole_are_refused() {
    let mut daemon = victim();
    let memory = memfd(MEMORY, MFdFlags::empty());
    for code in ALL {
        assert!(!hand_over(&daemon, code, &memory, 0, 0), "no bytes, {code:?}");
        for offset in [1, 64, 512, 4095, 4097] {
            assert!(!hand_over(&daemon, code, &memory, 1 << 20, offset), "{offset}, {code:?}");
        }
        assert!(hand_over(&daemon, code, &memory, 1 << 20, 4096), "{code:?}");
    }
    expect_served(&mut daemon);
}

/// A session whose one ring lies in `region`, up to an answer to a first request.
fn served_in(daemon: &Daemon, region: &Arc<Region>) -> (vhost_user_zram_frontend::Session, Queue) {
    let mut session = daemon.session();
    session.set_mem_table(&[Arc::clone(region)]).expect("SET_MEM_TABLE");
    let queue = Queue::new(0, region, SIZE, true).unwrap();
    session.start(&queue).expect("start");
    (session, queue)
}

#[test]
fn a_sent_sigbus_changes_nothing_and_lost_memory_is_still_survived() {
    let mut daemon = victim();
    for round in 0..3 {
        daemon.signal(Signal::SIGBUS);
        let mut raw = Raw::new(&daemon);
        daemon.signal(Signal::SIGBUS);
        // By the queue's thread, or while none runs.
        assert_eq!(raw.session.config(0, 8).expect("served").len(), 8, "round {round}");
        raw.queue.push(0).unwrap();
        raw.queue.publish_quietly().unwrap();
        raw.region.truncate(0).unwrap();
        raw.queue.kick().unwrap();
        raw.session.wire().wait_closed(LIMIT).expect("a closed session");
        drop(raw);
        daemon.signal(Signal::SIGBUS);
        expect_served(&mut daemon);
    }
    // Before any front end came, too.
    let daemon = Daemon::start("16M", ONE_QUEUE);
    daemon.signal(Signal::SIGBUS);
    mark(&daemon);
    daemon.end(Signal::SIGTERM);
}

/// Huge pages of the host, as many as are asked for; given back at the end.
struct HugePages {
    before: Option<String>,
    _alone: std::sync::MutexGuard<'static, ()>,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// `None`, with a printed reason, if they cannot be had.
    fn new(wanted: u64) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let size = figure("Hugepagesize:")?;
        if size != HUGE >> 10 {
            eprintln!("skipped: huge pages of {size} KiB");
            return None;
        }
        if figure("HugePages_Free:")? >= wanted {
            return Some(Self { before: None, _alone });
        }
        let before = fs::read_to_string(POOL).ok()?;
        let more = before.trim().parse::<u64>().ok()? + wanted;
        let asked = fs::write(POOL, more.to_string());
        let this = Self { before: Some(before), _alone };
        match asked {
            Ok(()) if figure("HugePages_Free:")? >= wanted => Some(this),
            Ok(()) => {
                eprintln!("skipped: the host has no {wanted} huge pages");
                None
            }
            Err(e) => {
                eprintln!("skipped: the host has no huge pages, and gets none: {e}");
                None
            }
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A test that fails says more than this.
            let _ = fs::write(POOL, before);
        }
    }
}

/// A figure of /proc/meminfo.
fn figure(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    if value.is_none() {
        eprintln!("skipped: /proc/meminfo says nothing of huge pages");
    }
    value?.split_whitespace().next()?.parse().ok()
}

/// Mappings of the daemon's of files of this name.
fn mapped(daemon: &Daemon) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    maps.lines().filter(|line| line.contains("/memfd:handed")).count()
}

#[test]
fn huge_pages_are_mapped_whole_lost_whole_and_unmapped_whole() {
    let Some(_pages) = HugePages::new(2) else { return };
    let mut daemon = victim();
    let file = memfd(2 * HUGE, MFdFlags::MFD_HUGETLB);
    for code in [FrontendReq::SET_MEM_TABLE, FrontendReq::ADD_MEM_REG] {
        for (len, at) in
            [(4096, 0), (HUGE - 4096, 0), (HUGE + 4096, 0), (HUGE, 4096), (HUGE, HUGE / 2)]
        {
            assert!(!hand_over(&daemon, code, &file, len, at), "{len} at {at}, {code:?}");
        }
        assert!(!hand_over(&daemon, code, &file, 2 * HUGE, HUGE), "beyond its end, {code:?}");
        assert!(hand_over(&daemon, code, &file, HUGE, HUGE), "{code:?}");
    }
    // An in-flight region is smaller than a huge page, and may lie in one.
    assert!(hand_over(&daemon, FrontendReq::SET_INFLIGHT_FD, &file, HUGE, HUGE));
    assert!(!hand_over(&daemon, FrontendReq::SET_INFLIGHT_FD, &file, HUGE, 4096));
    expect_served(&mut daemon);
    wait_until("all to be unmapped", || mapped(&daemon) == 0);

    // Guest memory that goes away.
    let file = Arc::new(file);
    let region = Region::from_file(GPA, Arc::clone(&file), 0, 2 * HUGE).unwrap();
    let (session, queue) = served_in(&daemon, &region);
    region.truncate(0).unwrap();
    queue.kick().unwrap();
    session.wire().wait_closed(LIMIT).expect("a closed session");
    drop(session);
    expect_served(&mut daemon);
    wait_until("all to be unmapped", || mapped(&daemon) == 0);

    // An in-flight region that does.
    drop(region);
    file.set_len(2 * HUGE).unwrap();
    let mut session = daemon.session();
    let given = VhostUserInflight::new(HUGE, 0, 1, 128);
    session.set_inflight(&given, file.as_raw_fd()).expect("SET_INFLIGHT_FD");
    file.set_len(0).unwrap();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).expect("SET_MEM_TABLE");
    let queue = Queue::new(0, &region, SIZE, true).unwrap();
    // A refusal is as good.
    let _ = session.start(&queue);
    session.wire().wait_closed(LIMIT).expect("a closed session");
    drop(session);
    expect_served(&mut daemon);
    wait_until("all to be unmapped", || mapped(&daemon) == 0);
}
