//! Random requests on two queues against a plain vector of bytes.
//!
//! One thread keeps both queues full and the daemon serves each with a thread of its own, so requests of
//! the two are done at the same time and lie close together, often in one page. Those in flight never
//! overlap by a sector where one of them writes: what they leave is then known.
//!
//! `ZRAM_MODEL_OPS` or `ZRAM_MODEL_SECONDS` say how long (10 seconds without), `ZRAM_MODEL_SEED` repeats a
//! run's choices.

mod common;

use std::{
    collections::HashMap,
    env,
    time::{Duration, Instant},
};

use common::{
    LIMIT,
    daemon::{Daemon, session_options},
    disk::SECTOR_LEN,
};
use vhost_user_zram_frontend::{
    Blk, Client, ClientOptions, Completion, Op, Options, Place, Random, Shape, Status,
    client::range,
    spec::{DESC_LEN, feature},
};

/// Sectors of the disk: small enough that every page is hit again and again.
const SECTORS: usize = 16 << 10;
/// Sectors of a page.
const PAGE: usize = 8;
/// Longest request in sectors.
const LONGEST: usize = 512;
const QUEUES: usize = 2;

/// The disk as it should be.
struct Model {
    bytes: Vec<u8>,
    /// Requests in flight on each sector: how many read, or [`WRITING`].
    in_flight: Vec<u8>,
}

const WRITING: u8 = u8::MAX;

impl Model {
    fn new() -> Self {
        let bytes = vec![0; SECTORS * SECTOR_LEN];
        Self { bytes, in_flight: vec![0; SECTORS] }
    }

    fn is_free(&self, job: &Job) -> bool {
        let busy = &self.in_flight[job.sector..job.sector + job.sectors];
        busy.iter().all(|n| if job.changes() { *n == 0 } else { *n < WRITING - 1 })
    }

    fn begin(&mut self, job: &Job) {
        for n in &mut self.in_flight[job.sector..job.sector + job.sectors] {
            *n = if job.changes() { WRITING } else { *n + 1 };
        }
    }

    fn end(&mut self, job: &Job) {
        for n in &mut self.in_flight[job.sector..job.sector + job.sectors] {
            *n = if job.changes() { 0 } else { *n - 1 };
        }
    }

    fn bytes(&mut self, sector: usize, sectors: usize) -> &mut [u8] {
        &mut self.bytes[sector * SECTOR_LEN..(sector + sectors) * SECTOR_LEN]
    }

    fn write(&mut self, sector: usize, data: &[u8]) {
        let sectors = data.len() / SECTOR_LEN;
        self.bytes(sector, sectors).copy_from_slice(data);
    }

    fn zero(&mut self, sector: usize, sectors: usize) {
        self.bytes(sector, sectors).fill(0);
    }

    /// Whole pages read as zeroes from then on; a part of a page at either end keeps its bytes.
    fn discard(&mut self, sector: usize, sectors: usize) {
        let first = sector.next_multiple_of(PAGE);
        let end = (sector + sectors) / PAGE * PAGE;
        if first < end {
            self.zero(first, end - first);
        }
    }

