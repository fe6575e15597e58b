//! What a device counts, under the kernel's names.

use super::Op;
use crate::engine::EngineReport;
use crate::pool::PoolUsage;
use crate::slot::{Content, TableUsage};
use crate::stats::{Counter, Sharded};
use crate::units::PAGE_SIZE;

/// Counters of one disk, of one shard of threads.
///
/// Names and meanings are those of the zram driver's `mm_stat` and `io_stat`
/// (Documentation/admin-guide/blockdev/zram.rst); requests are counted beside them.
#[derive(Debug, Default)]
pub struct Figures {
    /// Read requests that ended well.
    pub reads: Counter,
    /// Write requests that ended well.
    pub writes: Counter,
    /// Discard requests that ended well.
    pub discards: Counter,
    /// Write-zeroes requests that ended well.
    pub write_zeroes: Counter,
    /// Flush requests.
    pub flushes: Counter,
    /// Read requests that failed.
    pub failed_reads: Counter,
    /// Write, discard and write-zeroes requests that failed.
    pub failed_writes: Counter,
    /// Requests that were refused before anything was done.
    invalid_io: Counter,
    /// Requests that took longer than they may, ended or not.
    pub stalled_requests: Counter,
    expired_requests: Counter,
    /// Virtqueues that were stopped because they made no sense, or could not be answered.
    pub broken_queues: Counter,
    /// Virtqueues that were kicked again and again and never showed a request.
    pub blind_queues: Counter,
    /// Pages given up by discard or write-zeroes.
    pub notify_free: Counter,
    /// Pages that hold something, same-filled ones included.
    pages_stored: Counter,
    same_pages: Counter,
    huge_pages: Counter,
    huge_pages_since: Counter,
    /// Bytes of objects, not counting same-filled pages.
    compr_data_size: Counter,
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
            Content::Empty => Self::default(),
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

    /// Counts a request that was given up while it waited.
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

/// All figures of one disk at one moment. Prints as one line of `name=value` pairs.
///
/// Sizes are bytes, `*_pages` are pages of 4 KiB, the rest are counts since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the pages that hold something, uncompressed.
    pub orig_data_size: u64,
    /// Bytes of the objects that hold them; same-filled pages take none.
    pub compr_data_size: u64,
    /// Bytes of arena memory, by its allocated blocks.
    pub mem_used_total: u64,
    /// Limit on arena and table together (`table_bytes`, but for a seal); 0 is none.
    pub mem_limit: u64,
    /// The most arena memory there ever was.
    pub mem_used_max: u64,
    /// Pages filled with one repeated 8-byte word.
    pub same_pages: u64,
    /// Host pages given back because objects were moved away from them. Pages that were bare without
    /// that are not counted, as in the kernel's `mm_stat`.
    pub pages_compacted: u64,
    /// Pages stored raw.
    pub huge_pages: u64,
    /// Pages stored raw since the start, the overwritten ones included.
    pub huge_pages_since: u64,
    /// All memory beside the arena that grows with what is stored: the sum of the next five.
    pub metadata_bytes: u64,
    /// Bytes of the slot table that exist, in a state with check sums and seal.
    pub table_bytes: u64,
    /// Bytes of the notes on which parts of the table exist, and which slots are still to be looked at.
    pub table_index_bytes: u64,
    /// Bytes of the pool's notes on spans and regions.
    pub span_bytes: u64,
    /// Bytes of the threads' caches of free places.
    pub cache_bytes: u64,
    /// Bytes of a state beside those: its superblock and the arena's seal; 0 without one.
    pub state_bytes: u64,
    /// Requests that ended well, by kind.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`.
    pub discards: u64,
    /// See `reads`.
    pub write_zeroes: u64,
    /// See `reads`.
    pub flushes: u64,
    /// Read requests that failed.
    pub failed_reads: u64,
    /// Write, discard and write-zeroes requests that failed.
    pub failed_writes: u64,
    /// Requests that were refused before anything was done: they make no sense, ask for sectors that
    /// there are not or for what is not offered, or would change a read-only disk. Reads and changes
    /// among them are among the failed ones too.
    pub invalid_io: u64,
    /// Requests that took longer than they may, ended or not.
    pub stalled_requests: u64,
    /// Those of them that were given up; they are among the failed ones too.
    pub expired_requests: u64,
    /// Virtqueues that were stopped because they made no sense, or had a request that cannot be
    /// answered.
    pub broken_queues: u64,
    /// Virtqueues that were kicked again and again and never showed a request, as those of guests
    /// whose memory is not shared.
    pub blind_queues: u64,
    /// Pages given up by discard or write-zeroes.
    pub notify_free: u64,
    /// What the engine did.
    pub engine: EngineReport,
}

