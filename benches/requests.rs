//! What a request costs inside the device, without any transport: writes and reads of 4 KiB, or of
//! `--pages` pages of 4 KiB each.
//!
//! `cargo bench --bench requests -- [--writes N] [--reads N] [--pages N] [--rounds N] [--algorithm A]
//! [--assumed-us N]`
//!
//! Prints nanoseconds for each. `benches/engine` runs it under callgrind, with two numbers of
//! requests, to count instructions; it tells the engine what a page costs then, since everything is
//! slow there. The pages are made up (text of some ten kinds, compressible to
//! a third), on a disk of 64 MiB. Without `--bench`, which cargo passes, it is a smoke test.
#![allow(clippy::print_stdout)] // its purpose

use std::error::Error;
use std::hint::black_box;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use vhost_user_zram::internals::{
    BlockChoice, Device, DeviceConfig, EngineConfig, MemoryKind, Op, PAGE_SIZE, Payload,
    PayloadFault, SECTORS_PER_PAGE, WorkerContext,
};

const PAGES: u64 = 16 << 10;
const KINDS: usize = 64;

struct Bytes<'a>(&'a mut [u8]);

impl Payload for Bytes<'_> {
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
        let at = offset as usize;
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }

    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault> {
        let at = offset as usize;
        self.0[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

fn pages() -> Vec<[u8; PAGE_SIZE]> {
    let mut state = 1_u64;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let words: Vec<String> = (0..400).map(|_| format!("{:x} ", next() % 0xffff_ffff)).collect();
    let mut page = || {
        let mut text = String::new();
        while text.len() < PAGE_SIZE {
            text.push_str(&words[next() % words.len()]);
        }
        let mut page = [0; PAGE_SIZE];
        page.copy_from_slice(&text.as_bytes()[..PAGE_SIZE]);
        page
    };
    (0..KINDS).map(|_| page()).collect()
}

fn request(device: &Device, context: &mut WorkerContext, op: Op, page: u64, bytes: &mut [u8]) {
    let cx = Context::from_waker(Waker::noop());
    let sector = page * SECTORS_PER_PAGE;
    let io = device.request(op, sector, bytes.len() as u64, Bytes(bytes));
    let mut io = io.unwrap_or_else(|error| panic!("{error}"));
    loop {
        if let Poll::Ready(done) = io.poll(context, &cx) {
            return done.unwrap_or_else(|error| panic!("{error}"));
        }
        std::thread::yield_now();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut writes, mut reads): (u64, u64) = (200_000, 200_000);
    let (mut rounds, mut algorithm) = (3, "lz4".to_owned());
    let (mut real, mut assumed_cost, mut each_pages) = (false, None, 1_usize);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => real = true,
            "--writes" => writes = value()?.parse()?,
            "--reads" => reads = value()?.parse()?,
            "--pages" => each_pages = value()?.parse()?,
            "--rounds" => rounds = value()?.parse()?,
            "--algorithm" => algorithm = value()?,
            "--assumed-us" => assumed_cost = Some(Duration::from_micros(value()?.parse()?)),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if !real {
        (writes, reads, rounds) = (1000, 1000, 1);
    }
    let device = Device::new(&DeviceConfig {
        size: PAGES * PAGE_SIZE as u64,
        block_size: BlockChoice::default(),
        codec: algorithm.parse()?,
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: false,
        engine: EngineConfig { assumed_cost, ..EngineConfig::default() },
    })?;
    let mut context = device.worker_context()?;
    if !(1..=KINDS).contains(&each_pages) {
        return Err(format!("--pages is 1 to {KINDS}").into());
    }
    let mut pages = pages();
    let kinds = KINDS / each_pages;
    let extents = PAGES / each_pages as u64;
    for round in 1..=rounds {
        let start = Instant::now();
        for number in 0..writes {
            let page = number.wrapping_mul(0x9e37_79b9) % extents * each_pages as u64;
            let first = number as usize % kinds * each_pages;
            let bytes = pages[first..first + each_pages].as_flattened_mut();
            request(&device, &mut context, Op::Write, page, bytes);
        }
        let wrote = start.elapsed();
        let mut bytes = vec![0; each_pages * PAGE_SIZE];
        let start = Instant::now();
        for number in 0..reads {
            let page = number.wrapping_mul(0x9e37_79b9) % extents * each_pages as u64;
            request(&device, &mut context, Op::Read, page, black_box(&mut bytes));
        }
        let (read, each) = (start.elapsed(), |time: Duration, count: u64| {
            time.as_secs_f64() * 1e9 / count.max(1) as f64
        });
        println!(
            "round {round}: write {:.0} ns, read {:.0} ns",
            each(wrote, writes),
            each(read, reads)
        );
    }
    Ok(())
}
