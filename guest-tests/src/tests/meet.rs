//! What the daemon meets in the world: front ends with their default options, disks that come and go,
//! memory that is not shared.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    disk::check_limits,
    state::{Deaths, end_churn, keep_state_with_slow_engine},
};
use crate::{
    machine::{Machine, SIZE, sized},
    process::LIMIT,
};

/// SIGKILLs that a guest on a front end with default options goes through.
const KILLS: usize = 3;

/// Neither QEMU nor the daemon is told anything of queues.
fn start_by_default(machine: &mut Machine<'_>) -> Result<()> {
    machine.daemon_args = sized(SIZE, None);
    machine.shape.queues = None;
    keep_state_with_slow_engine(machine)?;
    machine.start_daemon()?;
    machine.start_guest()
}

/// The daemon is killed under load, and its guest sees a pause. `beside` are bytes of what else is on the
/// disk.
pub fn survive(machine: &mut Machine<'_>, seed: u64, queues: usize, beside: u64) -> Result<String> {
    machine.start_churn(seed)?;
    let mut deaths = Deaths::default();
    for kill in 1..=KILLS {
        machine.random_moment(900);
        machine.kill_daemon()?;
        let next = deaths.next_daemon(machine, queues, 0);
        next.with_context(|| format!("kill {kill} of {KILLS}"))?;
    }
    let verified = end_churn(machine, seed, beside)?;
    Ok(format!("{KILLS} SIGKILLs: {}; {verified}", deaths.report()))
}

/// A queue for each of the two CPUs is QEMU's choice for a disk on PCI.
pub fn defaults(machine: &mut Machine<'_>) -> Result<String> {
    machine.shape.hotplug = true;
    start_by_default(machine)?;
    check_limits(machine, 2)?;
    machine.ask("pattern_write", &["8"])?;
    let survived = survive(machine, 700, 2, 32 << 20)?;
    detach(machine).context("detach")?;
    attach(machine).context("attach")?;
    machine.ask("pattern_verify", &["8"])?;
    machine.ask("pattern_write", &["9"])?;
    machine.ask("pattern_verify", &["9"])?;
    Ok(format!("2 queues; {survived}; detached and attached"))
}

/// As libvirt does it: the device, and when the guest let go of it its connection.
fn detach(machine: &mut Machine<'_>) -> Result<()> {
    machine.guest()?.qmp()?.run("device_del", &json!({"id": "disk0"}))?;
    machine.qemu_event("DEVICE_DELETED", &json!({"device": "disk0"}))?;
    machine.ask("disk_gone", &[])?;
    machine.guest()?.qmp()?.run("chardev-remove", &json!({"id": "disk0"}))?;
    Ok(())
}

fn attach(machine: &mut Machine<'_>) -> Result<()> {
    let socket = machine.socket();
    let address = json!({"type": "unix", "data": {"path": socket.to_string_lossy()}});
    let mut data = json!({"addr": address, "server": false});
    if machine.combination.qemu.reconnects_by_ms() {
        data["reconnect-ms"] = json!(100);
    } else {
        data["reconnect"] = json!(1);
    }
    let backend = json!({"type": "socket", "data": data});
    let qmp = machine.guest()?.qmp()?;
    qmp.run("chardev-add", &json!({"id": "disk0", "backend": backend}))?;
    let device = json!({"driver": "vhost-user-blk-pci", "id": "disk0", "chardev": "disk0",
        "bus": "port0"});
    qmp.run("device_add", &device)?;
    machine.ask("disk_there", &[])?;
    Ok(())
}

/// The disk is behind virtio-mmio, where rings have 1024 entries whatever QEMU asks for, and there is one
/// queue.
pub fn microvm(machine: &mut Machine<'_>) -> Result<String> {
    machine.shape.microvm = true;
    start_by_default(machine)?;
    check_limits(machine, 1)?;
    let survived = survive(machine, 800, 1, 0)?;
    Ok(format!("1 queue; {survived}"))
}

/// Guest memory that is not shared: what the guest puts into its rings is not there for the daemon, which
/// can only say so. The guest waits for its disk before it gets to its first command.
pub fn unshared(machine: &mut Machine<'_>) -> Result<String> {
    machine.allow("blind_queues");
    machine.shape.unshared = true;
    machine.start_daemon()?;
    machine.launch_guest()?;
    let daemon = machine.daemon()?;
    daemon.wait_for("a blind queue", |now| Ok(now.get("blind_queues")? > 0))?;
    // What to do about it is the message's whole purpose, so the message is judged, too.
    let warning = daemon.process.stderr.wait_for_text("share=on", LIMIT);
    let warning = warning.context("no message names share=on")?;
    ensure!(warning.contains("WARN"), "not a warning: {warning}");
    machine.end_guest(Signal::SIGKILL)?;
    // The next guest, whose memory is shared, is served.
    machine.shape.unshared = false;
    machine.start_guest()?;
    machine.ask("pattern_write", &["1"])?;
    machine.ask("pattern_verify", &["1"])?;
    Ok("warned; the next guest is served".to_owned())
}
