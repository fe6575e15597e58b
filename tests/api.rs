//! The control API: what each request does, and where its socket is.

mod common;

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Command,
};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::{SECTOR_LEN, expect_pattern, pattern, write_pattern},
    http::{Http, Listener, api_of, ask, command, disk, start},
    manager::Manager,
    wait_until,
};
use serde_json::{Value, json};
use vhost_user_zram_frontend::{Blk, Op, Random, Shape, Status};

/// Writes pages that do not compress, from page `first` on, until one fails; gives how many were stored.
fn fill(blk: &mut Blk, first: u64, most: u64) -> u64 {
    for page in 0..most {
        let tag = blk.acquire().expect("a slot");
        let mut bytes = [0; 4096];
        Random::new(first + page + 1).fill(&mut bytes);
        let buffer = blk.buffer(tag);
        blk.region().write(buffer, &bytes).expect("memory");
        blk.submit_shaped(tag, Op::Out, (first + page) * 8, 4096, &Shape::default(), 0)
            .expect("submit");
        blk.publish().expect("publish");
        let done = blk.wait(common::LIMIT).expect("an answer");
        if done.status != Status::Ok {
            return page;
        }
    }
    most
}

#[test]
fn the_disk_is_described_with_units() {
    let mut daemon = start("64M", &["--mem-limit", "32M", "--algorithm", "zstd(level=1)"]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 80, 1);
    let found = disk(&daemon);
    for (pointer, expected) in [
        ("/name", json!("socket")),
        ("/daemon/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/daemon/pid", json!(daemon.pid())),
        ("/daemon/ready", json!(true)),
        ("/daemon/socket", json!(daemon.socket())),
        ("/size_bytes", json!(64 << 20)),
        ("/block_size_bytes", json!(4096)),
        ("/origin", json!("none")),
        ("/algorithm", json!("zstd(level=1)")),
        ("/read_only", json!(false)),
        ("/settings/mem_limit_bytes", json!(32 << 20)),
        ("/session/connected", json!(true)),
        ("/session/front_end_pid", json!(std::process::id())),
        ("/session/begun", json!(1)),
        ("/memory/pages_bytes", json!(10 * 4096)),
        ("/pages/stored", json!(10)),
    ] {
        assert_eq!(found.pointer(pointer), Some(&expected), "{pointer}: {found:#}");
    }
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_u64).expect(pointer);
    let worst = number("/memory/worst_case_bytes");
    assert!((32 << 20..35 << 20).contains(&worst), "{worst}");
    assert!(number("/memory/arena_bytes") + number("/memory/metadata_bytes") <= worst);
    // Counted when a completion is published, which the client may see first.
    wait_until("the time of each write to be counted", || {
        let found = disk(&daemon);
        found["latency"]["write"]["count"] == found["requests"]["writes"]
    });
    let stats = daemon.stats();
    for (pointer, figure) in [
        ("/memory/objects_bytes", "compr_data_size"),
        ("/memory/arena_bytes", "mem_used_total"),
        ("/memory/metadata_bytes", "metadata_bytes"),
        ("/requests/writes", "writes"),
        ("/engine/jobs", "engine_jobs"),
    ] {
        assert_eq!(number(pointer), stats[figure], "{pointer}");
    }
    drop(client);
    wait_until("the session to end", || disk(&daemon)["session"]["connected"] == false);
    assert_eq!(disk(&daemon)["session"]["front_end_pid"], Value::Null);
}

#[test]
fn the_rest_answers_as_described() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    let mut http = Http::connect(&api);
    assert_eq!(http.ask("GET", "/healthz", "").ok(), json!({"status": "ok"}));
    assert_eq!(http.ask("GET", "/readyz", "").ok(), json!({"status": "ok"}));
    let served = http.ask("GET", "/openapi.json", "");
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    assert_eq!(served.text(), fs::read_to_string(committed).expect("docs/openapi.json"));
    // All that is described is there, and nothing else.
    let described = served.json();
    for (path, methods) in described["paths"].as_object().expect("paths") {
        for method in ["get", "put", "post", "patch", "delete"] {
            let known = methods.get(method).is_some();
            if known && path == "/v1/events" {
                continue;
            }
            let path = path.replace("{id}", "999").replace("{name}", "none");
            let answer = Http::connect(&api).ask(&method.to_uppercase(), &path, "");
            if known {
                assert_ne!(answer.status, 405, "{method} {path}");
                let status = answer.status.to_string();
                let listed = described["paths"].as_object().into_iter().flatten().any(|(p, m)| {
                    p.replace("{id}", "999").replace("{name}", "none") == path
                        && m[method]["responses"].get(&status).is_some()
                });
                assert!(listed, "{method} {path}: {status} is not described");
            } else {
                answer.refused(405, "EOPNOTSUPP");
            }
        }
    }
    for path in ["/v1/layers", "/v1/snapshots"] {
        http.ask("GET", path, "").refused(501, "ENOTSUP");
    }
    for path in ["/", "/v1", "/v2/disk", "/v1/disk/", "/v1/%ff", "/v1/jobs/7/x"] {
        http.ask("GET", path, "").refused(404, "ENOENT");
    }
    http.ask("GET", "/v1/jobs/x", "").refused(404, "ENOENT");
    http.ask("GET", "/v1/jobs/%ff", "").refused(400, "EINVAL");
    // The connection was good for all of it.
    http.ask("GET", "/healthz", "").ok();
}

