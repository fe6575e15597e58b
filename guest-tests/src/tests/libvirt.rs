//! Guests that libvirt runs: what docs/libvirt.md says. They have no option of QEMU's but those of libvirt.

use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{disk::check_limits, meet::survive, state::keep_state_with_slow_engine};
use crate::machine::{Machine, SIZE, sized};

/// A guest with a pattern on its disk, whose daemon keeps a state.
fn boot(machine: &mut Machine<'_>, reconnect_ms: Option<u64>) -> Result<()> {
    machine.daemon_args = sized(SIZE, None);
    // The socket is for QEMU's user to connect to.
    machine.daemon_args.extend(["--socket-group".into(), "kvm".into()]);
    keep_state_with_slow_engine(machine)?;
    machine.shape.reconnect_ms = reconnect_ms;
    machine.start_daemon()?;
    machine.start_guest()?;
    check_limits(machine, 2)?;
    machine.ask("pattern_write", &["1"])?;
    Ok(())
}

pub fn reconnects(machine: &mut Machine<'_>) -> Result<String> {
    boot(machine, Some(1000))?;
    let survived = survive(machine, 700, 2, 32 << 20)?;
    machine.ask("pattern_verify", &["1"])?;
    hotplug(machine)?;
    Ok(format!("{survived}; detached and attached"))
}

/// QEMU does not look for the daemon again: the guest waits, until it is started anew.
pub fn starts_anew(machine: &mut Machine<'_>) -> Result<String> {
    boot(machine, None)?;
    hotplug(machine)?;
    machine.kill_daemon()?;
    machine.end_guest(Signal::SIGTERM)?;
    machine.start_daemon()?;
    machine.start_guest()?;
    machine.ask("pattern_verify", &["1"])?;
    Ok("detached and attached; the next guest finds the pattern".to_owned())
}

/// The disk is detached, and attached again with all that is on it.
fn hotplug(machine: &mut Machine<'_>) -> Result<()> {
    virsh(machine, "detach-device")?;
    machine.ask("disk_gone", &[])?;
    virsh(machine, "attach-device")?;
    machine.ask("disk_there", &[])?;
    machine.ask("pattern_verify", &["1"])?;
    Ok(())
}

fn virsh(machine: &mut Machine<'_>, command: &str) -> Result<()> {
    let disk = machine.path("disk.xml");
    let domain = machine.guest()?.domain()?.to_owned();
    let mut virsh = Command::new("timeout");
    virsh.args(["60", "virsh", "-q", "-c", "qemu:///system", command, &domain]);
    let output = virsh.arg(disk).arg("--live").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "virsh {command}: {}", said.trim());
    Ok(())
}
