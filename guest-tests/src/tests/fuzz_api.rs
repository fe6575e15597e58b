//! The control API, tried by a program that reads its description, beside a guest at work.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::state::keep_state_with_slow_engine;
use crate::{
    artifacts::Fuzz,
    machine::Machine,
    process::{LIMIT, Process, SLICE},
};

/// Bytes of the daemon's own memory that may be more after the trial than early in it: an allocator keeps what
/// threads give back, and a table that has grown has longer lists. A kilobyte lost with each of its
/// thousands of requests is far more.
const SLACK: u64 = 1 << 20;

/// schemathesis sends what the description allows and what it does not, while fio runs in a guest.
pub fn fuzz_api(machine: &mut Machine<'_>) -> Result<String> {
    let setup = machine.setup;
    let fuzz = setup.fuzz.as_ref().context("guest-tests/fuzz-api runs this test")?;
    let seed = 900;
    keep_state_with_slow_engine(machine)?;
    machine.serve_api();
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.start_churn(seed)?;
    let proxy = Proxy::start(machine.path("disk.api"))?;
    // What is made once is made by the first part.
    let warm = (fuzz.seconds / 6).max(1);
    try_all(machine, fuzz, &proxy, warm)?;
    let before = Owned::settled(machine, None)?;
    let tried = try_all(machine, fuzz, &proxy, fuzz.seconds.saturating_sub(warm).max(1))?;
    let after = Owned::settled(machine, Some(&before))?;
    ensure!(
        after.memory <= before.memory + SLACK,
        "the daemon's own memory went from {} to {} bytes",
        before.memory,
        after.memory
    );
    let none = json!({"operations_per_second": 0, "bytes_per_second": 0});
    let settings = json!({"mem_limit_bytes": 0, "rates": {"read": none, "write": none}});
    machine.patch_disk(&settings)?;
    let verified = machine.ask("churn_stop", &[&seed.to_string()])?;
    Ok(format!(
        "{tried}; {} s in all; {} descriptors and {} threads before and after, own memory {} to {} KiB; {} fio passes, {} MiB verified",
        fuzz.seconds,
        after.descriptors,
        after.threads,
        before.memory >> 10,
        after.memory >> 10,
        verified.number("passes")?,
        verified.number("mib")?
    ))
}

/// Runs schemathesis for so many seconds; gives how much it tried.
fn try_all(machine: &mut Machine<'_>, fuzz: &Fuzz, proxy: &Proxy, seconds: u64) -> Result<String> {
    // It keeps notes beside what it reads.
    let dir = machine.path("schemathesis");
    fs::create_dir_all(&dir)?;
    let here = &machine.setup.here;
    for file in ["fuzz-api.d/schemathesis.toml", "fuzz-api.d/hooks.py", "../docs/openapi.json"] {
        let from = here.join(file);
        let name = from.file_name().context("no name")?;
        fs::copy(&from, dir.join(name)).with_context(|| from.display().to_string())?;
    }
    let mut command = Command::new(&fuzz.program);
    command.args(["run", "openapi.json"]).current_dir(&dir);
    command.args(["--url", &format!("http://127.0.0.1:{}", proxy.port)]);
    command.args(["--max-time", &seconds.to_string(), "--request-timeout", "60", "--no-color"]);
    // Its checks of its own health look at how fast its data is made.
    command.args(["--suppress-health-check", "all"]);
    command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", &dir);
    let log = machine.next_log("schemathesis");
    let mut process = Process::start(&command, &log, Stdio::null())?;
    let deadline = Instant::now() + Duration::from_secs(seconds) + LIMIT;
    while process.is_alive() {
        machine.churns_well()?;
        ensure!(machine.daemon()?.process.is_alive(), "the daemon died");
        ensure!(Instant::now() < deadline, "schemathesis does not end");
        thread::sleep(SLICE);
    }
    let status = process.join()?;
    let said = process.stdout.all();
    if !status.success() {
        bail!("schemathesis ended with {status} ({}):\n{}", log.display(), said.join("\n"));
    }
    let cases = said.iter().find(|line| line.contains(" generated, "));
    let cases = cases.context("schemathesis does not say how much it tried")?;
    Ok(format!("{} in {seconds} s", cases.trim()))
}

/// What a process has that it could lose track of.
#[derive(Debug, PartialEq)]
struct Owned {
    descriptors: usize,
    threads: usize,
    /// Bytes that are its own: neither the disk nor the guest's memory.
    memory: u64,
}

impl Owned {
    fn of(pid: u32) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{pid}/{what}"))?.count())
        };
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self { descriptors: count("fd")?, threads: count("task")?, memory: anonymous(&text)? })
    }

    /// Waits until the connections of the trial are gone: until the number of descriptors is that of `before`,
    /// or does not change any more.
    fn settled(machine: &mut Machine<'_>, before: Option<&Self>) -> Result<Self> {
        let pid = machine.daemon()?.process.id();
        let deadline = Instant::now() + LIMIT;
        let mut last = Self::of(pid)?;
        loop {
            thread::sleep(10 * SLICE);
            let now = Self::of(pid)?;
            let counts = |owned: &Self| (owned.descriptors, owned.threads);
            if counts(before.unwrap_or(&last)) == counts(&now) {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "{before:?} before, and {now:?} now");
            last = now;
        }
    }
}

/// The anonymous memory of a process, of its `smaps_rollup`.
fn anonymous(text: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no Anonymous")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}

/// A TCP port of this machine that leads to a Unix socket, for programs that know only URLs.
struct Proxy {
    port: u16,
}

impl Proxy {
    /// Lives as long as the process.
    fn start(socket: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that the daemon does not take sees a hang-up.
                let _ = Self::join(client, &socket);
            }
        });
        Ok(Self { port })
    }

    fn join(client: TcpStream, socket: &Path) -> io::Result<()> {
        let daemon = UnixStream::connect(socket)?;
        let (mut from_client, mut to_daemon) = (client.try_clone()?, daemon.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_daemon);
            let _ = to_daemon.shutdown(Shutdown::Write);
        });
        let (mut from_daemon, mut to_client) = (daemon, client);
        thread::spawn(move || {
            let _ = io::copy(&mut from_daemon, &mut to_client);
            let _ = to_client.flush();
            let _ = to_client.shutdown(Shutdown::Both);
        });
        Ok(())
    }
}

#[cfg(test)]
mod unit_tests {
    use std::{io::Read, os::unix::net::UnixListener};

    use super::*;
    use crate::common::TempDir;

    #[test]
    fn a_proxy_carries_bytes_both_ways_until_either_ends() {
        let dir = TempDir::new();
        let socket = dir.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let proxy = Proxy::start(socket).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut daemon, _) = listener.accept().unwrap();
        let mut text = String::new();
        daemon.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        daemon.write_all(b"answer").unwrap();
        drop(daemon);
        text.clear();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
    }

    #[test]
    fn own_memory_is_what_the_kernel_calls_anonymous() {
        let text = "Rss:  900 kB\nAnonymous:             12 kB\nKSM: 0 kB\n";
        assert_eq!(anonymous(text).unwrap(), 12 << 10);
        anonymous("Rss: 1 kB\n").unwrap_err();
        assert!(Owned::of(std::process::id()).unwrap().threads >= 1);
    }
}
