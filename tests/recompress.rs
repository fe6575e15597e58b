//! Recompression and idle marks of a real daemon, beside a guest that checks what it reads.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    daemon::Daemon,
    disk::{expect_pattern, write_pattern},
    http::{Answer, Http, api_of, ask, disk, start},
    wait_until,
};
use vhost_user_zram_frontend::Random;

fn put(daemon: &Daemon, name: &str, text: &str) -> Answer {
    ask(daemon, "PUT", &format!("/v1/attributes/{name}"), text)
}

fn done(daemon: &Daemon, name: &str, text: &str) {
    let answer = put(daemon, name, text);
    assert_eq!((answer.status, answer.text()), (204, ""), "{name}: {text}");
}

/// Flags of the first pages.
fn flags(daemon: &Daemon) -> Vec<String> {
    let text = ask(daemon, "GET", "/v1/attributes/block_state", "").text().to_owned();
    text.lines().map(|line| line.split_whitespace().nth(2).expect("flags").to_owned()).collect()
}

#[test]
fn attributes_recompress_as_the_kernels_do() {
    let daemon = start("64M", &[]);
    let mut client = daemon.client();
    put(&daemon, "recompress", "type=idle").refused(400, "EINVAL");
    let text = |name: &str| ask(&daemon, "GET", &format!("/v1/attributes/{name}"), "").body;
    assert_eq!(text("recomp_algorithm"), b"");
    done(&daemon, "recomp_algorithm", "algo=zstd priority=1\n");
    done(&daemon, "algorithm_params", "algo=zstd priority=1 level=19\n");
    assert_eq!(text("recomp_algorithm"), b"#1: lz4 lz4-flex lz4hc [zstd] deflate lzo \n");
    put(&daemon, "recompress", "algo=deflate").refused(400, "EINVAL");
    put(&daemon, "recompress", "type=old").refused(400, "EINVAL");
    put(&daemon, "idle", "60").refused(400, "EINVAL");

    // Letters, of which zstd makes less; the last page is noise.
    let mut bytes = vec![0; 4 * 4096];
    Random::new(1).fill(&mut bytes);
    bytes[..3 * 4096].iter_mut().for_each(|byte| *byte = b'a' + (*byte & 7));
    client.blk().write(0, &bytes).expect("write");
    done(&daemon, "idle", "all\n");
    assert_eq!(flags(&daemon), ["...i..", "...i..", "...i..", "..hi.."]);
    client.blk().read_vec(8, 512).expect("read");
    assert_eq!(flags(&daemon)[1], "......");
    done(&daemon, "recompress", "type=idle max_pages=1\n");
    done(&daemon, "recompress", "type=idle");
    assert_eq!(flags(&daemon), ["....r.", "......", "....r.", "..h..n"]);
    done(&daemon, "recompress", "");
    assert_eq!(flags(&daemon), ["....r.", "....r.", "....r.", "..h..n"]);
    assert_eq!(client.blk().read_vec(0, bytes.len()).expect("read"), bytes);

    let pages = disk(&daemon)["pages"].clone();
    assert_eq!((&pages["recompressed"], &pages["recompression_tried"]), (&3.into(), &4.into()));
    assert!(pages["recompression_saved_bytes"].as_u64() > Some(3 * 100), "{pages}");
    let jobs = ask(&daemon, "GET", "/v1/jobs", "").ok();
    let last = jobs.as_array().and_then(|jobs| jobs.last()).expect("a job");
    assert_eq!((&last["kind"], &last["state"]), (&"recompress".into(), &"done".into()));
    assert_eq!((&last["done"]["tried_pages"], &last["progress_percent"]), (&1.into(), &100.into()));
    let metrics = ask(&daemon, "GET", "/metrics", "").text().to_owned();
    assert!(metrics.contains("vhost_user_zram_recompressed_pages_total{disk="), "{metrics}");
    drop(client);
    wait_until("the session ends", || put(&daemon, "reset", "1").status == 204);
    assert_eq!(text("recomp_algorithm"), b"");
}

