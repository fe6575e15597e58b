//! What guests are made of: kernels, QEMUs, initial file systems, by the scripts in `qemu-scripts/`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};

use crate::conformance::contents;

/// MiB of real files that tests put on a disk.
pub const CORPUS_MIB: u64 = 24;
/// Programs of this machine that a guest has.
const PROGRAMS: [&str; 7] =
    ["fio", "mkfs.ext4", "e2fsck", "resize2fs", "fstrim", "blkdiscard", "fallocate"];
/// What a guest's kernel needs for images; some kernels have a part of it built in.
const MODULES: [&str; 9] =
    ["ext4", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859-1", "xfs", "btrfs", "zram"];

/// A kernel for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// "6.1".
    pub version: String,
    pub path: PathBuf,
    pub modules: Option<PathBuf>,
    /// The initial file system of the test guests; made by [`Setup::make_initrd`].
    pub initrd: PathBuf,
}

/// A QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// "7.2.22": two of one minor version may differ in what they ask of a back end.
    pub version: String,
    pub path: PathBuf,
}

impl Qemu {
    /// Whether it looks for a daemon that went away more often than once a second.
    pub fn reconnects_by_ms(&self) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (9, 2)
    }
}

/// What is tested together.
#[derive(Debug, Clone)]
pub struct Combination {
    pub algorithm: String,
    pub kernel: Kernel,
    pub qemu: Qemu,
    /// Only the few tests for which a newer kernel or QEMU makes a difference.
    pub few: bool,
}

impl std::fmt::Display for Combination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { algorithm, kernel, qemu, .. } = self;
        write!(f, "{algorithm} linux-{} qemu-{}", kernel.version, qemu.version)
    }
}

/// What all tests share.
pub struct Setup {
    pub daemon: PathBuf,
    /// A debug build of the daemon, which dies where it is told to.
    pub with_failpoints: Option<PathBuf>,
    /// `qemu-scripts/`.
    pub scripts: PathBuf,
    /// `guest-tests/`.
    pub here: PathBuf,
    /// For all files of this run; short, as sockets are in it.
    pub work: PathBuf,
    /// On a tmpfs, for the states of disks.
    pub tmpfs: PathBuf,
    /// A tar of real files of this machine.
    pub corpus: PathBuf,
    /// "kvm" or "tcg".
    pub accel: String,
    pub seed: u64,
    /// Restarts of QEMU, SIGKILLs and SIGTERMs of the daemon.
    pub rounds: u64,
    pub kills: Option<u64>,
    pub terms: u64,
    pub full: bool,
    /// The script that has libvirt run guests, where it does.
    pub libvirt: Option<PathBuf>,
    /// What tries the control API, where that is to be done.
    pub fuzz: Option<Fuzz>,
    /// One installation of packages at a time.
    pub installing: Mutex<()>,
}

/// What tries the control API.
pub struct Fuzz {
    /// schemathesis.
    pub program: PathBuf,
    /// For how long.
    pub seconds: u64,
}

impl Setup {
    /// Runs a line of shell with the functions of `qemu-scripts/`; gives what it prints. Its messages go
    /// to stderr.
    pub fn shell(&self, line: &str, args: &[&str]) -> Result<String> {
        let script = format!("set -eu -o pipefail; . \"$0/lib.sh\"; . \"$0/lib-apt.sh\"; {line}");
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(&self.scripts).args(args);
        output(&mut command)
    }

    /// Installs packages whose programs are missing, each as `PROGRAM=PACKAGE`.
    pub fn need(&self, pairs: &[&str]) -> Result<()> {
        let _one = self.installing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shell("need \"$@\"", pairs).map(drop)
    }

    /// A kernel by a path, as "default" or by the name of a suite.
    pub fn kernel(&self, spec: &str) -> Result<Kernel> {
        let (path, modules, version) = if spec.contains('/') {
            let path = PathBuf::from(spec);
            ensure!(path.is_file(), "no kernel at {spec}");
            let version = self.shell(
                "strings -n 12 \"$1\" | sed -n 's/^\\([0-9]*\\.[0-9]*\\.[^ ]*\\) (.*/\\1/p' | sed -n 1p",
                &[spec],
            )?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let version = match version.trim() {
                "" => name.trim_start_matches("vmlinuz-").to_owned(),
                version => version.to_owned(),
            };
            (path, std::env::var_os("MODULES").map(PathBuf::from), version)
        } else {
            let mut command = Command::new(self.scripts.join("get-kernel"));
            if spec != "default" {
                command.args(["--suite", spec]);
            }
            let said = assignments(&output(&mut command)?);
            let get = |name| said.get(name).with_context(|| format!("get-kernel gave no {name}"));
            (get("KERNEL")?.into(), Some(get("MODULES")?.into()), get("KERNEL_VERSION")?.clone())
        };
        let version = major_minor(&version);
        let initrd = self.work.join(format!("initrd-{version}.img"));
        Ok(Kernel { version, path, modules, initrd })
    }

    /// A QEMU by a path, as "default" or by the name of a suite.
    pub fn qemu(&self, spec: &str) -> Result<Qemu> {
        let path = if spec.contains('/') {
            spec.to_owned()
        } else if spec == "default" {
            self.shell("find_qemu; echo \"$QEMU\"", &[])?
        } else {
            output(Command::new(self.scripts.join("get-qemu")).args(["--suite", spec]))?
        };
        let path = PathBuf::from(path.trim());
        let said = output(Command::new(&path).arg("--version"))?;
        let version = release(&said).with_context(|| format!("{}: {said}", path.display()))?;
        Ok(Qemu { version, path })
    }

