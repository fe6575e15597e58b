//! Clients of the control API that mean no good: none of them stalls a guest, another client, or the daemon's end.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use common::{
    LIMIT,
    daemon::Daemon,
    disk::{expect_pattern, write_pattern},
    http::{Http, Listener, api_of, ask, disk, start},
    wait_until,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

/// Most connections that the daemon has at a time.
const MOST: usize = 1000;

/// This process opens as many descriptors as it may.
fn raise_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    assert!(hard >= 4096, "the tests need 4096 open files, and {hard} are allowed");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
}

/// Runs `act` while a guest writes and reads, which has to go on all the time: it does so again after `act`.
fn beside_a_guest(daemon: &Daemon, act: impl FnOnce()) {
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut client = daemon.client();
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            for generation in 1.. {
                write_pattern(client.blk(), 0, 64, generation);
                expect_pattern(client.blk(), 0, 64, generation);
                rounds.store(generation, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let goes_on = |what: &str| {
            let before = rounds.load(Ordering::Relaxed);
            wait_until(what, || {
                assert!(!guest.is_finished(), "the guest failed");
                rounds.load(Ordering::Relaxed) > before + 2
            });
        };
        goes_on("the guest to begin");
        act();
        goes_on("the guest to go on");
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(disk(daemon)["requests"]["failed_writes"], 0);
    assert_eq!(disk(daemon)["requests"]["stalled"], 0);
}

#[test]
fn more_connections_than_there_are_places_keep_no_one_out() {
    raise_open_files();
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    beside_a_guest(&daemon, || {
        // Some say nothing, some begin a request, some begin a body.
        let begun: [&[u8]; 3] = [
            b"",
            b"GET /v1/disk HTTP/1.1\r\nHost: ap",
            b"PATCH /v1/disk HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        ];
        let mut open: Vec<Http> = Vec::new();
        for number in 0..MOST {
            let mut http = Http::connect(&api);
            http.send_raw(begun[number % 3]);
            open.push(http);
        }
        // All have their places; each newcomer gets one at the cost of one that does not get on.
        for _ in 0..50 {
            let mut http = Http::connect(&api);
            http.ask("GET", "/v1/disk", "").ok();
            open.push(http);
        }
        assert!(
            daemon.open_fds() >= MOST && daemon.open_fds() < MOST + 100,
            "{}",
            daemon.open_fds()
        );
        // As many as got on last have kept theirs.
        for http in open.iter_mut().rev().take(50) {
            http.ask("GET", "/healthz", "").ok();
        }
        let mut newcomers: Vec<Http> = (0..MOST).map(|_| Http::connect(&api)).collect();
        for http in &mut newcomers {
            http.send("GET", "/healthz", "");
        }
        for http in newcomers.iter_mut().rev().take(MOST / 2) {
            http.answer().expect("an answer").ok();
        }
        assert!(daemon.open_fds() < MOST + 100, "{}", daemon.open_fds());
    });
    wait_until("all places to be free", || daemon.open_fds() < 100);
}

/// 1,000 clients at the same time, each of which wants an answer and gets it.
#[test]
fn a_thousand_clients_are_answered() {
    raise_open_files();
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    beside_a_guest(&daemon, || {
        let mut open: Vec<Http> = (0..MOST).map(|_| Http::connect(&api)).collect();
        for path in ["/v1/disk", "/v1/jobs", "/healthz"] {
            open.iter_mut().for_each(|http| http.send("GET", path, ""));
            for http in &mut open {
                assert_eq!(http.answer().expect("an answer").status, 200);
            }
        }
    });
}

#[test]
fn listeners_that_do_not_read_lose_events_and_are_told_how_many() {
    const CHANGES: u64 = 3000;
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    let (mut slow, mut dead) = (Listener::new(&api), Listener::new(&api));
    beside_a_guest(&daemon, || {
        let mut http = Http::connect(&api);
        for limit in 0..CHANGES {
            let body = json!({"mem_limit_bytes": (limit + 8192) << 12}).to_string();
            http.ask("PATCH", "/v1/disk", &body).ok();
        }
        // All of them are accounted for: seen, or lost.
        let (mut seen, mut lost) = (0, 0);
        while seen + lost < CHANGES {
            let event = slow.next().expect("the stream goes on");
            match event["kind"].as_str() {
                Some("settings_changed") => seen += 1,
                Some("lost") => lost += event["count"].as_u64().expect("a number"),
                Some("session_begun") => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(seen > 0 && lost > 0, "{seen} seen, {lost} lost");
    });
    slow.wait_for("session_ended");
    // One that reads nothing at all is alive for the others.
    dead.wait_for("settings_changed");
}

#[test]
fn so_many_listen_and_no_more() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    let listeners: Vec<Listener> = (0..64).map(|_| Listener::new(&api)).collect();
    ask(&daemon, "GET", "/v1/events", "").refused(503, "EBUSY");
    ask(&daemon, "GET", "/v1/disk", "").ok();
    drop(listeners);
    wait_until("a place", || {
        let mut http = Http::connect(&api);
        http.send("GET", "/v1/events", "");
        http.head().expect("an answer").status == 200
    });
}

/// Clients that send requests and never read an answer.
#[test]
fn clients_that_do_not_read_their_answers_stall_no_one() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    beside_a_guest(&daemon, || {
        let request = b"GET /openapi.json HTTP/1.1\r\nHost: api\r\n\r\n".repeat(100);
        let full: Vec<UnixStream> = (0..20)
            .map(|_| {
                let mut stream = UnixStream::connect(&api).expect("connect");
                stream.set_nonblocking(true).expect("non-blocking");
                // Until nothing goes any more.
                for _ in 0..1000 {
                    match stream.write(&request) {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                stream
            })
            .collect();
        for _ in 0..50 {
            ask(&daemon, "GET", "/v1/disk", "").ok();
        }
        drop(full);
    });
}

#[test]
fn bodies_and_headers_are_bounded() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    beside_a_guest(&daemon, || {
        let head = "PATCH /v1/disk HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n";
        let large = vec![b' '; 16 << 20];
        // Its length is said, or is not.
        let mut http = Http::connect(&api);
        http.send_raw(format!("{head}Content-Length: {}\r\n\r\n", large.len()).as_bytes());
        http.send_raw(&large);
        http.answer().expect("an answer").refused(413, "EFBIG");
        let mut http = Http::connect(&api);
        let chunk = format!("{:x}\r\n", large.len());
        http.send_raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}").as_bytes());
        http.send_raw(&large);
        http.answer().expect("an answer").refused(413, "EFBIG");
        // With a request that needs none, too.
        let mut http = Http::connect(&api);
        let get =
            format!("GET /v1/disk HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", large.len());
        http.send_raw(get.as_bytes());
        http.send_raw(&large);
        http.answer().expect("an answer").ok();
        // Headers without end, and what is no request at all.
        for (bytes, expected) in [
            (large.as_slice(), 400),
            ([b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'x'; 1 << 20]].concat().as_slice(), 431),
            (
                [b"GET / HTTP/1.1\r\n".as_slice(), &b"x: y\r\n".repeat(1000)].concat().as_slice(),
                431,
            ),
            ([b"GET /".as_slice(), &[b'x'; 1 << 20]].concat().as_slice(), 431),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), 400),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".as_slice(), 400),
        ] {
            let mut http = Http::connect(&api);
            http.send_raw(bytes);
            if let Some(answer) = http.answer() {
                assert_eq!(answer.status, expected, "{:?}", &bytes[..40.min(bytes.len())]);
            }
            assert!(http.is_hung_up());
        }
        ask(&daemon, "GET", "/healthz", "").ok();
    });
    // Nothing of it was kept.
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    let kib: u64 = line.split_whitespace().nth(1).expect("KiB").parse().expect("a number");
    assert!(kib < 16 << 10, "{kib} KiB");
}

#[test]
fn the_daemon_ends_whatever_clients_do() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    let (mut listener, deaf) = (Listener::new(&api), Listener::new(&api));
    let mut idle = Http::connect(&api);
    idle.ask("GET", "/healthz", "").ok();
    let mut silent = Http::connect(&api);
    let mut begun = Http::connect(&api);
    begun.send_raw(b"PATCH /v1/disk HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{");
    let mut full = UnixStream::connect(&api).expect("connect");
    full.set_read_timeout(Some(LIMIT)).expect("limit");
    full.set_nonblocking(true).expect("non-blocking");
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: api\r\n\r\n".repeat(100);
    while full.write(&request).is_ok() {}
    let client = daemon.client();
    let (status, _, said) = daemon.terminate();
    assert!(status.success(), "{status:?} {said:?}");
    assert!(!api.exists());
    drop(client);
    // The stream of events ends in good order, and all the others do somehow.
    while listener.next().is_some() {}
    assert!(deaf.into_http().is_hung_up());
    assert!(idle.is_hung_up() && silent.is_hung_up() && begun.is_hung_up());
    full.set_nonblocking(false).expect("blocking");
    let mut rest = Vec::new();
    // A reset is an end.
    let _ = full.read_to_end(&mut rest);
}
