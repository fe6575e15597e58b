//! What a service manager has with a daemon beside its state: a watchdog on it, and a socket for it.

mod common;

use std::{fs, os::fd::OwnedFd, os::unix::net::UnixListener, process::Command};

use common::{
    daemon::{BINARY, Daemon, TempDir, client_options, refusal},
    disk::{expect_pattern, write_pattern},
    manager::Manager,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::Client;

/// The answer to a watchdog.
const ALIVE: &str = "WATCHDOG=1";
/// The name of the socket for front ends.
const SOCKET: &str = "vhost-user";

/// A daemon on whose process the manager has a watchdog, as systemd tells it: by process number.
fn watched(manager: &Manager, dir: &TempDir, time_us: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh", BINARY, "--size", "16M"]);
    command.arg("--socket-path").arg(dir.join("socket"));
    command.env("NOTIFY_SOCKET", manager.socket()).env("WATCHDOG_USEC", time_us.to_string());
    command
}

/// How many answers the manager has heard, of all that were sent before this call.
fn answers(manager: &Manager, round: usize) -> usize {
    let barrier = format!("ROUND={round}");
    let sender = std::os::unix::net::UnixDatagram::unbound().expect("socket");
    sender.send_to(barrier.as_bytes(), manager.socket()).expect("sent");
    manager.wait_for(&barrier, 1);
    manager.inner().heard.iter().filter(|heard| *heard == ALIVE).count()
}

/// Number of timers of the process while a front end is served: by then all are there.
fn timers(daemon: &Daemon) -> usize {
    let _session = daemon.session();
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("fds");
    let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("timerfd")).count()
}

#[test]
fn a_watchdog_is_answered_by_an_idle_daemon_and_by_one_that_serves() {
    let manager = Manager::new(0);
    let dir = TempDir::new();
    let daemon = Daemon::spawn(watched(&manager, &dir, 20_000), dir);
    manager.wait_for(ALIVE, 3);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 8, 1);
    let before = answers(&manager, 1);
    manager.wait_for(ALIVE, before + 3);
    expect_pattern(client.blk(), 0, 8, 1);
    drop(client);
    let before = answers(&manager, 2);
    manager.wait_for(ALIVE, before + 3);
    daemon.end(Signal::SIGTERM);
    let heard = manager.inner().heard.clone();
    assert_eq!(heard[0], "READY=1");
    assert!(heard.contains(&"STOPPING=1".to_owned()), "{heard:?}");
}

/// On a connection that was passed there is no lobby.
#[test]
fn a_watchdog_is_answered_on_a_connection_that_was_passed() {
    let manager = Manager::new(0);
    let dir = TempDir::new();
    let (ours, its) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds: Vec<(String, OwnedFd)> = vec![("connection".into(), its.into())];
    let mut command = manager.launch(fds, ["--size", "16M", "--fd", "3"]);
    command.env("WATCHDOG_USEC", "20000").env_remove("WATCHDOG_PID");
    let daemon = Daemon::spawn(command, dir);
    manager.wait_for(ALIVE, 3);
    drop(ours);
    let (status, _, stderr) = daemon.wait();
    assert!(status.success(), "{stderr:?}");
}

#[test]
fn without_a_watchdog_there_is_no_timer() {
    let manager = Manager::new(0);
    let start = |set: &[(&str, &str)]| {
        let dir = TempDir::new();
        let mut command = watched(&manager, &dir, 20_000);
        for (name, value) in set {
            command.env(name, value);
        }
        if set.is_empty() {
            command.env_remove("WATCHDOG_USEC");
        }
        Daemon::spawn(command, dir)
    };
    let none = timers(&start(&[]));
    for time in ["0", "", "soon", "-1"] {
        assert_eq!(timers(&start(&[("WATCHDOG_USEC", time)])), none, "{time:?}");
    }
    // The watchdog of another process, such as a shell that started the daemon.
    let dir = TempDir::new();
    let mut command = Command::new(BINARY);
    command.args(["--size", "16M", "--socket-path"]).arg(dir.join("socket"));
    command.env("NOTIFY_SOCKET", manager.socket());
    command.env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1");
    assert_eq!(timers(&Daemon::spawn(command, dir)), none);
    // What is counted is what there would be.
    assert_eq!(timers(&start(&[("WATCHDOG_USEC", "20000")])), none + 1);
}

