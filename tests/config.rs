//! The configuration file: its options are those of the command line, which beats it; a mistake is one line
//! that says where it is.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    daemon::{BINARY, Daemon, TempDir, output, refusal},
    manager::Manager,
    wait_until,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::Random;

/// A file with this text.
fn file(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.join("disk.toml");
    fs::write(&path, text).unwrap();
    path
}

/// A command line with a configuration file of this text, and these arguments.
fn command(dir: &TempDir, text: &str, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("--config").arg(file(dir, text)).args(args);
    command
}

/// A daemon whose socket is where the tests expect it.
fn start(text: &str, args: &[&str]) -> Daemon {
    let dir = TempDir::new();
    let socket = dir.join("socket");
    let mut command = command(&dir, text, args);
    command.arg("--socket-path").arg(socket);
    Daemon::spawn(command, dir)
}

/// What `--check-config` says of a file: its exit code, and the line.
fn check(text: &str, args: &[&str]) -> (i32, String) {
    let dir = TempDir::new();
    let mut command = command(&dir, text, args);
    command.arg("--check-config");
    let output = output(&mut command);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(out.is_empty() || err.is_empty(), "{out}{err}");
    let said = (out + &err).replace(dir.join("disk.toml").to_str().unwrap(), "FILE");
    assert_eq!(said.lines().count(), 1, "{said}");
    (output.status.code().unwrap(), said.trim_end().to_owned())
}

fn ready(daemon: &Daemon) -> String {
    daemon.stdout.wait_for("ready:", 0, common::LIMIT).unwrap()
}

#[test]
fn a_disk_is_served_as_its_file_says() {
    let text = "size = \"16M\"\n# A comment.\nalgorithm = \"zstd(level=2)\"\nnum-queues = 3\n\
                read-only = true\nmlock = false\nmem-limit = 1_048_576\nlog-level = 'debug'\n";
    let mut daemon = start(text, &[]);
    let said = ready(&daemon);
    assert!(said.contains(" size=16777216 "), "{said}");
    assert!(said.contains(" algorithm=zstd(level=2) queues=3 "), "{said}");
    assert_eq!(daemon.stats()["mem_limit"], 1 << 20);
    let mut client = daemon.client();
    client.blk().write(0, &[1; 4096]).expect_err("the disk is read-only");
    drop(client);
    assert!(daemon.log().iter().any(|line| line.contains("DEBUG")));
}

#[test]
fn an_option_beats_the_file() {
    let text = "size = \"16M\"\nnum-queues = 3\nread-only = true\nname = \"of-the-file\"\n";
    let args = ["--size", "32M", "--read-only=false", "--num-queues", "5"];
    let daemon = start(text, &args);
    let said = ready(&daemon);
    assert!(said.contains(" size=33554432 ") && said.contains(" queues=5 "), "{said}");
    assert!(said.ends_with(" name=of-the-file"), "{said}");
    daemon.client().blk().write(0, &[1; 4096]).expect("the flag is off");
    // Twice on the command line is a mistake still.
    let (code, line) = check(text, &["--fd", "3", "--size", "1M", "--size", "2M"]);
    assert_eq!(code, 2);
    assert!(line.contains("--size") && line.contains("multiple"), "{line}");
    assert!(!line.contains("FILE"), "{line}");
}

