//! `doctor`: names each misconfiguration that it finds, with what to do about it.
//!
//! Collectors make facts of files, systemd and the daemons' answers; checks look at the facts alone. So each
//! check has a test with bad facts and one with good ones, and each collector a test with files.

mod checks;
mod collect;
mod facts;
mod finding;
mod guest_checks;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use self::collect::{Said, System};
use self::facts::Facts;
pub use self::finding::Finding;
use crate::cli::Doctor;
use crate::fleet::{FleetError, Search, each};

/// What was looked at, and what is wrong with it.
pub struct Report {
    looked_at: String,
    findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// The report as text.
    pub fn text(&self) -> String {
        finding::render(&self.findings, &self.looked_at)
    }

    /// The report as JSON.
    pub fn json(&self) -> String {
        let all = json!({ "looked_at": self.looked_at, "findings": self.findings });
        // Values of JSON always have a text.
        serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
    }
}

/// Examines a host, or a guest. `name` is the one disk that is meant.
///
/// # Errors
/// The run directory cannot be read.
pub fn examine(
    options: &Doctor,
    search: &Search,
    name: Option<&str>,
) -> Result<Report, FleetError> {
    let system = System { root: options.root.clone(), run: &run };
    if options.guest {
        let guest = collect::guest(&system, name);
        let findings = guest_checks::ALL.iter().flat_map(|check| check(&guest)).collect();
        return Ok(report(findings, &format!("{} disk(s) of this guest", guest.disks.len())));
    }
    let daemons = search.all()?;
    let answers = each(&daemons, |daemon| daemon.client.get("/v1/disk"));
    let mut facts = collect::host(&system, daemons.iter().zip(answers).collect());
    if let Some(name) = name {
        only(&mut facts, name);
        if facts.disks.is_empty() {
            let names = daemons.iter().map(|daemon| daemon.name.clone()).collect();
            let dir = search.run_dir.clone();
            return Err(FleetError::Unknown { name: name.into(), dir, names });
        }
    }
    let findings = checks::ALL.iter().flat_map(|check| check(&facts)).collect();
    let (disks, front_ends) = (facts.disks.len(), facts.front_ends.len());
    Ok(report(findings, &format!("{disks} disk(s), {front_ends} virtual machine(s)")))
}

/// Leaves one disk, and the front ends that are connected to it.
fn only(facts: &mut Facts, name: &str) {
    facts.disks.retain(|disk| disk.name == name);
    let sockets: Vec<PathBuf> = facts.disks.iter().filter_map(|disk| disk.socket.clone()).collect();
    for front_end in &mut facts.front_ends {
        front_end.connections.retain(|connection| sockets.contains(&connection.socket));
    }
    facts.front_ends.retain(|front_end| !front_end.connections.is_empty());
}

fn report(mut findings: Vec<Finding>, looked_at: &str) -> Report {
    findings.sort_by_key(|finding| finding.severity);
    Report { looked_at: looked_at.into(), findings }
}

/// What a program says, if there is one.
fn run(program: &Path, arguments: &[&str]) -> Option<Said> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Said {
        well: output.status.success(),
        text: text(&output.stdout),
        complaint: text(&output.stderr),
    })
}
