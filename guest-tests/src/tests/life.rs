//! QEMUs that come and go, on one daemon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{machine::Machine, process::LIMIT, protocol::Verdict};

/// How far the load may be ahead of what was heard of it: lines on their way out of the serial port die
/// with QEMU.
pub const AHEAD: u64 = 3;

/// Every block is of the last pass that was reported done, or newer.
pub fn verify_load(machine: &mut Machine<'_>, last: u64) -> Result<()> {
    machine.ask("load_verify", &[&last.to_string(), &(last + AHEAD).to_string()])?;
    Ok(())
}

/// Starts the load with this seed; returns when `passes` of it are done.
pub fn start_load(machine: &mut Machine<'_>, seed: u64, passes: u64) -> Result<()> {
    machine.ask("load_start", &[&seed.to_string()])?;
    let done = |values: &crate::protocol::Values| {
        values.number("done").is_ok_and(|done| done + 1 >= seed + passes)
    };
    machine.event("load", done).context("no progress under load")?;
    Ok(())
}

/// Requests are in flight when the device is reset, as in a real reboot of a busy machine.
pub fn reboot(machine: &mut Machine<'_>) -> Result<String> {
    let seed = 900_000;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_write", &["1"])?;
    start_load(machine, seed, 1)?;
    machine.reboot()?;
    let last = machine.last_number("load", "done")?;
    machine.ask("pattern_verify", &["1"])?;
    verify_load(machine, last)?;
    Ok(format!("in the same QEMU: the pattern and all of pass {} are there", last - seed + 1))
}

pub fn qemu_exit(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_write", &["2"])?;
    machine.power_off()?;
    machine.start_guest()?;
    let blocks = machine.ask("pattern_verify", &["2"])?.number("blocks")?;
    Ok(format!("{blocks} blocks, 0 wrong"))
}

/// Each round leaves a mark that is on the disk before the round continues (the ledger), then writes as
/// fast as it can (the load) while QEMU is taken away. The next round finds all marks of all rounds, and of
/// the load every block that was reported done, or a newer one.
pub fn restarts(machine: &mut Machine<'_>) -> Result<String> {
    let rounds = machine.setup.rounds;
    let (mut last, mut passes, mut kills) = (0, 0, 0);
    machine.start_daemon()?;
    machine.start_guest()?;
    for round in 1..=rounds {
        let start = last + 10;
        let result = (|| {
            machine.ask("ledger_verify", &[&(round - 1).to_string()])?;
            if round > 1 {
                verify_load(machine, last)?;
            }
            machine.ask("ledger_write", &[&round.to_string()])?;
            start_load(machine, start, 2)?;
            // Not always at the same place in a pass.
            machine.random_moment(900);
            let signal = if round % 2 == 1 { Signal::SIGKILL } else { Signal::SIGTERM };
            kills += u64::from(signal == Signal::SIGKILL);
            machine.end_guest(signal)?;
            last = machine.last_number("load", "done")?;
            passes += last + 1 - start;
            machine.start_guest()
        })();
        result.with_context(|| format!("round {round}"))?;
    }
    machine.ask("ledger_verify", &[&rounds.to_string()])?;
    verify_load(machine, last)?;
    Ok(format!("{rounds} times, {kills} by SIGKILL, {passes} passes under load, all marks there"))
}

/// A disk without a state dies with its daemon. A new daemon must not answer a guest that still runs on the
/// old contents: that guest would see zeroes where its data was.
pub fn blank_restart(machine: &mut Machine<'_>) -> Result<String> {
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_write", &["5"])?;
    machine.kill_daemon()?;
    machine.start_daemon()?;
    let asked = machine.tell("pattern_verify", &["5"])?;
    let said = refusal(machine, asked)?;
    let served = machine.figures()?.requests()?;
    ensure!(served == 0, "a blank disk served {served} requests of a guest that had another one");
    machine.end_guest(Signal::SIGKILL)?;
    machine.forget_consoles();
    // The newcomer's own guests are served.
    machine.start_guest()?;
    machine.ask("pattern_write", &["6"])?;
    machine.ask("pattern_verify", &["6"])?;
    Ok(format!("{said}; the next guest is served"))
}

/// Waits until the daemon has refused the running guest. That it did is told by no figure, but by the
/// warning that its user gets: QEMU itself does not report it.
fn refusal(machine: &mut Machine<'_>, asked: u64) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match machine.poll_answer(asked)? {
            Some((Verdict::Pass, _)) => bail!("the new daemon has the old data"),
            // An error is as good as waiting; anything else is another disk's contents.
            Some((_, text)) if text.contains("Input/output") => {
                return Ok(format!("failed: {text}"));
            }
            Some((_, text)) => bail!("a running guest was shown another disk: {text}"),
            None => {}
        }
        let warnings = machine.daemon()?.log_with("WARN");
        let refused = warnings.iter().find(|line| line.contains("queue "));
        if let Some(line) = refused {
            let text = line.split_once("] ").map_or(line.as_str(), |(_, text)| text);
            return Ok(format!("refused, \"{text}\""));
        }
        ensure!(machine.guest()?.process.is_alive(), "QEMU died when its daemon was replaced");
        ensure!(Instant::now() < deadline, "neither refused nor served within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
