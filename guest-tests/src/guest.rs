//! A guest: a QEMU, its console, its monitor.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    artifacts::{Kernel, Qemu},
    process::Process,
    qmp::Qmp,
};

/// How a guest's disk is attached, and what else differs between guests.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Queues of the disk, or what QEMU makes of it by itself.
    pub queues: Option<u16>,
    /// Behind virtio-mmio instead of PCI.
    pub microvm: bool,
    /// The firmware boots from the disk.
    pub bios: bool,
    /// The disk has a slot of its own, where it can be detached.
    pub hotplug: bool,
    /// The daemon cannot see the guest's memory.
    pub unshared: bool,
    /// How often QEMU looks for a daemon that went away.
    pub reconnect_ms: u64,
    /// More arguments for QEMU.
    pub more: Vec<OsString>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            queues: Some(2),
            microvm: false,
            bios: false,
            hotplug: false,
            unshared: false,
            reconnect_ms: 1000,
            more: Vec::new(),
        }
    }
}

/// What all guests of a combination are made of.
pub struct Parts<'a> {
    pub scripts: &'a Path,
    pub kernel: &'a Kernel,
    pub qemu: &'a Qemu,
    pub accel: &'a str,
}

/// A QEMU, and a Linux in it.
pub struct Guest {
    pub process: Process,
    pub qmp: Qmp,
    /// Whether it takes commands: one that the firmware booted has none.
    pub takes_commands: bool,
    commands: u64,
}

impl Guest {
    /// Starts a QEMU on the daemon at `socket`; waits for its monitor and for nothing in the guest.
    pub fn launch(parts: &Parts<'_>, shape: &Shape, socket: &Path, log: &Path) -> Result<Self> {
        let monitor = socket.with_extension("qmp");
        // Of the guest before.
        let _ = std::fs::remove_file(&monitor);
        let mut command = Command::new(parts.scripts.join("run-guest"));
        command.env("QEMU", &parts.qemu.path).env("VUZ_ACCEL", parts.accel);
        command.args(arguments(parts, shape, socket, &monitor));
        let mut process = Process::start(&command, log, Stdio::piped())?;
        let qmp = Qmp::connect(&monitor, || process.is_alive());
        let qmp = qmp.with_context(|| process.last_words())?;
        Ok(Self { process, qmp, takes_commands: !shape.bios, commands: 0 })
    }

    /// Sends a command; gives its number.
    pub fn tell(&mut self, step: &str, args: &[&str]) -> u64 {
        self.commands += 1;
        let line = [&[self.commands.to_string().as_str(), step], args].concat().join(" ");
        if let Some(stdin) = &mut self.process.stdin {
            // Where the guest is gone, the answer that does not come tells.
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
        self.commands
    }

    /// Ends QEMU by a signal; gives all that came over the console.
    pub fn end(mut self, signal: Signal) -> Result<Vec<String>> {
        self.process.end(signal).with_context(|| format!("{signal} of QEMU"))?;
        Ok(self.process.stdout.all())
    }
}

fn arguments(parts: &Parts<'_>, shape: &Shape, socket: &Path, monitor: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |words: &[&dyn AsRef<std::ffi::OsStr>]| {
        args.extend(words.iter().map(|word| word.as_ref().to_owned()));
    };
    add(&[&"--socket", &socket, &"--qmp", &monitor, &"--cpus", &"2"]);
    add(&[&"--mem", &"512M", &"--reconnect-ms", &shape.reconnect_ms.to_string()]);
    match shape.queues {
        Some(queues) => add(&[&"--queues", &queues.to_string()]),
        None => add(&[&"--defaults"]),
    }
    if shape.bios {
        add(&[&"--bios"]);
    } else {
        let initrd: &PathBuf = &parts.kernel.initrd;
        add(&[&"--kernel", &parts.kernel.path, &"--initrd", initrd]);
    }
    if shape.microvm {
        add(&[&"--machine", &"microvm"]);
    }
    if shape.hotplug {
        add(&[&"--hotplug"]);
    }
    if shape.unshared {
        add(&[&"--unshared"]);
    }
    add(&[&"--"]);
    args.extend(shape.more.iter().cloned());
    args
}
