//! A disk that outlives its daemon, in a directory on a tmpfs: made, opened, loaded, refused.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

#[cfg(debug_assertions)]
use common::loading::Loading;
use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, refusal, session_options},
    disk::{expect_pattern, expect_served, expect_zeroes, mark, pattern, write_pattern},
    raw::GPA,
    wait_until,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{
    Blk, Client, Error, Op, Queue, Region, Session, Shape, Status, spec::feature,
};

/// Where a state is, and how a daemon is told.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::in_memory())
    }

    /// The state's directory, which does not exist yet.
    fn path(&self) -> PathBuf {
        self.0.join("state")
    }

    fn command(&self, size: &str, more: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(self.0.join("socket.unused")).args(["--size", size]);
        command.arg("--state-dir").arg(self.path()).args(more);
        command
    }

    /// Starts a daemon with a socket of its own.
    fn start(&self, more: &[&str]) -> Daemon {
        let path = self.path();
        let path = path.to_str().expect("a path of plain letters");
        Daemon::start("16M", &[&["--state-dir", path], more].concat())
    }

    /// Insists that a daemon says one line with these words, and fails.
    fn refuses(&self, size: &str, more: &[&str], words: &[&str]) {
        let (code, line) = refusal(self.command(size, more));
        assert_eq!(code, 1, "{line}");
        assert!(line.starts_with("error: "), "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("state");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("entry").file_name().into_string().expect("name")).collect();
        names.sort();
        names
    }
}

#[test]
fn a_state_is_made_only_if_it_is_said() {
    let home = Home::new();
    home.refuses("16M", &[], &["no state", "--create"]);
    assert!(!home.path().exists());
    fs::create_dir(home.path()).unwrap();
    home.refuses("16M", &[], &["no state", "--create"]);
    assert!(home.names().is_empty());
    // The same command line ever after.
    for (round, signal) in (0..).zip([Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM]) {
        let daemon = home.start(&["--create"]);
        assert_eq!(daemon.origin(), if round == 0 { "new" } else { "opened" });
        assert_eq!(home.names(), ["arena", "superblock", "table"]);
        if round > 0 {
            expect_pattern(daemon.client().blk(), 0, 100, round - 1);
        }
        write_pattern(daemon.client().blk(), 0, 100, round);
        daemon.end(signal);
    }
    let daemon = home.start(&[]);
    assert_eq!(daemon.origin(), "opened");
    expect_pattern(daemon.client().blk(), 0, 100, 2);
    // Without a state there is none to speak of.
    assert_eq!(Daemon::start("16M", &[]).origin(), "none");
}

#[test]
fn options_that_make_no_sense_together_are_refused() {
    let dir = TempDir::in_memory();
    let state = dir.join("state");
    let state = state.to_str().expect("a path of plain letters");
    for (options, words) in [
        (&["--create"][..], ["--create", "--state-dir"]),
        (&["--create", "--memory-dir", state], ["--create", "--state-dir"]),
        (&["--memory-dir", state, "--state-dir", state], ["--memory-dir", "--state-dir"]),
        (&["--memory-dir", state, "--fd-store"], ["--memory-dir", "--fd-store"]),
        (&["--fd-store", "--state-dir", state], ["--fd-store", "--state-dir"]),
        (&["--state-owner", "0"], ["--state-dir", "required"]),
        (&["--state-dir", state, "--state-owner", "root"], ["--state-owner", "root"]),
    ] {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]).args(options);
        let (code, line) = refusal(command);
        assert_eq!(code, 2, "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{options:?}: {line}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // A state on a disk would not be one of memory.
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket"));
    command.args(["--size", "16M", "--create", "--state-dir", "/proc"]);
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.starts_with("error: the state directory /proc is not on a tmpfs"), "{line}");
}

#[test]
fn two_daemons_cannot_have_one_state() {
    let home = Home::new();
    let mut first = home.start(&["--create"]);
    mark(&first);
    for more in [&[][..], &["--create"]] {
        home.refuses("16M", more, &["in use"]);
        expect_served(&mut first);
    }
    // A state that cannot be had is not a reason to touch a socket.
    assert!(!home.0.join("socket.unused").exists());
    first.end(Signal::SIGKILL);
    expect_served(&mut home.start(&[]));
}

