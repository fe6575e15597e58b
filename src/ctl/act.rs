//! Commands that change one disk, or read one of its attributes.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use vhost_user_zram::internals::api::{Attribute, Disk, Job, JobKind, JobState};

use crate::client::{Client, ClientError};
use crate::show;
use crate::table::{self, Heading};
use crate::units::human;

/// Time between two looks at a job.
const LOOK: Duration = Duration::from_millis(100);

/// Where the attribute `name` is. A name that is none reaches the daemon as a name that is none.
fn attribute(name: &str) -> String {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let escape = |byte: u8| {
        if known(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    format!("/v1/attributes/{}", name.bytes().map(escape).collect::<String>())
}

/// Copies an attribute to `output`, as a reader of the kernel's file gets it.
///
/// # Errors
/// The daemon has no such attribute, or does not let it be read.
pub fn get(client: &Client, name: &str, output: &mut impl Write) -> Result<(), ClientError> {
    client.copy_text(&attribute(name), output)
}

/// All attributes as a table: names, and the modes that their files have in the kernel.
///
/// # Errors
/// The daemon cannot be asked.
pub fn attributes(client: &Client) -> Result<String, ClientError> {
    let all: Vec<Attribute> = client.get("/v1/attributes")?;
    let heading = |name| Heading { name, right: false };
    let row = |attribute: Attribute| {
        let supported = if attribute.supported { "yes" } else { "no" };
        vec![attribute.name, attribute.mode, supported.into()]
    };
    let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
    Ok(table::aligned(&["NAME", "MODE", "SUPPORTED"].map(heading), &rows, true))
}

/// What the daemon does when an attribute is written, if that is a job.
fn job_of(attribute: &str) -> Option<JobKind> {
    match attribute {
        "compact" => Some(JobKind::Compact),
        "recompress" => Some(JobKind::Recompress),
        _ => None,
    }
}

/// Writes an attribute, as a writer of the kernel's file does. If that is a job, shows how far it is on a
/// terminal, and gives what it did.
///
/// # Errors
/// The daemon refuses the value, or ends meanwhile.
pub fn set(client: &Client, daemon: &str, name: &str, value: &str) -> Result<String, ClientError> {
    let Some(kind) = job_of(name) else {
        // Some do their work at once, as the kernel's do.
        client.patient().put_text(&attribute(name), value)?;
        return Ok(String::new());
    };
    let bar = bar(&format!("{daemon}: {name}"), io::stderr().is_terminal());
    let job = set_and_follow(client, name, value, kind, |percent| bar.set_position(percent.into()));
    bar.finish_and_clear();
    // A job that is done may be forgotten already, after many others.
    Ok(job?.map_or_else(String::new, |job| summary(daemon, &job)))
}

/// Writes an attribute whose work is a job, and calls `show` with how far it is until the daemon says that it is
/// done. It may take as long as it likes, as long as the daemon answers.
fn set_and_follow(
    client: &Client,
    name: &str,
    value: &str,
    kind: JobKind,
    mut show: impl FnMut(u8),
) -> Result<Option<Job>, ClientError> {
    let jobs = || client.get::<Vec<Job>>("/v1/jobs");
    let earlier = jobs()?.iter().map(|job| job.id).max().unwrap_or(0);
    // Numbers grow, and of a kind one is under way at a time: a second one is refused.
    let own = |jobs: Vec<Job>| jobs.into_iter().rfind(|job| job.id > earlier && job.kind == kind);
    let (told, ended) = mpsc::channel();
    let (writer, path, text) = (client.tireless(), attribute(name), value.to_owned());
    let write = move || {
        // The receiver is gone after a daemon that did not say how far it is.
        let _ = told.send(writer.put_text(&path, &text));
    };
    if thread::Builder::new().spawn(write).is_err() {
        // Without a thread nothing is shown meanwhile.
        client.tireless().put_text(&attribute(name), value)?;
        return jobs().map(own);
    }
    show(0);
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(end) => {
                end?;
                return jobs().map(own);
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(job) = own(jobs()?) {
                    show(job.progress_percent);
                }
            }
            // The thread always tells.
            Err(RecvTimeoutError::Disconnected) => return jobs().map(own),
        }
    }
}

/// What a job did, as a line.
fn summary(daemon: &str, job: &Job) -> String {
    let end = if job.state == JobState::Cancelled { " (cancelled)" } else { "" };
    format!("{daemon}: {}, {:.1} s{end}\n", show::job_figures(job), job.running_seconds)
}

/// Grows the disk.
///
/// # Errors
/// The daemon refuses the size.
pub fn resize(client: &Client, bytes: u64) -> Result<String, ClientError> {
    let disk: Disk = client.patch("/v1/disk", &json!({ "size_bytes": bytes }))?;
    Ok(format!("{}: {} ({} bytes)\n", disk.name, human(disk.size_bytes), disk.size_bytes))
}

/// Makes the disk blank, which may take longer than other answers do.
///
/// # Errors
/// The daemon refuses, as it does while a guest is there.
pub fn reset(client: &Client) -> Result<String, ClientError> {
    let disk: Disk = client.patient().post("/v1/disk/reset")?;
    Ok(format!("{}: blank\n", disk.name))
}

