//! The command line as a user meets it: mistakes are one clear line, and the conventions of vhost-user
//! back ends hold.

mod common;

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Output, Stdio},
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, output},
    disk::{SECTOR_LEN, expect_pattern, expect_same, expect_zeroes, pattern, write_pattern},
    wait_until,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
};
use vhost_user_zram_frontend::{Client, spec::SECTOR};

/// Runs the daemon to its end.
fn run(args: &[&str]) -> Output {
    output(Command::new(BINARY).args(args))
}

/// Insists on a non-zero exit and a single line that holds one of `words`.
fn mistake(args: &[&str], words: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0), "{args:?}: {:?}\n{stderr}", output.status);
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}:\n{stderr}");
    assert!(words.iter().any(|word| stderr.contains(word)), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of plain letters")
}

#[test]
fn every_mistake_is_one_line_and_a_failure() {
    let dir = TempDir::new();
    let socket = dir.join("socket");
    let socket = text(&socket);
    let with = |more: &[&'static str]| [&["--socket-path", socket], more].concat();
    mistake(&with(&["--size", "0"]), &["size", "0"]);
    mistake(&with(&["--size", "lots"]), &["size", "lots"]);
    mistake(&with(&["--size", "-5"]), &["size", "-5"]);
    mistake(&with(&["--size", "999999999T"]), &["size", "999999999T"]);
    for bytes in ["0", "511", "1024", "8192", "4K"] {
        mistake(&with(&["--size", "16M", "--block-size", bytes]), &["block-size", bytes, "4096"]);
    }
    mistake(&with(&["--size", "16M", "--algorithm", "lz5"]), &["lz5"]);
    mistake(&with(&["--size", "16M", "--algorithm", "zstd(level=99)"]), &["level", "99"]);
    mistake(&with(&["--size", "16M", "--algorithm", "zstd(level=x)"]), &["level", "x"]);
    mistake(&with(&["--size", "16M", "--algorithm", "zstd(depth=3)"]), &["depth"]);
    mistake(&with(&["--size", "16M", "--algorithm", "zstd(level=3"]), &["zstd(level=3"]);
    mistake(&with(&["--size", "16M", "--num-queues", "0"]), &["queues", "0"]);
    mistake(&with(&["--size", "16M", "--num-queues", "100000"]), &["queues", "100000"]);
    mistake(&with(&["--size", "16M", "--queue-size", "100"]), &["queue-size", "100"]);
    mistake(&with(&["--size", "16M", "--queue-size", "0"]), &["queue-size", "0"]);
    mistake(&with(&["--size", "16M", "--queue-size", "65536"]), &["queue-size", "65536"]);
    mistake(
        &with(&["--size", "16M", "--serial", "a serial that is longer than 20 bytes"]),
        &["serial", "20"],
    );
    mistake(&with(&["--size", "16M", "--load", "/nonexistent/image"]), &["/nonexistent/image"]);
    mistake(&with(&["--size", "16M", "--load", "/"]), &["/"]);
    mistake(&with(&["--size", "16M", "--fd", "3"]), &["--fd"]);
    let create = "--create requires --state-dir or --fd-store";
    mistake(&with(&["--size", "16M", "--create"]), &[create]);
    mistake(&with(&["--size", "16M", "--no-such-option"]), &["no-such-option"]);
    mistake(&["--size", "16M"], &["--socket-path"]);
    mistake(&with(&[]), &["--size"]);
    let missing = dir.join("missing/socket");
    mistake(&["--socket-path", text(&missing), "--size", "16M"], &["missing"]);
    let long = dir.join(&"x".repeat(200));
    mistake(&["--socket-path", text(&long), "--size", "16M"], &["long", "path"]);
    let inside = dir.path();
    mistake(&["--socket-path", text(inside), "--size", "16M"], &[text(inside)]);
    assert!(!Path::new(socket).exists());
}

#[test]
fn an_image_larger_than_the_disk_is_refused() {
    let dir = TempDir::new();
    let image = dir.join("image");
    fs::write(&image, vec![1; (1 << 20) + 1]).unwrap();
    let socket = dir.join("socket");
    let args = ["--socket-path", text(&socket), "--size", "1M", "--load", text(&image)];
    mistake(&args, &["image"]);
}

#[test]
fn descriptors_that_are_no_sockets_are_refused() {
    mistake(&["--fd", "0", "--size", "16M"], &["0", "socket"]);
    mistake(&["--fd", "999", "--size", "16M"], &["999"]);
    mistake(&["--fd", "-1", "--size", "16M"], &["-1"]);
}

#[test]
fn the_socket_of_a_live_daemon_is_left_alone() {
    let daemon = Daemon::start("16M", &[]);
    let socket = daemon.socket();
    mistake(&["--socket-path", text(&socket), "--size", "16M"], &[text(&socket)]);
    // Also while it serves a front end.
    let mut client = daemon.client();
    mistake(&["--socket-path", text(&socket), "--size", "16M"], &[text(&socket)]);
    write_pattern(client.blk(), 0, 8, 1);
    drop(client);
    expect_pattern(daemon.client().blk(), 0, 8, 1);
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let daemon = Daemon::start("16M", &[]);
    let dir = TempDir::new();
    let socket = dir.join("socket");
    fs::rename(daemon.socket(), &socket).unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(socket.exists());
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(&socket).args(["--size", "16M"]);
    let daemon = Daemon::spawn(command, dir);
    write_pattern(daemon.client().blk(), 0, 8, 1);
    let file = daemon.dir.join("file");
    fs::write(&file, "precious").unwrap();
    mistake(&["--socket-path", text(&file), "--size", "16M"], &[text(&file)]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn capabilities_are_printed_as_json_whatever_else_is_said() {
    for more in [&[][..], &["--size", "0"], &["--socket-path", "/nonexistent/socket"]] {
        let output = run(&[&["--print-capabilities"], more].concat());
        assert!(output.status.success(), "{more:?}: {output:?}");
        let json = String::from_utf8(output.stdout).unwrap();
        let dense: String = json.split_whitespace().collect();
        assert!(dense.starts_with('{') && dense.ends_with('}'), "{json}");
        assert!(dense.contains("\"type\":\"block\""), "{json}");
        assert!(dense.contains("\"features\":[") && dense.contains("\"read-only\""), "{json}");
    }
}

#[test]
fn help_and_version_succeed() {
    for flag in ["--help", "--version"] {
        let output = run(&[flag]);
        assert!(output.status.success() && !output.stdout.is_empty());
    }
}

/// Of each line of the log and each thread it can be told whose it is.
#[test]
fn a_disk_has_a_name() {
    for name in ["/", "a b", "", "-x"] {
        let name = format!("--name={name}");
        mistake(&["--socket-path", "s", "--size", "16M", &name], &["--name", "letters"]);
    }
    for (more, name) in [(&["--name", "vm-1.x"][..], "vm-1.x"), (&[], "socket")] {
        let daemon = Daemon::start("16M", more);
        let ready = daemon.stdout.wait_for("ready:", 0, LIMIT).unwrap();
        assert!(ready.ends_with(&format!(" name={name}")), "{ready}");
        write_pattern(daemon.client().blk(), 0, 8, 1);
        let _client = daemon.client();
        for role in ["queue-0", "upkeep", "signals", "requests", "watchdog", "engine-0"] {
            // As much as the kernel shows.
            let full = format!("{role} {name}");
            let shown = &full[..full.len().min(15)];
            wait_until(&full, || daemon.threads().iter().any(|thread| thread == shown));
        }
        daemon.wait_for_log("connects");
        let log = daemon.log();
        let named = format!(" {name}] ");
        assert!(log.iter().all(|line| line.contains(&named)), "{log:?}");
    }
}

#[test]
fn signals_end_the_daemon_with_a_summary() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for connected in [false, true] {
            let daemon = Daemon::start("16M", &[]);
            let mut client = connected.then(|| daemon.client());
            if let Some(client) = &mut client {
                write_pattern(client.blk(), 0, 800, 1);
            }
            let socket = daemon.socket();
            daemon.signal(signal);
            let (status, stdout, stderr) = daemon.wait();
            assert_eq!(status.code(), Some(0), "{signal:?} {stdout:?} {stderr:?}");
            let summary = stdout.iter().filter(|line| line.starts_with("summary: ")).count();
            assert_eq!(summary, 1, "{stdout:?}");
            assert!(!socket.exists(), "the socket is left behind");
        }
    }
}

#[test]
fn an_image_is_loaded_before_the_daemon_is_ready() {
    let dir = TempDir::new();
    let image = dir.join("image");
    let data = pattern(0, 2000, 9);
    // Not a whole number of pages, nor of sectors.
    fs::write(&image, &data[..data.len() - 100]).unwrap();
    let daemon = Daemon::start("4M", &["--load", text(&image)]);
    let mut client = daemon.client();
    let got = client.blk().read_vec(0, data.len()).unwrap();
    let mut expected = data.clone();
    let len = expected.len();
    expected[len - 100..].fill(0);
    expect_same(0, &got, &expected);
    expect_zeroes(client.blk(), 2000, 4 * 2048 - 2000);
}

#[test]
fn a_read_only_disk_shows_its_image() {
    let dir = TempDir::new();
    let image = dir.join("image");
    fs::write(&image, pattern(0, 64, 2)).unwrap();
    let daemon = Daemon::start("1M", &["--read-only", "--load", text(&image)]);
    expect_pattern(daemon.client().blk(), 0, 64, 2);
}

/// Starts a daemon on an inherited descriptor.
fn on_fd(fd: OwnedFd, dir: TempDir) -> Daemon {
    // Inheritance is what this is about; the standard library closes on exec.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["--fd", &fd.as_raw_fd().to_string(), "--size", "16M"]);
    Daemon::spawn(command, dir)
}

#[test]
fn an_inherited_listening_socket_serves_one_client_after_the_other() {
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    let daemon = on_fd(OwnedFd::from(listener), dir);
    for generation in 1..4 {
        let mut client = daemon.client();
        if generation > 1 {
            expect_pattern(client.blk(), 0, 80, generation - 1);
        }
        write_pattern(client.blk(), 0, 80, generation);
    }
    let (status, ..) = daemon.terminate();
    assert!(status.success());
}

#[test]
fn an_inherited_connected_socket_is_served_to_its_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = on_fd(OwnedFd::from(theirs), TempDir::new());
    let mut client = Client::from_stream(ours, &client_options()).unwrap();
    write_pattern(client.blk(), 0, 80, 1);
    expect_pattern(client.blk(), 0, 80, 1);
    drop(client);
    // Nothing can come after it.
    let (status, stdout, stderr) = daemon.wait();
    assert!(status.success(), "{stdout:?} {stderr:?}");
}