#[test]
fn a_state_of_another_disk_is_refused_and_stays_what_it_is() {
    let home = Home::new();
    let daemon = home.start(&["--create"]);
    write_pattern(daemon.client().blk(), 0, 100, 1);
    daemon.end(Signal::SIGTERM);
    for more in [&[][..], &["--create"]] {
        home.refuses("8M", more, &["16777216 bytes", "8388608", "does not shrink"]);
        home.refuses("65G", more, &["16777216 bytes", "room for 68719476736 bytes"]);
    }
    // What a guest is offered may change from one start to the next.
    let daemon = home.start(&["--num-queues", "2", "--serial", "other", "--mem-limit", "1M"]);
    expect_pattern(daemon.client().blk(), 0, 100, 1);
    daemon.end(Signal::SIGTERM);
    let daemon = home.start(&["--read-only"]);
    expect_pattern(daemon.client().blk(), 0, 100, 1);
    assert!(daemon.client().blk().write(0, &[0; 512]).is_err());
}

#[test]
fn another_algorithm_is_for_new_pages() {
    let home = Home::new();
    let rounds = [("lz4", Signal::SIGTERM), ("zstd", Signal::SIGKILL), ("lz4", Signal::SIGKILL)];
    for (round, (algorithm, signal)) in (0..).zip(rounds) {
        let daemon = home.start(&["--create", "--algorithm", algorithm]);
        let mut client = daemon.client();
        for old in 0..round {
            expect_pattern(client.blk(), old * 100, 100, old + 1);
        }
        write_pattern(client.blk(), round * 100, 100, round + 1);
        drop(client);
        let notes = daemon.stderr.all();
        let says = notes.iter().any(|line| line.contains("the state has pages of"));
        assert_eq!(says, round > 0, "{notes:?}");
        daemon.end(signal);
    }
    let daemon = home.start(&["--algorithm", "lz4-flex"]);
    for old in 0..3 {
        expect_pattern(daemon.client().blk(), old * 100, 100, old + 1);
    }
}

