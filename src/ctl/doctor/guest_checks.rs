//! The checks of a guest. Each looks at the facts only.

use super::facts::{Guest, GuestDisk};
use super::finding::{Finding, Severity};
use crate::units::human;

use Severity::{Fault, Warning};

/// Bytes written before a disk without a single discard is worth a word.
const MUCH: u64 = 16 << 20;

/// A check of a guest.
pub type Check = fn(&Guest) -> Vec<Finding>;

/// All checks of a guest.
pub const ALL: &[Check] = &[
    no_discards_offered,
    swap_on_rotating_disk,
    swap_without_discard,
    mount_without_discard,
    read_ahead,
];

fn each_disk(guest: &Guest, check: impl Fn(&GuestDisk) -> Option<Finding>) -> Vec<Finding> {
    guest.disks.iter().filter_map(check).collect()
}

fn is_used(disk: &GuestDisk) -> bool {
    !disk.swaps.is_empty() || !disk.mounts.is_empty()
}

fn no_discards_offered(guest: &Guest) -> Vec<Finding> {
    each_disk(guest, |disk| {
        (!disk.takes_discards && is_used(disk)).then(|| {
            Finding::new(
                "guest-no-discards",
                Warning,
                &disk.name,
                "the disk takes no discards, so freed memory never comes back".into(),
                "QEMU: leave out discard=off of the device. A kernel before 4.20 sends none over virtio.".into(),
            )
        })
    })
}

fn swap_on_rotating_disk(guest: &Guest) -> Vec<Finding> {
    each_disk(guest, |disk| {
        let swap = disk.swaps.first()?;
        disk.rotational.then(|| {
            Finding::new(
                "guest-rotational",
                Fault,
                &disk.name,
                format!("swap is on {}, and queue/rotational is 1: Linux sends no discards then", swap.device),
                format!(
                    "echo 0 > /sys/block/{0}/queue/rotational, then swapoff {1} and swapon --discard=pages \
                     {1}; qemu-scripts/60-vhost-user-zram.rules does it at each boot.",
                    disk.name, swap.device
                ),
            )
        })
    })
}

fn swap_without_discard(guest: &Guest) -> Vec<Finding> {
    let areas = guest.disks.iter().flat_map(|disk| disk.swaps.iter().map(move |swap| (disk, swap)));
    areas
        .filter_map(|(disk, swap)| {
            let what = match swap.discards {
                Some(true) => return None,
                Some(false) => {
                    format!("/etc/fstab has swap on {} without the option discard", swap.device)
                }
                // How it was turned on cannot be seen, so it is what it did that counts.
                None if disk.discards == 0 && disk.written >= MUCH => format!(
                    "{} was written to {}, and not one discard was sent",
                    human(disk.written),
                    disk.name
                ),
                None => return None,
            };
            Some(Finding::new(
                "guest-swap-without-discard",
                Fault,
                &disk.name,
                what,
                format!(
                    "swapoff {0} and swapon --discard=pages {0}; in /etc/fstab: sw,discard=pages",
                    swap.device
                ),
            ))
        })
        .collect()
}

fn mount_without_discard(guest: &Guest) -> Vec<Finding> {
    let mounts =
        guest.disks.iter().flat_map(|disk| disk.mounts.iter().map(move |mount| (disk, mount)));
    mounts
        .filter(|(_, mount)| !mount.discards && !mount.trimmed)
        .map(|(disk, mount)| {
            Finding::new(
                "guest-mount-without-discard",
                Warning,
                &disk.name,
                format!(
                    "{} is mounted without discard, and fstrim does not run from time to time",
                    mount.place
                ),
                format!(
                    "mount -o remount,discard {}, or systemctl enable --now fstrim.timer",
                    mount.place
                ),
            )
        })
        .collect()
}

fn read_ahead(guest: &Guest) -> Vec<Finding> {
    let Some(cluster) = guest.page_cluster.filter(|cluster| *cluster > 0) else {
        return Vec::new();
    };
    let disk = guest.disks.iter().find(|disk| !disk.swaps.is_empty());
    let finding = disk.map(|disk| {
        Finding::new(
            "guest-read-ahead",
            Warning,
            &disk.name,
            format!(
                "swap reads {} pages where one is needed (vm.page-cluster = {cluster})",
                1_u64 << cluster.min(16)
            ),
            "sysctl vm.page-cluster=0: the disk is memory, so there is nothing to gain.".into(),
        )
    });
    finding.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{GuestMount, GuestSwap};

    /// A guest with swap and a file system as they should be.
    fn good() -> Guest {
        let swap = GuestSwap { device: "/dev/vda".into(), discards: Some(true) };
        let mount = GuestMount { place: "/data".into(), discards: true, trimmed: false };
        let disk = |name: &str| GuestDisk {
            name: name.into(),
            takes_discards: true,
            written: 1 << 30,
            discards: 5,
            ..GuestDisk::default()
        };
        Guest {
            disks: vec![
                GuestDisk { swaps: vec![swap], ..disk("vda") },
                GuestDisk { mounts: vec![mount], ..disk("vdb") },
            ],
            page_cluster: Some(0),
        }
    }

    fn found(change: impl FnOnce(&mut Guest)) -> Vec<(&'static str, String)> {
        let mut guest = good();
        change(&mut guest);
        let all = ALL.iter().flat_map(|check| check(&guest));
        all.map(|finding| (finding.check, finding.subject)).collect()
    }

    #[test]
    fn a_guest_that_is_as_it_should_be_has_no_findings() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|guest| *guest = Guest::default()), []);
        // Not known, and discards were sent.
        assert_eq!(found(|guest| guest.disks[0].swaps[0].discards = None), []);
        assert_eq!(
            found(|guest| {
                let mount = &mut guest.disks[1].mounts[0];
                (mount.discards, mount.trimmed) = (false, true);
            }),
            []
        );
        // It matters for swap only.
        assert_eq!(found(|guest| guest.disks[1].rotational = true), []);
        assert_eq!(
            found(|guest| {
                guest.disks[0].swaps.clear();
                guest.page_cluster = Some(3);
            }),
            []
        );
    }

    #[test]
    fn each_misconfiguration_is_named() {
        let one = |check, disk: &str| vec![(check, disk.to_owned())];
        assert_eq!(found(|guest| guest.disks[0].rotational = true), one("guest-rotational", "vda"));
        assert_eq!(
            found(|guest| guest.disks[0].swaps[0].discards = Some(false)),
            one("guest-swap-without-discard", "vda")
        );
        assert_eq!(
            found(|guest| {
                guest.disks[0].swaps[0].discards = None;
                guest.disks[0].discards = 0;
            }),
            one("guest-swap-without-discard", "vda")
        );
        assert_eq!(
            found(|guest| guest.disks[1].mounts[0].discards = false),
            one("guest-mount-without-discard", "vdb")
        );
        assert_eq!(
            found(|guest| guest.disks[1].takes_discards = false),
            one("guest-no-discards", "vdb")
        );
        assert_eq!(found(|guest| guest.page_cluster = Some(3)), one("guest-read-ahead", "vda"));
    }
}
