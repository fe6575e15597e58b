//! What the control API says and takes, as JSON. A client, such as the tool, uses the same types.
//!
//! Each name of a number ends with its unit, and a number without one counts what its name says. A client
//! has to ignore fields that it does not know; the daemon refuses those that it does not know.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A disk, and the daemon that serves it, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Its name in the log.
    pub name: String,
    /// The daemon.
    pub daemon: Daemon,
    /// Size of the disk.
    pub size_bytes: u64,
    /// The logical block that guests are told of: 512 or 4096.
    pub block_size_bytes: u32,
    /// Where its contents come from.
    pub origin: Origin,
    /// The algorithm of new pages with its parameters, such as `zstd(level=1)`.
    pub algorithm: String,
    /// Whether writes of guests are refused.
    pub read_only: bool,
    /// What can be changed while the disk is served.
    pub settings: Settings,
    /// The front end that is served.
    pub session: Session,
    /// What the disk takes of the host's memory.
    pub memory: Memory,
    /// What it holds.
    pub pages: Pages,
    /// What guests requested since the start of the daemon, or the last reset.
    pub requests: Requests,
    /// How long requests took.
    pub latency: Latencies,
    /// Compression in worker threads.
    pub engine: Engine,
    /// Polls of empty virtqueues.
    pub polls: Polls,
}

/// A daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its process in its own PID namespace.
    pub pid: u32,
    /// Time since its start.
    pub uptime_seconds: u64,
    /// Whether front ends can connect: the disk is open, and its image is loaded.
    pub ready: bool,
    /// Where front ends connect: the path of a socket, or `fd:N` for an inherited one.
    pub socket: String,
}

/// Where a disk's contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The disk was blank at the start, and ends with its daemon.
    None,
    /// The disk was blank at the start, and outlives its daemon.
    New,
    /// An earlier daemon left the contents.
    Opened,
}

/// The settings that can be changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    /// Most memory of the compressed pages and the slot table; 0 means no limit.
    pub mem_limit_bytes: u64,
    /// Memory of the host, or of the daemon's control group, that stays free.
    pub host_reserve_bytes: u64,
    /// What guests may do in a second.
    pub rates: Rates,
}

/// Rate limits, of all virtqueues together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Of reads.
    pub read: Rate,
    /// Of writes, discards and write-zeroes.
    pub write: Rate,
}

/// A rate limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rate {
    /// Operations a second; 0 means no limit.
    pub operations_per_second: u64,
    /// Bytes a second; 0 means no limit.
    pub bytes_per_second: u64,
    /// What may be saved up for a burst, in milliseconds of the limits.
    pub burst_ms: u32,
}

/// Settings to be changed, all of them or none. Those that are missing, or null, stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskPatch {
    /// Size of the disk, rounded up to a multiple of 4096 bytes: not less than it has, since a disk does not shrink.
    /// The front end is told, and its guest sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Most memory of the compressed pages and the slot table, rounded up to a page; 0 means no limit. It may
    /// be less than they take now: then writes fail that need more, and reads go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_limit_bytes: Option<u64>,
    /// Memory of the host, or of the daemon's control group, that stays free. Writes fail that need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_reserve_bytes: Option<u64>,
    /// Algorithm of new pages, in the form of the option `--algorithm`, such as `zstd(level=3)`. Pages that are
    /// there stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// What guests may do in a second.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::object::optional"
    )]
    pub rates: Option<RatesPatch>,
}

/// Rate limits to be changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RatesPatch {
    /// Of reads.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::object::optional"
    )]
    pub read: Option<RatePatch>,
    /// Of writes, discards and write-zeroes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::object::optional"
    )]
    pub write: Option<RatePatch>,
}

/// What of a rate limit is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RatePatch {
    /// Operations a second; 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// Bytes a second; 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// What may be saved up for a burst, in milliseconds of the limits: 1 to 3600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600000)]
    pub burst_ms: Option<u32>,
}

/// The front end of a disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Whether one is served now.
    pub connected: bool,
    /// Its process, if the kernel says so: it can be in another PID namespace.
    pub front_end_pid: Option<i32>,
    /// Time since it is served; 0 without one.
    pub connected_seconds: u64,
    /// Sessions that began since the start of the daemon.
    pub begun: u64,
}

