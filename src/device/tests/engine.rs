//! Requests whose codec work the engine does, well or badly.

use super::*;
use crate::engine::{EngineModel, EngineReport, Policy};

fn offloading(pages: u64, codec: &str, model: &str, depth: usize) -> Device {
    let model: EngineModel = model.parse().unwrap();
    let engine = EngineConfig {
        policy: Policy::Offload,
        workers: Some(2),
        depth,
        model: Some(model),
        ..EngineConfig::default()
    };
    Device::new(&DeviceConfig {
        size: pages * PAGE_SIZE as u64,
        block_size: BlockChoice::default(),
        codec: codec.parse().unwrap(),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: false,
        engine,
    })
    .unwrap()
}

/// Threads with a part of the disk each write, change, free and read at odd places and check each
/// byte. Returns what the engine did.
fn walk(device: &Device, rounds: u64) -> EngineReport {
    let threads = 3;
    let sectors = device.sectors() / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut context = device.worker_context().unwrap();
                let mut model = vec![0; sectors as usize * SECTOR];
                for round in 0..rounds {
                    let random = (round + 1) * (thread + 3) * 0x9e37_79b9;
                    let first = random % sectors;
                    let count = ((random >> 20) % 300 + 1).min(sectors - first);
                    let sector = thread * sectors + first;
                    let bytes = first as usize * SECTOR..(first + count) as usize * SECTOR;
                    match random >> 12 & 7 {
                        0..3 => {
                            let new = match random >> 16 & 3 {
                                0 => noise(random, bytes.len()),
                                1 => vec![random as u8; bytes.len()],
                                _ => text(random, bytes.len()),
                            };
                            model[bytes].copy_from_slice(&new);
                            run(device, &mut context, Op::Write, sector, new).unwrap();
                        }
                        3 => {
                            model[bytes].fill(0);
                            free(device, &mut context, Op::WriteZeroes, sector, count);
                        }
                        _ => assert!(
                            read(device, &mut context, sector, count as usize) == model[bytes],
                            "thread {thread}, round {round}"
                        ),
                    }
                }
            });
        }
    });
    device.check().unwrap();
    let report = device.report();
    assert_eq!((report.failed_reads, report.failed_writes), (0, 0));
    report.engine
}

#[test]
fn an_engine_that_works_serves_every_kind_of_request() {
    for codec in ["lz4", "zstd"] {
        let device = offloading(600, codec, "", 256);
        let done = walk(&device, 150);
        assert!(done.jobs > 3_000 && done.completed == done.jobs, "{done:?}");
        assert_eq!((done.fallbacks, done.timeouts, done.deaths), (0, 0, 0));
        assert!(done.batches < done.jobs / 4, "large requests are batches: {done:?}");
        assert_eq!(done.depth, 0);
    }
}

#[test]
fn an_engine_that_does_everything_wrong_costs_no_request_and_no_byte() {
    let model = "reorder=8,refuse=10%,fail=1%,corrupt=2%,die=0.5%,seed=5";
    let device = offloading(600, "lz4", model, 256);
    let done = walk(&device, 150);
    for (what, count) in [
        ("refusals", done.refusals),
        ("failures", done.failures),
        ("corruptions", done.corruptions),
        ("deaths", done.deaths),
    ] {
        assert!(count > 0, "no {what}: {done:?}");
    }
    assert!(done.fallbacks >= done.refusals + done.failures + done.corruptions + done.timeouts);
}

#[test]
fn jobs_that_hang_are_done_over() {
    let device = offloading(600, "lz4", "hang=0.5%,timeout=30ms,seed=5", 256);
    let done = walk(&device, 100);
    // On a busy machine a job may be abandoned just as it is done, and then it is not done over.
    assert!(done.timeouts > 0 && done.fallbacks > 0, "{done:?}");
}

#[test]
fn what_finds_no_room_in_a_queue_of_one_is_done_inline() {
    let device = offloading(600, "lz4", "latency=20us", 1);
    let done = walk(&device, 40);
    assert!(done.fallbacks > 100, "{done:?}");
    assert_eq!((done.refusals, done.depth_max), (0, 1));
}

/// The request is dropped with pages in every stage; what was begun is freed, the slots are free.
#[test]
fn a_request_that_is_dropped_takes_its_pages_with_it() {
    let device = offloading(64, "lz4", "latency=2ms", 256);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, 64 * PAGE_SIZE)).unwrap();
    let cx = Context::from_waker(Waker::noop());
    for polls in 0..6 {
        // From the middle of a page to the middle of another one.
        let bytes = Buffer::new(text(2 + polls, 20 * PAGE_SIZE));
        let mut io = device.request(Op::Write, 4, 20 * PAGE_SIZE as u64, bytes).unwrap();
        let mut reads =
            device.request(Op::Read, 0, 64 << 12, Buffer::new(vec![0; 64 << 12])).unwrap();
        for _ in 0..=polls {
            assert!(io.poll(&mut context, &cx).is_pending());
            let _ = reads.poll(&mut context, &cx);
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    }
    for page in 0..64 {
        assert!(device.table.try_lock(page).is_some(), "page {page} is free");
    }
    device.check().unwrap();
    assert_eq!(read(&device, &mut context, 21 * 8, 8), text(1, 64 * PAGE_SIZE)[21 << 12..22 << 12]);
}

/// While a slot is held by a request that waits for the engine, others of other slots continue.
#[test]
fn an_owner_that_sleeps_keeps_its_slot_and_no_other() {
    let device = offloading(4, "lz4", "latency=50ms", 256);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    run(&device, &mut context, Op::Write, 8, vec![7; PAGE_SIZE]).unwrap();
    let cx = Context::from_waker(Waker::noop());
    let mut part = device.request(Op::Write, 1, 512, Buffer::new(vec![9; SECTOR])).unwrap();
    assert!(part.poll(&mut context, &cx).is_pending());
    assert!(device.table.try_lock(0).is_none(), "the owner sleeps");
    let mut other = device.request(Op::Read, 0, 512, Buffer::new(vec![0; SECTOR])).unwrap();
    assert!(other.poll(&mut context, &cx).is_pending());
    assert_eq!(read(&device, &mut context, 8, 8), vec![7; PAGE_SIZE]);
    sync::block_on(|cx| part.poll(&mut context, cx)).unwrap();
    sync::block_on(|cx| other.poll(&mut context, cx)).unwrap();
    let mut expected = text(1, PAGE_SIZE);
    assert_eq!(other.into_payload().bytes, expected[..SECTOR]);
    expected[SECTOR..2 * SECTOR].fill(9);
    assert_eq!(read(&device, &mut context, 0, 8), expected);
    device.check().unwrap();
}
