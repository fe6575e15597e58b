//! A state that outlives its daemons, and what each of them has to find.

use std::{
    io::Write,
    os::unix::{net::UnixStream, process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Client, ClientOptions, Options};

use crate::{
    common::{
        LIMIT,
        daemon::{BINARY, Daemon, TempDir, client_options, session_options},
        disk::SECTOR_LEN,
        http::Http,
    },
    load::{LONGEST, Load},
};

/// Sectors of the disk when it is made: small enough that its pages are changed again and again.
const SECTORS: usize = 8 << 10;
const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 128;

/// What comes after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A guest that begins anew: what was in flight may have happened or not.
    Cold,
    /// The same guest continues, with its in-flight region: what was in flight happens.
    Resume,
    /// The same guest continues, without one: requests come back in order then.
    Ordered,
}

/// What was in flight when a daemon died.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    /// Requests that were submitted and not completed.
    pub requests: usize,
    /// Requests that the in-flight region, if there is one, shows taken and not given back.
    pub taken: usize,
    /// Requests that it shows completed before one that was taken before them.
    pub out_of_order: usize,
}

/// How the daemons of a state are started.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub algorithm: &'static str,
    pub arguments: &'static [&'static str],
    /// Whether there is a limit that writes can meet.
    pub limited: bool,
}

impl Setup {
    /// The command that opens a state, or makes it.
    fn command(&self, state: &TempDir, socket: &TempDir) -> Command {
        let mut command = self.command_to_open(state, socket);
        command.arg("--create");
        command
    }

    fn command_to_open(&self, state: &TempDir, socket: &TempDir) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(socket.join("socket"));
        command.arg("--api-socket").arg(socket.join("api"));
        command.args(["--size", &(SECTORS * SECTOR_LEN).to_string(), "--num-queues", "2"]);
        command.args(["--algorithm", self.algorithm]).args(self.arguments);
        command.arg("--state-dir").arg(state.path());
        command
    }

    /// Starts a daemon that dies at the step `crash` before it serves anything.
    pub fn start_and_die(&self, state: &TempDir, crash: &str) {
        let socket = TempDir::new();
        let mut command = self.command(state, &socket);
        command.env("VUZ_CRASH_AT", crash);
        let status = status_of(command, &socket);
        let status = status.unwrap_or_else(|| panic!("{crash}: no process comes there at a start"));
        died_by_kill(status);
    }

    /// A daemon that is not to make a state finds none that it would serve.
    pub fn is_refused(&self, state: &TempDir) {
        let socket = TempDir::new();
        let status = status_of(self.command_to_open(state, &socket), &socket);
        assert_eq!(status.expect("it is not served").code(), Some(1));
    }
}