#[test]
fn a_disk_keeps_the_block_size_it_was_made_with() {
    let bytes = |daemon: &Daemon| daemon.session().blk_config().unwrap().blk_size;
    let dir = TempDir::new();
    let image = dir.join("image");
    fs::write(&image, pattern(0, 8, 1)).unwrap();
    let image = image.to_str().expect("a path of plain letters");
    let cases: [(&[&str], &str, &str); 3] = [
        (&["--load", image], "512", "4096"),
        (&["--block-size", "512"], "512", "4096"),
        (&[], "4096", "512"),
    ];
    for (made, own, other) in cases {
        let home = Home::new();
        let daemon = home.start(&[&["--create"], made].concat());
        assert_eq!(bytes(&daemon).to_string(), own, "{made:?}");
        write_pattern(daemon.client().blk(), 0, 100, 1);
        daemon.end(Signal::SIGKILL);
        // A guest reads it once, and runs on when the next daemon comes.
        let later: [&[&str]; 5] =
            [&[], &["--create"], &["--load", image], &["--block-size", own], &["--read-only"]];
        for options in later {
            let daemon = home.start(options);
            assert_eq!(bytes(&daemon).to_string(), own, "{made:?}, then {options:?}");
            expect_pattern(daemon.client().blk(), 0, 100, 1);
            daemon.end(Signal::SIGTERM);
        }
        home.refuses("16M", &["--block-size", other], &[own, other, "block"]);
        home.refuses("16M", &["--create", "--block-size", other], &[own, other, "block"]);
        let daemon = home.start(&[]);
        assert_eq!(bytes(&daemon).to_string(), own, "{made:?}, after a refusal");
        expect_pattern(daemon.client().blk(), 0, 100, 1);
        daemon.end(Signal::SIGTERM);
    }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

#[test]
fn what_is_damaged_or_lost_is_refused_and_never_blank() {
    let home = Home::new();
    let made = || {
        let _ = fs::remove_dir_all(home.path());
        home.start(&["--create"]).end(Signal::SIGKILL);
    };
    let refused = |words: &[&str]| {
        home.refuses("16M", &[], words);
        home.refuses("16M", &["--create"], words);
    };
    made();
    flip(&home.path().join("superblock"), 100);
    refused(&["damaged", "check sum"]);
    for name in ["superblock", "table", "arena"] {
        made();
        fs::remove_file(home.path().join(name)).unwrap();
        refused(&["lost", name]);
    }
    made();
    let table = OpenOptions::new().write(true).open(home.path().join("table")).unwrap();
    table.set_len(4096).unwrap();
    refused(&["damaged", "table"]);
}

#[test]
fn a_damaged_page_is_an_error_until_it_is_written() {
    let home = Home::new();
    let daemon = home.start(&["--create"]);
    write_pattern(daemon.client().blk(), 0, 80, 1);
    daemon.end(Signal::SIGTERM);
    // The check sums of pages 2 and 5 lie after the words of the 64 GiB that the disk can grow to.
    for page in [2, 5] {
        flip(&home.path().join("table"), (64 << 30) / 4096 * 8 + page * 4);
    }
    let mut daemon = home.start(&[]);
    let mut client = daemon.client();
    let blk = client.blk();
    for page in [2, 5] {
        assert!(matches!(
            blk.read_vec(page * 8, 4096),
            Err(Error::Request { status: Status::IoErr, .. })
        ));
        assert!(blk.write(page * 8 + 1, &[1; 512]).is_err());
    }
    expect_pattern(blk, 0, 16, 1);
    expect_pattern(blk, 24, 16, 1);
    expect_pattern(blk, 48, 32, 1);
    blk.discard(16, 8).unwrap();
    write_pattern(blk, 40, 8, 2);
    drop(client);
    let stats = daemon.stats();
    assert_eq!((stats["failed_reads"], stats["failed_writes"]), (2, 2));
    daemon.end(Signal::SIGKILL);
    let daemon = home.start(&[]);
    let mut client = daemon.client();
    expect_zeroes(client.blk(), 16, 8);
    expect_pattern(client.blk(), 40, 8, 2);
}

#[test]
fn figures_are_those_of_what_is_stored() {
    let home = Home::new();
    let mut daemon = home.start(&["--create"]);
    let fresh = daemon.stats();
    assert_eq!(fresh["orig_data_size"], 0);
    assert!(fresh["state_bytes"] >= 4096, "{fresh:?}");
    assert_eq!(Daemon::start("16M", &[]).stats()["state_bytes"], 0);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 4000, 1);
    client.blk().write(4096, &vec![7; 64 << 10]).unwrap();
    let noise: Vec<u8> =
        pattern(0, 64, 5).chunks(256).skip(1).step_by(2).flatten().copied().collect();
    client.blk().write(8192, &noise).unwrap();
    client.blk().discard(800, 400).unwrap();
    drop(client);
    let kept = |daemon: &mut Daemon| {
        let stats = daemon.stats();
        [
            "orig_data_size",
            "compr_data_size",
            "same_pages",
            "huge_pages",
            "table_bytes",
            "state_bytes",
        ]
        .map(|name| stats[name])
    };
    let before = kept(&mut daemon);
    assert!(before[..4].iter().all(|figure| *figure > 0), "{before:?}");
    daemon.end(Signal::SIGKILL);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut daemon = home.start(&[]);
        assert_eq!(kept(&mut daemon), before);
        let stats = daemon.stats();
        // What happened is counted from the start of the process, what is there is not.
        assert_eq!((stats["reads"], stats["writes"], stats["discards"]), (0, 0, 0));
        assert!(stats["mem_used_total"] >= stats["compr_data_size"]);
        // No more of it is there than what is counted, and its last page.
        wait_until("the arena to be what is counted", || {
            allocated(&home.path().join("arena")) == daemon.stats()["mem_used_total"] + 4096
        });
        daemon.end(signal);
    }
}

fn allocated(path: &Path) -> u64 {
    path.metadata().expect("file").blocks() * 512
}

/// The front end of a guest that keeps running while daemons come and go.
struct Guest {
    region: Arc<Region>,
    blk: Blk,
    session: Option<Session>,
}