/// The thread that serves messages is the one that answers: a daemon whose messages lead nowhere is
/// ended, although its other threads live.
#[cfg(debug_assertions)]
#[test]
fn a_daemon_whose_main_thread_hangs_answers_no_watchdog() {
    let manager = Manager::new(0);
    let dir = TempDir::new();
    let file = dir.join("held");
    let mut command = watched(&manager, &dir, 20_000);
    command.env("VUZ_HOLD_AT", "session.message").env("VUZ_HOLD_FILE", &file);
    let daemon = Daemon::spawn(command, dir);
    manager.wait_for(ALIVE, 1);
    let socket = daemon.socket();
    let client = std::thread::spawn(move || {
        let mut client = Client::connect(socket, &client_options()).unwrap();
        write_pattern(client.blk(), 0, 8, 1);
    });
    common::wait_until("the message is held", || file.exists());
    let before = answers(&manager, 1);
    // Dozens of them would come meanwhile.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(answers(&manager, 2), before);
    fs::remove_file(&file).unwrap();
    manager.wait_for(ALIVE, before + 3);
    client.join().unwrap();
    daemon.end(Signal::SIGTERM);
}

#[test]
fn a_socket_that_is_passed_takes_the_place_of_one_that_is_made() {
    let manager = Manager::new(3);
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.join("passed")).unwrap();
    let start = |round: u64| {
        let mut fds: Vec<(String, OwnedFd)> = manager.held();
        // systemd passes sockets first; its names tell them from what it stores.
        fds.insert(0, (SOCKET.into(), listener.try_clone().unwrap().into()));
        fds.insert(0, ("other".into(), listener.try_clone().unwrap().into()));
        let its = TempDir::new();
        let daemon = Daemon::spawn(manager.command(&its, fds, &["--create"]), its);
        assert!(!daemon.socket().exists());
        let ready = daemon.stdout.wait_for("ready:", 0, common::LIMIT).unwrap();
        assert!(ready.contains("socket=fd:4 "), "{ready}");
        assert_eq!(daemon.origin(), if round == 0 { "new" } else { "opened" });
        daemon
    };
    for round in 0..3 {
        // The socket outlives the daemon: a front end may come before the next one is there.
        let connecting = dir.join("passed");
        let client =
            std::thread::spawn(move || Client::connect(connecting, &client_options()).unwrap());
        let daemon = start(round);
        let mut client = client.join().unwrap();
        if round > 0 {
            expect_pattern(client.blk(), 0, 8, round - 1);
        }
        write_pattern(client.blk(), 0, 8, round);
        drop(client);
        daemon.end(if round == 1 { Signal::SIGTERM } else { Signal::SIGKILL });
        assert!(dir.join("passed").exists());
    }
}

#[test]
fn sockets_that_cannot_be_a_disks_are_refused() {
    let manager = Manager::new(3);
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.join("passed")).unwrap();
    let passed = || (SOCKET.to_owned(), OwnedFd::from(listener.try_clone().unwrap()));
    let its = TempDir::new();
    let (code, line) = refusal(manager.command(&its, vec![passed(), passed()], &["--create"]));
    assert_eq!(code, 1);
    assert!(line.contains("2 sockets of the name vhost-user"), "{line}");
    let file = fs::File::create(dir.join("file")).unwrap();
    let (code, line) =
        refusal(manager.command(&its, vec![(SOCKET.into(), file.into())], &["--create"]));
    assert_eq!(code, 1);
    assert!(line.contains("descriptor 3") && line.contains("not a socket"), "{line}");
    assert!(manager.names().is_empty());
}
