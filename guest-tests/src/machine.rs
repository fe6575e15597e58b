//! What a test works with: a daemon and a guest of its own, in directories of its own.

use std::{
    collections::HashSet,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{sys::signal::Signal, sys::statvfs::statvfs};
use serde_json::{Value, json};

use crate::{
    api,
    artifacts::{Combination, Setup},
    common::TempDir,
    daemon::{Daemon, Figures},
    guest::{Guest, Parts, Shape},
    inflight::{self, InFlight},
    process::{LIMIT, SLICE},
    protocol::{self, Said, Values, Verdict},
    random::Random,
    say,
};

/// Bytes of a disk where a test does not say otherwise.
pub const SIZE: u64 = 384 << 20;
/// Serial number of a disk.
pub const SERIAL: &str = "zram-guest-test";
/// Entries of a queue that QEMU asks an in-flight region for.
const QUEUE_SIZE: usize = 128;
/// Times that a guest is started whose kernel hangs before it has a disk driver.
const STARTS: usize = 3;
/// How long a kernel may take to get to its init. Under TCG it takes seconds.
const INIT_LIMIT: Duration = Duration::from_secs(180);
/// What a state may need on its tmpfs; far more than any test ever has stored.
const STATE_ROOM: u64 = 256 << 20;

/// Why a test does not apply here.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// One test's daemon and guest.
pub struct Machine<'a> {
    pub setup: &'a Setup,
    pub combination: &'a Combination,
    /// The moments at which things are killed.
    pub random: Random,
    /// What every daemon of this test is started with, beside socket, algorithm and serial.
    pub daemon_args: Vec<OsString>,
    pub shape: Shape,
    /// The step at which the daemons from here on are killed that have failpoints.
    pub crash_at: Option<&'static str>,
    /// The daemons of this test have failpoints.
    has_failpoints: bool,
    /// Whether the last guest did not come up.
    pub boot_failed: bool,
    /// Guests that came up.
    pub boots: usize,
    dir: TempDir,
    state: Option<TempDir>,
    logs: PathBuf,
    daemon: Option<Daemon>,
    /// Daemons of more disks.
    beside: Vec<Daemon>,
    guest: Option<Guest>,
    /// What guests said that are gone.
    consoles: Vec<Vec<String>>,
    /// Figures that may be other than zero in this test.
    allowed: HashSet<&'static str>,
    files: usize,
}

impl<'a> Machine<'a> {
    pub fn new(
        setup: &'a Setup,
        combination: &'a Combination,
        name: &str,
        logs: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(logs).with_context(|| logs.display().to_string())?;
        Ok(Self {
            setup,
            combination,
            random: Random::new(setup.seed, name),
            daemon_args: sized(SIZE, Some(2)),
            shape: Shape::default(),
            crash_at: None,
            has_failpoints: false,
            boot_failed: false,
            boots: 0,
            // Not under target/: the path of a Unix socket has 107 characters at most.
            dir: TempDir::within(&setup.work),
            state: None,
            logs: logs.to_owned(),
            daemon: None,
            beside: Vec::new(),
            guest: None,
            consoles: Vec::new(),
            allowed: HashSet::new(),
            files: 0,
        })
    }