#[test]
fn settings_change_together_or_not_at_all() {
    let daemon = start("16M", &["--mem-limit", "8M", "--host-reserve", "1M"]);
    let api = api_of(&daemon);
    let settings = || disk(&daemon)["settings"].clone();
    let unlimited = json!({"operations_per_second": 0, "bytes_per_second": 0, "burst_ms": 100});
    let rates = json!({"read": unlimited, "write": unlimited});
    let at_start =
        json!({"mem_limit_bytes": 8 << 20, "host_reserve_bytes": 1 << 20, "rates": rates});
    assert_eq!(settings(), at_start);
    let patch = |body: &str| Http::connect(&api).ask("PATCH", "/v1/disk", body);
    for (body, named) in [
        (r#"{"mem_limit_bytes": 4194304, "mem_limit": 1}"#, "mem_limit"),
        (r#"{"mem_limit_bytes": 4194304, "host_reserve_bytes": -1}"#, "-1"),
        (r#"{"mem_limit_bytes": 4194304, "host_reserve_bytes": "1M"}"#, "1M"),
        (r#"{"mem_limit_bytes": 4194304, "host_reserve_bytes": 1.5}"#, "1.5"),
        (r#"{"mem_limit_bytes": 4194304"#, "column"),
        (r#"{"mem_limit_bytes": 4194304, "mem_limit_bytes": 1}"#, "duplicate"),
        (r#"{"mem_limit_bytes": 4194304, "rates": {"read": {"burst_ms": 0}}}"#, "burst_ms"),
        (r#"{"mem_limit_bytes": 4194304, "rates": {"read": {"burst": 1}}}"#, "burst"),
        ("[4194304, 1]", "object"),
        ("4194304", "object"),
        (r#"{"mem_limit_bytes": 4194304, "rates": {"read": [], "write": []}}"#, "object"),
        ("\u{1}", "expected value"),
    ] {
        let error = patch(body).refused(400, "EINVAL");
        assert!(error.contains(named), "{body}: {error}");
        assert_eq!(settings(), at_start, "{body}");
    }
    let mut http = Http::connect(&api);
    http.send("PATCH", "/v1/disk", "");
    http.answer().expect("an answer").refused(415, "EINVAL");
    let body = r#"{"mem_limit_bytes": 4194304}"#;
    let length = body.len();
    let head = "PATCH /v1/disk HTTP/1.1\r\nHost: api\r\nContent-Type: text/plain\r\n";
    http.send_raw(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes());
    http.answer().expect("an answer").refused(415, "EINVAL");
    assert_eq!(settings(), at_start);

    let both = patch(r#"{"mem_limit_bytes": 4194305, "host_reserve_bytes": 0}"#).ok();
    let now = json!({"mem_limit_bytes": 4194304 + 4096, "host_reserve_bytes": 0, "rates": rates});
    assert_eq!((&both["settings"], settings()), (&now, now.clone()));
    // One alone, and none.
    patch(r#"{"mem_limit_bytes": 0, "host_reserve_bytes": null}"#).ok();
    patch("{}").ok();
    patch(r#"{"rates": {"write": {"bytes_per_second": 7}, "read": {"burst_ms": 5}}}"#).ok();
    patch(r#"{"rates": {"write": {"operations_per_second": 9}}}"#).ok();
    let rates = json!({
        "read": {"operations_per_second": 0, "bytes_per_second": 0, "burst_ms": 5},
        "write": {"operations_per_second": 9, "bytes_per_second": 7, "burst_ms": 100},
    });
    let now = json!({"mem_limit_bytes": 0, "host_reserve_bytes": 0, "rates": rates});
    assert_eq!(settings(), now);
    // A reset puts them back.
    assert_eq!(ask(&daemon, "POST", "/v1/disk/reset", "").ok()["settings"], at_start);
}

#[test]
fn limits_that_change_count_at_once_and_are_told_of() {
    let daemon = start("64M", &[]);
    let api = api_of(&daemon);
    let mut listener = Listener::new(&api);
    let mut client = daemon.client();
    listener.wait_for("session_begun");
    assert_eq!(fill(client.blk(), 0, 512), 512);
    let patch = |body: Value| Http::connect(&api).ask("PATCH", "/v1/disk", &body.to_string()).ok();
    // Less than there is: what is stored stays, and no more comes.
    patch(json!({"mem_limit_bytes": 1 << 20}));
    listener.wait_for("settings_changed");
    assert_eq!(listener.wait_for("mem_limit")["near"], true);
    assert!(fill(client.blk(), 1024, 200) < 200);
    assert!(listener.wait_for("writes_refused")["count"].as_u64() >= Some(1));
    let mut first = [0; 4096];
    Random::new(1).fill(&mut first);
    assert_eq!(client.blk().read_vec(0, 4096).expect("read"), first);
    patch(json!({"mem_limit_bytes": 0}));
    assert_eq!(listener.wait_for("mem_limit")["near"], false);
    assert_eq!(fill(client.blk(), 1024, 64), 64);
    patch(json!({"host_reserve_bytes": u64::MAX}));
    assert_eq!(listener.wait_for("host_memory")["short"], true);
    assert!(fill(client.blk(), 2048, 200) < 200);
    patch(json!({"host_reserve_bytes": 0}));
    assert_eq!(listener.wait_for("host_memory")["short"], false);
    assert_eq!(fill(client.blk(), 2048, 64), 64);
    drop(client);
    assert_eq!(listener.wait_for("session_ended")["reason"], "hung_up");
}

#[test]
fn a_compaction_is_a_job() {
    let daemon = start("64M", &[]);
    let api = api_of(&daemon);
    let mut listener = Listener::new(&api);
    let mut client = daemon.client();
    assert_eq!(fill(client.blk(), 0, 512), 512);
    for page in (0..512).step_by(2) {
        let done = client.blk().discard(page * 8, 8);
        done.expect("discard");
    }
    let mut http = Http::connect(&api);
    let job = http.ask("POST", "/v1/disk/compact", "");
    assert_eq!(job.status, 202);
    let id = job.ok()["id"].as_u64().expect("a number");
    let path = format!("/v1/jobs/{id}");
    assert_eq!(listener.wait_for("job_begun")["job"], id);
    let ended = listener.wait_for("job_ended");
    assert_eq!((&ended["job"], &ended["state"]), (&json!(id), &json!("done")));
    let job = http.ask("GET", &path, "").ok();
    let expected = (&json!("compact"), &json!("done"), &json!(100));
    assert_eq!((&job["kind"], &job["state"], &job["progress_percent"]), expected);
    assert!(http.ask("GET", "/v1/jobs", "").ok().as_array().expect("a list").contains(&job));
    assert!(disk(&daemon)["memory"]["arena_bytes"].as_u64() <= Some(257 * 4096));
    // It is over, so it is forgotten.
    assert_eq!(http.ask("DELETE", &path, "").ok()["state"], "done");
    http.ask("GET", &path, "").refused(404, "ENOENT");
    http.ask("DELETE", &path, "").refused(404, "ENOENT");
    http.ask("POST", "/v1/disk/compact", "").ok();
    assert!(!http.ask("DELETE", "/v1/jobs", "").ok().as_array().expect("a list").is_empty());
    wait_until("no job", || {
        http.ask("DELETE", "/v1/jobs", "");
        http.ask("GET", "/v1/jobs", "").ok() == json!([])
    });
}

/// Options are of one daemon: without this one nothing of the API is there.
#[test]
fn without_the_option_there_is_no_api() {
    let daemon = Daemon::start("16M", &[]);
    let is_control = |name: &String| name.starts_with("control");
    assert!(!daemon.threads().iter().any(is_control), "{:?}", daemon.threads());
    let with = start("16M", &[]);
    assert!(with.threads().iter().any(is_control), "{:?}", with.threads());
    assert!(with.open_fds() > daemon.open_fds());
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_daemon() {
    let dir = TempDir::new();
    let api = dir.join("api");
    // A stale one is replaced.
    drop(UnixListener::bind(&api).expect("a stale socket"));
    let mut with_umask = Command::new("sh");
    with_umask.args(["-c", "umask 0; exec \"$@\"", "sh", BINARY, "--size", "1M", "--socket-path"]);
    with_umask.arg(dir.join("socket")).arg("--api-socket").arg(&api);
    let daemon = Daemon::spawn(with_umask, TempDir::new());
    let mode = fs::symlink_metadata(&api).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    Http::connect(&api).ask("GET", "/healthz", "").ok();
    // Another daemon does not take it, and says why.
    let other = TempDir::new();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(other.join("socket")).args(["--size", "1M"]);
    command.arg("--api-socket").arg(&api);
    let (code, line) = refusal(command);
    assert!(code == 1 && line.contains("belongs to a running daemon"), "{code} {line}");
    Http::connect(&api).ask("GET", "/healthz", "").ok();
    let (status, _, _) = daemon.terminate();
    assert!(status.success());
    assert!(!api.exists());
}

#[test]
fn a_path_that_cannot_be_a_socket_is_one_clear_line() {
    let dir = TempDir::new();
    fs::write(dir.join("file"), "x").expect("file");
    for (path, expected) in [
        (dir.join("file"), "is not a socket"),
        (dir.join("none/api"), "does not exist"),
        (dir.join("socket"), "must be different"),
    ] {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "1M"]);
        command.arg("--api-socket").arg(&path);
        let output = common::daemon::output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{}: {said}", path.display());
        assert!(!dir.join("socket").exists());
    }
    assert_eq!(fs::read_to_string(dir.join("file")).expect("file"), "x");
}

#[test]
fn a_socket_that_the_service_manager_passes_on_is_used() {
    let dir = TempDir::new();
    let path = dir.join("api");
    let listener = UnixListener::bind(&path).expect("socket");
    let manager = Manager::new(8);
    let passed = vec![("api".to_owned(), listener.into())];
    let socket = dir.join("socket");
    let args = ["--size", "1M", "--socket-path", socket.to_str().expect("a path")];
    let daemon = Daemon::spawn(manager.launch(passed, args), TempDir::new());
    let found = Http::connect(&path).ask("GET", "/v1/disk", "").ok();
    assert_eq!(found["daemon"]["pid"], daemon.pid());
    let (status, _, _) = daemon.terminate();
    assert!(status.success());
    // It is the manager's.
    assert!(path.exists());
}

/// The daemon answers, and is not ready, while it loads an image.
#[cfg(debug_assertions)]
#[test]
fn a_daemon_that_loads_answers_and_is_not_ready() {
    use common::held::Held;

    let dir = TempDir::new();
    let image = dir.join("image");
    fs::write(&image, pattern(0, 64, 1)).expect("image");
    let mut command = command(&dir, "1M", &["--load"]);
    command.arg(&image);
    let held = Held::start(command, "load.read");
    let mut http = Http::connect(&dir.join("api"));
    http.ask("GET", "/healthz", "").ok();
    http.ask("GET", "/readyz", "").refused(503, "EAGAIN");
    assert_eq!(http.ask("GET", "/v1/disk", "").ok()["daemon"]["ready"], false);
    http.ask("POST", "/v1/disk/reset", "").refused(409, "EBUSY");
    held.release();
    held.wait_for("ready:");
    wait_until("the daemon to be ready", || http.ask("GET", "/readyz", "").status == 200);
}

/// What the API does is seen by a guest, and nothing of it is felt.
#[test]
fn a_guest_is_served_beside_requests() {
    let daemon = start("16M", &[]);
    let api = api_of(&daemon);
    let mut client = daemon.client();
    let mut http = Http::connect(&api);
    for generation in 1..20 {
        write_pattern(client.blk(), 0, 256, generation);
        http.send("GET", "/v1/disk", "");
        http.send("PATCH", "/v1/disk", &format!("{{\"mem_limit_bytes\":{}}}", generation << 24));
        http.stream.flush().expect("flush");
        expect_pattern(client.blk(), 0, 256, generation);
        for _ in 0..2 {
            http.answer().expect("an answer").ok();
        }
    }
    assert_eq!(disk(&daemon)["requests"]["failed_writes"], 0);
    assert_eq!(disk(&daemon)["pages"]["stored"], 256 * SECTOR_LEN / 4096);
    ask(&daemon, "POST", "/v1/disk/reset", "").refused(409, "EBUSY");
    expect_pattern(client.blk(), 0, 256, 19);
}
