//! The tests. Each has a machine of its own, and depends on no other.

mod conformance;
mod disk;
mod fuzz_api;
mod grow;
mod images;
mod libvirt;
mod life;
mod meet;
mod memory;
mod state;

use anyhow::Result;

use crate::machine::Machine;

/// One test.
pub struct Test {
    pub name: &'static str,
    pub about: &'static str,
    /// Gives what there is to say of it.
    pub run: fn(&mut Machine<'_>) -> Result<String>,
    /// It depends little on the algorithm: the first one is enough.
    pub once: bool,
    /// A newer kernel or QEMU makes a difference for it.
    pub few: bool,
}

const fn test(
    name: &'static str,
    about: &'static str,
    run: fn(&mut Machine<'_>) -> Result<String>,
) -> Test {
    Test { name, about, run, once: false, few: false }
}

impl Test {
    const fn once(self) -> Self {
        Self { once: true, ..self }
    }

    const fn few(self) -> Self {
        Self { few: true, ..self }
    }
}

/// All of them; the longest ones first, so that none is left over at the end.
pub const TESTS: &[Test] = &[
    test("restarts", "QEMU started again and again under load, half of them by SIGKILL: nothing lost", life::restarts),
    test("kills", "daemon with a state SIGKILLed at random moments under fio --verify, a new one at once: nothing lost", state::kills).once(),
    test("defaults", "QEMU's default options: boots, survives three SIGKILLs of the daemon, disk detached and attached", meet::defaults).once().few(),
    test("state-cold", "QEMU and daemon both end, also by SIGKILL under load: the state has all data", state::cold).once(),
    test("terms", "as kills, by SIGTERM: the daemon leaves nothing in flight, the guest sees a pause", state::terms).once(),
    test("grow-kills", "as kills, at each step of a growth: the old size or the new one, which the guest sees, and nothing lost", grow::grow_kills).once().few(),
    test("grow", "a disk with a state grows under fio --verify: the guest sees it, resize2fs of a mounted ext4", grow::grow).once().few(),
    test("microvm", "as defaults on a microvm, whose disk is behind virtio-mmio and cannot be detached", meet::microvm).once().few(),
    test("images", "seven ordinary images (GPT, MBR, ext4, vfat, xfs, btrfs) loaded: mounted, right, writable", images::images).once(),
    test("bios", "a loaded disk boots: firmware, boot loader, kernel, its own file system", images::bios).once(),
    test("swap", "swap under memory pressure: every page verified, discards sent", memory::swap),
    test("swap-freed", "the daemon's memory shrinks after the swapping program ends", memory::swap_freed),
    test("reboot", "the guest reboots inside one QEMU, under load: data still there", life::reboot),
    test("blank-restart", "a new, blank daemon does not show a blank disk to a running guest", life::blank_restart),
    test("engine", "fio --verify on an engine that reorders, refuses a tenth of its jobs and fails a hundredth", disk::engine),
    test("compact", "half of the files deleted and trimmed, the daemon told to compact: its arena shrinks by that", memory::compact),
    test("fstrim", "the daemon's memory shrinks after files are deleted and trimmed", memory::fstrim),
    test("ext4", "ext4 -o discard, many files, remount, checksums, e2fsck -fn", disk::ext4),
    test("qemu-exit", "QEMU ends and a new one starts on the same daemon: data still there", life::qemu_exit),
    test("fio", "fio --verify, 512 B to 256 KiB, on two queues", disk::fio).few(),
    test("unshared", "guest memory that is not shared: the daemon says what is missing", meet::unshared).once(),
    test("discard", "discards and zeroes at odd places, also unaligned: neighbours stay intact", disk::discard),
    test("limits", "size, block size, queues, discard limits, serial, cache mode as Linux sees them", disk::limits).few(),
    test("read-only", "a disk filled by --load and served with --read-only: right contents, no writes", disk::read_only),
];

/// Those of guests that libvirt runs.
pub const LIBVIRT_TESTS: &[Test] = &[
    test(
        "libvirt",
        "with <reconnect>: boots, survives three SIGKILLs of the daemon, disk detached and attached",
        libvirt::reconnects,
    ),
    test(
        "libvirt-anew",
        "without <reconnect>: disk detached and attached, started anew after a SIGKILL of the daemon",
        libvirt::starts_anew,
    ),
];

/// That of the kernel's zram beside the daemon.
pub const CONFORMANCE_TESTS: &[Test] = &[test(
    "conformance",
    "one script on the kernel's zram and on the daemon's attributes: the same, or for a known reason not",
    conformance::conformance,
)];

/// That of the control API's description.
pub const FUZZ_TESTS: &[Test] = &[test(
    "fuzz-api",
    "the control API tried from its description under fio --verify: no error, nothing left behind",
    fuzz_api::fuzz_api,
)];

/// Bytes in MiB, with a decimal.
fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

/// "least to greatest, median M"; of nothing nothing.
fn spread(numbers: &[u64]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    match (sorted.first(), sorted.last()) {
        (Some(least), Some(greatest)) => {
            format!("{least} to {greatest}, median {}", sorted[(sorted.len() - 1) / 2])
        }
        _ => "none".to_owned(),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn names_are_single() {
        let all: Vec<_> = TESTS
            .iter()
            .chain(LIBVIRT_TESTS)
            .chain(CONFORMANCE_TESTS)
            .chain(FUZZ_TESTS)
            .map(|test| test.name)
            .collect();
        for (at, name) in all.iter().enumerate() {
            assert!(!all[..at].contains(name), "{name}");
        }
    }

    #[test]
    fn sizes_and_spreads_print() {
        assert_eq!(mib(3 << 19), "1.5 MiB");
        assert_eq!(mib((1 << 20) - 1), "0.9 MiB");
        assert_eq!(spread(&[3, 1, 2, 9]), "1 to 9, median 2");
        assert_eq!(spread(&[]), "none");
    }
}
