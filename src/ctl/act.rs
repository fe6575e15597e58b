//! Commands that change one disk, or read one of its attributes.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use vhost_user_zram::internals::api::{Attribute, Disk, Job, JobState};

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

/// Writes an attribute, as a writer of the kernel's file does.
///
/// # Errors
/// The daemon refuses the value.
pub fn set(client: &Client, name: &str, value: &str) -> Result<(), ClientError> {
    // Some do their work at once, as the kernel's do.
    client.patient().put_text(&attribute(name), value)
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
    let mut job: Job = client.post("/v1/disk/compact")?;
    if !wait {
        return Ok(format!("{name}: compaction {} is to begin\n", job.id));
    }
    let bar = bar(&format!("{name}: compact"), io::stderr().is_terminal());
    while matches!(job.state, JobState::Queued | JobState::Running) {
        bar.set_position(job.progress_percent.into());
        thread::sleep(LOOK);
        match client.get(&format!("/v1/jobs/{}", job.id)) {
            Ok(found) => job = found,
            Err(error) => {
                bar.finish_and_clear();
                return Err(error);
            }
        }
    }
    bar.finish_and_clear();
    let end = if job.state == JobState::Cancelled { " (cancelled)" } else { "" };
    let time = job.running_seconds;
    Ok(format!("{name}: {}, {time:.1} s{end}\n", show::job_figures(&job)))
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
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(attribute("mm_stat"), "/v1/attributes/mm_stat");
        assert_eq!(attribute("../disk?x=1"), "/v1/attributes/..%2Fdisk%3Fx%3D1");
        assert_eq!(attribute("a b\r\n\u{e4}"), "/v1/attributes/a%20b%0D%0A%C3%A4");
    }

    #[test]
    fn a_bar_is_shown_to_people_only() {
        assert!(bar("x", false).is_hidden());
    }
}