/// Memory of a disk by kind. The disk takes `arena_bytes` and `metadata_bytes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Uncompressed size of the pages that hold something (zram's `orig_data_size`).
    pub pages_bytes: u64,
    /// Size of the compressed objects (`compr_data_size`).
    pub objects_bytes: u64,
    /// Memory of the arena in which the objects lie (`mem_used_total`).
    pub arena_bytes: u64,
    /// The most arena memory there ever was (`mem_used_max`).
    pub arena_max_bytes: u64,
    /// All memory beside the arena that grows with what is stored: the sum of the next five.
    pub metadata_bytes: u64,
    /// The slot table as far as it exists, with its check sums.
    pub table_bytes: u64,
    /// Notes on which parts of the table exist, and when pages were accessed.
    pub table_index_bytes: u64,
    /// The pool's notes on spans and regions.
    pub spans_bytes: u64,
    /// The threads' caches of free places.
    pub caches_bytes: u64,
    /// What a state has beside those.
    pub state_bytes: u64,
    /// The most that the disk can take: all pages stored as they are, or what the limit allows.
    pub worst_case_bytes: u64,
}

/// Pages of 4096 bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pages {
    /// Pages that hold something.
    pub stored: u64,
    /// Those of them that are one repeated 8-byte word (`same_pages`).
    pub same: u64,
    /// Those of them that are stored raw, since they do not compress (`huge_pages`).
    pub huge: u64,
    /// Pages that were stored raw, the overwritten ones included (`huge_pages_since`).
    pub huge_written: u64,
    /// Host pages given back because objects were moved away from them (`pages_compacted`).
    pub compacted: u64,
    /// Pages freed by discard or write-zeroes (`notify_free`).
    pub freed: u64,
    /// Pages that were to be recompressed, and were tried (`recompression_attempts`).
    #[serde(default)]
    pub recompression_tried: u64,
    /// Pages that were replaced by what a secondary algorithm made of them (`recompressed_pages`).
    #[serde(default)]
    pub recompressed: u64,
    /// Bytes of memory that these took before, and did not take afterwards (`recompression_saved_bytes`).
    #[serde(default)]
    pub recompression_saved_bytes: u64,
}

/// Requests of guests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Requests {
    /// Reads that ended well.
    pub reads: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Discards that ended well.
    pub discards: u64,
    /// Write-zeroes requests that ended well.
    pub write_zeroes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Writes, discards and write-zeroes requests that failed.
    pub failed_writes: u64,
    /// Requests that were refused before anything was done, since they make no sense.
    pub invalid: u64,
    /// Requests that took longer than they may, ended or not.
    pub stalled: u64,
    /// Stalled requests that were abandoned.
    pub expired: u64,
    /// Virtqueues that were stopped because they made no sense.
    pub broken_queues: u64,
    /// Virtqueues that were kicked and never showed a request: the guest's memory is not shared.
    pub blind_queues: u64,
    /// Requests that waited for a rate limit as the next ones of their virtqueues.
    pub throttled: u64,
    /// Time that virtqueues waited for rate limits.
    pub throttled_us: u64,
}

/// How long requests took, from the taking of a request to its completion, by what they do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latencies {
    /// Reads.
    pub read: Latency,
    /// Writes.
    pub write: Latency,
    /// Discards.
    pub discard: Latency,
    /// Write-zeroes.
    pub write_zeroes: Latency,
    /// Flushes.
    pub flush: Latency,
}

/// How long requests took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// The time of all of them together.
    pub sum_us: u64,
    /// Requests by time; those buckets that are not empty.
    pub buckets: Vec<Bucket>,
}

/// Compression in worker threads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Engine {
    /// The threads.
    pub workers: u64,
    /// Jobs that were submitted, each for one page.
    pub jobs: u64,
    /// Submissions of one or more jobs.
    pub submissions: u64,
    /// Jobs that came back with a result.
    pub completed: u64,
    /// Submissions that were not taken.
    pub refused: u64,
    /// Jobs whose work the request did itself.
    pub fallbacks: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Outputs that did not have their check sum.
    pub corrupted: u64,
    /// Jobs that did not come back in time.
    pub timed_out: u64,
    /// Workers that ended and were replaced.
    pub replaced_workers: u64,
    /// Jobs that wait now.
    pub queued: u64,
    /// Most jobs that ever waited.
    pub queued_max: u64,
    /// Jobs by the time that they took; those buckets that are not empty.
    pub service: Vec<Bucket>,
}

