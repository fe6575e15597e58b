//! A run: connect, put the corpus into place, fill, warm up, measure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    cpu::{Server, Snapshot, Spent},
    plan::{Contents, Pattern, Plan, PlanOptions},
    report::Row,
    target::{Lane, Need, Result, Target, TargetError, Wait},
    worker::{Beside, ENDING, MEASURING, Tally, WARMING, Worker},
};

/// Bytes of an operation of the fill.
pub const FILL_BLOCK: u32 = 128 << 10;
const FILL_DEPTH: u16 = 16;

/// What to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// Pattern.
    pub pattern: Pattern,
    /// Share of reads in a mix, in percent.
    pub read_percent: u64,
    /// Bytes of an operation.
    pub block: u32,
    /// Operations in flight on each queue.
    pub depth: u16,
    /// Writes in flight beside them, in the other half of the disk.
    pub beside: u16,
    /// Queues, each with a thread.
    pub queues: usize,
    /// Longest descriptor in bytes.
    pub segment: u32,
    /// Do without in-flight tracking.
    pub no_inflight: bool,
    /// How to wait.
    pub wait: Wait,
    /// Time to measure for, when there is no number of operations.
    pub runtime: Duration,
    /// Time before that.
    pub warmup: Duration,
    /// Number of operations to measure, all queues together.
    pub ops: Option<u64>,
    /// Whether the whole disk is written first.
    pub fill: bool,
    /// Whether the measured run takes place (or only the fill).
    pub measure: bool,
    /// Whether what is read is compared with what was written.
    pub verify: bool,
    /// Start of the random sequences.
    pub seed: u64,
    /// Only so many bytes of the disk are used, if it is larger.
    pub span: Option<u64>,
    /// Bytes at the start of the disk that the measured run leaves alone.
    pub skip: u64,
}

impl Job {
    /// What the target has to be fit for, with a corpus of `corpus` bytes.
    pub fn need(&self, corpus: usize) -> Need {
        let discard = self.measure && self.pattern == Pattern::Discard;
        let (block, depth) = if self.fill {
            (self.block.max(FILL_BLOCK), self.depth.max(FILL_DEPTH))
        } else {
            (self.block, self.depth)
        };
        let depth = depth + self.beside;
        // A discard has no data, and may be as long as the disk.
        let buffer = if discard { FILL_BLOCK.min(block) } else { block };
        let buffers = u64::from(buffer).next_multiple_of(4096) * u64::from(depth);
        Need {
            queues: self.queues,
            depth,
            block,
            segment: self.segment,
            no_inflight: self.no_inflight,
            discard,
            memory: corpus as u64 + buffers * self.queues as u64 + (1 << 20),
        }
    }
}

struct Stage {
    corpus: u64,
    corpus_len: u64,
    buffers: Vec<u64>,
    capacity: u64,
    contents: Option<Arc<Contents>>,
}

/// Runs `job` on `target` and returns a row for the fill, if there was one, and one for the run.
///
/// # Errors
///
/// When the target breaks or does not fit.
pub fn run(mut target: Target, job: &Job, corpus: &[u8], server: &Server) -> Result<Vec<Row>> {
    let need = job.need(corpus.len());
    let block = u64::from(job.block);
    let capacity = job.span.map_or(target.capacity, |span| span.min(target.capacity));
    let lanes = job.queues as u64;
    if capacity.saturating_sub(job.skip) / block / lanes < u64::from(job.depth.max(1)) {
        return Err(TargetError::Unfit(format!("{capacity} bytes are too few for this run")));
    }
    if !need.discard && corpus.len() < need.block as usize {
        return Err(TargetError::Unfit("the corpus is shorter than one operation".into()));
    }
    let region = Arc::clone(&target.region);
    let at = region.alloc(corpus.len() as u64, 4096)?;
    region.write(at, corpus)?;
    let buffer = if need.discard { 0 } else { u64::from(need.block).next_multiple_of(4096) };
    let stride = buffer * u64::from(need.depth);
    let buffers =
        (0..lanes).map(|_| region.alloc(stride, 4096)).collect::<std::result::Result<_, _>>()?;
    let unit = job.block.min(4096);
    let contents = job.verify.then(|| Arc::new(Contents::new(capacity, unit)));
    let corpus_len = corpus.len() as u64;
    let stage = Stage { corpus: at, corpus_len, buffers, capacity, contents };
    let mut rows = Vec::new();
    if job.fill {
        let fill = Job {
            pattern: Pattern::Write,
            block: FILL_BLOCK,
            depth: FILL_DEPTH,
            beside: 0,
            ops: Some(capacity / u64::from(FILL_BLOCK)),
            seed: job.seed ^ 0x6669_6c6c,
            skip: 0,
            ..job.clone()
        };
        rows.push(round(&mut target, &fill, &stage, server, "fill")?);
    }
    if job.measure {
        rows.push(round(&mut target, job, &stage, server, job.pattern.name())?);
    }
    Ok(rows)
}

