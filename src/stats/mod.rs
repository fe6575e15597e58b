//! Sharded counters: many threads add, one reader sums. And figures, as which they are shown.

mod figure;
mod latency;

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

pub(crate) use self::figure::report;
pub use self::figure::{Figure, Kind, Unit};
pub use self::latency::{Latency, LatencyCounters};

/// Shards of a [`Sharded`] set; a power of two. More threads than this share shards, which costs
/// speed and nothing else.
const SHARDS: usize = 16;

/// Keeps two shards out of one cache line (and out of one prefetched pair of lines).
#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// One set of counters `T` for each of a fixed number of shards.
///
/// A thread adds to its own shard with relaxed atomics; a sum over all shards is exact once the
/// writers are quiet, and never tears a single counter.
#[derive(Debug)]
pub struct Sharded<T> {
    shards: Box<[Padded<T>]>,
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Padded::default()).collect() }
    }
}

impl<T> Sharded<T> {
    /// The calling thread's shard.
    pub fn local(&self) -> &T {
        &self.shards[thread_number() % SHARDS].0
    }

    /// Calls `change` with each shard.
    pub fn each(&self, change: impl FnMut(&T)) {
        self.shards.iter().map(|shard| &shard.0).for_each(change);
    }

    /// Sum of one counter over all shards.
    pub fn sum(&self, counter: impl Fn(&T) -> &Counter) -> i64 {
        self.shards.iter().map(|shard| counter(&shard.0).0.load(Ordering::Relaxed)).sum()
    }

    /// Sum of one counter that never goes below zero as a whole.
    ///
    /// A single shard may be negative (one thread stores a page, another one frees it), and a
    /// reader that races with both may see the second without the first.
    pub fn total(&self, counter: impl Fn(&T) -> &Counter) -> u64 {
        u64::try_from(self.sum(counter)).unwrap_or(0)
    }
}

/// A counter of one shard.
#[derive(Debug, Default)]
pub struct Counter(AtomicI64);

impl Counter {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Begins anew from 0.
    pub fn restart(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
}

/// A number of the calling thread, small and its own: the first thread that asks has 0.
pub fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Set {
        a: Counter,
        b: Counter,
    }

    #[test]
    fn sums_over_threads_are_exact_when_quiet() {
        let set = Sharded::<Set>::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        set.local().a.inc();
                        set.local().b.add(-2);
                    }
                });
            }
        });
        let threads = i64::try_from(SHARDS + 3).unwrap();
        assert_eq!(set.sum(|s| &s.a), threads * 1000);
        assert_eq!(set.sum(|s| &s.b), threads * -2000);
        assert_eq!(set.total(|s| &s.b), 0);
    }
}
