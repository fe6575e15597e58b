//! One moment of a disk and its daemon, and what the API says of it.

use super::api;
use crate::clock;
use crate::device::{Latencies, Report};
use crate::disk::{Disk, DiskSettings, JobKind, JobReport, JobState, Origin, Sessions};
use crate::engine::EngineReport;
use crate::rates::Rate;
use crate::stats::Latency;
use crate::units::PAGE_SIZE;

/// What the API says of the daemon itself.
#[derive(Debug, Clone)]
pub struct About {
    /// Where front ends connect.
    pub socket: String,
}

/// One moment of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) report: Report,
    pub(super) settings: DiskSettings,
    pub(super) sessions: Sessions,
    pub(super) worst_case: u64,
    pub(super) engine_workers: usize,
}

impl View {
    /// The disk now. Waits for nothing that a job or a guest holds for longer than a moment.
    pub(super) fn of(disk: &Disk) -> Self {
        Self {
            report: disk.report(),
            settings: disk.settings(),
            sessions: disk.sessions(),
            worst_case: disk.worst_case().total_bytes,
            engine_workers: disk.engine_workers(),
        }
    }

    /// It as the API says it.
    pub(super) fn disk(&self, disk: &Disk, about: &About, ready: bool) -> api::Disk {
        let origin = match disk.origin() {
            Origin::None => api::Origin::None,
            Origin::New => api::Origin::New,
            Origin::Opened => api::Origin::Opened,
        };
        let Figures { memory, pages, requests, engine, polls } = self.figures();
        api::Disk {
            name: disk.name().to_string(),
            daemon: api::Daemon {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_seconds: clock::since_start().as_secs(),
                ready,
                socket: about.socket.clone(),
            },
            size_bytes: disk.size(),
            block_size_bytes: disk.block_size().bytes(),
            origin,
            algorithm: disk.codec().to_string(),
            read_only: disk.is_read_only(),
            settings: api::Settings {
                mem_limit_bytes: self.settings.mem_limit,
                host_reserve_bytes: self.settings.host_reserve,
                rates: api::Rates {
                    read: rate(self.settings.rates.read),
                    write: rate(self.settings.rates.write),
                },
            },
            session: session(&self.sessions),
            memory,
            pages,
            requests,
            latency: latencies(&self.report.latencies),
            engine,
            polls,
        }
    }

    fn figures(&self) -> Figures {
        // Each field by name, so that a new figure is not forgotten here.
        let Report {
            orig_data_size,
            compr_data_size,
            mem_used_total,
            // Among the settings.
            mem_limit: _,
            mem_used_max,
            same_pages,
            pages_compacted,
            huge_pages,
            huge_pages_since,
            metadata_bytes,
            table_bytes,
            table_index_bytes,
            span_bytes,
            cache_bytes,
            state_bytes,
            reads,
            writes,
            discards,
            write_zeroes,
            flushes,
            failed_reads,
            failed_writes,
            invalid_io,
            stalled_requests,
            expired_requests,
            broken_queues,
            blind_queues,
            notify_free,
            poll_hits,
            poll_misses,
            poll_us,
            throttled_requests,
            throttled_us,
            recompression_attempts,
            recompressed_pages,
            recompression_saved_bytes,
            engine,
            engine_service,
            // Apart from these.
            latencies: _,
        } = self.report;
        let service = buckets(engine_service.buckets());
        Figures {
            memory: api::Memory {
                pages_bytes: orig_data_size,
                objects_bytes: compr_data_size,
                arena_bytes: mem_used_total,
                arena_max_bytes: mem_used_max,
                metadata_bytes,
                table_bytes,
                table_index_bytes,
                spans_bytes: span_bytes,
                caches_bytes: cache_bytes,
                state_bytes,
                worst_case_bytes: self.worst_case,
            },
            pages: api::Pages {
                stored: orig_data_size / PAGE_SIZE as u64,
                same: same_pages,
                huge: huge_pages,
                huge_written: huge_pages_since,
                compacted: pages_compacted,
                freed: notify_free,
                recompression_tried: recompression_attempts,
                recompressed: recompressed_pages,
                recompression_saved_bytes,
            },
            requests: api::Requests {
                reads,
                writes,
                discards,
                write_zeroes,
                flushes,
                failed_reads,
                failed_writes,
                invalid: invalid_io,
                stalled: stalled_requests,
                expired: expired_requests,
                broken_queues,
                blind_queues,
                throttled: throttled_requests,
                throttled_us,
            },
            engine: self::engine(&engine, self.engine_workers, service),
            polls: api::Polls { hits: poll_hits, misses: poll_misses, time_us: poll_us },
        }
    }
}