#[test]
fn a_mistake_is_one_line_with_its_place() {
    let good = "size = \"16M\"\nsocket-path = \"/nonexistent/s\"\n";
    for (more, words) in [
        ("size = \"1M\"", &["FILE:3: ", "duplicate key"][..]),
        ("num-queue = 3", &["FILE:3: `num-queue` is not an option"]),
        ("num_queues = 3", &["FILE:3: `num_queues`", "`num-queues` is"]),
        ("config = \"x\"", &["FILE:3: `config`", "command line"]),
        ("check-config = true", &["FILE:3: `check-config`", "command line"]),
        ("help = true", &["FILE:3: `help`", "command line"]),
        ("\nmlock = 1", &["FILE:4: `mlock` takes true or false"]),
        ("mlock = \"true\"", &["FILE:3: `mlock` takes true or false"]),
        ("num-queues = true", &["FILE:3: `num-queues` takes a string or a whole number"]),
        ("num-queues = 1.5", &["FILE:3: `num-queues` takes a string or a whole number"]),
        ("num-queues = [1]", &["FILE:3: `num-queues` takes"]),
        ("[num-queues]\na = 1", &["FILE:3: `num-queues` takes"]),
        ("mem-limit.max = 1", &["FILE:3: `mem-limit` takes"]),
        ("[disk]\nnum-queues = 1", &["FILE:3: `disk` is not an option"]),
        ("socket-mode = 0o660", &["FILE:3: `socket-mode`", "0o660"]),
        ("num-queues = 65", &["FILE:3: ", "'65'", "--num-queues"]),
        ("num-queues = -1", &["FILE:3: ", "'-1'", "--num-queues"]),
        ("serial = \"\"\n\n\nalgorithm = \"lz5\"", &["FILE:6: ", "--algorithm", "lz5"]),
        ("name = \"--size\"", &["FILE:3: ", "--name", "'--size'"]),
        ("name = \"a\\u0000b\"", &["FILE:3: `name`", "NUL"]),
        ("watchdog-fail = 5", &["FILE:3: ", "--watchdog-fail must be more than"]),
        ("create = true", &["FILE:3: ", "--create requires"]),
        ("fd = 3", &["FILE:", "'--socket-path <PATH>' cannot be used with '--fd <N>'"]),
        ("num-queues = ", &["FILE:3: "]),
        ("num-queues", &["FILE:3: "]),
        ("serial = \"x", &["FILE:3: "]),
    ] {
        let (code, line) = check(&format!("{good}{more}\n"), &[]);
        assert_eq!(code, 2, "{more}: {line}");
        assert!(line.starts_with("error: "), "{more}: {line}");
        assert!(words.iter().all(|word| line.contains(word)), "{more}: {line}");
    }
    // A size that is a number, and of no disk.
    let (code, line) = check("\nsize = \"20T\"\nfd = 3\n", &[]);
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("FILE:2: a disk of 21990232555520 bytes"), "{line}");
}

