//! Which operation comes next, and what the disk should hold.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use vhost_user_zram_frontend::Random;

use crate::target::Kind;

/// A pattern of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pattern {
    /// Reads at random places.
    Randread,
    /// Writes at random places; on a filled disk, overwrites.
    Randwrite,
    /// Reads from front to back.
    Read,
    /// Writes from front to back.
    Write,
    /// Reads and writes at random places.
    Mix,
    /// Discards from front to back.
    Discard,
}

impl Pattern {
    /// Its name on the command line and in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::Mix => "mix",
            Self::Discard => "discard",
        }
    }

    fn is_sequential(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Discard)
    }
}

/// What each piece of the disk was last written with: the number of a piece of the corpus.
#[derive(Debug)]
pub struct Contents {
    unit: u32,
    pieces: Vec<AtomicU32>,
}

const UNKNOWN: u32 = u32::MAX;

impl Contents {
    /// Nothing known of a disk of `capacity` bytes in pieces of `unit` bytes.
    pub fn new(capacity: u64, unit: u32) -> Self {
        let pieces = (0..capacity / u64::from(unit)).map(|_| AtomicU32::new(UNKNOWN)).collect();
        Self { unit, pieces }
    }

    /// Bytes of a piece.
    pub fn unit(&self) -> u32 {
        self.unit
    }

    /// Notes that `len` bytes at `offset` hold the corpus from byte `source` on.
    pub fn set(&self, offset: u64, len: u32, source: u64) {
        let first = (offset / u64::from(self.unit)) as usize;
        for i in 0..len / self.unit {
            let piece = (source / u64::from(self.unit)) as u32 + i;
            self.pieces[first + i as usize].store(piece, Ordering::Relaxed);
        }
    }

    /// Notes that `len` bytes at `offset` may hold anything.
    pub fn forget(&self, offset: u64, len: u32) {
        let first = (offset / u64::from(self.unit)) as usize;
        for piece in &self.pieces[first..first + (len / self.unit) as usize] {
            piece.store(UNKNOWN, Ordering::Relaxed);
        }
    }

    /// Byte of the corpus that the piece at `offset` holds, if that is known.
    pub fn get(&self, offset: u64) -> Option<u64> {
        let piece = self.pieces[(offset / u64::from(self.unit)) as usize].load(Ordering::Relaxed);
        (piece != UNKNOWN).then(|| u64::from(piece) * u64::from(self.unit))
    }
}

/// An operation by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// For writes: byte of the corpus to write from.
    pub source: u64,
}

/// The operations of one lane.
#[derive(Debug)]
pub struct Plan {
    pattern: Pattern,
    read_percent: u64,
    block: u64,
    first: u64,
    blocks: u64,
    at: u64,
    left: Option<u64>,
    sources: u64,
    unit: u64,
    random: Random,
    busy: Option<Vec<bool>>,
    contents: Option<Arc<Contents>>,
}

