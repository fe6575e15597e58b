//! The disk as Linux uses it.

use anyhow::{Result, ensure};

use crate::{
    artifacts::md5,
    machine::{Machine, SERIAL, SIZE},
};

/// Size, queues and serial that a disk shows to Linux, and all else that is the same for every disk.
pub fn check_limits(machine: &mut Machine<'_>, queues: u64) -> Result<String> {
    let found = machine.ask("limits", &[])?;
    let mut wrong = Vec::new();
    for (name, wanted) in [
        ("size", SIZE.to_string().as_str()),
        ("ro", "0"),
        ("logical_block_size", "4096"),
        ("physical_block_size", "4096"),
        ("write_cache", "write-through"),
        ("queues", queues.to_string().as_str()),
        ("serial", SERIAL),
    ] {
        let word = found.word(name)?;
        if word != wanted {
            wrong.push(format!("{name}={word} (not {wanted})"));
        }
    }
    let more = [
        "discard_max_bytes",
        "discard_granularity",
        "write_zeroes_max_bytes",
        "max_segments",
        "nr_requests",
    ];
    let mut said = Vec::new();
    for name in more {
        let number = found.number(name)?;
        said.push(format!("{name} {number}"));
        if number == 0 {
            wrong.push(format!("{name}=0"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join(", "));
    Ok(format!("{queues} queue(s), {}", said.join(", ")))
}

pub fn limits(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    check_limits(machine, 2)
}

pub fn discard(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    let found = machine.ask("discard", &[])?;
    let ranges = found.number("ranges")?;
    let figures = machine.figures()?;
    let (discards, zeroes) = (figures.get("discards")?, figures.get("write_zeroes")?);
    // One range of four is discarded, the others zeroed, and the whole area by both.
    ensure!(
        discards > ranges / 4 && zeroes > ranges / 4 * 3,
        "{ranges} ranges came as {discards} discards and {zeroes} write-zeroes"
    );
    let sectors = found.number("sector_discards")?;
    Ok(format!("{ranges} ranges, {discards} discards, {zeroes} write-zeroes, sub-block {sectors}"))
}

pub fn fio(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    let mib = machine.ask("fio", &[])?.number("verified_mib")?;
    let figures = machine.figures()?;
    Ok(format!(
        "{mib} MiB verified by {} writes and {} reads",
        figures.get("writes")?,
        figures.get("reads")?
    ))
}

pub fn ext4(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    let filled = machine.ask("ext4_fill", &[])?;
    let files = filled.number("files")?;
    check_ext4(machine, files)?;
    Ok(format!("{files} files, {} MiB, right after two remounts", filled.number("mib")?))
}

/// e2fsck finds nothing, and exactly `files` files are there, with the bytes that they were made with.
pub fn check_ext4(machine: &mut Machine<'_>, files: u64) -> Result<()> {
    let checked = machine.ask("ext4_check", &[])?;
    let (there, strange) = (checked.number("files")?, checked.number("strange")?);
    ensure!(
        there == files && strange == 0,
        "{there} files and {strange} strange ones, not {files}"
    );
    Ok(())
}

/// The engine is asked for everything, so also where the codec would be fast enough inline.
pub fn engine(machine: &mut Machine<'_>) -> Result<String> {
    let model = ["--engine-model", "reorder=8,refuse=10%,fail=1%,seed=3"];
    machine.daemon_args.extend(model.map(Into::into));
    machine.start_daemon()?;
    machine.start_guest()?;
    let mib = machine.ask("fio", &[])?.number("verified_mib")?;
    let figures = machine.figures()?;
    let refused = figures.get("engine_refusals")?;
    let (failed, inline) = (figures.get("engine_failures")?, figures.get("engine_fallbacks")?);
    // The model has a seed and thousands of jobs.
    ensure!(refused > 0 && failed > 0, "the engine refused {refused} jobs and failed {failed}");
    ensure!(inline >= refused + failed, "{inline} jobs of {refused} + {failed} were done inline");
    let jobs = figures.get("engine_jobs")?;
    Ok(format!(
        "{mib} MiB verified; {jobs} jobs, {refused} refused, {failed} failed, {inline} inline"
    ))
}

pub fn read_only(machine: &mut Machine<'_>) -> Result<String> {
    let corpus = &machine.setup.corpus;
    let (length, sum) = (std::fs::metadata(corpus)?.len(), md5(corpus)?);
    let load = ["--load".into(), corpus.clone().into(), "--load-format".into(), "raw".into()];
    machine.daemon_args.extend(load);
    machine.daemon_args.push("--read-only".into());
    machine.start_daemon()?;
    // The load is writes, too.
    let before = machine.figures()?.get("writes")?;
    machine.start_guest()?;
    let found = machine.ask("read_only", &[&length.to_string(), &sum])?;
    ensure!(found.number("refused_writes")? == 1, "a write was not refused");
    let writes = machine.figures()?.get("writes")? - before;
    ensure!(writes == 0, "{writes} writes to a read-only disk");
    Ok(format!("{} MiB as loaded, writes refused", length >> 20))
}
