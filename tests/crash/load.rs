//! Random requests on two queues, which may overlap, and the model that follows them.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use vhost_user_zram_frontend::{
    Blk, Client, Completion, Error, Op, Random, Shape, Status, client::range, spec::DESC_LEN,
};

use crate::{
    common::{LIMIT, disk::SECTOR_LEN},
    contents::{self, PAGE},
    model::{Model, Number, Reading, What},
};

/// Sectors of a request at most.
pub const LONGEST: usize = 16 * PAGE;
/// How long a wait is that might be for a dead process.
const GLANCE: Duration = Duration::from_millis(5);

/// How often each kind of request comes, in shares.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Writes of whole pages.
    pub writes: u64,
    /// Writes of sectors.
    pub parts: u64,
    pub discards: u64,
    pub zeroes: u64,
    pub reads: u64,
    pub flushes: u64,
    /// Discards of half of the disk.
    pub sweeps: u64,
}

impl Mix {
    pub const ALL: Self =
        Self { writes: 40, parts: 15, discards: 12, zeroes: 8, reads: 22, flushes: 3, sweeps: 0 };
    pub const WRITES: Self =
        Self { writes: 70, parts: 5, discards: 5, zeroes: 5, reads: 14, flushes: 1, sweeps: 0 };
    pub const PARTS: Self =
        Self { writes: 20, parts: 60, discards: 5, zeroes: 5, reads: 9, flushes: 1, sweeps: 0 };
    pub const SWEEPS: Self =
        Self { writes: 0, parts: 0, discards: 0, zeroes: 0, reads: 0, flushes: 0, sweeps: 1 };
    pub const DISCARDS: Self =
        Self { writes: 50, parts: 5, discards: 25, zeroes: 10, reads: 9, flushes: 1, sweeps: 0 };
}

enum Pending {
    Change(Number),
    Read(Reading),
    Flush,
}

/// A request in flight.
struct Job {
    op: Op,
    sectors: Range<usize>,
    pending: Pending,
    /// Its number in its queue.
    turn: u64,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Option<Job>>,
    submitted: u64,
}

impl Queue {
    fn in_flight(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().flatten()
    }
}

/// A load and what it has done.
pub struct Load {
    pub random: Random,
    pub model: Model,
    pub mix: Mix,
    /// Whether there is a limit that writes can meet.
    pub may_fail: bool,
    /// Whether each queue has to give requests back in the order in which it got them.
    pub ordered: bool,
    pub completed: u64,
    pub failed: u64,
    queues: Vec<Queue>,
    scratch: Vec<u8>,
}

impl Load {
    pub fn new(seed: u64, sectors: usize) -> Self {
        Self {
            random: Random::new(seed),
            model: Model::new(sectors),
            mix: Mix::ALL,
            may_fail: false,
            ordered: false,
            completed: 0,
            failed: 0,
            queues: Vec::new(),
            scratch: vec![0; LONGEST * SECTOR_LEN],
        }
    }

    /// Begins with a new front end, which has nothing in flight.
    pub fn begin(&mut self, client: &Client) {
        let jobs = |blk: &Blk| std::iter::repeat_with(|| None).take(blk.depth()).collect();
        let queue = |blk| Queue { jobs: jobs(blk), ..Queue::default() };
        self.queues = client.queues.iter().map(queue).collect();
    }

