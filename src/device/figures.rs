//! What a device counts, under the kernel's names.

use std::fmt;
use std::time::Duration;

use super::{Latencies, Op};
use crate::engine::{EngineReport, Histogram};
use crate::pool::PoolUsage;
use crate::slot::{Content, TableUsage};
use crate::stats::{Counter, Figure, Sharded, report};
use crate::units::PAGE_SIZE;

report! {
    /// All figures of one disk at one moment. Prints as one line of `name=value` pairs.
    ///
    /// Names and meanings are those of the zram driver's `mm_stat` and `io_stat`
    /// (Documentation/admin-guide/blockdev/zram.rst); requests are counted beside them.
    pub struct Report from source: &Source<'_>;
    /// Counters of one disk, of one shard of threads.
    pub struct Figures of Counter { pages_stored, polled_ns, throttled_ns }
    prefix "";
    /// Bytes of the pages that hold something, uncompressed.
    orig_data_size: Gauge Bytes "orig_data" =
        source.count(|counters| &counters.pages_stored) * PAGE_SIZE as u64;
    /// Bytes of the objects that hold them; same-filled pages take none.
    compr_data_size: Gauge Bytes "compr_data" counted(pub(super));
    /// Bytes of arena memory, by its allocated blocks.
    mem_used_total: Gauge Bytes "memory" { "kind": "arena" } = source.pool.arena_bytes;
    /// Limit on arena and table together (`table_bytes`, but for a seal); 0 stands for no limit.
    mem_limit: Gauge Bytes "mem_limit" = source.pool.limit;
    /// The most arena memory there ever was.
    mem_used_max: Gauge Bytes "mem_used_max" = source.pool.arena_bytes_max;
    /// Pages filled with one repeated 8-byte word.
    same_pages: Gauge Pages "same" counted(pub(super));
    /// Host pages given back because objects were moved away from them. Pages that were bare without
    /// that are not counted, as in the kernel's `mm_stat`.
    pages_compacted: Counter Pages "compacted" = source.pool.pages_compacted;
    /// Pages stored raw.
    huge_pages: Gauge Pages "huge" counted(pub(super));
    /// Pages stored raw since the start, the overwritten ones included.
    huge_pages_since: Counter Pages "huge_written" counted(pub(super));
    /// All memory beside the arena that grows with what is stored: the sum of the next five.
    metadata_bytes: Gauge Bytes "metadata" = source.metadata();
    /// Bytes of the slot table that exist, by allocated blocks; in a state with check sums and seal.
    table_bytes: Gauge Bytes "memory" { "kind": "table" } = source.table.words;
    /// Bytes of the notes on which parts of the table exist, which slots are still to be verified, and when pages were accessed.
    table_index_bytes: Gauge Bytes "memory" { "kind": "table_index" } = source.table.index;
    /// Bytes of the pool's notes on spans and regions.
    span_bytes: Gauge Bytes "memory" { "kind": "spans" } = source.pool.span_bytes;
    /// Bytes of the threads' caches of free places.
    cache_bytes: Gauge Bytes "memory" { "kind": "caches" } = source.pool.cache_bytes;
    /// Bytes of a state beside those: its superblock and the arena's seal; 0 without one.
    state_bytes: Gauge Bytes "memory" { "kind": "state" } = source.beside;
    /// Read requests that ended well.
    reads: Counter Requests "read" counted(pub);
    /// Write requests that ended well.
    writes: Counter Requests "write" counted(pub);
    /// Discard requests that ended well.
    discards: Counter Requests "discard" counted(pub);
    /// Write-zeroes requests that ended well.
    write_zeroes: Counter Requests "write_zeroes" counted(pub);
    /// Flush requests.
    flushes: Counter Requests "flush" counted(pub);
    /// Read requests that failed.
    failed_reads: Counter Requests "failed_read" counted(pub);
    /// Write, discard and write-zeroes requests that failed.
    failed_writes: Counter Requests "failed_write" counted(pub);
    /// Requests that were refused before anything was done: they make no sense, ask for sectors that
    /// do not exist or for what is not offered, or would change a read-only disk. Reads and changes
    /// among them are among the failed ones too.
    invalid_io: Counter Requests "invalid" counted(pub(super));
    /// Requests that took longer than they may, ended or not.
    stalled_requests: Counter Requests "stalled" counted(pub);
    /// Stalled requests that were abandoned; they are among the failed ones too.
    expired_requests: Counter Requests "expired" counted(pub(super));
    /// Virtqueues that were stopped because they made no sense, or had a request that cannot be
    /// answered.
    broken_queues: Counter Queues "broken" counted(pub);
    /// Virtqueues that were kicked again and again and never showed a request, as those of guests
    /// whose memory is not shared.
    blind_queues: Counter Queues "blind" counted(pub);
    /// Pages freed by discard or write-zeroes.
    notify_free: Counter Pages "freed" counted(pub);
    /// Times that a queue thread polled its empty rings and found a request, which saved a sleep.
    poll_hits: Counter Polls "successful" counted(pub(super));
    /// Times that a queue thread polled its empty rings in vain.
    poll_misses: Counter Polls "vain" counted(pub(super));
    /// Time that queue threads polled empty rings, in vain or not.
    poll_us: Counter Microseconds "polled" = source.count(|counters| &counters.polled_ns) / 1000;
    /// Requests that waited for a rate limit as the next ones of their virtqueues. What waits behind them is not
    /// counted.
    throttled_requests: Counter Requests "throttled" counted(pub);
    /// Time that virtqueues waited for rate limits, of each one separately, until the wait is over.
    throttled_us: Counter Microseconds "throttled" =
        source.count(|counters| &counters.throttled_ns) / 1000;
    /// Pages that were to be recompressed, and were tried.
    recompression_attempts: Counter Pages "recompression_tried" counted(pub(super));
    /// Pages that were replaced by what a secondary algorithm made of them.
    recompressed_pages: Counter Pages "recompressed" counted(pub(super));
    /// Bytes of memory that these took before, and did not take afterwards.
    recompression_saved_bytes: Counter Bytes "recompression_saved" counted(pub(super));
    beside {
        /// What the engine did.
        engine: EngineReport = source.engine;
        /// How long its jobs took.
        engine_service: Histogram = source.engine_service;
        /// How long requests took.
        latencies: Latencies = source.latencies;
    }
}