impl Guest {
    fn new(socket: &Path) -> Self {
        let session = Session::connect(socket, &session_options()).expect("session");
        let region = Region::new(GPA, 64 << 20).expect("memory");
        let queue = Queue::new(0, &region, 128, session.has(feature::EVENT_IDX)).expect("queue");
        let blk = Blk::new(queue, 64, 16 << 10, session.has(feature::INDIRECT)).expect("disk");
        let mut guest = Self { region, blk, session: None };
        guest.set_up(session).expect("set up");
        guest
    }

    fn set_up(&mut self, mut session: Session) -> Result<(), Error> {
        session.set_mem_table(&[Arc::clone(&self.region)])?;
        session.set_up(self.blk.queue(), self.blk.queue().used_idx())?;
        session.enable(0, true)?;
        self.session = Some(session);
        Ok(())
    }

    /// Comes back with the ring as it is.
    fn reconnect(&mut self, socket: &Path) -> Result<(), Error> {
        self.session = None;
        self.set_up(Session::connect(socket, &session_options())?)
    }

    /// Offers a write, without waiting for anything. False if there is no room in the ring.
    fn offer(&mut self, place: u64, generation: u64) -> bool {
        let Some(tag) = self.blk.acquire() else { return false };
        let bytes = pattern(place * 32, 32, generation);
        self.region.write(self.blk.buffer(tag), &bytes).expect("buffer");
        let done = self.blk.submit_shaped(tag, Op::Out, place * 32, 16 << 10, &Shape::default(), 0);
        done.and_then(|()| self.blk.publish()).expect("submit");
        true
    }

    fn wait_for_all(&mut self) {
        while self.blk.busy() > 0 {
            assert_eq!(self.blk.wait(LIMIT).expect("a completion").status, Status::Ok);
        }
    }
}

/// A unit that is restarted: one command line, one socket, and a guest that continues with its ring.
#[test]
fn a_guest_continues_with_its_ring_at_the_next_daemon() {
    let home = Home::new();
    let dir = TempDir::new();
    let socket = dir.join("socket");
    let start = || {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(&socket).args(["--size", "16M", "--create"]);
        command.arg("--state-dir").arg(home.path());
        Daemon::spawn(command, TempDir::new())
    };
    let mut daemon = start();
    let mut guest = Guest::new(&socket);
    for round in 1..=8 {
        for place in 0..40 {
            assert!(guest.offer(place, round));
        }
        if round % 2 == 0 {
            // Under load: what it took it finishes, and what it did not take the next one does.
            daemon.end(Signal::SIGTERM);
        } else {
            // That of a killed one would have to be told apart by in-flight records.
            guest.wait_for_all();
            daemon.end(Signal::SIGKILL);
        }
        daemon = start();
        assert_eq!(daemon.origin(), "opened");
        guest.reconnect(&socket).expect("a ring that this disk knows");
        guest.wait_for_all();
        for place in 0..40 {
            expect_pattern(&mut guest.blk, place * 32, 32, round);
        }
    }
}

/// Whether a daemon serves a guest that has its ring in use.
fn lets_continue(daemon: &Daemon, used: u16) -> bool {
    let mut session = daemon.session();
    let region = Region::new(GPA, 16 << 20).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let queue = Queue::new(0, &region, 16, true).unwrap();
    queue.ring().set_used_idx(used).unwrap();
    queue.ring().set_avail_idx(used).unwrap();
    session.set_up(&queue, used).and_then(|()| session.enable(0, true)).is_ok()
}

#[test]
fn a_blank_state_is_not_shown_to_a_running_guest() {
    let home = Home::new();
    // New, and opened without ever having served: both are blank.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let daemon = home.start(&["--create"]);
        assert!(!lets_continue(&daemon, 7));
        daemon.end(signal);
    }
    // Once it served, every later daemon knows, however the one before ended.
    let daemon = home.start(&[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 8, 1);
    daemon.end(Signal::SIGKILL);
    drop(client);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let daemon = home.start(&["--create"]);
        assert!(lets_continue(&daemon, 7));
        daemon.end(signal);
    }
    // A state that was lost and made anew is blank again.
    fs::remove_dir_all(home.path()).unwrap();
    assert!(!lets_continue(&home.start(&["--create"]), 7));
}