    fn choose(&mut self) -> (Op, Range<usize>) {
        let Self { random, mix, .. } = self;
        let shares = [
            (Op::Out, mix.writes),
            (Op::Other(0), mix.parts),
            (Op::Discard, mix.discards),
            (Op::WriteZeroes, mix.zeroes),
            (Op::In, mix.reads),
            (Op::Flush, mix.flushes),
            (Op::Other(1), mix.sweeps),
        ];
        let mut at = random.below(shares.iter().map(|(_, share)| share).sum());
        let mut op = Op::Flush;
        for (one, share) in shares {
            if at < share {
                op = one;
                break;
            }
            at -= share;
        }
        let disk = self.model.len();
        if op == Op::Flush {
            return (op, 0..0);
        }
        if op == Op::Other(1) {
            let half = random.below(2) as usize;
            return (Op::Discard, half * disk / 2..(half + 1) * disk / 2);
        }
        let part = op == Op::Other(0);
        let ragged = part || matches!(op, Op::Discard | Op::WriteZeroes) && random.below(4) == 0;
        let sectors = match random.below(8) {
            _ if part => 1 + random.below(2 * PAGE as u64 - 1) as usize,
            _ if op == Op::In => 1 + random.below(LONGEST as u64) as usize,
            _ if ragged => 1 + random.below(4 * PAGE as u64) as usize,
            0 => PAGE * (1 + random.below((LONGEST / PAGE) as u64) as usize),
            1..4 => PAGE * (1 + random.below(4) as usize),
            _ => PAGE,
        };
        // A part of the disk is hot, so that requests meet.
        let hot = if random.below(3) == 0 { 16 } else { 1 };
        let mut start = random.below((disk / hot) as u64) as usize;
        if !ragged && op != Op::In {
            start -= start % PAGE;
        }
        let op = if part { Op::Out } else { op };
        (op, start..(start + sectors).min(disk))
    }

    /// Puts one more request into a queue; false when it is full.
    fn submit(&mut self, at: usize, blk: &mut Blk) -> bool {
        let Some(tag) = blk.acquire() else { return false };
        let (op, sectors) = self.choose();
        let (mut bytes, mut sector) = (sectors.len() * SECTOR_LEN, sectors.start as u64);
        let pending = match op {
            Op::In => Pending::Read(self.model.begin_read(sectors.clone())),
            Op::Out => {
                let number = self.model.submit(What::Write, sectors.clone());
                let pieces = self.scratch.chunks_mut(SECTOR_LEN);
                for (sector, piece) in sectors.clone().zip(pieces) {
                    piece.copy_from_slice(&contents::bytes(sector, number));
                }
                blk.region().write(blk.buffer(tag), &self.scratch[..bytes]).expect("buffer");
                Pending::Change(number)
            }
            Op::Discard | Op::WriteZeroes => {
                let what = if op == Op::Discard { What::Discard } else { What::Zero };
                let number = self.model.submit(what, sectors.clone());
                let unmap = u32::from(op == Op::WriteZeroes && self.random.below(2) == 0);
                let segment = range(sector, sectors.len() as u32, unmap);
                blk.region().write(blk.buffer(tag), &segment).expect("buffer");
                (bytes, sector) = (DESC_LEN as usize, 0);
                Pending::Change(number)
            }
            _ => Pending::Flush,
        };
        let shape = Shape::default();
        blk.submit_shaped(tag, op, sector, bytes as u32, &shape, 0).expect("room in the ring");
        let queue = &mut self.queues[at];
        queue.submitted += 1;
        queue.jobs[tag.index()] = Some(Job { op, sectors, pending, turn: queue.submitted });
        true
    }

    fn complete(&mut self, at: usize, blk: &Blk, done: Completion) {
        let queue = &mut self.queues[at];
        let job = queue.jobs[done.tag.index()].take().expect("a request in flight");
        if self.ordered {
            let earlier = queue.in_flight().any(|other| other.turn < job.turn);
            assert!(!earlier, "queue {at} is out of order");
        }
        let Job { op, sectors, pending, .. } = job;
        self.completed += 1;
        let bytes = if op == Op::In { sectors.len() * SECTOR_LEN } else { 0 };
        assert_eq!(done.used_len as usize, bytes + 1, "{op:?} {sectors:?}");
        match (pending, done.status) {
            (Pending::Change(number), Status::Ok) => self.model.done(number),
            (Pending::Change(number), Status::IoErr) if self.may_fail && op != Op::Discard => {
                self.failed += 1;
                self.model.given_up(number);
            }
            (Pending::Read(reading), Status::Ok) => {
                let got = &mut self.scratch[..bytes];
                blk.region().read(blk.buffer(done.tag), got).expect("buffer");
                let compared = self.model.end_read(&reading, got);
                compared.unwrap_or_else(|e| panic!("under load, queue {at}, {sectors:?}: {e}"));
            }
            (Pending::Flush, Status::Ok) => {}
            (_, status) => panic!("queue {at}: {op:?} of {sectors:?} gives {status:?}"),
        }
    }