/// What a report is made from.
pub(super) struct Source<'s> {
    pub(super) counters: &'s Sharded<Figures>,
    pub(super) pool: PoolUsage,
    pub(super) table: TableUsage,
    /// Bytes of a state beside table and arena.
    pub(super) beside: u64,
    pub(super) engine: EngineReport,
    pub(super) engine_service: Histogram,
    pub(super) latencies: Latencies,
}

impl Source<'_> {
    fn count(&self, counter: impl Fn(&Figures) -> &Counter) -> u64 {
        self.counters.total(counter)
    }

    fn metadata(&self) -> u64 {
        let Self { pool, table, beside, .. } = self;
        table.words + table.index + pool.span_bytes + pool.cache_bytes + beside
    }
}

impl Report {
    pub(super) fn new(source: &Source<'_>) -> Self {
        Self::collect(source)
    }

    /// Each figure that is one number, in the order of the line of statistics.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static Figure, u64)> {
        let own = Self::FIGURES.iter().zip(self.values());
        own.chain(EngineReport::FIGURES.iter().zip(self.engine.values()))
    }

    /// Each figure with its value as text, in the order of the line of statistics.
    pub fn figures(&self) -> impl Iterator<Item = (&'static Figure, String)> {
        let numbers = self.numbers().map(|(figure, value)| (figure, value.to_string()));
        let service = (&Histogram::FIGURE, self.engine_service.to_string());
        let latencies = self.latencies.values().map(|latency| latency.to_string());
        numbers.chain([service]).chain(Latencies::FIGURES.iter().zip(latencies))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blank = "";
        for (figure, value) in self.figures() {
            write!(f, "{blank}{}={value}", figure.name)?;
            blank = " ";
        }
        Ok(())
    }
}