    /// How guests run here: /dev/kvm may exist and be unable to run one, so a probe guest is booted.
    pub fn pick_accel(&self, kernel: &Kernel, qemu: &Qemu) -> Result<String> {
        let (kernel, qemu) = (kernel.path.to_string_lossy(), qemu.path.to_string_lossy());
        let line = "QEMU=$2; export QEMU; pick_accel \"$1\"; echo \"$VUZ_ACCEL\"";
        Ok(self.shell(line, &[&kernel, &qemu])?.trim().to_owned())
    }

    /// Compiles the guests' own programs and collects real files.
    pub fn make_common(&self) -> Result<()> {
        for (name, source) in self.own_programs() {
            let (source, out) = (source.to_string_lossy(), self.work.join(name));
            self.shell("compile \"$1\" \"$2\"", &[&source, &out.to_string_lossy()])?;
        }
        let corpus = self.corpus.to_string_lossy();
        contents::make_files(&self.work)?;
        self.shell("make_corpus \"$1\" \"$2\"", &[&corpus, &CORPUS_MIB.to_string()])?;
        Ok(())
    }

    fn own_programs(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("blkgen", self.here.join("blkgen.c")),
            ("memhog", self.scripts.join("memhog.c")),
            ("addpart", self.scripts.join("addpart.c")),
        ]
    }

    /// Makes the initial file system of the test guests.
    pub fn make_initrd(&self, kernel: &Kernel) -> Result<()> {
        let mut command = Command::new(self.scripts.join("make-initramfs"));
        command.arg("-o").arg(&kernel.initrd).arg("--main").arg(self.here.join("guest-main.sh"));
        let mut file = |from: &Path, to: &str| {
            command.arg("--file").arg(format!("{}={to}", from.display()));
        };
        file(&self.here.join("guest-churn.sh"), "guest-churn.sh");
        file(&self.here.join("guest-zram.sh"), "guest-zram.sh");
        file(&self.corpus, "corpus.tar");
        for kind in contents::KINDS {
            file(&self.work.join(format!("pages.{kind}")), &format!("pages.{kind}"));
        }
        for (name, _) in self.own_programs() {
            file(&self.work.join(name), &format!("usr/bin/{name}"));
        }
        for program in PROGRAMS {
            command.args(["--program", program]);
        }
        later_modules(&mut command);
        if let Some(modules) = &kernel.modules {
            command.arg("--modules").arg(modules);
        }
        output(&mut command).map(drop)
    }

    /// Makes the initial file system of a guest that boots from its own disk.
    pub fn make_boot_initrd(&self, kernel: &Kernel, out: &Path) -> Result<()> {
        let mut command = Command::new(self.scripts.join("make-initramfs"));
        command.arg("--bare").arg("-o").arg(out).arg("--main").arg(self.here.join("boot-main.sh"));
        later_modules(&mut command);
        if let Some(modules) = &kernel.modules {
            command.arg("--modules").arg(modules);
        }
        output(&mut command).map(drop)
    }
}

fn later_modules(command: &mut Command) {
    for module in MODULES {
        command.args(["--later", module]);
    }
}

/// Runs a program to its end; gives what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| name.clone())?;
    if !output.status.success() {
        bail!("{name} ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The MD5 of a file, as programs in the guest print it.
pub fn md5(path: &Path) -> Result<String> {
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let output = Command::new("md5sum").stdin(file).output().context("md5sum")?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(line.split_whitespace().next().context("md5sum said nothing")?.to_owned())
}

/// Lines of `NAME=VALUE`, the values quoted for a shell only where that is needed.
fn assignments(said: &str) -> HashMap<String, String> {
    let pairs = said.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace('\\', ""))).collect()
}

/// "6.1.0-48-cloud-amd64" is "6.1".
fn major_minor(version: &str) -> String {
    let mut parts = version.split('.');
    let major = parts.next().unwrap_or_default();
    let minor: String =
        parts.next().unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    format!("{major}.{minor}")
}

/// "QEMU emulator version 7.2.22 (Debian ...)" is "7.2.22".
fn release(said: &str) -> Option<String> {
    let rest = said.split_once("version ")?.1;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let version = version.trim_end_matches('.').to_owned();
    version.contains('.').then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(major_minor("6.1.0-48-cloud-amd64"), "6.1");
        assert_eq!(major_minor("6.12.95+deb12-cloud-amd64"), "6.12");
        assert_eq!(major_minor("7.3-rc1"), "7.3");
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b2)\nCopyright";
        assert_eq!(release(said).as_deref(), Some("7.2.22"));
        assert_eq!(release("QEMU emulator version 10.0").as_deref(), Some("10.0"));
        assert_eq!(release("no such thing"), None);
    }

    #[test]
    fn qemu_counts_milliseconds_since_9_2() {
        let qemu = |version: &str| Qemu { version: version.to_owned(), path: PathBuf::new() };
        for (version, is_new) in [
            ("7.2.22", false),
            ("9.1.3", false),
            ("9.2.0", true),
            ("10.0.13", true),
            ("11.0", true),
        ] {
            assert_eq!(qemu(version).reconnects_by_ms(), is_new, "{version}");
        }
    }

    #[test]
    fn assignments_of_the_shell_are_read() {
        let said = assignments("KERNEL=/a/vmlinuz-6.12.95\\+deb12\nMODULES=/b\nnothing\n");
        assert_eq!(said["KERNEL"], "/a/vmlinuz-6.12.95+deb12");
        assert_eq!((said["MODULES"].as_str(), said.len()), ("/b", 2));
    }
}
