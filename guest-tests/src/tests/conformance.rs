//! The kernel's zram and the daemon, side by side.

use std::ffi::OsString;

use anyhow::{Result, ensure};

use crate::{
    conformance::{self, Comparison, Disk, Driver, script},
    machine::Machine,
    say,
};

const SCRIPT: &str = include_str!("../../conformance.txt");

pub fn conformance(machine: &mut Machine<'_>) -> Result<String> {
    let steps = script::parse(SCRIPT)?;
    let kernel = machine.combination.kernel.version.clone();
    // A limit is reached on purpose.
    machine.allow("failed_writes");
    machine.start_daemon()?;
    machine.start_guest()?;
    let api = machine.path("api.sock");
    let mut args: Vec<OsString> =
        ["--size", "16777215", "--access-times", "--api-socket"].map(OsString::from).into();
    args.push(api.clone().into());
    let socket = machine.start_beside("conformance", args)?;
    let mut disk = Disk::new(socket, api);
    let mut driver = Driver::start(machine)?;
    let Comparison { same, known, unknown } =
        conformance::compare(&steps, &kernel, &mut driver, &mut disk)?;
    for line in &known {
        say(&format!("        differs on {kernel}: {line}"));
    }
    ensure!(
        unknown.is_empty(),
        "differences without a reason:\n        {}",
        unknown.join("\n        ")
    );
    let all = steps.len();
    Ok(format!("{all} steps, {same} the same, {} that differ for a known reason", known.len()))
}