#[test]
fn an_image_is_loaded_when_the_state_is_made_and_never_again() {
    let home = Home::new();
    let image = home.0.join("image");
    let load = ["--create", "--load", image.to_str().expect("a path of plain letters")];
    fs::write(&image, pattern(0, 3000, 1)).unwrap();
    let daemon = home.start(&load);
    assert_eq!(daemon.origin(), "new");
    let mut client = daemon.client();
    expect_pattern(client.blk(), 0, 3000, 1);
    write_pattern(client.blk(), 100, 50, 2);
    client.blk().discard(0, 80).unwrap();
    drop(client);
    daemon.end(Signal::SIGKILL);
    let look = |daemon: &Daemon| {
        assert_eq!(daemon.origin(), "opened");
        let mut client = daemon.client();
        expect_zeroes(client.blk(), 0, 80);
        expect_pattern(client.blk(), 80, 20, 1);
        expect_pattern(client.blk(), 100, 50, 2);
        expect_pattern(client.blk(), 150, 2850, 1);
    };
    // Another image, and none at all: it is not read.
    fs::write(&image, pattern(0, 3000, 9)).unwrap();
    let daemon = home.start(&load);
    look(&daemon);
    daemon.end(Signal::SIGTERM);
    fs::remove_file(&image).unwrap();
    look(&home.start(&load));
}

/// Starts a daemon that stalls in the middle of its image.
#[cfg(debug_assertions)]
fn loading(home: &Home, image: &Path) -> Loading {
    let path = image.to_str().expect("a path of plain letters");
    let command = home.command("256M", &["--create", "--load", path]);
    let arena = home.path().join("arena");
    Loading::start(command, image, || fs::metadata(&arena).map_or(0, |arena| arena.blocks()))
}

/// The file stalls where SIGTERM is to end the daemon.
#[cfg(debug_assertions)]
#[test]
fn a_load_that_was_cut_short_is_begun_anew() {
    let home = Home::new();
    let image = home.0.join("image");
    for round in 0..2 {
        let mut loading = loading(&home, &image);
        // It is being made, and by another process.
        home.refuses("256M", &["--create"], &["in use"]);
        if round == 0 {
            loading.0.kill().unwrap();
            assert!(!loading.0.wait().unwrap().success());
            home.refuses("256M", &[], &["never finished", "--create"]);
            // The next one's progress is to be seen.
            fs::remove_dir_all(home.path()).unwrap();
        } else {
            let pid = nix::unistd::Pid::from_raw(loading.0.id() as i32);
            nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
            wait_until("the daemon's end", || loading.0.try_wait().unwrap().is_some());
            assert!(loading.0.wait().unwrap().success());
        }
    }
    home.refuses("256M", &[], &["never finished", "--create"]);
    fs::write(&image, pattern(0, 1000, 2)).unwrap();
    let mut command = home.command("256M", &["--create", "--load"]);
    command.arg(&image);
    let daemon = Daemon::spawn(command, TempDir::new());
    assert_eq!(daemon.origin(), "new");
    let socket = home.0.join("socket.unused");
    let mut client = Client::connect(&socket, &client_options()).unwrap();
    expect_pattern(client.blk(), 0, 1000, 2);
    // Nothing of the first attempts.
    expect_zeroes(client.blk(), 1000, 9000);
    drop(client);
    daemon.end(Signal::SIGKILL);
    let daemon = Daemon::spawn(home.command("256M", &[]), TempDir::new());
    assert_eq!(daemon.origin(), "opened");
}

/// An image that cannot be loaded leaves a state that was never served, and is made anew.
#[test]
fn an_image_that_does_not_fit_leaves_nothing_to_be_served() {
    let home = Home::new();
    let image = home.0.join("image");
    let load = ["--create", "--load", image.to_str().expect("a path of plain letters")];
    File::create(&image).unwrap().set_len(17 << 20).unwrap();
    home.refuses("16M", &load, &["does not fit"]);
    home.refuses("16M", &[], &["never finished"]);
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    assert_eq!(home.start(&load).origin(), "new");
    assert_eq!(home.start(&[]).origin(), "opened");
}