#[test]
fn what_options_require_of_each_other_holds_for_both_together() {
    let refused = |text: &str, args: &[&str], words: &[&str]| {
        let (code, line) = check(text, args);
        assert_eq!(code, 2, "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    refused("size = \"1M\"", &[], &["error: ", "--socket-path <PATH>|--fd <N>"]);
    refused("fd = 3", &[], &["error: ", "--size <SIZE>"]);
    let text = "size = \"1M\"\nstate-dir = \"/d\"\n";
    refused(text, &["--fd", "3", "--fd-store"], &["FILE:2: ", "'--state-dir <DIR>'", "--fd-store"]);
    let text = "size = \"1M\"\nfd = 3\n";
    refused(text, &["--socket-path", "s"], &["FILE:2: ", "--socket-path", "--fd"]);
    refused(text, &["--state-owner", "0"], &["--state-dir <DIR>"]);
    refused(text, &["--num-queues", "0"], &["error: invalid value '0' for '--num-queues <N>'"]);
    // The value in the file does not count, so it is not its line.
    let text = "size = \"1M\"\nfd = 3\nnum-queues = 2\n";
    refused(text, &["--num-queues", "0"], &["error: invalid value '0' for '--num-queues <N>'"]);
    for (text, args) in [
        ("size = \"1M\"\nstate-owner = 0\n", &["--fd", "3", "--state-dir", "/d"][..]),
        ("fd-store = true\ncreate = true\n", &["--fd", "3", "--size", "1M"]),
        ("fd = 3\nsize = \"1M\"\nfd-store = true\n", &["--state-dir", "/d", "--fd-store=false"]),
        ("fd = 3\nsize = \"1M\"\n", &["--fd-store=true", "--create"]),
    ] {
        let (code, line) = check(text, args);
        assert_eq!(code, 0, "{text}{args:?}: {line}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    let dir = TempDir::new();
    fs::write(dir.join("binary"), [0xff, 0xfe]).unwrap();
    for path in [dir.join("missing"), dir.path().into(), dir.join("binary"), "/dev/zero".into()] {
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(&path);
        let (code, line) = refusal(command);
        assert_eq!(code, 2, "{line}");
        let begin = format!("error: cannot read {}: ", path.display());
        assert!(line.starts_with(&begin), "{line}");
    }
}

#[test]
fn options_are_checked_without_a_disk() {
    let (code, line) = check("size = \"4G\"\nmem-limit = 0\n", &["--socket-path", "/no/vm1.sock"]);
    assert_eq!(code, 0, "{line}");
    assert!(line.starts_with("ok: socket=/no/vm1.sock size=4294967296 algorithm=lz4 "), "{line}");
    assert!(line.ends_with(" name=vm1"), "{line}");
    let (_, limited) = check("size = \"4G\"\nmem-limit = '1G'\nfd = 3\n", &[]);
    let worst = |line: &str| -> u64 {
        let word = line.split(' ').find_map(|word| word.strip_prefix("worst_case="));
        word.unwrap().parse().unwrap()
    };
    assert!(worst(&line) > 4 << 30 && worst(&line) < 9 << 29, "{line}");
    assert!(worst(&limited) > 1 << 30 && worst(&limited) < 9 << 27, "{limited}");
    // Without a file, too; and what is not there is not looked for.
    let dir = TempDir::new();
    let socket = dir.join("socket");
    let mut command = Command::new(BINARY);
    command.args(["--check-config", "--size", "1M", "--load", "/nonexistent", "--socket-path"]);
    let said = output(command.arg(&socket).args(["--state-dir", "/nonexistent", "--create"]));
    assert!(said.status.success() && said.stdout.starts_with(b"ok: "), "{said:?}");
    assert!(!socket.exists() && !Path::new("/nonexistent").exists());
    let mut command = Command::new(BINARY);
    command.args(["--check-config", "--size", "1M"]);
    assert_eq!(refusal(command).0, 2);
}

#[test]
fn the_example_is_a_disk() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/vhost-user-zram.toml.example");
    let text = fs::read_to_string(path).unwrap();
    let (code, line) = check(&text, &[]);
    assert_eq!(code, 0, "{line}");
    assert!(
        line.contains(" size=4294967296 ") && line.contains(" mem_limit=2147483648 "),
        "{line}"
    );
    // So is what it has commented out.
    let setting =
        |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = ");
    let lines = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| setting(rest)).unwrap_or(line));
    let all = lines.collect::<Vec<_>>().join("\n");
    let (code, line) = check(&all, &[]);
    assert_eq!(code, 0, "{line}");
    assert!(line.contains(" algorithm=zstd(level=1) "), "{line}");
}

#[test]
fn the_worst_case_is_said_at_the_start() {
    let daemon = start("size = \"64M\"\nmem-limit = '8M'\n", &[]);
    let line = daemon.wait_for_log("the disk takes at most ");
    assert!(line.contains("arena 6") && line.contains(" --mem-limit 8 MiB"), "{line}");
    daemon.end(Signal::SIGTERM);
    // No host has as much to spare.
    let daemon = start("size = \"16000G\"\n", &[]);
    let line = daemon.wait_for_log("the host can spare ");
    assert!(line.contains("WARN") && line.contains("--mem-limit"), "{line}");
    let daemon = start("size = \"16000G\"\nmem-limit = \"4M\"\nhost-reserve = 0\n", &[]);
    let log = daemon.log();
    assert!(!log.iter().any(|line| line.contains("the host can spare")), "{log:?}");
}

