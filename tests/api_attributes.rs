//! zram's attributes and Prometheus' metrics, as a client of the control API gets them.

mod common;

use std::collections::BTreeMap;

use common::{
    daemon::Daemon,
    disk::{expect_pattern, write_pattern},
    http::{Answer, Http, api_of, ask, start},
    prometheus::{Family, Sample, parse},
    wait_until,
};

fn attribute(name: &str) -> String {
    format!("/v1/attributes/{name}")
}

fn read(daemon: &Daemon, name: &str) -> String {
    let answer = ask(daemon, "GET", &attribute(name), "");
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{name}");
    answer.text().to_owned()
}

fn write(daemon: &Daemon, name: &str, text: &str) -> Answer {
    ask(daemon, "PUT", &attribute(name), text)
}

fn written(daemon: &Daemon, name: &str, text: &str) {
    let answer = write(daemon, name, text);
    assert_eq!((answer.status, answer.text()), (204, ""), "{name}");
}

fn column(daemon: &Daemon, name: &str, column: usize) -> u64 {
    let text = read(daemon, name);
    let word = text.split_whitespace().nth(column);
    word.unwrap_or_else(|| panic!("{name}: {text}")).parse().expect("a number")
}

#[test]
fn each_attribute_answers_as_its_mode_says() {
    let daemon = start("64M", &[]);
    let listed = ask(&daemon, "GET", "/v1/attributes", "").ok();
    let listed = listed.as_array().expect("a list");
    assert!(listed.len() > 20, "{} attributes", listed.len());
    for listed in listed {
        let name = listed["name"].as_str().expect("a name");
        let (readable, writable) = match listed["mode"].as_str().expect("a mode") {
            "0444" => (true, false),
            "0200" => (false, true),
            "0644" => (true, true),
            mode => panic!("{name} has mode {mode}"),
        };
        let got = ask(&daemon, "GET", &attribute(name), "");
        // Nothing takes this text but what takes any.
        let put = write(&daemon, name, "no text for any");
        if listed["supported"] == false {
            got.refused(501, "ENOTSUP");
            put.refused(501, "ENOTSUP");
            continue;
        }
        if readable {
            assert_eq!(got.status, 200, "{name}");
        } else {
            got.refused(403, "EACCES");
        }
        match (writable, name) {
            (false, _) => drop(put.refused(403, "EACCES")),
            (true, "compact") => assert_eq!(put.status, 204),
            (true, _) => drop(put.refused(400, "EINVAL")),
        }
    }
    ask(&daemon, "GET", "/v1/attributes/disk_size", "").refused(404, "ENOENT");
    write(&daemon, "..%2f..%2fdisk", "1").refused(404, "ENOENT");
    ask(&daemon, "DELETE", "/v1/attributes/mm_stat", "").refused(405, "EOPNOTSUPP");
}

#[test]
fn attributes_say_what_the_disk_is_and_change_what_can_be_changed() {
    let mut daemon = start("16777215", &["--algorithm", "zstd(level=1)"]);
    let mut client = daemon.client();
    assert_eq!(read(&daemon, "disksize"), "16777216\n");
    assert_eq!(read(&daemon, "initstate"), "1\n");
    assert_eq!(read(&daemon, "comp_algorithm"), "lz4 lz4-flex lz4hc [zstd] deflate lzo \n");
    assert_eq!(read(&daemon, "mm_stat"), ["       0"; 9].join(" ") + "\n");
    write_pattern(client.blk(), 0, 800, 1);
    let stats = daemon.stats();
    for (at, name) in [
        "orig_data_size",
        "compr_data_size",
        "mem_used_total",
        "mem_limit",
        "mem_used_max",
        "same_pages",
        "pages_compacted",
        "huge_pages",
        "huge_pages_since",
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(column(&daemon, "mm_stat", at), stats[name], "{name}");
    }
    assert!(stats["orig_data_size"] == 100 * 4096, "{stats:?}");

    written(&daemon, "mem_limit", "8M\n");
    assert_eq!(column(&daemon, "mm_stat", 3), 8 << 20);
    assert_eq!(ask(&daemon, "GET", "/v1/disk", "").ok()["settings"]["mem_limit_bytes"], 8 << 20);
    write(&daemon, "mem_limit", "16E").refused(400, "ERANGE");
    assert_eq!(column(&daemon, "mm_stat", 3), 8 << 20);
    write(&daemon, "comp_algorithm", &"x".repeat(128)).refused(400, "E2BIG");
    let why = write(&daemon, "disksize", "1G").refused(409, "EBUSY");
    assert!(why.contains("PATCH /v1/disk"), "{why}");

    // What was freed comes back, and then the most that there was can be forgotten.
    client.blk().discard(0, 800).expect("discard");
    written(&daemon, "compact", "1");
    wait_until("memory comes back", || column(&daemon, "mm_stat", 2) == 0);
    assert!(column(&daemon, "mm_stat", 4) > 0);
    assert_eq!(column(&daemon, "io_stat", 3), 100);
    written(&daemon, "mem_used_max", "0");
    assert_eq!(column(&daemon, "mm_stat", 4), 0);
}

