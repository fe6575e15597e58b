//! What the codec costs here and now, by which the engine decides what is worth a hand-over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::job::Work;
use crate::codec::{Codec, CodecError, CodecTable, ENTRIES};
use crate::units::PAGE_SIZE;

/// A page that costs more than this is handed over whenever there is an engine: the hand-over and
/// two switches of context cost a few microseconds.
const SLOW: Duration = Duration::from_micros(12);

/// One that costs more than this is never compressed by a queue's own thread, which would keep
/// others waiting.
const VERY_SLOW: Duration = Duration::from_micros(60);

/// Queued jobs for each worker that are enough for it not to run out.
const BACKLOG: usize = 4;

/// Pages of a large request are shared with the workers, where that pays, if all of them cost more than this.
const WORTH_SPREADING: Duration = Duration::from_micros(40);

/// Pages from which on a request counts as large.
const LARGE: usize = 8;

/// One in so many inline calls is timed: reading the clock costs more than a percent of lz4.
const SAMPLE: u32 = 64;

/// A time counts as no more than so many times the average.
const MOST_AT_ONCE: u64 = 4;

/// Weight of the past in the running averages.
const PAST: u64 = 16;

/// A running average in nanoseconds, unless it is fixed.
#[derive(Debug)]
pub(super) struct Average {
    ns: AtomicU64,
    fixed: bool,
}

impl Average {
    fn new(time: Duration, fixed: bool) -> Self {
        Self { ns: AtomicU64::new(time.as_nanos() as u64), fixed }
    }

    pub(super) fn add(&self, time: Duration) {
        if self.fixed {
            return;
        }
        let new = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(1 << 40);
        let old = self.ns.load(Ordering::Relaxed);
        // A thread that had to wait for a processor says nothing of the codec.
        let new = new.min(old.saturating_mul(MOST_AT_ONCE) + 1000);
        // An update that is lost to another thread's does not matter.
        self.ns.store((old * (PAST - 1) + new) / PAST, Ordering::Relaxed);
    }

    fn set(&self, time: Duration) {
        self.ns.store(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_nanos(self.ns.load(Ordering::Relaxed))
    }
}

/// Average costs of a page in both directions, by the number of the codec.
#[derive(Debug)]
pub(super) struct Costs(Box<[[Average; 2]; ENTRIES]>);

impl Costs {
    /// Measures each codec on a few pages of made-up text, or takes a page to cost `assumed` for ever.
    pub(super) fn new(codecs: &CodecTable, assumed: Option<Duration>) -> Result<Self, CodecError> {
        let average = || Average::new(assumed.unwrap_or_default(), assumed.is_some());
        let this = Self(Box::new(std::array::from_fn(|_| [average(), average()])));
        codecs.iter().try_for_each(|codec| this.learn(codec))?;
        Ok(this)
    }

    /// Measures a codec of which nothing is known yet. Where a cost is assumed, this only tries it out.
    pub(super) fn learn(&self, codec: &Codec) -> Result<(), CodecError> {
        let averages = &self.0[usize::from(codec.number()) % ENTRIES];
        if averages.iter().all(|average| average.fixed) {
            return codec.workspace().map(drop);
        }
        let measured = measure(codec)?;
        averages.iter().zip(measured).for_each(|(average, each)| average.set(each));
        Ok(())
    }

    /// The average cost of such work.
    pub(super) fn of(&self, work: Work) -> &Average {
        let direction = usize::from(matches!(work, Work::Decompress { .. }));
        &self.0[usize::from(work.codec()) % ENTRIES][direction]
    }

    pub(super) fn compress(&self, codec: u8) -> &Average {
        &self.0[usize::from(codec) % ENTRIES][0]
    }
}

/// The least times of a few compressions and decompressions.
fn measure(codec: &Codec) -> Result<[Duration; 2], CodecError> {
    let mut workspace = codec.workspace()?;
    let (mut page, mut object) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    let mut state = 1_u32;
    for (at, byte) in page.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Letters in runs that come again now and then.
        *byte = if at % 64 < 24 { b'a' + (at / 512) as u8 } else { b'a' + (state >> 28) as u8 };
    }
    let (mut compress, mut decompress) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        let length = codec.compress(&mut workspace, &page, &mut object)?;
        let between = Instant::now();
        codec.decompress(&mut workspace, &object[..length.unwrap_or(0)], &mut page)?;
        compress = compress.min(between - start);
        decompress = decompress.min(between.elapsed());
    }
    Ok([compress, decompress])
}