/// What one content adds to the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Share {
    pages: i64,
    same: i64,
    huge: i64,
    bytes: i64,
}

impl Share {
    fn of(content: Content) -> Self {
        match content {
            Content::Empty | Content::Discarded | Content::Unknown => Self::default(),
            Content::Same(_) | Content::SameWide(_) => {
                Self { pages: 1, same: 1, huge: 0, bytes: 0 }
            }
            Content::Object(_, object) => Self {
                pages: 1,
                same: 0,
                huge: i64::from(object.is_huge()),
                bytes: object.length as i64,
            },
        }
    }
}

impl Figures {
    /// Counts a request that failed.
    pub fn failed(&self, op: Op) {
        if op == Op::Read { &self.failed_reads } else { &self.failed_writes }.inc();
    }

    /// Counts a request that was abandoned while it waited.
    pub fn expired(&self, op: Op) {
        self.expired_requests.inc();
        self.failed(op);
    }

    /// Counts a request that was refused before anything was done, and is a read or a change if
    /// that is known.
    pub fn refused(&self, op: Option<Op>) {
        self.invalid_io.inc();
        if let Some(op) = op {
            self.failed(op);
        }
    }

    /// Counts that a queue thread polled its empty rings for `time`. `hit` is whether it found a request, if
    /// it was not called away.
    pub fn polled(&self, time: Duration, hit: Option<bool>) {
        self.polled_ns.add(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        match hit {
            Some(true) => self.poll_hits.inc(),
            Some(false) => self.poll_misses.inc(),
            None => {}
        }
    }

    /// Counts that a queue has waited for a rate limit for `time`.
    pub fn throttled(&self, time: Duration) {
        self.throttled_ns.add(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    }

    /// Has what counts from the start on count from here on. What says how much there is stays.
    pub(super) fn restart(&self) {
        self.growing().chain([&self.polled_ns, &self.throttled_ns]).for_each(Counter::restart);
    }

    /// Counts that a slot's content `old` was replaced by `new`.
    pub(super) fn replace(&self, old: Content, new: Content) {
        let (old, new) = (Share::of(old), Share::of(new));
        let changes = [
            (&self.pages_stored, new.pages - old.pages),
            (&self.same_pages, new.same - old.same),
            (&self.huge_pages, new.huge - old.huge),
            (&self.huge_pages_since, new.huge),
            (&self.compr_data_size, new.bytes - old.bytes),
        ];
        for (counter, change) in changes {
            // Most stay as they are on an overwrite, and an atomic addition is not free.
            if change != 0 {
                counter.add(change);
            }
        }
    }

    /// Counts a content that an earlier process stored: it is there, and was not stored since the start.
    pub(super) fn adopt(&self, content: Content) {
        self.replace(Content::Empty, content);
        self.huge_pages_since.add(-Share::of(content).huge);
    }
}

/// What the counters have to be by the table itself.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Expected(Share);

#[cfg(test)]
impl Expected {
    pub(super) fn add(&mut self, content: Content) {
        let share = Share::of(content);
        self.0.pages += share.pages;
        self.0.same += share.same;
        self.0.huge += share.huge;
        self.0.bytes += share.bytes;
    }

    pub(super) fn compare(&self, all: &Sharded<Figures>) -> Result<(), String> {
        let counted = Share {
            pages: all.sum(|f| &f.pages_stored),
            same: all.sum(|f| &f.same_pages),
            huge: all.sum(|f| &f.huge_pages),
            bytes: all.sum(|f| &f.compr_data_size),
        };
        if counted == self.0 {
            Ok(())
        } else {
            Err(format!("the table holds {:?}, the counters say {counted:?}", self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::stats::Kind;

    /// What `docs/figures.md` says between its marks.
    fn documented() -> String {
        let mut table = String::from("| name | kind | unit | metric | |\n|---|---|---|---|---|\n");
        for (figure, _) in Report::default().figures() {
            let kind = format!("{:?}", figure.kind).to_lowercase();
            let (metric, help) = (figure.series(), figure.help.trim());
            let Figure { name, unit, .. } = figure;
            table += &format!("| `{name}` | {kind} | {unit} | `{metric}` | {help} |\n");
        }
        table
    }

    #[test]
    fn each_figure_has_names_of_its_own_a_unit_and_a_meaning() {
        let report = Report::default();
        let figures: Vec<_> = report.figures().map(|(figure, _)| figure).collect();
        let names: BTreeSet<_> = figures.iter().map(|figure| figure.name).collect();
        let metrics: BTreeSet<_> = figures.iter().map(|figure| figure.series()).collect();
        assert_eq!((names.len(), metrics.len()), (figures.len(), figures.len()));
        for figure in figures {
            let plain = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(plain(figure.name) && plain(&figure.metric()), "{figure:?}");
            assert!(figure.help.trim().ends_with('.') && figure.help.len() > 10, "{figure:?}");
            let (metric, unit) = (figure.metric(), figure.unit.to_string());
            let unit = if unit == "microseconds" { "seconds".to_owned() } else { unit };
            let total = if figure.kind == Kind::Counter { "_total" } else { "" };
            assert!(metric.starts_with("vhost_user_zram_"), "{metric}");
            assert!(metric.ends_with(&format!("_{unit}{total}")), "{metric}");
        }
    }

    /// Scripts read it.
    #[test]
    fn the_line_of_statistics_is_what_it_always_was() {
        let report = Report {
            orig_data_size: 1,
            notify_free: 2,
            engine: EngineReport { jobs: 3, ..Default::default() },
            ..Default::default()
        };
        let line = "orig_data_size=1 compr_data_size=0 mem_used_total=0 mem_limit=0 mem_used_max=0 \
                    same_pages=0 pages_compacted=0 huge_pages=0 huge_pages_since=0 metadata_bytes=0 \
                    table_bytes=0 table_index_bytes=0 span_bytes=0 cache_bytes=0 state_bytes=0 reads=0 \
                    writes=0 discards=0 write_zeroes=0 flushes=0 failed_reads=0 failed_writes=0 \
                    invalid_io=0 stalled_requests=0 expired_requests=0 broken_queues=0 blind_queues=0 \
                    notify_free=2 poll_hits=0 poll_misses=0 poll_us=0 \
                    throttled_requests=0 throttled_us=0 recompression_attempts=0 recompressed_pages=0 \
                    recompression_saved_bytes=0 engine_jobs=3 engine_batches=0 engine_completed=0 engine_refusals=0 \
                    engine_fallbacks=0 engine_failures=0 engine_corruptions=0 engine_timeouts=0 \
                    engine_deaths=0 engine_depth=0 engine_depth_max=0 engine_service_us=- read_latency_us=- \
                    write_latency_us=- discard_latency_us=- write_zeroes_latency_us=- flush_latency_us=-";
        assert_eq!(report.to_string(), line);
    }

    /// `VUZ_UPDATE=1` writes it.
    #[test]
    fn the_document_lists_the_figures() {
        const MARK: &str = "<!-- The rest is written by a test of src/device/figures.rs. -->\n\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/figures.md");
        let found = std::fs::read_to_string(&path).unwrap();
        let (head, table) = found.split_once(MARK).unwrap();
        let expected = documented();
        if std::env::var_os("VUZ_UPDATE").is_some() {
            std::fs::write(&path, format!("{head}{MARK}{expected}")).unwrap();
        } else {
            assert!(table == expected, "docs/figures.md is out of date: VUZ_UPDATE=1");
        }
    }
}