impl Report {
    pub(super) fn collect(
        all: &Sharded<Figures>,
        pool: &PoolUsage,
        table: TableUsage,
        beside: u64,
        engine: EngineReport,
    ) -> Self {
        Self {
            orig_data_size: all.total(|f| &f.pages_stored) * PAGE_SIZE as u64,
            compr_data_size: all.total(|f| &f.compr_data_size),
            mem_used_total: pool.arena_bytes,
            mem_limit: pool.limit,
            mem_used_max: pool.arena_bytes_max,
            same_pages: all.total(|f| &f.same_pages),
            pages_compacted: pool.pages_compacted,
            huge_pages: all.total(|f| &f.huge_pages),
            huge_pages_since: all.total(|f| &f.huge_pages_since),
            metadata_bytes: table.words + table.index + pool.span_bytes + pool.cache_bytes + beside,
            table_bytes: table.words,
            table_index_bytes: table.index,
            span_bytes: pool.span_bytes,
            cache_bytes: pool.cache_bytes,
            state_bytes: beside,
            reads: all.total(|f| &f.reads),
            writes: all.total(|f| &f.writes),
            discards: all.total(|f| &f.discards),
            write_zeroes: all.total(|f| &f.write_zeroes),
            flushes: all.total(|f| &f.flushes),
            failed_reads: all.total(|f| &f.failed_reads),
            failed_writes: all.total(|f| &f.failed_writes),
            invalid_io: all.total(|f| &f.invalid_io),
            stalled_requests: all.total(|f| &f.stalled_requests),
            expired_requests: all.total(|f| &f.expired_requests),
            broken_queues: all.total(|f| &f.broken_queues),
            blind_queues: all.total(|f| &f.blind_queues),
            notify_free: all.total(|f| &f.notify_free),
            engine,
        }
    }

    fn pairs(&self) -> [(&'static str, u64); 39] {
        [
            ("orig_data_size", self.orig_data_size),
            ("compr_data_size", self.compr_data_size),
            ("mem_used_total", self.mem_used_total),
            ("mem_limit", self.mem_limit),
            ("mem_used_max", self.mem_used_max),
            ("same_pages", self.same_pages),
            ("pages_compacted", self.pages_compacted),
            ("huge_pages", self.huge_pages),
            ("huge_pages_since", self.huge_pages_since),
            ("metadata_bytes", self.metadata_bytes),
            ("table_bytes", self.table_bytes),
            ("table_index_bytes", self.table_index_bytes),
            ("span_bytes", self.span_bytes),
            ("cache_bytes", self.cache_bytes),
            ("state_bytes", self.state_bytes),
            ("reads", self.reads),
            ("writes", self.writes),
            ("discards", self.discards),
            ("write_zeroes", self.write_zeroes),
            ("flushes", self.flushes),
            ("failed_reads", self.failed_reads),
            ("failed_writes", self.failed_writes),
            ("invalid_io", self.invalid_io),
            ("stalled_requests", self.stalled_requests),
            ("expired_requests", self.expired_requests),
            ("broken_queues", self.broken_queues),
            ("blind_queues", self.blind_queues),
            ("notify_free", self.notify_free),
            ("engine_jobs", self.engine.jobs),
            ("engine_batches", self.engine.batches),
            ("engine_completed", self.engine.completed),
            ("engine_refusals", self.engine.refusals),
            ("engine_fallbacks", self.engine.fallbacks),
            ("engine_failures", self.engine.failures),
            ("engine_corruptions", self.engine.corruptions),
            ("engine_timeouts", self.engine.timeouts),
            ("engine_deaths", self.engine.deaths),
            ("engine_depth", self.engine.depth),
            ("engine_depth_max", self.engine.deepest),
        ]
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (name, value)) in self.pairs().into_iter().enumerate() {
            let blank = if at == 0 { "" } else { " " };
            write!(f, "{blank}{name}={value}")?;
        }
        write!(f, " engine_service_us={}", self.engine.histogram())?;
        Ok(())
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