/// What a [`Plan`] is made from.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Pattern.
    pub pattern: Pattern,
    /// Share of reads in [`Pattern::Mix`].
    pub read_percent: u64,
    /// Bytes of an operation.
    pub block: u32,
    /// Bytes at the start of the disk that no operation touches.
    pub skip: u64,
    /// Bytes of the corpus.
    pub corpus: u64,
    /// Total number of operations, of all lanes; without it, no end.
    pub ops: Option<u64>,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Plan {
    /// The operations of lane `lane` of `lanes` on a disk of `capacity` bytes. With `contents`, and in
    /// sequential patterns, each lane has a part of the disk for itself.
    pub fn new(
        options: &PlanOptions,
        capacity: u64,
        lane: usize,
        lanes: usize,
        contents: Option<Arc<Contents>>,
    ) -> Self {
        let block = u64::from(options.block);
        let (lane, lanes) = (lane as u64, lanes as u64);
        let skipped = options.skip.div_ceil(block);
        let all = (capacity / block).saturating_sub(skipped);
        let apart = contents.is_some() || options.pattern.is_sequential();
        let (first, end) =
            if apart { (all * lane / lanes, all * (lane + 1) / lanes) } else { (0, all) };
        let unit = block.min(4096);
        let mut random = Random::new(options.seed ^ lane.wrapping_mul(0x51_7cc1_b727_220a));
        random.next_u64();
        Self {
            pattern: options.pattern,
            read_percent: options.read_percent,
            block,
            first: skipped + first,
            blocks: end - first,
            at: 0,
            left: options.ops.map(|ops| ops * (lane + 1) / lanes - ops * lane / lanes),
            // A discard may be longer than the corpus, of which it takes nothing.
            sources: options.corpus.saturating_sub(block) / unit + 1,
            unit,
            random,
            busy: contents.is_some().then(|| vec![false; (end - first) as usize]),
            contents,
        }
    }

    /// The next operation, or none when all are done.
    #[inline]
    pub fn next(&mut self) -> Option<Step> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        let kind = match self.pattern {
            Pattern::Randread | Pattern::Read => Kind::Read,
            Pattern::Randwrite | Pattern::Write => Kind::Write,
            Pattern::Mix if self.random.below(100) >= self.read_percent => Kind::Write,
            Pattern::Mix => Kind::Read,
            Pattern::Discard => Kind::Discard,
        };
        let sequential = self.pattern.is_sequential();
        let mut index = if sequential { self.at } else { self.random.below(self.blocks) };
        // What a verified operation finds depends on those that overlap it, so none may.
        while self.busy.as_ref().is_some_and(|busy| busy[index as usize]) {
            index = (index + 1) % self.blocks;
        }
        if sequential {
            self.at = (index + 1) % self.blocks;
        }
        if let Some(busy) = &mut self.busy {
            busy[index as usize] = true;
        }
        let offset = (self.first + index) * self.block;
        let writes = kind == Kind::Write;
        let source = if writes { self.random.below(self.sources) * self.unit } else { 0 };
        match (kind, &self.contents) {
            (Kind::Write, Some(contents)) => contents.set(offset, self.block as u32, source),
            (Kind::Discard, Some(contents)) => contents.forget(offset, self.block as u32),
            _ => {}
        }
        Some(Step { kind, offset, source })
    }

    /// Notes that the operation at `offset` has come back.
    #[inline]
    pub fn completed(&mut self, offset: u64) {
        if let Some(busy) = &mut self.busy {
            busy[(offset / self.block - self.first) as usize] = false;
        }
    }

    /// What the disk should hold, if that is kept.
    pub fn contents(&self) -> Option<&Arc<Contents>> {
        self.contents.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pattern: Pattern) -> PlanOptions {
        let (read_percent, block, corpus, ops, seed) = (50, 4096, 1 << 20, Some(10), 7);
        PlanOptions { pattern, read_percent, block, skip: 0, corpus, ops, seed }
    }

    #[test]
    fn lanes_share_a_sequential_pass() {
        let mut offsets = Vec::new();
        for lane in 0..3 {
            let mut plan = Plan::new(&options(Pattern::Write), 10 * 4096, lane, 3, None);
            offsets.extend(std::iter::from_fn(|| plan.next()).map(|s| s.offset / 4096));
        }
        assert_eq!(offsets, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn discards_pass_over_the_disk_behind_what_is_skipped_and_leave_it_unknown() {
        let contents = Arc::new(Contents::new(10 * 4096, 4096));
        contents.set(0, 10 * 4096, 0);
        // Longer than the corpus, of which a discard takes nothing.
        let discard = PlanOptions { skip: 4 * 4096, corpus: 512, ..options(Pattern::Discard) };
        let offsets: Vec<_> = (0..2)
            .flat_map(|lane| {
                let mut plan = Plan::new(&discard, 10 * 4096, lane, 2, Some(Arc::clone(&contents)));
                (0..3).filter_map(|_| plan.next()).collect::<Vec<_>>()
            })
            .map(|step| (step.kind, step.offset / 4096))
            .collect();
        let expected: Vec<_> = (4..10).map(|page| (Kind::Discard, page)).collect();
        assert_eq!(offsets, expected);
        let known: Vec<_> = (0..10).filter(|page| contents.get(page * 4096).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 3]);
    }

    #[test]
    fn verified_operations_never_overlap() {
        let contents = Arc::new(Contents::new(4 * 4096, 4096));
        let mut plan = Plan::new(&options(Pattern::Mix), 4 * 4096, 0, 1, Some(contents));
        let steps: Vec<_> = (0..4).filter_map(|_| plan.next()).collect();
        let places: std::collections::BTreeSet<_> = steps.iter().map(|s| s.offset).collect();
        assert_eq!(places.len(), 4);
        plan.completed(steps[2].offset);
        assert_eq!(plan.next().map(|s| s.offset), Some(steps[2].offset));
    }
}