fn round(
    target: &mut Target,
    job: &Job,
    stage: &Stage,
    server: &Server,
    name: &'static str,
) -> Result<Row> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| TargetError::Io { what, source }
    };
    let options = PlanOptions {
        pattern: job.pattern,
        read_percent: job.read_percent,
        block: job.block,
        skip: job.skip,
        corpus: stage.corpus_len,
        ops: job.ops,
        seed: job.seed,
    };
    let beside_options = PlanOptions {
        pattern: Pattern::Randwrite,
        ops: None,
        skip: 0,
        seed: job.seed ^ 0x6265_7369,
        ..options.clone()
    };
    let counted = job.ops.is_some();
    let phase = Arc::new(AtomicU8::new(if counted { MEASURING } else { WARMING }));
    let begin = Snapshot::take(server).map_err(io("processor times"))?;
    let start = Instant::now();
    let threads: Vec<_> = std::mem::take(&mut target.lanes)
        .into_iter()
        .enumerate()
        .map(|(index, lane)| {
            let contents = stage.contents.clone();
            // With writes beside, the two have a half of the disk each.
            let half = if job.beside > 0 { stage.capacity / 2 } else { stage.capacity };
            let plan = Plan::new(&options, half, index, job.queues, contents);
            let beside = Beside {
                first: half,
                plan: Plan::new(&beside_options, half, index, job.queues, None),
                depth: usize::from(job.beside),
            };
            let worker = Worker {
                lane,
                plan,
                beside,
                depth: usize::from(job.depth),
                block: job.block,
                wait: job.wait,
                region: Arc::clone(&target.region),
                corpus: stage.corpus,
                buffers: stage.buffers[index],
                phase: Arc::clone(&phase),
            };
            thread::spawn(move || worker.run())
        })
        .collect();
    let window = if counted {
        None
    } else {
        thread::sleep(job.warmup);
        let begin = Snapshot::take(server).map_err(io("processor times"))?;
        let start = Instant::now();
        phase.store(MEASURING, Ordering::Relaxed);
        thread::sleep(job.runtime);
        phase.store(ENDING, Ordering::Relaxed);
        let elapsed = start.elapsed();
        let end = Snapshot::take(server).map_err(io("processor times"))?;
        Some((elapsed, Spent::between(server, &begin, &end)))
    };
    let mut tally = Tally::default();
    let mut lanes: Vec<Box<dyn Lane>> = Vec::new();
    for thread in threads {
        let result = thread.join().map_err(|_| TargetError::Unfit("a worker panicked".into()))?;
        let (part, lane) = result?;
        tally.merge(&part);
        lanes.push(lane);
    }
    target.lanes = lanes;
    let (elapsed, spent) = match window {
        Some(window) => window,
        None => {
            let elapsed = start.elapsed();
            let end = Snapshot::take(server).map_err(io("processor times"))?;
            (elapsed, Spent::between(server, &begin, &end))
        }
    };
    Ok(Row {
        op: name,
        block: job.block,
        depth: job.depth,
        queues: job.queues,
        seconds: elapsed.as_secs_f64(),
        tally,
        spent,
        ..Row::default()
    })
}
