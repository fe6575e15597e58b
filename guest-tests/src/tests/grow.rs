//! Disks that grow under a guest that uses them.

use anyhow::{Context, Result, ensure};

use super::{mib, state::keep_state_with_slow_engine};
use crate::machine::{Machine, SIZE};

const MIB: u64 = 1 << 20;
/// By how much a disk grows at a time.
const STEP: u64 = 64 * MIB;
/// The steps of a growth, in order, and whether the next daemon finds the new size after a death there. They
/// are those of `src/failpoint.rs`.
const STEPS: [(&str, bool); 5] = [
    ("grow.checked", false),
    ("grow.prepared", false),
    ("grow.noted", true),
    ("grow.published", true),
    ("grow.told", true),
];

/// A guest with a file system on all of the disk, on which fio runs.
fn start(machine: &mut Machine<'_>, seed: u64) -> Result<()> {
    keep_state_with_slow_engine(machine)?;
    machine.serve_api();
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("grow_begin", &[])?;
    machine.start_churn(seed)
}

/// The file system grows to the end of the disk, and all that is on it is right.
fn end(machine: &mut Machine<'_>, seed: u64, size: u64) -> Result<String> {
    let grown = machine.ask("grow_resize", &[])?;
    let (before, after) = (grown.number("before_kib")?, grown.number("after_kib")?);
    // Its own tables take a part of what is new.
    let most = (size - SIZE) / 1024;
    ensure!(
        (most / 5 * 4..=most).contains(&(after - before)),
        "the file system grew from {before} to {after} KiB on a disk that grew by {most}"
    );
    let verified = machine.ask("churn_stop", &[&seed.to_string()])?;
    let files = machine.ask("grow_end", &[])?.number("files")?;
    let passes = verified.number("passes")?;
    Ok(format!("resize2fs from {before} to {after} KiB, {passes} fio passes, {files} files right"))
}

/// The guest sees each growth, and none of what is refused changes anything.
pub fn grow(machine: &mut Machine<'_>) -> Result<String> {
    let (seed, mut size) = (700, SIZE);
    start(machine, seed)?;
    for wanted in [SIZE + STEP, SIZE + STEP + 4096, SIZE + 3 * STEP] {
        machine.set_size(wanted)?;
        machine.ask("capacity", &[&wanted.to_string()])?;
        machine.churns_well()?;
        size = wanted;
    }
    let refused = machine.set_size(SIZE).err().context("a disk has shrunk")?;
    ensure!(refused.to_string().contains("does not shrink"), "{refused}");
    machine.ask("capacity", &[&size.to_string()])?;
    let text = end(machine, seed, size)?;
    Ok(format!("{} to {} under fio, {text}", mib(SIZE), mib(size)))
}

/// The daemon dies at each step of a growth, under load. The next one has the command line of the first.
pub fn grow_kills(machine: &mut Machine<'_>) -> Result<String> {
    let (seed, mut size) = (800, SIZE);
    machine.use_failpoints()?;
    machine.crash_at = Some(STEPS[0].0);
    start(machine, seed)?;
    for (number, (step, has_grown)) in STEPS.into_iter().enumerate() {
        let wanted = size + STEP;
        let told = machine.set_size(wanted);
        ensure!(told.is_err(), "{step}: no process comes there");
        machine.bury_daemon().context(step)?;
        machine.crash_at = STEPS.get(number + 1).map(|(next, _)| *next);
        machine.spawn_daemon()?;
        machine.resumed().context(step)?;
        let found = machine.daemon()?.size()?;
        let expected = if has_grown { wanted } else { size };
        ensure!(found == expected, "{step}: {found} bytes and not {expected}");
        size = found;
        machine.ask("capacity", &[&size.to_string()]).context(step)?;
    }
    machine.set_size(size + STEP)?;
    size += STEP;
    machine.ask("capacity", &[&size.to_string()])?;
    let text = end(machine, seed, size)?;
    Ok(format!("killed at {} steps, {} to {}, {text}", STEPS.len(), mib(SIZE), mib(size)))
}
