//! Disks that outlive their daemon. Which moments are hit is random, and how much was in flight is chance:
//! both are reported and not judged. `tests/crash.rs` has each moment by name.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    life::{start_load, verify_load},
    mib, spread,
};
use crate::{daemon::Figures, inflight::InFlight, machine::Machine};

/// What four rows of fio passes fill at most (`guest-churn.sh`); nothing else writes to their disk.
const CHURN_BYTES: u64 = 14 << 20;

/// A disk with a state, and an engine that is slower than a guest under TCG, so that the queues are full, and
/// answers in any order.
pub fn keep_state_with_slow_engine(machine: &mut Machine<'_>) -> Result<()> {
    let model = format!("latency=4ms,reorder=8,seed={}", machine.setup.seed);
    machine.keep_state(&[
        "--engine",
        "offload",
        "--engine-workers",
        "2",
        "--engine-model",
        &model,
    ])?;
    machine.shape.reconnect_ms = Some(100);
    Ok(())
}

/// The final verification, and whether restarts left objects behind that belong to no page. `beside` are
/// bytes of what else is on the disk.
pub fn end_churn(machine: &mut Machine<'_>, seed: u64, beside: u64) -> Result<String> {
    let verified = machine.ask("churn_stop", &[&seed.to_string()])?;
    let tidy = |now: &Figures| {
        let (orig, compr, mem) = now.sizes()?;
        Ok(orig <= CHURN_BYTES + beside && mem <= compr + compr / 10 + (512 << 10))
    };
    let now = machine.daemon()?.wait_for("nothing is stored that no page names", tidy)?;
    let (orig, _, mem) = now.sizes()?;
    let (passes, size) = (verified.number("passes")?, verified.number("mib")?);
    Ok(format!("{passes} fio passes, {size} MiB verified, {} in {} of arena", mib(orig), mib(mem)))
}

/// What was met when daemons ended.
#[derive(Default)]
pub struct Deaths {
    found: Vec<InFlight>,
    gaps: Vec<u64>,
}

impl Deaths {
    /// The daemon is gone: notes what QEMU holds in flight, and starts the next one on the same state, whose
    /// first request ends the gap. The first `killed` newcomers are killed before they have served much.
    pub fn next_daemon(
        &mut self,
        machine: &mut Machine<'_>,
        queues: usize,
        killed: usize,
    ) -> Result<InFlight> {
        let found = machine.in_flight(queues)?;
        self.found.push(found);
        for _ in 0..killed {
            machine.spawn_daemon()?;
            machine.random_moment(250);
            machine.kill_daemon()?;
        }
        machine.spawn_daemon()?;
        let gap = machine.resumed()?;
        self.gaps.push(u64::try_from(gap.as_millis())?);
        Ok(found)
    }

    /// In flight and out of order, and the gaps.
    pub fn report(&self) -> String {
        let requests: Vec<_> = self.found.iter().map(|found| found.requests as u64).collect();
        let later = self.found.iter().filter(|found| found.later > 0).count();
        format!(
            "in flight {}, {later} times completed out of order, first request after ms {}",
            spread(&requests),
            spread(&self.gaps)
        )
    }
}

/// SIGKILL at random moments under load; a new daemon on the same state at once. Where QEMU can be made to
/// look for it early, every fifth newcomer is killed as well.
pub fn kills(machine: &mut Machine<'_>) -> Result<String> {
    let (seed, setup) = (100, machine.setup);
    let fast = machine.combination.qemu.reconnects_by_ms();
    // Each takes seconds where QEMU looks for the daemon once a second.
    let default = match (setup.full, fast) {
        (true, true) => 30,
        (true, false) => 10,
        (false, true) => 6,
        (false, false) => 3,
    };
    let count = setup.kills.unwrap_or(default);
    keep_state_with_slow_engine(machine)?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.start_churn(seed)?;
    let (mut deaths, mut twice) = (Deaths::default(), 0);
    for kill in 1..=count {
        machine.random_moment(900);
        machine.kill_daemon()?;
        let more = usize::from(fast && kill % 5 == 0);
        twice += more;
        let next = deaths.next_daemon(machine, 2, more);
        next.with_context(|| format!("kill {kill} of {count}"))?;
    }
    let verified = end_churn(machine, seed, 0).with_context(|| format!("after {count} kills"))?;
    Ok(format!("{count} SIGKILLs and {twice} of newcomers: {}; {verified}", deaths.report()))
}

/// SIGTERM under the same load: the daemon publishes all that it took, so the region that QEMU keeps has
/// nothing in flight.
pub fn terms(machine: &mut Machine<'_>) -> Result<String> {
    let (seed, count) = (500, machine.setup.terms);
    keep_state_with_slow_engine(machine)?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.start_churn(seed)?;
    let mut deaths = Deaths::default();
    for term in 1..=count {
        machine.random_moment(900);
        machine.terminate_daemon().with_context(|| format!("SIGTERM {term}"))?;
        let found = deaths.next_daemon(machine, 2, 0);
        let found = found.with_context(|| format!("SIGTERM {term}"))?;
        ensure!(found.requests == 0, "SIGTERM {term} left {} requests in flight", found.requests);
    }
    let verified =
        end_churn(machine, seed, 0).with_context(|| format!("after {count} SIGTERMs"))?;
    Ok(format!("{count} SIGTERMs: {}; {verified}", deaths.report()))
}

/// Neither the QEMU nor the daemon that knew the disk is left. Once after a clean shutdown of the guest, once
/// with both killed under load.
pub fn cold(machine: &mut Machine<'_>) -> Result<String> {
    machine.keep_state(&[])?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_write", &["7"])?;
    machine.power_off()?;
    machine.kill_daemon()?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_verify", &["7"])?;
    start_load(machine, 1, 2)?;
    machine.random_moment(900);
    machine.kill_daemon()?;
    machine.end_guest(Signal::SIGKILL)?;
    let last = machine.last_number("load", "done")?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_verify", &["7"])?;
    verify_load(machine, last)?;
    Ok(format!("the pattern outlives QEMU and daemon twice, and all of pass {last} of the load"))
}