    /// Takes all that is completed; whether there was anything.
    pub fn reap(&mut self, client: &mut Client) -> bool {
        let before = self.completed;
        for (at, blk) in client.queues.iter_mut().enumerate() {
            while let Some(done) = blk.reap().expect("used ring") {
                self.complete(at, blk, done);
            }
        }
        self.completed > before
    }

    /// Submits up to `most` requests to each queue.
    pub fn submit_some(&mut self, client: &mut Client, most: u64) {
        for (at, blk) in client.queues.iter_mut().enumerate() {
            for _ in 0..self.random.below(most + 1) {
                if !self.submit(at, blk) {
                    break;
                }
            }
            blk.publish().expect("publish");
        }
    }

    /// Submits as much as the queues take.
    pub fn fill(&mut self, client: &mut Client) {
        for (at, blk) in client.queues.iter_mut().enumerate() {
            while self.submit(at, blk) {}
            blk.publish().expect("publish");
        }
    }

    /// Runs until `requests` more are completed; false when the daemon dies before.
    pub fn run(
        &mut self,
        client: &mut Client,
        requests: u64,
        mut is_alive: impl FnMut() -> bool,
    ) -> bool {
        let end = self.completed + requests;
        let mut last = Instant::now();
        while self.completed < end {
            // In batches of any size: how full the rings are changes all the time.
            self.submit_some(client, 24);
            if self.reap(client) || self.glance(client) {
                last = Instant::now();
            } else if !is_alive() {
                return false;
            }
            assert!(last.elapsed() < LIMIT, "nothing is completed any more");
        }
        true
    }

    /// Submits no more, and waits for all that is in flight.
    pub fn drain(&mut self, client: &mut Client) {
        while let Some(blk) = client.queues.iter_mut().find(|blk| blk.busy() > 0) {
            blk.queue_mut().wait_used(LIMIT).expect("a completion");
            self.reap(client);
        }
    }

    /// Waits a moment for a completion; whether there is one.
    fn glance(&self, client: &mut Client) -> bool {
        let Some(blk) = client.queues.iter_mut().find(|blk| blk.busy() > 0) else { return true };
        match blk.queue_mut().wait_used(GLANCE) {
            Ok(()) => true,
            Err(Error::Timeout { .. }) => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// Number of requests in flight in a queue, when all that is completed was taken.
    pub fn in_flight(&self, queue: usize) -> usize {
        self.queues[queue].in_flight().count()
    }

    /// No daemon will ever complete what is in flight.
    pub fn abandon(&mut self) {
        for job in self.queues.iter_mut().flat_map(|queue| queue.jobs.drain(..)).flatten() {
            match job.pending {
                Pending::Change(number) => self.model.given_up(number),
                Pending::Read(reading) => self.model.forget_read(&reading),
                Pending::Flush => {}
            }
        }
    }

    /// Reads all of the disk, compares it, and has the model learn what it is. Nothing may be in
    /// flight.
    pub fn verify(&mut self, blk: &mut Blk) -> Result<Vec<u8>, String> {
        let sectors = self.model.len();
        let reading = self.model.begin_read(0..sectors);
        let got = blk.read_vec(0, sectors * SECTOR_LEN).map_err(|e| e.to_string())?;
        self.model.end_read(&reading, &got)?;
        Ok(got)
    }
}
