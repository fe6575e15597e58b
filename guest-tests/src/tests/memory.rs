//! What the host gets back.

use anyhow::{Result, ensure};

use super::{disk::check_ext4, mib};
use crate::{artifacts::CORPUS_MIB, daemon::Figures, machine::Machine};

/// Half of the corpus goes, which leaves holes everywhere; the compaction makes the arena what the rest
/// needs.
pub fn compact(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    let files = machine.ask("ext4_fill", &[])?.number("files")?;
    let (_, compr_before, mem_before) = machine.figures()?.sizes()?;
    let deleted = machine.ask("ext4_halve", &[])?.number("deleted")?;
    let done = machine.daemon()?.compact()?;
    let (_, compr, mem) = machine.figures()?.sizes()?;
    let said = format!(
        "{deleted} files deleted: compressed {} to {}, arena {} to {}, {} pages by moving {} objects",
        mib(compr_before),
        mib(compr),
        mib(mem_before),
        mib(mem),
        done.get("pages")?,
        done.get("objects")?
    );
    ensure!(compr < compr_before, "nothing was freed: {said}");
    // By nine tenths of the compressed bytes that went, and down to what objects need and 5 %.
    let (went, came) = (compr_before - compr, mem_before.saturating_sub(mem));
    ensure!(came >= went * 9 / 10, "the arena did not shrink: {said}");
    ensure!(mem <= compr + compr / 20 + (512 << 10), "the arena is too large: {said}");
    check_ext4(machine, files - deleted)?;
    Ok(said)
}

pub fn fstrim(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("ext4_fill", &[])?;
    let before = machine.figures()?;
    let trimmed = machine.ask("ext4_trim", &[])?.number("trimmed")?;
    // At least half of the corpus has to be gone; it compresses to well over an eighth.
    let said = shrinks(machine, &before, CORPUS_MIB << 19)?;
    // The many small ones are still there.
    check_ext4(machine, 400)?;
    Ok(format!("{said}; {} trimmed", mib(trimmed)))
}

pub fn swap(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("swap_on", &[])?;
    let found = machine.ask("swap_churn", &[])?;
    let (out, verified) = (found.number("pages_out")?, found.number("verified")?);
    let (wrong, discards) = (found.number("wrong")?, found.number("discards")?);
    ensure!(wrong == 0, "{wrong} pages of {verified} are wrong");
    // 80 MiB have to go through 24.
    ensure!(out > 2000, "only {out} pages went to swap");
    ensure!(discards > 0, "no discards for freed swap");
    let served = machine.figures()?.get("discards")?;
    ensure!(served > 0, "{discards} discards of the guest, none at the daemon");
    let into = found.number("pages_in")?;
    Ok(format!("{out} pages out, {into} in, {discards} discards, {verified} pages verified"))
}

/// With the hog still there its pages are in swap; when it ends Linux discards what it frees.
pub fn swap_freed(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("swap_on", &[])?;
    let swapped = machine.ask("hog_start", &[])?.number("swapped_mib")?;
    let before = machine.figures()?;
    machine.ask("hog_end", &[])?;
    let said = shrinks(machine, &before, 16 << 20)?;
    Ok(format!("{swapped} MiB in swap; {said}"))
}

/// Waits until the stored bytes have fallen by `bytes`, and the arena by an eighth of that: what is freed
/// goes back to the host by itself.
fn shrinks(machine: &mut Machine<'_>, before: &Figures, bytes: u64) -> Result<String> {
    let (stored_before, _, mem_before) = before.sizes()?;
    let less = |now: &Figures| {
        let (stored, _, mem) = now.sizes()?;
        Ok(stored + bytes < stored_before && mem + bytes / 8 < mem_before)
    };
    let now = machine.daemon()?.wait_for("the memory comes back", less)?;
    let (stored, _, mem) = now.sizes()?;
    Ok(format!(
        "stored {} to {}, arena {} to {}",
        mib(stored_before),
        mib(stored),
        mib(mem_before),
        mib(mem)
    ))
}