/// How many of `pages` pages of a slow codec, at `each` a page, are to be handed over when so many
/// jobs are queued before so many workers.
///
/// Where the workers have enough to do and a page takes not too long, the queue's own thread does
/// better to work than to sleep: a thread that sleeps has to be woken.
pub(super) fn share_of_slow(each: Duration, pages: usize, backlog: usize, workers: usize) -> usize {
    let enough = workers * BACKLOG;
    if each >= VERY_SLOW { pages } else { pages.min(enough.saturating_sub(backlog)) }
}

/// Whether so many pages of a fast codec are worth handing some of them over.
pub(super) fn is_worth_spreading(each: Duration, pages: usize) -> bool {
    pages >= LARGE && each * pages as u32 >= WORTH_SPREADING
}

/// Of the pages of a large request the queue's own thread compresses 3 where each worker does 5: it copies
/// and installs all of them.
const OWN: usize = 3;
const OF_A_WORKER: usize = 5;

/// How many of `pages` pages that are worth it are to be handed over, where so many workers have `backlog`
/// jobs in all: so many that all of them are done at the same time.
pub(super) fn share(pages: usize, backlog: usize, workers: usize) -> usize {
    let of_workers = OF_A_WORKER * workers;
    ((pages + backlog) * of_workers / (of_workers + OWN)).saturating_sub(backlog).min(pages)
}

/// Whether a page is so slow that it is handed over wherever the workers have too little to do.
pub(super) fn is_slow(each: Duration) -> bool {
    each >= SLOW
}

/// Whether a page is so slow that a queue's own thread never compresses one if it can help it.
pub(super) fn is_very_slow(each: Duration) -> bool {
    each >= VERY_SLOW
}

/// Says which inline calls are to be timed. One for each thread.
#[derive(Debug, Default)]
pub struct Sampler(u32);

impl Sampler {
    /// Now, if the call that follows is to be timed.
    pub(super) fn start(&mut self) -> Option<Instant> {
        self.0 = self.0.wrapping_add(1);
        self.0.is_multiple_of(SAMPLE).then(Instant::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_follows_the_cost() {
        let us = Duration::from_micros;
        assert!(!is_worth_spreading(us(11), 1));
        assert!(is_worth_spreading(us(5), 32));
        assert!(!is_worth_spreading(us(1), 8), "too little work");
        assert_eq!(share(32, 0, 0), 0, "no processor beside the queue's");
        assert_eq!(share(32, 0, 1), 20);
        assert_eq!(share(32, 0, 3), 26);
        assert_eq!(share(32, 16, 1), 14, "30 of 48");
        assert_eq!(share(32, 60, 1), 0, "the worker has enough");
        assert_eq!(share_of_slow(us(20), 1, 0, 2), 1);
        assert_eq!(share_of_slow(us(20), 1, 8, 2), 0, "the workers have enough");
        assert_eq!(share_of_slow(us(20), 32, 3, 2), 5);
        assert_eq!(share_of_slow(us(2000), 32, 100, 2), 32, "others would wait");
    }

    #[test]
    fn an_expensive_codec_is_measured_to_be_one() {
        let spec = |text: &str| text.parse().unwrap();
        let codecs = CodecTable::new(3, spec("lz4"), [(9, spec("zstd(level=19)"))]).unwrap();
        let costs = Costs::new(&codecs, None).unwrap();
        let cost = |codec| costs.of(Work::Compress { codec, limit: PAGE_SIZE }).get();
        assert!(cost(3) < cost(9));
        assert_eq!(cost(0), Duration::ZERO, "there is no such codec");
    }

    #[test]
    fn an_average_follows_what_is_added_and_no_single_outlier() {
        let average = Average::new(Duration::from_micros(5), false);
        average.add(Duration::from_secs(1));
        assert!(average.get() < Duration::from_micros(7), "four times the average at most");
        for _ in 0..100 {
            average.add(Duration::from_millis(1));
        }
        assert!(average.get() > Duration::from_micros(900));
        let fixed = Average::new(Duration::from_micros(5), true);
        fixed.add(Duration::from_secs(1));
        assert_eq!(fixed.get(), Duration::from_micros(5));
    }
}