/// Changes the file of a daemon and has it read it again. Returns what it says of that.
fn reread(daemon: &Daemon, text: &str) -> String {
    let before = answers(daemon).len();
    fs::write(daemon.dir.join("disk.toml"), text).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the options are read again", || answers(daemon).len() > before);
    answers(daemon).pop().unwrap()
}

fn answers(daemon: &Daemon) -> Vec<String> {
    let lines = daemon.stderr.all().into_iter();
    lines.filter(|line| line.contains("the options were read again")).collect()
}

#[test]
fn sighup_changes_what_may_change() {
    let base = "size = \"64M\"\n";
    let mut daemon = start(&format!("{base}mem-limit = \"4M\"\n"), &[]);
    let mut client = daemon.client();
    let mut noise = vec![0; 8 << 20];
    Random::new(1).fill(&mut noise);
    let sectors = |chunk: usize| chunk as u64 * 128;
    let written = |client: &mut vhost_user_zram_frontend::Client| {
        let chunks = noise.chunks(64 << 10).enumerate();
        chunks.filter(|(i, chunk)| client.blk().write(sectors(*i), chunk).is_ok()).count()
    };
    assert!(written(&mut client) < 128);
    // The front end that is served does not notice but for that.
    let said = reread(&daemon, &format!("{base}mem-limit = \"32M\"\n"));
    assert!(said.contains("INFO") && said.contains("mem-limit=33554432"), "{said}");
    assert_eq!(daemon.stats()["mem_limit"], 32 << 20);
    assert_eq!(written(&mut client), 128);
    // What the file does not say is the default again.
    reread(&daemon, &format!("{base}host-reserve = \"9000T\"\n"));
    assert_eq!(daemon.stats()["mem_limit"], 0);
    // Each where nothing was yet, so that it needs memory.
    let mut at = 200..1024;
    let mut is_stored =
        || client.blk().write(sectors(at.next().expect("room")), &noise[..64 << 10]).is_ok();
    wait_until("the reserve is kept", || !is_stored());
    reread(&daemon, base);
    wait_until("the reserve is small again", is_stored);
    // Less than it has: what is there stays.
    reread(&daemon, &format!("{base}mem-limit = 4096\n"));
    assert_eq!(client.blk().read_vec(0, 64 << 10).unwrap(), noise[..64 << 10]);
    // A size that is more has the disk grow, and one that is as it was at the start has it stay.
    let said = reread(&daemon, "size = \"80M\"\n");
    assert!(said.contains(" size=83886080 "), "{said}");
    assert_eq!(client.capacity().unwrap(), 80 << 20);
    let said = reread(&daemon, base);
    assert!(said.contains("INFO") && !said.contains(" size="), "{said}");
    assert_eq!(client.capacity().unwrap(), 80 << 20);
    drop(client);

    let said = reread(&daemon, &format!("{base}algorithm = \"deflate(level=9)\"\n"));
    assert!(said.contains(" algorithm=deflate(level=9) "), "{said}");
    let said = reread(&daemon, &format!("{base}read-iops = 7\nwrite-bps = \"1M\"\n"));
    assert!(said.ends_with("rates: read 7/s, write 1048576 B/s"), "{said}");
    daemon.wait_for_log("] rate limits: read 7/s, write 1048576 B/s");
    reread(&daemon, &format!("{base}log-level = \"debug\"\n"));
    daemon.wait_for_log("] rate limits: read unlimited, write unlimited");
    drop(daemon.client());
    daemon.wait_for_log("DEBUG");
    let said = reread(&daemon, &format!("{base}log-level = \"error\"\n"));
    assert!(said.contains(" log-level=error "), "{said}");
    let lines = daemon.stderr.all().len();
    drop(daemon.client());
    daemon.stats();
    assert_eq!(daemon.stderr.all().len(), lines, "{:?}", daemon.stderr.all());
    daemon.end(Signal::SIGTERM);
}

