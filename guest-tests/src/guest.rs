//! A guest: a QEMU, its console, its monitor.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
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
    /// How often QEMU looks for a daemon that went away; `None` is never.
    pub reconnect_ms: Option<u64>,
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
            reconnect_ms: Some(1000),
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
    /// The script that has libvirt run the guest, instead of `run-guest`.
    pub libvirt: Option<&'a Path>,
}

/// A QEMU, and a Linux in it.
pub struct Guest {
    pub process: Process,
    /// Whether it takes commands: one that the firmware booted has none.
    pub takes_commands: bool,
    runs: Runs,
    commands: u64,
}

/// What runs a guest's QEMU.
enum Runs {
    /// The process is QEMU.
    Itself(Qmp),
    /// libvirt has a domain of this name; the process stands for it.
    Libvirt(String),
}

impl Guest {
    /// Starts a QEMU on the daemon at `socket`; waits for its monitor and for nothing in the guest.
    pub fn launch(parts: &Parts<'_>, shape: &Shape, socket: &Path, log: &Path) -> Result<Self> {
        let program = parts.libvirt.map_or_else(|| parts.scripts.join("run-guest"), Path::to_owned);
        let mut command = Command::new(program);
        command.env("QEMU", &parts.qemu.path).env("VUZ_ACCEL", parts.accel);
        let monitor = socket.with_extension("qmp");
        // Of the guest before.
        let _ = std::fs::remove_file(&monitor);
        let domain = domain_of(socket);
        command.args(match parts.libvirt {
            Some(_) => libvirt_arguments(parts, shape, socket, &domain),
            None => arguments(parts, shape, socket, &monitor),
        });
        let mut process = Process::start(&command, log, Stdio::piped())?;
        let runs = if parts.libvirt.is_some() {
            Runs::Libvirt(domain)
        } else {
            let qmp = Qmp::connect(&monitor, || process.is_alive());
            Runs::Itself(qmp.with_context(|| process.last_words())?)
        };
        Ok(Self { process, takes_commands: !shape.bios, runs, commands: 0 })
    }

    /// QEMU's monitor, unless that is libvirt's.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        match &mut self.runs {
            Runs::Itself(qmp) => Ok(qmp),
            Runs::Libvirt(_) => bail!("the monitor is libvirt's"),
        }
    }

    /// QEMU's process.
    pub fn qemu(&self) -> Result<u32> {
        let Runs::Libvirt(domain) = &self.runs else { return Ok(self.process.id()) };
        let path = format!("/run/libvirt/qemu/{domain}.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        text.trim().parse().context(path)
    }

    /// The name of libvirt's domain.
    pub fn domain(&self) -> Result<&str> {
        match &self.runs {
            Runs::Libvirt(domain) => Ok(domain),
            Runs::Itself(_) => bail!("not a guest of libvirt"),
        }
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
        let signal = match self.runs {
            Runs::Itself(_) => signal,
            // The domain has to be ended by the process that stands for it.
            Runs::Libvirt(_) => Signal::SIGTERM,
        };
        self.process.end(signal).with_context(|| format!("{signal} of QEMU"))?;
        Ok(self.process.stdout.all())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Runs::Libvirt(_) = self.runs {
            // The namespaces end what is left.
            let _ = self.process.end(Signal::SIGTERM);
        }
    }
}

/// A domain's name: that of the directory of the socket, which no other guest has.
fn domain_of(socket: &Path) -> String {
    let dir = socket.parent().and_then(Path::file_name).unwrap_or_default();
    dir.to_string_lossy().replace('.', "-")
}

fn libvirt_arguments(
    parts: &Parts<'_>,
    shape: &Shape,
    socket: &Path,
    domain: &str,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--name".into(), domain.into()];
    args.extend(["--socket".into(), socket.into()]);
    args.extend(["--kernel".into(), parts.kernel.path.clone().into()]);
    args.extend(["--initrd".into(), parts.kernel.initrd.clone().into()]);
    if shape.reconnect_ms.is_some() {
        args.push("--reconnect".into());
    }
    args
}

fn arguments(parts: &Parts<'_>, shape: &Shape, socket: &Path, monitor: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |words: &[&dyn AsRef<std::ffi::OsStr>]| {
        args.extend(words.iter().map(|word| word.as_ref().to_owned()));
    };
    add(&[&"--socket", &socket, &"--qmp", &monitor, &"--cpus", &"2"]);
    add(&[&"--mem", &"512M"]);
    match shape.reconnect_ms {
        Some(ms) => add(&[&"--reconnect-ms", &ms.to_string()]),
        None => add(&[&"--no-reconnect"]),
    }
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
