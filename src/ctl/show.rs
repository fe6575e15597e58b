//! `show`: all figures of one disk for people, in sections.

use vhost_user_zram::internals::api::{Disk, Job, JobKind, JobState, Latency, Origin, Rate};

use crate::list::total;
use crate::table::{self, Heading, plain};
use crate::units::{count, human, micros, ratio, seconds};

/// Lines of a section: a name and a value.
type Lines = Vec<(&'static str, String)>;

/// A size with its bytes.
fn size(bytes: u64) -> String {
    if bytes < 1024 { human(bytes) } else { format!("{} ({bytes})", human(bytes)) }
}

fn limit(bytes: u64) -> String {
    if bytes == 0 { "none".into() } else { size(bytes) }
}

/// The section as text; lines without a value are left out, and so is a section without lines.
fn section(title: &str, lines: Lines) -> String {
    let mut lines = lines.into_iter().filter(|(_, value)| !value.is_empty()).peekable();
    if lines.peek().is_none() {
        return String::new();
    }
    lines.fold(format!("{title}\n"), |text, (name, value)| {
        text + &format!("  {name:<22} {}\n", plain(&value))
    })
}

/// A count that is a fault unless it is 0.
fn fault(count: u64) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

/// The disk as text.
pub fn disk(disk: &Disk) -> String {
    let sections = [
        section(&plain(&disk.name), head(disk)),
        section("Guest", guest(disk)),
        section("Memory", memory(disk)),
        section("Pages of 4 KiB", pages(disk)),
        section("Requests", requests(disk)),
        section("Mean latency", latency(disk)),
        section("Engine", engine(disk)),
    ];
    let sections = sections.into_iter().filter(|section| !section.is_empty());
    sections.collect::<Vec<_>>().join("\n")
}

fn head(disk: &Disk) -> Lines {
    let contents = match disk.origin {
        Origin::None => "blank at the start, end with the daemon",
        Origin::New => "blank at the start, outlive the daemon",
        Origin::Opened => "left by an earlier daemon, outlive this one",
    };
    let daemon = &disk.daemon;
    vec![
        ("size", size(disk.size_bytes)),
        ("block", size(disk.block_size_bytes.into())),
        ("algorithm", disk.algorithm.clone()),
        ("contents", contents.into()),
        ("read-only", if disk.read_only { "yes".into() } else { String::new() }),
        (
            "daemon",
            format!(
                "{}, process {}, up {}",
                daemon.version,
                daemon.pid,
                seconds(daemon.uptime_seconds)
            ),
        ),
        ("ready", if daemon.ready { "yes" } else { "not yet" }.into()),
        ("socket", daemon.socket.clone()),
    ]
}

fn guest(disk: &Disk) -> Lines {
    let session = &disk.session;
    let connected = if session.connected {
        let process =
            session.front_end_pid.map_or_else(String::new, |pid| format!(", process {pid}"));
        format!("for {}{process}", seconds(session.connected_seconds))
    } else {
        "no".into()
    };
    vec![("connected", connected), ("sessions", session.begun.to_string())]
}

fn memory(disk: &Disk) -> Lines {
    let memory = &disk.memory;
    vec![
        ("stored", size(memory.pages_bytes)),
        ("compressed", size(memory.objects_bytes)),
        ("taken", size(total(disk))),
        ("ratio", ratio(memory.pages_bytes, total(disk))),
        ("limit", limit(disk.settings.mem_limit_bytes)),
        ("host reserve", size(disk.settings.host_reserve_bytes)),
        ("worst case", size(memory.worst_case_bytes)),
        (
            "arena",
            format!("{}, at most {}", size(memory.arena_bytes), size(memory.arena_max_bytes)),
        ),
        ("metadata", size(memory.metadata_bytes)),
    ]
}

fn pages(disk: &Disk) -> Lines {
    let pages = &disk.pages;
    let recompressed = match pages.recompression_tried {
        0 => String::new(),
        tried => {
            let saved = human(pages.recompression_saved_bytes);
            format!("{} of {tried} tried, {saved} saved", pages.recompressed)
        }
    };
    vec![
        ("stored", pages.stored.to_string()),
        ("same-filled", pages.same.to_string()),
        ("incompressible", format!("{}, {} written", pages.huge, pages.huge_written)),
        ("freed by guests", pages.freed.to_string()),
        ("gained by compaction", pages.compacted.to_string()),
        ("recompressed", recompressed),
    ]
}

fn requests(disk: &Disk) -> Lines {
    let requests = &disk.requests;
    vec![
        ("reads", requests.reads.to_string()),
        ("writes", requests.writes.to_string()),
        ("discards", requests.discards.to_string()),
        ("write zeroes", requests.write_zeroes.to_string()),
        ("flushes", requests.flushes.to_string()),
        ("limit of reads", rate(&disk.settings.rates.read)),
        ("limit of writes", rate(&disk.settings.rates.write)),
        ("held back", fault(requests.throttled)),
        ("failed reads", fault(requests.failed_reads)),
        ("failed writes", fault(requests.failed_writes)),
        ("refused as invalid", fault(requests.invalid)),
        ("stalled", fault(requests.stalled)),
        ("abandoned", fault(requests.expired)),
        ("broken virtqueues", fault(requests.broken_queues)),
        ("blind virtqueues", fault(requests.blind_queues)),
    ]
}

fn latency(disk: &Disk) -> Lines {
    let mean = |latency: &Latency| match latency.count {
        0 => String::new(),
        count => format!("{} of {count}", micros(latency.sum_us as f64 / count as f64)),
    };
    let latency = &disk.latency;
    vec![
        ("reads", mean(&latency.read)),
        ("writes", mean(&latency.write)),
        ("discards", mean(&latency.discard)),
        ("write zeroes", mean(&latency.write_zeroes)),
        ("flushes", mean(&latency.flush)),
    ]
}

/// A rate limit, if there is one.
fn rate(rate: &Rate) -> String {
    let Rate { operations_per_second, bytes_per_second, burst_ms } = *rate;
    let parts = [
        (operations_per_second, count(operations_per_second as f64) + " operations/s"),
        (bytes_per_second, human(bytes_per_second) + "/s"),
    ];
    let parts = parts.into_iter().filter(|(limit, _)| *limit > 0).map(|(_, text)| text);
    match parts.collect::<Vec<_>>().join(", ") {
        text if text.is_empty() => text,
        text => format!("{text}, bursts of {burst_ms} ms"),
    }
}

fn engine(disk: &Disk) -> Lines {
    let (engine, polls) = (&disk.engine, &disk.polls);
    let all = polls.hits + polls.misses;
    let share = (polls.hits * 100).checked_div(all);
    let share = share.map_or_else(String::new, |share| format!(", {share} % found a request"));
    vec![
        ("workers", engine.workers.to_string()),
        (
            "jobs",
            format!("{}, {} wait, at most {}", engine.completed, engine.queued, engine.queued_max),
        ),
        ("done by requests", fault(engine.fallbacks)),
        ("failed", fault(engine.failed + engine.corrupted + engine.timed_out)),
        ("replaced workers", fault(engine.replaced_workers)),
        ("polls of empty rings", format!("{}{share}", count(all as f64))),
    ]
}

fn state(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
    }
}