#[test]
fn a_file_with_a_mistake_changes_nothing() {
    let base = "size = \"64M\"\n";
    let good = format!("{base}mem-limit = \"4M\"\nnum-queues = 3\n");
    let mut daemon = start(&good, &["--poll-us", "7", "--host-reserve", "0"]);
    for (text, words) in [
        (
            format!("{base}mem-limit = \"5M\"\nnum-queues = 4\nserial = \"x\"\n"),
            &["num-queues, serial"][..],
        ),
        (format!("{base}mem-limit = \"5M\"\n"), &["num-queues"]),
        (format!("{good}poll-us = 8\nhost-reserve = 5\nmlock = true\n"), &[" mlock ("]),
        (good.replace("64M", "32M") + "mem-limit = \"5M\"\n", &["disk.toml:4: "]),
        (good.replace("64M", "32M").replace("4M", "5M"), &["does not shrink"]),
        (format!("{good}log-level = \"none\"\n"), &["disk.toml:4: ", "--log-level"]),
        (format!("mem-limit = \"5M\"\n{base}\n\n[x]\n"), &["disk.toml:5: `x` is not an option"]),
        ("mem-limit = \"5M\"\n".into(), &["--size <SIZE>"]),
        ("mem-limit = \n".into(), &["disk.toml:1: "]),
    ] {
        let said = reread(&daemon, &text);
        assert!(said.contains("ERROR") && said.contains("nothing changes"), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{text}: {said}");
        assert_eq!(daemon.stats()["mem_limit"], 4 << 20);
    }
    fs::remove_file(daemon.dir.join("disk.toml")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("nothing changes: cannot read ");
    // Nothing of what was refused is left behind, and an option on the command line stays.
    let said =
        reread(&daemon, &format!("{good}mem-limit = \"5M\"\n").replace("mem-limit = \"4M\"\n", ""));
    assert!(said.contains("INFO") && said.contains("host-reserve=0"), "{said}");
    assert_eq!(daemon.stats()["mem_limit"], 5 << 20);
    daemon.end(Signal::SIGTERM);
}

/// Also if the signal was ignored where the daemon was started, and if it comes before the disk is there.
#[test]
fn sighup_is_never_lost() {
    let dir = TempDir::new();
    let path = file(&dir, "size = \"16M\"\n");
    let mut command = Command::new("nohup");
    command.arg(BINARY).arg("--config").arg(path).arg("--socket-path").arg(dir.join("socket"));
    let daemon = Daemon::spawn(command, dir);
    assert!(reread(&daemon, "size = \"16M\"\nmem-limit = 8192\n").contains("mem-limit=8192"));
    daemon.end(Signal::SIGTERM);
}

#[test]
fn the_service_manager_knows_that_options_are_read_again() {
    let manager = Manager::new(0);
    let dir = TempDir::new();
    let path = file(&dir, "size = \"16M\"\n");
    let socket = dir.join("socket");
    let args = ["--config", path.to_str().unwrap(), "--socket-path", socket.to_str().unwrap()];
    let daemon = Daemon::spawn(manager.launch(Vec::new(), args), dir);
    manager.wait_for("READY=1", 1);
    for (times, text) in [(2, "size = \"16M\"\nmem-limit = 4096\n"), (3, "size =")] {
        reread(&daemon, text);
        manager.wait_for("READY=1", times);
        let inner = manager.inner();
        let reloading =
            inner.heard.iter().rposition(|line| line.starts_with("RELOADING=1 MONOTONIC_USEC="));
        let ready = inner.heard.iter().rposition(|line| line == "READY=1");
        assert!(reloading.is_some() && reloading < ready, "{:?}", inner.heard);
    }
    daemon.end(Signal::SIGTERM);
}
