//! What a guest can make the daemon hold for it by requests that wait.

mod common;

use std::{fs, sync::Arc, thread, time::Duration};

use common::{
    daemon::{Daemon, session_options},
    disk::pattern,
    raw::GPA,
    wait_until,
};
use vhost_user_zram_frontend::{
    Desc, Queue, Region, Session,
    spec::{DESC_LEN, HEADER_LEN, T_OUT},
};

const MIB: u64 = 1 << 20;
const QUEUES: usize = 64;
const SIZE: u16 = 256;
/// Data segments of each request: with header and status, as many as a chain may have.
const SEGMENTS: u64 = 1022;
/// How many of them fit into 64 MiB, with 32 to 34 KiB each, and with one more for each queue.
const FEWEST: u64 = 64 * 1024 / 34;
const MOST: u64 = 64 * 1024 / 32 + QUEUES as u64;

/// Private memory of the daemon in bytes.
fn private(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

/// 16,384 writes of a page in 1,022 pieces each, which an engine keeps waiting. They would take some
/// 24 KiB each, 400 MiB in all. A session has 64 MiB for those that it begins, counted as if two pages of
/// each were in the engine.
#[test]
fn requests_that_wait_take_a_bounded_amount_of_memory() {
    // Only time itself would end a request.
    let model = "latency=600s,timeout=6000s";
    let args = [
        ["--num-queues", "64"],
        ["--queue-threads", "4"],
        ["--engine", "offload"],
        // Room for all of them: what does not fit would be done inline.
        ["--engine-queue", "16384"],
    ]
    .concat();
    let mut daemon = Daemon::start("16M", &[&args[..], &["--engine-model", model]].concat());
    let before = private(&daemon);
    let mut session = Session::connect(daemon.socket(), &session_options()).unwrap();
    let region = Region::new(GPA, 16 * MIB).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let (header, data) = (region.alloc(4096, 4096).unwrap(), region.alloc(4096, 4096).unwrap());
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..4].copy_from_slice(&T_OUT.to_le_bytes());
    region.write(header, &bytes).unwrap();
    region.write(data, &pattern(0, 8, 1)).unwrap();
    // One table for all of them: four bytes a segment, and the rest in the last one.
    let table = region.alloc((SEGMENTS + 2) * DESC_LEN, 4096).unwrap();
    let mut chain = vec![Desc::readable(header, HEADER_LEN)];
    for piece in 0..SEGMENTS {
        let len = if piece + 1 < SEGMENTS { 4 } else { 4096 - 4 * (SEGMENTS - 1) };
        chain.push(Desc::readable(data + 4 * piece, len as u32));
    }
    chain.push(Desc::writable(header + 64, 1));
    for (at, desc) in common::raw::linked(&chain).iter().enumerate() {
        region.write(table + DESC_LEN * at as u64, &desc.bytes()).unwrap();
    }
    let mut queues = Vec::new();
    for index in 0..QUEUES {
        let mut queue = Queue::new(index, &region, SIZE, true).unwrap();
        for head in 0..SIZE {
            let indirect = Desc::indirect(table, (chain.len() as u64 * DESC_LEN) as u32);
            queue.ring().set_desc(head, indirect).unwrap();
            queue.push(head).unwrap();
        }
        queue.publish_quietly().unwrap();
        session.start(&queue).unwrap();
        queues.push(queue);
    }
    // Each has a job in the engine.
    let mut parked = || daemon.stats()["engine_jobs"];
    wait_until("the bound to be reached", || parked() >= FEWEST);
    let mut last = 0;
    while last != parked() {
        last = parked();
        assert!(last <= MOST, "{last} requests are parked");
        thread::sleep(Duration::from_millis(500));
    }
    let taken = private(&daemon) - before;
    assert!(taken < 128 * MIB, "{} MiB for {last} requests", taken / MIB);
}