fn kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Compact => "compact",
        JobKind::Recompress => "recompress",
    }
}

/// What a job did, in a few words.
pub fn job_figures(job: &Job) -> String {
    let done = &job.done;
    if job.kind == JobKind::Recompress {
        return format!(
            "{} of {} page(s) recompressed, {} saved",
            done.recompressed_pages,
            done.tried_pages,
            human(done.saved_bytes)
        );
    }
    format!(
        "{} given back in {} page(s), {} object(s) moved",
        human(done.freed_pages * 4096),
        done.freed_pages,
        done.moved_objects
    )
}

/// What a job is and how far, in a few words: `compact 40 %`.
pub fn job_in_short(job: &Job) -> String {
    format!("{} {} %", kind(job.kind), job.progress_percent)
}

/// Jobs as a table.
pub fn jobs(jobs: &[Job]) -> String {
    let heading = |name, right| Heading { name, right };
    let headings = [
        heading("ID", true),
        heading("KIND", false),
        heading("STATE", false),
        heading("PROGRESS", true),
        heading("TIME", true),
        heading("DONE", false),
    ];
    let row = |job: &Job| {
        vec![
            job.id.to_string(),
            kind(job.kind).into(),
            state(job.state).into(),
            format!("{} %", job.progress_percent),
            format!("{:.1} s", job.running_seconds),
            job_figures(job),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    table::aligned(&headings, &rows, true)
}

#[cfg(test)]
mod tests {
    use vhost_user_zram::internals::api::JobFigures;

    use super::*;
    use crate::samples;

    #[test]
    fn a_disk_is_shown_in_sections() {
        let mut sample = samples::disk("vm1");
        let text = disk(&sample);
        for line in [
            "vm1\n  size                   4G (4294967296)\n",
            "  daemon                 0.1.0, process 100, up 3 min 20 s\n",
            "\nGuest\n  connected              no\n",
            "  taken                  1.1M (1158348)\n  ratio                  2.72\n",
            "  polls of empty rings   15, 66 % found a request\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("failed") && !text.contains("read-only"), "{text}");
        assert!(!text.contains("recompressed"), "{text}");
        let pages = &mut sample.pages;
        (pages.recompression_tried, pages.recompressed, pages.recompression_saved_bytes) =
            (5, 4, 8192);
        sample.requests.failed_reads = 2;
        sample.latency.read = Latency { count: 4, sum_us: 100, buckets: Vec::new() };
        sample.settings.rates.write =
            Rate { operations_per_second: 2000, bytes_per_second: 8 << 20, burst_ms: 100 };
        sample.session.connected = true;
        sample.session.front_end_pid = Some(7);
        let text = disk(&sample);
        assert!(text.contains("  failed reads           2\n"), "{text}");
        assert!(text.contains("  recompressed           4 of 5 tried, 8K saved\n"), "{text}");
        assert!(text.contains("Mean latency\n  reads                  25 us of 4\n\n"), "{text}");
        let limit = "  limit of writes        2.0k operations/s, 8M/s, bursts of 100 ms\n";
        assert!(text.contains(limit), "{text}");
        assert!(text.contains("  connected              for 0 s, process 7\n"), "{text}");
    }

    #[test]
    fn jobs_are_a_table() {
        let job = Job {
            id: 3,
            kind: JobKind::Compact,
            state: JobState::Running,
            progress_percent: 40,
            running_seconds: 0.25,
            done: JobFigures { freed_pages: 2, moved_objects: 9, ..JobFigures::default() },
        };
        assert_eq!(job_in_short(&job), "compact 40 %");
        let text = jobs(&[job]);
        assert!(
            text.contains(
                " 3 compact running     40 % 0.2 s 8K given back in 2 page(s), 9 object(s) moved"
            ),
            "{text}"
        );
        let done = JobFigures {
            tried_pages: 5,
            recompressed_pages: 4,
            saved_bytes: 8192,
            ..JobFigures::default()
        };
        let job = Job {
            id: 4,
            kind: JobKind::Recompress,
            state: JobState::Done,
            progress_percent: 100,
            running_seconds: 0.25,
            done,
        };
        assert_eq!(job_figures(&job), "4 of 5 page(s) recompressed, 8K saved");
    }
}