/// Begins a compaction. With `wait` waits for its end, and shows how far it is if stderr is a terminal.
///
/// # Errors
/// The daemon refuses, or ends meanwhile.
pub fn compact(client: &Client, name: &str, wait: bool) -> Result<String, ClientError> {
    let begin = || client.post::<Job>("/v1/disk/compact");
    if !wait {
        return Ok(format!("{name}: compaction {} is to begin\n", begin()?.id));
    }
    let bar = bar(&format!("{name}: compact"), io::stderr().is_terminal());
    bar.set_position(0);
    let follow = || {
        let mut job = begin()?;
        while matches!(job.state, JobState::Queued | JobState::Running) {
            bar.set_position(job.progress_percent.into());
            thread::sleep(LOOK);
            job = client.get(&format!("/v1/jobs/{}", job.id))?;
        }
        Ok(job)
    };
    let job = follow();
    bar.finish_and_clear();
    Ok(summary(name, &job?))
}

/// A bar on stderr, if that is a terminal.
fn bar(title: &str, shown: bool) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(100), target).with_message(title.to_owned());
    // The template is fixed; without it the bar has its own look.
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {pos:>3} %") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(attribute("mm_stat"), "/v1/attributes/mm_stat");
        assert_eq!(attribute("../disk?x=1"), "/v1/attributes/..%2Fdisk%3Fx%3D1");
        assert_eq!(attribute("a b\r\n\u{e4}"), "/v1/attributes/a%20b%0D%0A%C3%A4");
    }

    /// Serves an API that says `jobs` of its jobs, one after the other, and answers who writes an attribute by
    /// `end` once all but the last one are said.
    fn serve(listener: &UnixListener, jobs: &[Value], end: &str) {
        let (mut said, mut writer) = (0, None);
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            let request = str::from_utf8(&request[..count]).unwrap();
            if request.starts_with("PUT /v1/attributes/recompress ") {
                assert!(request.ends_with("\r\n\r\ntype=idle"), "{request}");
                writer = Some(stream);
            } else {
                assert!(request.starts_with("GET /v1/jobs "), "{request}");
                let list = jobs[said.min(jobs.len() - 1)].to_string();
                let length = list.len();
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{list}")
                    .unwrap();
                said += 1;
            }
            if said >= jobs.len() - 1
                && let Some(mut writer) = writer.take()
            {
                write!(writer, "HTTP/1.1 {end}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        }
    }

    /// How far a recompression was seen to be, and its end.
    fn follow(
        name: &str,
        jobs: Vec<Value>,
        end: &'static str,
    ) -> (Vec<u8>, Result<Option<Job>, ClientError>) {
        let dir = std::env::temp_dir().join(format!("zramctl-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let api = dir.join("api.sock");
        let listener = UnixListener::bind(&api).unwrap();
        thread::spawn(move || serve(&listener, &jobs, end));
        let client = Client::new(&api, Duration::from_secs(60));
        let mut shown = Vec::new();
        let show = |percent| shown.push(percent);
        let end = set_and_follow(&client, "recompress", "type=idle", JobKind::Recompress, show);
        fs::remove_dir_all(&dir).unwrap();
        shown.dedup();
        (shown, end)
    }

    fn job(id: u64, kind: &str, state: &str, percent: u8) -> Value {
        json!({
            "id": id, "kind": kind, "state": state, "progress_percent": percent,
            "running_seconds": 1.25, "done": { "freed_pages": 0, "moved_objects": 0,
            "tried_pages": 5, "recompressed_pages": 4, "saved_bytes": 8192 },
        })
    }

    #[test]
    fn the_job_of_an_attribute_is_followed_to_its_end() {
        let earlier = job(7, "recompress", "done", 100);
        // Another client compacts meanwhile.
        let at = |state, percent| {
            json!([earlier, job(8, "recompress", state, percent), job(9, "compact", "running", 77)])
        };
        let lists = vec![
            json!([earlier]),
            json!([earlier]),
            at("running", 10),
            at("running", 40),
            at("done", 100),
        ];
        let (shown, end) = follow("follow", lists, "204 No Content");
        assert!(shown.starts_with(&[0, 10, 40]) && !shown.contains(&77), "{shown:?}");
        let end = end.unwrap().expect("its job");
        assert_eq!(end.id, 8);
        assert_eq!(summary("vm1", &end), "vm1: 4 of 5 page(s) recompressed, 8K saved, 1.2 s\n");
        // What is refused is no job.
        let (_, end) = follow("refused", vec![json!([]), json!([])], "409 Conflict");
        assert!(matches!(end, Err(ClientError::Status { status: 409, .. })), "{end:?}");
    }

    #[test]
    fn a_daemon_that_does_not_say_how_far_it_is_is_not_waited_for() {
        let lists = vec![json!([]), json!("nonsense"), json!([]), json!([])];
        let (_, end) = follow("nonsense", lists, "204 No Content");
        assert!(matches!(end, Err(ClientError::Json { .. })), "{end:?}");
    }

    #[test]
    fn a_bar_is_shown_to_people_only() {
        assert!(bar("x", false).is_hidden());
    }
}
