//! One thread that keeps one lane full.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use vhost_user_zram_frontend::Region;

use crate::{
    histogram::Histogram,
    plan::Plan,
    target::{Done, Io, Kind, Lane, Result, Wait},
};

/// Operations run, nothing is counted.
pub const WARMING: u8 = 0;
/// Operations are counted.
pub const MEASURING: u8 = 1;
/// Operations in flight come back, no more are begun.
pub const ENDING: u8 = 2;

/// What a lane did.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Operations counted.
    pub ops: u64,
    /// Writes beside them.
    pub beside: u64,
    /// Latencies of the operations counted.
    pub latencies: Histogram,
    /// Operations that failed, counted or not.
    pub errors: u64,
    /// Pieces that held other data than was written.
    pub mismatches: u64,
    /// Pieces that were compared.
    pub compared: u64,
}

impl Tally {
    /// Adds another lane's.
    pub fn merge(&mut self, other: &Self) {
        self.ops += other.ops;
        self.beside += other.beside;
        self.latencies.merge(&other.latencies);
        self.errors += other.errors;
        self.mismatches += other.mismatches;
        self.compared += other.compared;
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    begun: Instant,
    kind: Kind,
    offset: u64,
}

/// Writes that continue beside the plan, in a part of the disk of their own.
pub struct Beside {
    /// First byte of that part.
    pub first: u64,
    /// The writes.
    pub plan: Plan,
    /// How many are in flight.
    pub depth: usize,
}

/// A lane with its plan and its part of the memory.
pub struct Worker {
    /// Queue to drive.
    pub lane: Box<dyn Lane>,
    /// Operations to do.
    pub plan: Plan,
    /// Writes beside them.
    pub beside: Beside,
    /// Operations in flight.
    pub depth: usize,
    /// Bytes of an operation.
    pub block: u32,
    /// How to wait.
    pub wait: Wait,
    /// Memory of corpus and buffers.
    pub region: Arc<Region>,
    /// Address of the corpus.
    pub corpus: u64,
    /// Address of this lane's read buffers, one block for each slot.
    pub buffers: u64,
    /// [`WARMING`], [`MEASURING`] or [`ENDING`].
    pub phase: Arc<AtomicU8>,
}

impl Worker {
    /// Works until the plan or the time is over; gives the lane back for another round.
    ///
    /// # Errors
    ///
    /// When the target breaks; operations that merely fail are counted.
    pub fn run(mut self) -> Result<(Tally, Box<dyn Lane>)> {
        let mut tally = Tally::default();
        let mut phase = self.phase.load(Ordering::Relaxed);
        let all = self.depth + self.beside.depth;
        let mut slots = vec![Slot { begun: Instant::now(), kind: Kind::Read, offset: 0 }; all];
        let mut free: Vec<usize> = (0..self.depth).rev().collect();
        let mut free_beside: Vec<usize> = (self.depth..all).collect();
        let mut done = Vec::with_capacity(all);
        let mut more = true;
        loop {
            let now = Instant::now();
            while more {
                let Some(slot) = free.pop() else { break };
                let step = match self.plan.next() {
                    Some(step) if phase != ENDING => step,
                    _ => {
                        more = false;
                        free.push(slot);
                        break;
                    }
                };
                slots[slot] = Slot { begun: now, kind: step.kind, offset: step.offset };
                let addr = match step.kind {
                    Kind::Read => self.buffer(slot),
                    Kind::Write => self.corpus + step.source,
                    Kind::Discard => 0,
                };
                let io = Io { kind: step.kind, offset: step.offset, addr, len: self.block };
                self.lane.submit(slot, &io)?;
            }
            while more && let Some(slot) = free_beside.pop() {
                let Some(step) = self.beside.plan.next() else { break };
                let offset = self.beside.first + step.offset;
                slots[slot] = Slot { begun: now, kind: Kind::Write, offset };
                let addr = self.corpus + step.source;
                self.lane.submit(slot, &Io { kind: Kind::Write, offset, addr, len: self.block })?;
            }
            if free.len() == self.depth && free_beside.len() == self.beside.depth {
                return Ok((tally, self.lane));
            }
            self.lane.publish()?;
            self.lane.reap(self.wait, &mut done)?;
            // One reading of the clock for a batch: what came back together was seen together.
            let now = Instant::now();
            for Done { slot, ok } in done.drain(..) {
                let Slot { begun, kind, offset } = slots[slot];
                if slot >= self.depth {
                    tally.errors += u64::from(!ok);
                    tally.beside += u64::from(ok && phase == MEASURING);
                    self.beside.plan.completed(offset - self.beside.first);
                    free_beside.push(slot);
                    continue;
                }
                if !ok {
                    tally.errors += 1;
                } else if phase == MEASURING {
                    tally.ops += 1;
                    tally.latencies.record(now - begun);
                }
                if ok && kind == Kind::Read && self.plan.contents().is_some() {
                    self.verify(slot, offset, &mut tally)?;
                }
                self.plan.completed(offset);
                free.push(slot);
            }
            phase = self.phase.load(Ordering::Relaxed);
        }
    }

    fn buffer(&self, slot: usize) -> u64 {
        self.buffers + slot as u64 * u64::from(self.block).next_multiple_of(4096)
    }

    fn verify(&self, slot: usize, offset: u64, tally: &mut Tally) -> Result<()> {
        let Some(contents) = self.plan.contents() else { return Ok(()) };
        let unit = contents.unit();
        for at in (0..u64::from(self.block)).step_by(unit as usize) {
            let Some(source) = contents.get(offset + at) else { continue };
            let got = self.region.read_vec(self.buffer(slot) + at, unit as usize)?;
            let expected = self.region.read_vec(self.corpus + source, unit as usize)?;
            tally.compared += 1;
            tally.mismatches += u64::from(got != expected);
        }
        Ok(())
    }
}