#[test]
fn a_memory_limit_fails_writes_and_nothing_else() {
    let daemon = Daemon::start("64M", &["--mem-limit", "4M"]);
    let mut client = daemon.client();
    let mut random = vhost_user_zram_frontend::Random::new(3);
    let mut chunk = vec![0; 64 << 10];
    let mut written = Vec::new();
    let mut failed = 0;
    for i in 0..(64 << 20) / chunk.len() as u64 {
        random.fill(&mut chunk);
        let sector = i * (chunk.len() as u64 / SECTOR);
        match client.blk().write(sector, &chunk) {
            Ok(()) => written.push((sector, chunk.clone())),
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 0 && !written.is_empty(), "{failed} failed, {} written", written.len());
    for (sector, data) in &written {
        let got = client.blk().read_vec(*sector, data.len()).unwrap();
        expect_same(*sector, &got, data);
    }
    // What is freed can be written again.
    for (sector, data) in &written {
        client.blk().discard(*sector, (data.len() / SECTOR_LEN) as u32).unwrap();
    }
    client.blk().write(0, &chunk).unwrap();
}

#[test]
fn the_daemon_stays_in_the_foreground_and_reads_no_input() {
    let dir = TempDir::new();
    let mut child = Command::new(BINARY)
        .arg("--socket-path")
        .arg(dir.join("socket"))
        .args(["--size", "1M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"quit\n").unwrap();
    drop(stdin);
    vhost_user_zram_frontend::session::connect_socket(dir.join("socket"), LIMIT).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}