/// The kernel refuses it once there is a size. Here each page is read by the codec that made it.
#[test]
fn the_algorithm_of_new_pages_changes_while_a_guest_runs() {
    let daemon = start("64M", &["--algorithm", "lz4(acceleration=2)"]);
    let mut client = daemon.client();
    let now = |daemon: &Daemon| ask(daemon, "GET", "/v1/disk", "").ok()["algorithm"].clone();
    let changes = [
        ("comp_algorithm", "zstd\n", "zstd"),
        ("algorithm_params", "level=9 algo=zstd\n", "zstd(level=9)"),
        ("algorithm_params", "priority=0\n", "zstd"),
        ("comp_algorithm", "deflate", "deflate"),
        ("algorithm_params", "deflate.winbits=15 level=1", "deflate(level=1,winbits=15)"),
        ("comp_algorithm", "lz4hc", "lz4hc"),
        ("comp_algorithm", "lzo", "lzo"),
    ];
    for (round, (name, text, then)) in (0_u64..).zip(changes) {
        write_pattern(client.blk(), round * 800, 800, round);
        written(&daemon, name, text);
        assert_eq!(now(&daemon), then);
        for earlier in 0..=round {
            expect_pattern(client.blk(), earlier * 800, 800, earlier);
        }
    }
    let patch = |body| ask(&daemon, "PATCH", "/v1/disk", body);
    assert_eq!(patch(r#"{"algorithm": "zstd(level=-3)"}"#).ok()["algorithm"], "zstd(level=-3)");
    let why = patch(r#"{"algorithm": "zstd(level=99)"}"#).refused(400, "EINVAL");
    assert!(why.contains("-131072 to 22"), "{why}");
    let why = write(&daemon, "comp_algorithm", "842\n").refused(400, "EINVAL");
    assert!(why.contains("coprocessor"), "{why}");
    write(&daemon, "algorithm_params", "level=23").refused(400, "EINVAL");
    assert_eq!(now(&daemon), "zstd(level=-3)");
    assert_eq!(read(&daemon, "comp_algorithm"), "lz4 lz4-flex lz4hc [zstd] deflate lzo \n");
    drop(client);
    wait_until("the session ends", || write(&daemon, "reset", "1\n").status == 204);
    assert_eq!(now(&daemon), "lz4(acceleration=2)", "the settings are those of the start");
}

#[test]
fn a_reset_by_attribute_is_that_of_the_disk() {
    let mut daemon = start("64M", &["--mem-limit", "32M"]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 80, 1);
    written(&daemon, "mem_limit", "0");
    let why = write(&daemon, "reset", "1\n").refused(409, "EBUSY");
    assert!(why.contains("front end"), "{why}");
    expect_pattern(client.blk(), 0, 80, 1);
    drop(client);
    wait_until("the session ends", || write(&daemon, "reset", "1\n").status == 204);
    assert_eq!(column(&daemon, "mm_stat", 0), 0);
    assert_eq!(column(&daemon, "mm_stat", 3), 32 << 20);
    assert_eq!(daemon.stats()["writes"], 0);
}

/// A line a page, in chunks that are made while they are read.
#[test]
fn block_state_is_streamed_and_a_reader_that_stops_holds_up_no_one() {
    const PAGES: u64 = 20_000;
    let daemon = start("128M", &[]);
    let mut client = daemon.client();
    // 7 at each byte: same-filled.
    for page in (0..PAGES).step_by(64) {
        let bytes = vec![7; 64.min(PAGES - page) as usize * 4096];
        client.blk().write(page * 8, &bytes).expect("write");
    }
    let mut slow = Http::connect(&api_of(&daemon));
    slow.send("GET", &attribute("block_state"), "");
    assert_eq!(slow.head().expect("an answer").status, 200);
    let first = slow.chunk().expect("a chunk");
    assert!(first.len() <= 64 << 10, "a chunk of {} bytes", first.len());
    // Nothing more is read for now.
    assert_eq!(column(&daemon, "mm_stat", 5), PAGES);
    write_pattern(client.blk(), 0, 8, 1);
    let all = read(&daemon, "block_state");
    assert_eq!(all.lines().count() as u64, PAGES);
    let mut lines = all.lines().enumerate();
    assert_eq!(lines.next(), Some((0, "           0            0.000000 ......")));
    for (page, line) in lines {
        assert_eq!(line, format!("{page:12}            0.000000 s....."));
    }
    let rest: usize = std::iter::from_fn(|| slow.chunk()).map(|chunk| chunk.len()).sum();
    // The slow one began before the first page was changed, whose line is as long.
    assert_eq!(first.len() + rest, all.len());
}

fn scrape(daemon: &Daemon) -> BTreeMap<String, Family> {
    let answer = ask(daemon, "GET", "/metrics", "");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    parse(answer.text()).unwrap_or_else(|error| panic!("{error}\n{}", answer.text()))
}

/// The value of the one series of this name that has the label, and the disk's name.
fn value(families: &BTreeMap<String, Family>, name: &str, sample: &str, label: &str) -> f64 {
    let (key, value) = label.split_once('=').expect("a label");
    let all = families[name].samples.iter().filter(|found| found.name == sample);
    let has = |found: &Sample, key: &str, value: &str| {
        found.labels.get(key).is_some_and(|found| found == value)
    };
    let mut found = all.filter(|found| has(found, key, value) && has(found, "disk", "vm7"));
    let first = found.next().unwrap_or_else(|| panic!("no {sample} {label}"));
    assert!(found.next().is_none(), "{sample} {label} twice");
    first.value
}

#[test]
fn metrics_are_those_of_the_disk() {
    let daemon = start("64M", &["--name", "vm7"]);
    let families = scrape(&daemon);
    let one =
        |families: &BTreeMap<String, Family>, name: &str| value(families, name, name, "disk=vm7");
    assert_eq!(one(&families, "vhost_user_zram_connected_sessions"), 0.0);
    assert_eq!(one(&families, "vhost_user_zram_size_bytes"), f64::from(64 << 20));
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 80, 1);
    let families = scrape(&daemon);
    let writes = one(&families, "vhost_user_zram_write_requests_total");
    assert!(writes > 0.0);
    assert_eq!(one(&families, "vhost_user_zram_connected_sessions"), 1.0);
    assert_eq!(one(&families, "vhost_user_zram_begun_sessions_total"), 1.0);
    assert_eq!(one(&families, "vhost_user_zram_orig_data_bytes"), 40_960.0);
    let memory = "vhost_user_zram_memory_bytes";
    assert!(value(&families, memory, memory, "kind=table") >= 4096.0);
    // Latencies are counted since there is an API.
    let latency = "vhost_user_zram_request_latency_seconds";
    let count = format!("{latency}_count");
    assert_eq!(value(&families, latency, &count, "operation=write"), writes);
    assert_eq!(value(&families, latency, &count, "operation=read"), 0.0);
    assert!(value(&families, latency, &format!("{latency}_sum"), "operation=write") > 0.0);
}