    /// Compares what was read.
    fn check(&mut self, sector: usize, got: &[u8]) -> Result<(), String> {
        let expected = self.bytes(sector, got.len() / SECTOR_LEN);
        let Some(at) = expected.iter().zip(got).position(|(a, b)| a != b) else { return Ok(()) };
        let (number, byte) = (sector + at / SECTOR_LEN, at % SECTOR_LEN);
        let piece = at..(at + 8).min(got.len());
        let (got, expected) = (&got[piece.clone()], &expected[piece]);
        Err(format!("sector {number}, byte {byte}: {got:02x?} in place of {expected:02x?}"))
    }
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Job {
    op: Op,
    sector: usize,
    sectors: usize,
}

impl Job {
    fn changes(&self) -> bool {
        matches!(self.op, Op::Out | Op::Discard | Op::WriteZeroes)
    }
}

fn choose(random: &mut Random) -> Job {
    let op = match random.below(100) {
        0..42 => Op::In,
        42..82 => Op::Out,
        82..90 => Op::Discard,
        90..97 => Op::WriteZeroes,
        97..99 => Op::Flush,
        _ => Op::GetId,
    };
    if matches!(op, Op::Flush | Op::GetId) {
        return Job { op, sector: 0, sectors: 0 };
    }
    let mut sectors = match random.below(20) {
        0..8 => 1 + random.below(15) as usize,
        8..15 => PAGE * (1 + random.below(4) as usize),
        15..19 => 1 + random.below(64) as usize,
        _ => 1 + random.below(LONGEST as u64) as usize,
    };
    let mut sector = random.below(SECTORS as u64) as usize;
    if random.below(3) > 0 {
        sector = sector / PAGE * PAGE;
    }
    sector = sector.min(SECTORS - 1);
    sectors = sectors.min(SECTORS - sector);
    Job { op, sector, sectors }
}

/// Data of every kind the store treats in a way of its own.
fn fill(random: &mut Random, data: &mut [u8]) {
    for page in data.chunks_mut(PAGE * SECTOR_LEN) {
        let word = random.next_u64().to_le_bytes();
        match random.below(8) {
            0 => page.fill(0),
            1 => page.fill(word[0]),
            2 => page.chunks_mut(4).for_each(|b| b.copy_from_slice(&word[..b.len()])),
            3 => page.chunks_mut(8).for_each(|b| b.copy_from_slice(&word[..b.len()])),
            4 => random.fill(page),
            _ => {
                // Compressible to a length that differs from page to page.
                let noisy = random.below(page.len() as u64 + 1) as usize;
                page.fill(word[1]);
                random.fill(&mut page[..noisy]);
            }
        }
    }
}

fn cuts(random: &mut Random) -> Vec<u32> {
    let count = [0, 1, 1, 2, 3, 8][random.below(6) as usize];
    let lens = [1, 7, 15, 16, 17, 512, 1000, 4096, 4112, 65536];
    (0..count).map(|_| lens[random.below(lens.len() as u64) as usize]).collect()
}

fn shape(random: &mut Random, indirect: bool) -> Shape {
    let readable = if random.below(2) == 0 { vec![16] } else { cuts(random) };
    let place = match random.below(4) {
        0 if indirect => Place::Tail(random.below(4) as u16),
        1 | 2 if indirect => Place::Indirect,
        _ => Place::Direct,
    };
    let write_flag_on_table = random.below(8) == 0;
    Shape { readable, writable: cuts(random), place, write_flag_on_table }
}

/// A run of the model against one daemon.
struct Run {
    random: Random,
    model: Model,
    ops: u64,
    jobs: Vec<Vec<Option<Job>>>,
    data: Vec<u8>,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            model: Model::new(),
            ops: 0,
            jobs: vec![Vec::new(); QUEUES],
            data: vec![0; LONGEST * SECTOR_LEN],
        }
    }

    /// Puts one more request into a queue; false when it is full.
    fn submit(&mut self, queue: usize, blk: &mut Blk, indirect: bool) -> bool {
        let Some(tag) = blk.acquire() else { return false };
        let job = choose(&mut self.random);
        if !self.model.is_free(&job) {
            blk.release(tag);
            return true;
        }
        let bytes = job.sectors * SECTOR_LEN;
        let buffer = blk.buffer(tag);
        let (len, sector) = match job.op {
            Op::In => (bytes, job.sector as u64),
            Op::Out => {
                fill(&mut self.random, &mut self.data[..bytes]);
                blk.region().write(buffer, &self.data[..bytes]).expect("buffer");
                (bytes, job.sector as u64)
            }
            Op::Discard | Op::WriteZeroes => {
                let unmap = job.op == Op::WriteZeroes && self.random.below(2) == 0;
                let segment = range(job.sector as u64, job.sectors as u32, u32::from(unmap));
                blk.region().write(buffer, &segment).expect("buffer");
                (DESC_LEN as usize, 0)
            }
            Op::GetId => (20, 0),
            Op::Flush | Op::Other(_) => (0, 0),
        };
        let shape = shape(&mut self.random, indirect);
        if blk.submit_shaped(tag, job.op, sector, len as u32, &shape, 0).is_err() {
            // The ring is full of descriptors; it will be less so.
            return false;
        }
        self.model.begin(&job);
        match job.op {
            Op::Out => self.model.write(job.sector, &self.data[..bytes]),
            Op::WriteZeroes => self.model.zero(job.sector, job.sectors),
            Op::Discard => self.model.discard(job.sector, job.sectors),
            _ => {}
        }
        self.jobs[queue][tag.index()] = Some(job);
        true
    }

    fn complete(&mut self, queue: usize, blk: &Blk, done: Completion) {
        let job = self.jobs[queue][done.tag.index()].take().expect("a request in flight");
        assert_eq!(done.status, Status::Ok, "{job:?}");
        let written = match job.op {
            Op::In => (job.sectors * SECTOR_LEN) as u32,
            Op::GetId => 20,
            _ => 0,
        };
        assert_eq!(done.used_len, written + 1, "{job:?}");
        if job.op == Op::In {
            let bytes = job.sectors * SECTOR_LEN;
            let mut got = std::mem::take(&mut self.data);
            blk.region().read(blk.buffer(done.tag), &mut got[..bytes]).expect("buffer");
            if let Err(e) = self.model.check(job.sector, &got[..bytes]) {
                panic!("after {} requests, queue {queue}, {job:?}: {e}", self.ops);
            }
            self.data = got;
        }
        self.model.end(&job);
        self.ops += 1;
    }

    /// One session: `ops` requests, then everything comes back.
    fn session(&mut self, client: &mut Client, ops: u64) {
        let indirect = client.session.has(feature::INDIRECT);
        for (jobs, blk) in self.jobs.iter_mut().zip(&client.queues) {
            jobs.clear();
            jobs.resize(blk.depth(), None);
        }
        let end = self.ops + ops;
        while self.ops < end || client.queues.iter().any(|blk| blk.busy() > 0) {
            let mut progress = false;
            for queue in 0..QUEUES {
                let blk = &mut client.queues[queue];
                // In batches of any size: how full the rings are changes all the time.
                for _ in 0..self.random.below(24) {
                    if self.ops >= end || !self.submit(queue, blk, indirect) {
                        break;
                    }
                }
                blk.publish().expect("publish");
                while let Some(done) = blk.reap().expect("used ring") {
                    self.complete(queue, blk, done);
                    progress = true;
                }
            }
            let waiting = client.queues.iter_mut().find(|blk| blk.busy() > 0);
            if let (false, Some(blk)) = (progress, waiting) {
                blk.queue_mut().wait_used(LIMIT).expect("a completion");
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Returns the daemon's figures at the end.
fn run_model(args: &[&str], share: u64) -> HashMap<String, u64> {
    let seed = number("ZRAM_MODEL_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        now.map_or(0, |now| now.as_nanos() as u64)
    });
    let ops = number("ZRAM_MODEL_OPS").map(|ops| ops / share);
    let seconds = number("ZRAM_MODEL_SECONDS").unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds) / share as u32;
    eprintln!("ZRAM_MODEL_SEED={seed} {args:?}");
    let size = (SECTORS * SECTOR_LEN).to_string();
    let mut daemon = Daemon::start(&size, &[&["--num-queues", "2"], args].concat());
    let mut run = Run::new(seed);
    let mut sessions = 0;
    let more = |run: &Run| ops.map_or_else(|| Instant::now() < end, |ops| run.ops < ops);
    while more(&run) {
        let without = [0, 0, feature::EVENT_IDX, feature::INDIRECT][run.random.below(4) as usize];
        let features = session_options().features & !without;
        let queue_size = 32 << run.random.below(4);
        let options = ClientOptions {
            session: Options { features, ..session_options() },
            queues: QUEUES,
            queue_size,
            depth: 1 + run.random.below(u64::from(queue_size) / 2) as u16,
            max_bytes: (LONGEST * SECTOR_LEN) as u32,
            mem_slots: run.random.below(2) == 0,
            ..ClientOptions::default()
        };
        let mut client = daemon.client_with(&options);
        let most = ops.map_or(100_000, |ops| ops - run.ops);
        let length = 1000 + run.random.below(50_000);
        run.session(&mut client, length.min(most));
        sessions += 1;
    }
    // All of it once more, by a front end of the plainest kind.
    let mut client = daemon.client();
    let got = client.blk().read_vec(0, SECTORS * SECTOR_LEN).expect("read");
    run.model.check(0, &got).unwrap_or_else(|e| panic!("at the end: {e}"));
    // Nothing is left when everything is discarded.
    client.blk().write_zeroes(0, SECTORS as u32, true).expect("write-zeroes");
    let got = client.blk().read_vec(0, SECTORS * SECTOR_LEN).expect("read");
    assert!(got.iter().all(|b| *b == 0));
    let stats = daemon.stats();
    for name in ["orig_data_size", "compr_data_size", "same_pages", "huge_pages"] {
        assert_eq!(stats.get(name), Some(&0), "{name} of an empty disk: {stats:?}");
    }
    eprintln!("{} requests in {sessions} sessions; {stats:?}", run.ops);
    stats
}

#[test]
fn random_requests_on_two_queues_match_the_model_lz4() {
    run_model(&["--algorithm", "lz4"], 2);
}

#[test]
fn random_requests_on_two_queues_match_the_model_zstd() {
    run_model(&["--algorithm", "zstd(level=1)"], 2);
}

/// An engine that reorders, refuses a tenth of what it gets and fails some of the rest.
#[test]
fn random_requests_match_the_model_with_an_engine_that_fails() {
    let model = "reorder=8,refuse=10%,fail=1%,corrupt=0.1%,die=0.01%,seed=11";
    let stats = run_model(&["--algorithm", "zstd(level=1)", "--engine-model", model], 4);
    for name in ["engine_jobs", "engine_refusals", "engine_failures", "engine_fallbacks"] {
        assert!(stats[name] > 0, "{name}: {stats:?}");
    }
    assert!(stats["engine_fallbacks"] >= stats["engine_refusals"] + stats["engine_failures"]);
}