/// By real time: what is seconds old is marked by that age, and by no other.
#[test]
fn a_daemon_that_keeps_access_times_marks_pages_by_their_age() {
    let daemon = start("16M", &["--access-times"]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 16, 1);
    let times = || {
        let text = ask(&daemon, "GET", "/v1/attributes/block_state", "").text().to_owned();
        let time = |line: &str| line.split_whitespace().nth(1).expect("a time").to_owned();
        text.lines().map(time).collect::<Vec<_>>()
    };
    assert!(times().iter().all(|time| time != "0.000000"), "{:?}", times());
    done(&daemon, "idle", "all");
    done(&daemon, "idle", "7200");
    assert_eq!(flags(&daemon), ["......", "......"], "nothing is so old");
    put(&daemon, "idle", "196608").refused(400, "ERANGE");
    wait_until("a second goes by for both pages", || {
        done(&daemon, "idle", "1\n");
        flags(&daemon) == ["...i..", "...i.."]
    });
    let before = times();
    expect_pattern(client.blk(), 8, 8, 1);
    assert_eq!(flags(&daemon), ["...i..", "......"]);
    let after = times();
    assert!(after[0] == before[0] && after[1] != before[1], "{before:?}, {after:?}");
}

/// The guest's writes and reads against what it knows, while pages are marked, recompressed, cancelled and moved.
#[test]
fn a_guest_finds_what_it_wrote_beside_all_upkeep() {
    const PAGES: u64 = 4096;
    const ROUNDS: u64 = 60;
    let worst = "reorder=8,refuse=20%,fail=10%,corrupt=5%,seed=5";
    let offload = ["--engine", "offload", "--engine-workers", "2", "--engine-model", worst];
    for engine in [&["--engine", "inline"][..], &[], &offload] {
        let daemon = start("32M", engine);
        let mut client = daemon.client();
        for (priority, text) in [(1, "zstd"), (2, "deflate"), (3, "zstd")] {
            done(&daemon, "recomp_algorithm", &format!("algo={text} priority={priority}"));
        }
        done(&daemon, "algorithm_params", "priority=3 level=15");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (daemon, over) = (&daemon, &over);
            let upkeep = scope.spawn(move || {
                let (mut ended, mut cancelled) = (0, 0);
                for round in 0.. {
                    done(daemon, "idle", "all");
                    let kind = ["type=idle", "", "type=huge", "threshold=900"][round % 4];
                    let answer =
                        put(daemon, "recompress", &format!("{kind} priority={}", 1 + round % 3));
                    match answer.status {
                        204 => ended += 1,
                        _ => {
                            answer.refused(409, "EINTR");
                            cancelled += 1;
                        }
                    }
                    done(daemon, "compact", "1");
                    if over.load(Ordering::Relaxed) && ended > 0 && cancelled > 0 {
                        return;
                    }
                }
            });
            let cancels = scope.spawn(move || {
                let mut http = Http::connect(&api_of(daemon));
                while !upkeep.is_finished() {
                    let jobs = http.ask("GET", "/v1/jobs", "").ok();
                    let jobs = jobs.as_array().expect("a list");
                    // Every other one goes to its end.
                    for job in jobs.iter().filter(|job| job["state"] == "running") {
                        let id = job["id"].as_u64().expect("a number");
                        if job["kind"] == "recompress" && id % 4 < 2 {
                            http.ask("DELETE", &format!("/v1/jobs/{id}"), "");
                        }
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                upkeep.join().expect("upkeep goes on");
            });
            let mut random = Random::new(7);
            let mut known = vec![0; PAGES as usize / 64];
            for round in 1..=ROUNDS {
                for _ in 0..8 {
                    let chunk = random.below(PAGES / 64);
                    write_pattern(client.blk(), chunk * 512, 512, round);
                    known[chunk as usize] = round;
                }
                for _ in 0..8 {
                    let chunk = random.below(PAGES / 64);
                    match known[chunk as usize] {
                        0 => common::disk::expect_zeroes(client.blk(), chunk * 512, 512),
                        known => expect_pattern(client.blk(), chunk * 512, 512, known),
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
            cancels.join().expect("jobs can be cancelled");
            for (chunk, known) in (0..).zip(known).filter(|(_, known)| *known > 0) {
                expect_pattern(client.blk(), chunk * 512, 512, known);
            }
        });
        let pages = disk(&daemon)["pages"].clone();
        assert!(pages["recompressed"].as_u64() > Some(0), "{pages}");
        let requests = disk(&daemon)["requests"].clone();
        assert_eq!((&requests["failed_reads"], &requests["failed_writes"]), (&0.into(), &0.into()));
    }
}