/// A bucket of a histogram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// Upper end; null is none.
    pub up_to_us: Option<u64>,
    /// How many are above the upper end of the bucket before, and not above this one's.
    pub count: u64,
}

/// Polls of empty virtqueues by the threads that serve them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Polls {
    /// Polls that found a request.
    pub hits: u64,
    /// Polls in vain.
    pub misses: u64,
    /// Time that they took.
    pub time_us: u64,
}

/// One of zram's attributes, `/v1/attributes/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attribute {
    /// The kernel's name of it.
    pub name: String,
    /// What can be done with it, as permissions: `0444` is read, `0200` written, `0644` both.
    pub mode: String,
    /// Whether it does anything: others answer ENOTSUP.
    pub supported: bool,
}

/// Background work that a client asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number; no other job of this daemon has it.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// What has become of it.
    pub state: JobState,
    /// How far it is, from 0 to 100.
    pub progress_percent: u8,
    /// Time that it ran so far, or took.
    pub running_seconds: f64,
    /// What it did so far.
    pub done: JobFigures,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Moves objects out of sparse pages, and gives memory back to the host.
    Compact,
    /// Compresses pages again, by a slower algorithm.
    Recompress,
}

/// What has become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for another one.
    Queued,
    /// It is under way.
    Running,
    /// It is done.
    Done,
    /// It was ended before it was done. What it did stays.
    Cancelled,
}

/// What a job did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobFigures {
    /// Pages of memory given back to the host.
    pub freed_pages: u64,
    /// Objects that were moved.
    pub moved_objects: u64,
    /// Pages that were tried, by a recompression.
    #[serde(default)]
    pub tried_pages: u64,
    /// Those of them that were replaced.
    #[serde(default)]
    pub recompressed_pages: u64,
    /// Bytes of memory that these took before, and do not take any more.
    #[serde(default)]
    pub saved_bytes: u64,
}

/// What happened. The stream sends it as an event of the name `kind`, and its number as the event's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number among all that happened while a client listened.
    pub id: u64,
    /// When it was seen: time since 1970-01-01 UTC.
    pub time_seconds: f64,
    /// What it is.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happening {
    /// A front end is served from now on.
    SessionBegun {
        /// Its process, if the kernel says so.
        front_end_pid: Option<i32>,
    },
    /// It is not served any more.
    SessionEnded {
        /// Why: `hung_up`, `stopped`, or the error that ended it.
        reason: String,
    },
    /// The memory of the disk comes near to its limit, or is not near any more.
    MemLimit {
        /// Whether it is near: more than 90 %, until it is less than 85 %.
        near: bool,
        /// What the disk takes.
        used_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The host has no memory to spare, or has some again.
    HostMemory {
        /// Whether it is short of it.
        short: bool,
    },
    /// Writes failed since a limit was reached, or the host had no memory.
    WritesRefused {
        /// How many pages could not be stored.
        count: u64,
    },
    /// Requests took longer than they may.
    RequestsStalled {
        /// How many.
        count: u64,
    },
    /// Stalled requests were abandoned.
    RequestsExpired {
        /// How many.
        count: u64,
    },
    /// Virtqueues were stopped because they made no sense.
    QueuesBroken {
        /// How many.
        count: u64,
    },
    /// Virtqueues were kicked and never showed a request: the guest's memory is not shared.
    QueuesBlind {
        /// How many.
        count: u64,
    },
    /// Settings were changed, or are again those of the start.
    SettingsChanged,
    /// The disk was reset, and is blank.
    DiskReset,
    /// A job began.
    JobBegun {
        /// Its number.
        job: u64,
    },
    /// A job is done, or was cancelled.
    JobEnded {
        /// Its number.
        job: u64,
        /// What has become of it.
        state: JobState,
    },
    /// Events were lost, since this client read too slowly, or too many came at once.
    Lost {
        /// How many.
        count: u64,
    },
}

/// Whether a daemon can serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// Name of the error as the kernel has it, such as `EBUSY`.
    pub errno: String,
    /// What is wrong, and what to do.
    pub error: String,
}