    /// A file or directory of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("disk.sock")
    }

    /// A new file for what a part of the test says.
    pub fn next_log(&mut self, of: &str) -> PathBuf {
        self.files += 1;
        self.logs.join(format!("{:02}-{of}.log", self.files))
    }

    // --- daemons ---------------------------------------------------------------------------------

    /// A disk that outlives its daemons, for all daemons from here on.
    pub fn keep_state(&mut self, more: &[&str]) -> Result<()> {
        let tmpfs = &self.setup.tmpfs;
        let room = statvfs(tmpfs).with_context(|| tmpfs.display().to_string())?;
        if room.blocks_available() * room.fragment_size() < STATE_ROOM {
            return Err(Skip(format!("{} has less than 256 MiB free", tmpfs.display())).into());
        }
        let state = TempDir::within(tmpfs);
        self.daemon_args.extend(["--state-dir".into(), state.path().into(), "--create".into()]);
        self.daemon_args.extend(more.iter().map(OsString::from));
        self.state = Some(state);
        Ok(())
    }

    /// Starts a daemon after the one before has ended; waits for nothing.
    pub fn spawn_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "a daemon runs");
        let (mut args, log) = (self.daemon_args.clone(), self.next_log("daemon"));
        args.extend(["--socket-path".into(), self.socket().into()]);
        args.extend(["--algorithm".into(), self.combination.algorithm.as_str().into()]);
        if !args.iter().any(|arg| arg == "--serial") {
            args.extend(["--serial".into(), SERIAL.into()]);
        }
        let program = match &self.setup.with_failpoints {
            Some(program) if self.has_failpoints => program,
            _ => &self.setup.daemon,
        };
        self.daemon = Some(Daemon::spawn_to_die(program, &args, &log, self.crash_at)?);
        Ok(())
    }

    /// The daemons from here on can be told where to die.
    pub fn use_failpoints(&mut self) -> Result<()> {
        if self.setup.with_failpoints.is_none() {
            return Err(Skip("no debug build of the daemon (cargo build)".to_owned()).into());
        }
        self.has_failpoints = true;
        Ok(())
    }

    /// The daemons from here on have a control socket.
    pub fn serve_api(&mut self) {
        self.daemon_args.extend(["--api-socket".into(), self.path("disk.api").into()]);
    }

    /// Changes settings of the disk; gives the disk.
    pub fn patch_disk(&self, settings: &Value) -> Result<Value> {
        api::patch(&self.path("disk.api"), "/v1/disk", settings)
    }

    /// Has the disk grow to `bytes`.
    pub fn set_size(&mut self, bytes: u64) -> Result<()> {
        let answer = self.patch_disk(&json!({"size_bytes": bytes}))?;
        ensure!(answer["size_bytes"] == bytes, "{bytes} bytes were asked for: {answer}");
        Ok(())
    }

    /// Waits for the end of the daemon, which was told where to die.
    pub fn bury_daemon(&mut self) -> Result<()> {
        let status = self.daemon.take().context("no daemon runs")?.process.join()?;
        ensure!(status.signal() == Some(Signal::SIGKILL as i32), "the daemon ended with {status}");
        Ok(())
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.spawn_daemon()?;
        self.daemon()?.ready()?;
        Ok(())
    }

    /// Starts the daemon of one more disk; gives its socket.
    pub fn start_beside(&mut self, name: &str, args: Vec<OsString>) -> Result<PathBuf> {
        let (socket, log) = (self.path(&format!("{name}.sock")), self.next_log(name));
        let mut all = args;
        all.extend(["--socket-path".into(), socket.clone().into(), "--serial".into(), name.into()]);
        all.extend(["--algorithm".into(), self.combination.algorithm.as_str().into()]);
        let mut daemon = Daemon::spawn(&self.setup.daemon, &all, &log)?;
        daemon.ready()?;
        self.beside.push(daemon);
        Ok(socket)
    }

    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("no daemon runs")
    }

    /// SIGKILL.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.take().context("no daemon runs")?.kill()
    }

    /// SIGTERM: it ends well, with a summary whose figures add up.
    pub fn terminate_daemon(&mut self) -> Result<Figures> {
        let figures = self.daemon.take().context("no daemon runs")?.terminate()?;
        self.check(&figures)?;
        Ok(figures)
    }

    /// Waits for the first request that the daemon completes; gives how long after its start that was.
    pub fn resumed(&mut self) -> Result<Duration> {
        let daemon = self.daemon()?;
        daemon.ready()?;
        let gap = daemon.first_request()?;
        self.churns_well()?;
        Ok(gap)
    }

    pub fn figures(&mut self) -> Result<Figures> {
        self.daemon()?.figures()
    }

    /// A figure that this test makes the daemon count, and that else has to be zero.
    pub fn allow(&mut self, figure: &'static str) {
        self.allowed.insert(figure);
    }

    fn check(&self, figures: &Figures) -> Result<()> {
        figures.check(&self.allowed)
    }

    // --- guests ----------------------------------------------------------------------------------

    /// Starts a guest; waits for nothing in it.
    pub fn launch_guest(&mut self) -> Result<()> {
        ensure!(self.guest.is_none(), "a guest runs");
        let log = self.next_log("guest");
        let parts = Parts {
            scripts: &self.setup.scripts,
            kernel: &self.combination.kernel,
            qemu: &self.combination.qemu,
            accel: &self.setup.accel,
            libvirt: self.setup.libvirt.as_deref(),
        };
        self.guest = Some(Guest::launch(&parts, &self.shape, &self.socket(), &log)?);
        Ok(())
    }

    /// Starts a guest and waits until it takes commands.
    ///
    /// Under TCG a kernel of two processors now and then hangs while it boots. One that never got to its init
    /// has not loaded the driver of its disk, so the hang says nothing of the daemon, and the guest is
    /// started again.
    pub fn start_guest(&mut self) -> Result<()> {
        let booted = self.start_until_init().and_then(|()| self.booted(0));
        self.boot_failed = booted.is_err();
        booted.context("the guest did not boot")
    }

    fn start_until_init(&mut self) -> Result<()> {
        for _ in 1..STARTS {
            self.launch_guest()?;
            if self.reaches_init()? {
                return Ok(());
            }
            say("a guest's kernel hung before it had a disk driver; the guest is started again");
            self.end_guest(Signal::SIGKILL)?;
        }
        self.launch_guest()
    }

    /// Whether the guest gets to its init in time, or ends in another way, of which the caller's wait tells.
    fn reaches_init(&mut self) -> Result<bool> {
        let guest = self.guest()?;
        if !guest.takes_commands {
            // The firmware reads the disk before there is a kernel.
            return Ok(true);
        }
        let (deadline, lines) = (Instant::now() + INIT_LIMIT, guest.process.stdout.clone());
        let init = |line: &str| protocol::is_past_init(line).then_some(());
        while lines.find(0, SLICE, init).is_none() {
            let panicked =
                lines.find(0, Duration::ZERO, |line| line.contains("Kernel panic").then_some(()));
            if panicked.is_some() || !self.guest()?.process.is_alive() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the guest is ready, after `from` lines.
    fn booted(&mut self, from: usize) -> Result<()> {
        self.wait("boot", from, |line| Said::event(line, "ready"))?;
        self.boots += 1;
        Ok(())
    }

    pub fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("no guest runs")
    }

    /// Ends QEMU by a signal.
    pub fn end_guest(&mut self, signal: Signal) -> Result<()> {
        let console = self.guest.take().context("no guest runs")?.end(signal)?;
        self.consoles.push(console);
        Ok(())
    }

    /// The guest powers itself off, and QEMU ends well.
    pub fn power_off(&mut self) -> Result<()> {
        self.tell("poweroff", &[])?;
        let mut guest = self.guest.take().context("no guest runs")?;
        let status = guest.process.join()?;
        self.consoles.push(guest.process.stdout.all());
        let shutdown = json!({"guest": true, "reason": "guest-shutdown"});
        ensure!(guest.qmp()?.has("SHUTDOWN", &shutdown, LIMIT), "QEMU reported no shutdown");
        ensure!(status.success(), "QEMU ended with {status} after poweroff");
        Ok(())
    }

    /// The guest reboots inside its QEMU.
    pub fn reboot(&mut self) -> Result<()> {
        let from = self.guest()?.process.stdout.len();
        self.tell("reboot", &[])?;
        let booted = self.booted(from);
        self.boot_failed = booted.is_err();
        booted.context("the guest did not come back from its reboot")?;
        let reset = json!({"guest": true, "reason": "guest-reset"});
        ensure!(self.guest()?.qmp()?.has("RESET", &reset, LIMIT), "QEMU reported no reset");
        Ok(())
    }

    /// What earlier guests said is not held against the daemon: their disk was taken away.
    pub fn forget_consoles(&mut self) {
        self.consoles.clear();
    }

    /// Sends a command, waits for nothing; gives its number.
    pub fn tell(&mut self, step: &str, args: &[&str]) -> Result<u64> {
        Ok(self.guest()?.tell(step, args))
    }

    /// Has the guest do a step; gives its figures. A step that fails is an error.
    pub fn ask(&mut self, step: &str, args: &[&str]) -> Result<Values> {
        let number = self.tell(step, args)?;
        let (verdict, values) = self.wait(step, 0, |line| Said::answer(line, number))?;
        match verdict {
            Verdict::Pass => Ok(values),
            Verdict::Skip => Err(Skip(values.text).into()),
            Verdict::Fail => bail!("{step}: {}", values.text),
        }
    }

    /// What the guest answered to command `number`, if it did; waits for no longer than a moment.
    pub fn poll_answer(&mut self, number: u64) -> Result<Option<(Verdict, String)>> {
        let lines = self.guest()?.process.stdout.clone();
        let found = lines.find(0, SLICE, |line| Said::answer(line, number));
        Ok(found.map(|(verdict, values)| (verdict, values.text)))
    }

    /// Waits for an event of the guest whose values `wanted` accepts.
    pub fn event(&mut self, name: &str, wanted: impl Fn(&Values) -> bool) -> Result<Values> {
        self.wait(name, 0, |line| Said::event(line, name).filter(&wanted))
    }

    /// The number `key` of the last event `name` of this guest, or of the one before.
    pub fn last_number(&mut self, name: &str, key: &str) -> Result<u64> {
        let lines = match &self.guest {
            Some(guest) => guest.process.stdout.all(),
            None => self.consoles.last().cloned().unwrap_or_default(),
        };
        protocol::last_number(lines.iter(), name, key).with_context(|| format!("no {name} {key}"))
    }

    /// Waits for a line of the console while QEMU and the daemon live and the guest's kernel does.
    fn wait<T>(&mut self, what: &str, from: usize, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        let lines = self.guest()?.process.stdout.clone();
        loop {
            // The last words of one that is dead still count, so its death is checked first.
            let alive = self.guest()?.process.is_alive();
            let daemon = self.daemon.as_mut().is_none_or(|daemon| daemon.process.is_alive());
            if let Some(found) = lines.find(from, SLICE, &find) {
                return Ok(found);
            }
            let panic = |line: &str| line.contains("Kernel panic").then(|| line.to_owned());
            if let Some(panic) = lines.find(from, Duration::ZERO, panic) {
                bail!("{what}: {panic}");
            }
            if !alive {
                bail!("{what}: QEMU ended: {}", self.guest()?.process.last_words());
            }
            if !daemon {
                bail!("{what}: the daemon died: {}", self.daemon()?.process.last_words());
            }
            if Instant::now() > deadline {
                bail!(
                    "{what}: nothing within {LIMIT:?}: a request that is never answered, or a hang"
                );
            }
        }
    }

    /// Waits for an event of QEMU.
    pub fn qemu_event(&mut self, name: &str, data: &Value) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.guest()?.qmp()?.has(name, data, SLICE) {
            ensure!(self.guest()?.process.is_alive(), "QEMU ended before {name}");
            ensure!(Instant::now() < deadline, "no {name} {data} from QEMU within {LIMIT:?}");
        }
        Ok(())
    }

    /// What QEMU holds of the requests of a disk with `queues` queues; to be asked while no daemon runs.
    pub fn in_flight(&mut self, queues: usize) -> Result<InFlight> {
        inflight::of_process(self.guest()?.qemu()?, queues, QUEUE_SIZE)
    }

    /// Up to 0.9 seconds.
    pub fn random_moment(&mut self, up_to_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.below(up_to_ms)));
    }

    // --- load by fio -----------------------------------------------------------------------------

    /// Starts passes of fio; returns when requests flow.
    pub fn start_churn(&mut self, seed: u64) -> Result<()> {
        let before = self.figures()?.get("writes")?;
        self.ask("churn_start", &[&seed.to_string()])?;
        let flows = |now: &Figures| Ok(now.get("writes")? >= before + 300);
        self.daemon()?.wait_for("load of fio", flows)?;
        Ok(())
    }

    /// Whether no pass of fio has found anything wrong so far.
    pub fn churns_well(&mut self) -> Result<()> {
        let Some(guest) = &self.guest else { return Ok(()) };
        let failed = |line: &str| Said::event(line, "churn-failed");
        match guest.process.stdout.find(0, Duration::ZERO, failed) {
            Some(values) => Err(anyhow!("fio: {}", values.text)),
            None => Ok(()),
        }
    }

    // --- the end ---------------------------------------------------------------------------------

    /// What has to hold at the end of every test: no kernel complained, no request failed, the figures
    /// add up, and all daemons end well with a summary. Gives what the last one had served.
    pub fn finish(&mut self) -> Result<()> {
        let complaints = protocol::complaints();
        if self.guest.as_ref().is_some_and(|guest| guest.takes_commands) {
            let values = self.ask("kernel_log", &[&complaints])?;
            let count = values.number("complaints")?;
            ensure!(count == 0, "{count} complaints of the guest's kernel: {}", values.text);
        }
        if self.daemon.is_some() {
            let figures = self.figures()?;
            self.check(&figures)?;
        }
        if self.guest.is_some() {
            self.end_guest(Signal::SIGKILL)?;
        }
        for console in &self.consoles {
            let mut lines = protocol::without_reboots(console);
            if let Some(line) = lines.find(|line| protocol::is_complaint(line)) {
                bail!("a guest's kernel complained: {line}");
            }
        }
        if self.daemon.is_some() {
            self.terminate_daemon()?;
        }
        for daemon in self.beside.drain(..) {
            daemon.terminate()?.check(&self.allowed)?;
        }
        Ok(())
    }
}

/// Options of a daemon for a disk of `size` bytes with so many queues.
pub fn sized(size: u64, queues: Option<u16>) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--size".into(), size.to_string().into()];
    if let Some(queues) = queues {
        args.extend(["--num-queues".into(), queues.to_string().into()]);
    }
    args
}