/// Those of a histogram that are not empty.
fn buckets(all: impl Iterator<Item = (Option<u64>, u64)>) -> Vec<api::Bucket> {
    let full = all.filter(|(_, count)| *count > 0);
    full.map(|(up_to_us, count)| api::Bucket { up_to_us, count }).collect()
}

fn latencies(latencies: &Latencies) -> api::Latencies {
    let one = |latency: &Latency| api::Latency {
        count: latency.count(),
        sum_us: u64::try_from(latency.sum().as_micros()).unwrap_or(u64::MAX),
        buckets: buckets(latency.buckets()),
    };
    let Latencies { read, write, discard, write_zeroes, flush } = latencies;
    api::Latencies {
        read: one(read),
        write: one(write),
        discard: one(discard),
        write_zeroes: one(write_zeroes),
        flush: one(flush),
    }
}

fn rate(rate: Rate) -> api::Rate {
    let Rate { operations_per_second, bytes_per_second, burst_ms } = rate;
    api::Rate { operations_per_second, bytes_per_second, burst_ms }
}

/// The figures of a report, by what they are about.
struct Figures {
    memory: api::Memory,
    pages: api::Pages,
    requests: api::Requests,
    engine: api::Engine,
    polls: api::Polls,
}

fn engine(report: &EngineReport, workers: usize, service: Vec<api::Bucket>) -> api::Engine {
    let EngineReport {
        jobs,
        batches,
        completed,
        refusals,
        fallbacks,
        failures,
        corruptions,
        timeouts,
        deaths,
        depth,
        depth_max,
    } = *report;
    api::Engine {
        workers: workers as u64,
        jobs,
        submissions: batches,
        completed,
        refused: refusals,
        fallbacks,
        failed: failures,
        corrupted: corruptions,
        timed_out: timeouts,
        replaced_workers: deaths,
        queued: depth,
        queued_max: depth_max,
        service,
    }
}

fn session(sessions: &Sessions) -> api::Session {
    api::Session {
        connected: sessions.now.is_some(),
        front_end_pid: sessions.now.and_then(|now| now.pid),
        connected_seconds: sessions.now.map_or(0, |now| now.since.elapsed().as_secs()),
        begun: sessions.begun,
    }
}

/// A job as the API says it.
pub(super) fn job(report: &JobReport) -> api::Job {
    api::Job {
        id: report.id,
        kind: match report.kind {
            JobKind::Compact => api::JobKind::Compact,
            JobKind::Recompress => api::JobKind::Recompress,
        },
        state: match report.state {
            JobState::Queued => api::JobState::Queued,
            JobState::Running => api::JobState::Running,
            JobState::Done => api::JobState::Done,
            JobState::Cancelled => api::JobState::Cancelled,
        },
        progress_percent: report.percent,
        running_seconds: report.running.as_secs_f64(),
        done: api::JobFigures {
            freed_pages: report.done.pages,
            moved_objects: report.done.moves,
            tried_pages: report.recompressed.tried,
            recompressed_pages: report.recompressed.replaced,
            saved_bytes: report.recompressed.saved_bytes,
        },
    }
}