/// Runs a daemon to its end; `None` if it serves.
fn status_of(mut command: Command, socket: &TempDir) -> Option<ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("daemon starts");
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if Instant::now() > deadline || socket.join("socket").exists() {
            child.kill().and_then(|()| child.wait()).expect("it ends");
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A state, the daemon that serves it, and the front end.
pub struct Life {
    setup: Setup,
    state: TempDir,
    pub daemon: Daemon,
    pub client: Client,
    pub load: Load,
    /// The connection to the control API of the last recompression.
    api: Option<UnixStream>,
}

impl Life {
    /// Makes a state.
    pub fn new(setup: Setup, seed: u64) -> Self {
        Self::in_state(setup, seed, TempDir::in_memory())
    }

    /// The same in a directory that may have half of a state.
    pub fn in_state(setup: Setup, seed: u64, state: TempDir) -> Self {
        let socket = TempDir::new();
        let daemon = Daemon::spawn(setup.command(&state, &socket), socket);
        let mut load = Load::new(seed, SECTORS);
        load.may_fail = setup.limited;
        let client = connect(&daemon, &mut load, true);
        let mut life = Self { setup, state, daemon, client, load, api: None };
        life.load.verify(life.client.blk()).expect("a disk that is empty");
        life
    }

    /// Kills the daemon, and takes what it has completed.
    pub fn kill(&mut self) -> Left {
        self.daemon.signal(Signal::SIGKILL);
        self.bury()
    }

    /// Has the daemon compact, and waits until that is done, or the daemon dead.
    pub fn compact(&mut self) {
        let lines = |daemon: &Daemon| {
            let lines = daemon.stdout.all();
            lines.iter().filter(|line| line.starts_with("compacted:")).count()
        };
        let before = lines(&self.daemon);
        self.daemon.signal(Signal::SIGUSR2);
        let began = Instant::now();
        while lines(&self.daemon) == before && self.daemon.is_alive() {
            assert!(began.elapsed() < LIMIT, "it does not compact");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has the daemon recompress, and waits for nothing: it may die meanwhile.
    pub fn recompress(&mut self) {
        let Ok(mut api) = UnixStream::connect(self.daemon.dir.join("api")) else { return };
        let mut requests = String::new();
        for (attribute, text) in [
            ("recomp_algorithm", "algo=zstd"),
            ("algorithm_params", "priority=1 level=19"),
            ("recompress", "max_pages=500"),
        ] {
            let length = text.len();
            requests += &format!(
                "PUT /v1/attributes/{attribute} HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n{text}"
            );
        }
        // Of a daemon that is dead by now the load will know.
        if api.write_all(requests.as_bytes()).is_ok() {
            self.api = Some(api);
        }
    }

    /// Waits until the daemon, which was killed, is dead, and takes what it has completed.
    pub fn bury(&mut self) -> Left {
        died_by_kill(self.daemon.join());
        self.look()
    }

    /// Has the daemon end in good order: it finishes what it has taken.
    fn terminate(&mut self) {
        self.daemon.signal(Signal::SIGTERM);
        let status = self.daemon.join();
        assert!(status.success(), "{status}: {:?}", self.daemon.stderr.all());
        let left = self.look();
        assert_eq!(left.taken, 0, "{left:?}");
    }

    /// Takes what the daemon completed before it ended.
    fn look(&mut self) -> Left {
        self.load.reap(&mut self.client);
        let requests = self.in_flight();
        let (taken, out_of_order) = self.client.left_behind();
        if let Some(inflight) = &self.client.inflight {
            for (queue, blk) in self.client.queues.iter().enumerate() {
                // Of what was given back last, the region need not know that it was.
                let header = inflight.header(queue);
                let last = blk.queue().used_idx().wrapping_sub(header.used_idx);
                let most = self.load.in_flight(queue) + usize::from(last);
                let heads = inflight.in_flight(queue);
                assert!(heads.len() <= most, "queue {queue}: {heads:?}, {most} in flight");
            }
        }
        Left { requests, taken, out_of_order }
    }

    fn in_flight(&self) -> usize {
        (0..QUEUES).map(|queue| self.load.in_flight(queue)).sum()
    }

    /// Starts a daemon on the state. With `crash`, it will die at that step.
    fn start(&mut self, crash: Option<&str>) {
        let socket = TempDir::new();
        let mut command = self.setup.command(&self.state, &socket);
        crash.map(|crash| command.env("VUZ_CRASH_AT", crash));
        self.daemon = Daemon::spawn(command, socket);
    }

    /// Another daemon ends before it has got anywhere: while it opens the state or, if a front end
    /// comes back, while it works on what was in flight.
    pub fn stumble(&mut self, mode: Mode) {
        let after = Duration::from_micros(self.load.random.below(20_000));
        if mode == Mode::Cold || self.load.random.below(2) == 0 {
            let socket = TempDir::new();
            let mut command = self.setup.command(&self.state, &socket);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().expect("daemon starts");
            spin(after);
            child.kill().and_then(|()| child.wait()).expect("it ends");
        } else {
            self.start(None);
            self.client.reconnect(self.daemon.socket()).expect("the front end comes back");
            spin(after / 16);
            if self.load.random.below(3) == 0 {
                self.terminate();
            } else {
                self.kill();
            }
        }
    }

    /// Has the daemons that come compress by another algorithm.
    pub fn set_algorithm(&mut self, algorithm: &'static str) {
        self.setup.algorithm = algorithm;
    }

    /// Starts a daemon that dies before it serves anything.
    pub fn start_and_die(&self, crash: &str) {
        self.setup.start_and_die(&self.state, crash);
    }

    /// Tells the daemon to have the disk grow. Waits for nothing.
    pub fn tell_to_grow(&self, sectors: usize) -> Http {
        let body = format!("{{\"size_bytes\":{}}}", sectors * SECTOR_LEN);
        let mut http = Http::connect(&self.daemon.dir.join("api"));
        http.send("PATCH", "/v1/disk", &body);
        http
    }

    /// The disk may have grown when a daemon died: if so, what is new is empty.
    fn adopt_size(&mut self) {
        let ready = self.daemon.stdout.wait_for("ready", 0, LIMIT).expect("ready");
        let size = ready.split_whitespace().find_map(|word| word.strip_prefix("size="));
        let size: usize = size.and_then(|size| size.parse().ok()).expect("a size");
        let before = self.load.model.len();
        assert!(size / SECTOR_LEN >= before, "a disk of {before} sectors has {size} bytes");
        self.load.model.grow(size / SECTOR_LEN);
    }

    /// Ends the daemon, in whatever way, and has another take its place, with a new front end.
    pub fn renew(&mut self, crash: Option<&str>, tracked: bool) {
        assert_eq!(self.in_flight(), 0);
        if self.load.random.below(2) == 0 {
            self.terminate();
        } else {
            self.kill();
        }
        self.start(crash);
        self.client = connect(&self.daemon, &mut self.load, tracked);
    }

    /// The daemon is dead: another one has to find everything. A new front end, if there has to be
    /// one, is `tracked` or not.
    pub fn revive(&mut self, mode: Mode, tracked: bool) {
        self.start(None);
        self.adopt_size();
        if mode == Mode::Cold {
            self.load.abandon();
            self.client = connect(&self.daemon, &mut self.load, tracked);
        } else {
            self.client.reconnect(self.daemon.socket()).expect("the front end comes back");
            self.load.drain(&mut self.client);
        }
        let found = self.load.verify(self.client.blk()).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        if mode == Mode::Cold {
            // What may have happened or not has now been seen, and stays.
            let again = self.load.verify(self.client.blk());
            assert!(again.unwrap_or_else(|e| panic!("the second time: {e}")) == found);
        }
        for blk in &self.client.queues {
            let queue = blk.queue();
            assert_eq!(queue.in_flight(), 0);
            assert_eq!(queue.ring().used_idx().expect("ring"), queue.used_idx(), "used twice");
        }
        self.check_figures();
    }

    /// Compares the daemon's figures with the model, as far as that knows them.
    fn check_figures(&mut self) {
        let stats = self.daemon.stats();
        let (least, most) = self.load.model.stored_pages();
        let stored = stats["orig_data_size"];
        assert_eq!(stored % 4096, 0);
        assert!((least..=most).contains(&(stored / 4096)), "{least}..={most} pages: {stats:?}");
        assert!(stats["compr_data_size"] <= stats["mem_used_total"], "{stats:?}");
        assert!(stats["same_pages"] * 4096 <= stored, "{stats:?}");
        assert!(stats["huge_pages"] * 4096 <= stats["compr_data_size"], "{stats:?}");
        assert_eq!(stats["failed_reads"], 0, "{stats:?}");
        if self.setup.limited {
            assert!(stats["mem_used_total"] <= stats["mem_limit"], "{stats:?}");
        } else {
            assert_eq!(stats["failed_writes"], 0, "{stats:?}");
        }
    }

    /// Frees all of the disk: then nothing is left, or objects were lost on the way.
    pub fn end(mut self) {
        self.renew(None, true);
        self.load.verify(self.client.blk()).expect("the disk of the model");
        let sectors = self.load.model.len() as u32;
        self.client.blk().write_zeroes(0, sectors, true).expect("write-zeroes");
        self.daemon.signal(Signal::SIGUSR2);
        self.daemon.stdout.wait_for("compacted:", 0, LIMIT).expect("compacted");
        let stats = self.daemon.stats();
        for name in
            ["orig_data_size", "compr_data_size", "same_pages", "huge_pages", "mem_used_total"]
        {
            assert_eq!(stats[name], 0, "{name} of an empty disk: {stats:?}");
        }
    }
}

/// Lets so much time go by, to the microsecond: a sleep would end on the timer's ticks.
pub fn spin(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// A new front end.
fn connect(daemon: &Daemon, load: &mut Load, tracked: bool) -> Client {
    let session = if tracked { session_options() } else { session_options().untracked() };
    let options = ClientOptions {
        session: Options { timeout: LIMIT, ..session },
        queues: QUEUES,
        queue_size: QUEUE_SIZE,
        // Each request has three descriptors at most.
        depth: 8 + load.random.below(25) as u16,
        max_bytes: (LONGEST * SECTOR_LEN) as u32,
        ..client_options()
    };
    let client = daemon.client_with(&options);
    assert_eq!(client.inflight.is_some(), tracked);
    load.ordered = !tracked;
    load.begin(&client);
    client
}

fn died_by_kill(status: ExitStatus) {
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
}
