//! The disks of a guest, from within it.

use std::fs;
use std::path::{Path, PathBuf};

use super::System;
use super::mounts::{self, Mount};
use crate::doctor::facts::{Guest, GuestDisk, GuestMount, GuestSwap};

/// The serial number of disks that were given no other.
const SERIAL: &str = "vhost-user-zram";
const SECTOR: u64 = 512;

/// A line of `/etc/fstab`.
struct FstabLine {
    /// The device, with links followed.
    device: PathBuf,
    /// Whether it is swap.
    swap: bool,
    options: Vec<String>,
}

/// The facts of a guest. `name` is the one disk that is meant.
pub fn guest(system: &System<'_>, name: Option<&str>) -> Guest {
    let entries = fs::read_dir(system.place("/sys/block")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|disk| disk.starts_with("vd")).collect();
    names.sort_by(|a, b| crate::fleet::natural(a, b));
    let serial = |disk: &String| {
        let serial = system.read(format!("/sys/block/{disk}/serial"));
        serial.is_some_and(|serial| serial.trim() == SERIAL)
    };
    match name {
        Some(name) => names.retain(|disk| disk == name.trim_start_matches("/dev/")),
        // A disk may have a serial number of its own, and then all disks are looked at.
        None if names.iter().any(serial) => names.retain(serial),
        None => {}
    }
    let mounts = mounts::all(system, "self");
    let fstab = fstab(system);
    let swaps = swaps(system, &mounts);
    let trimmed =
        ["/etc/systemd/system/timers.target.wants/fstrim.timer", "/etc/cron.weekly/fstrim"];
    let trimmed = trimmed.iter().any(|path| system.place(path).symlink_metadata().is_ok());
    let disks = names.into_iter().map(|name| {
        let file =
            |file: &str| -> Option<u64> { system.number(format!("/sys/block/{name}/{file}")) };
        let on_it = |device: &Path| is_on(system, &name, device);
        let stat = system.read(format!("/sys/block/{name}/stat")).unwrap_or_default();
        let stat: Vec<u64> = stat.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let swaps = swaps.iter().filter(|(device, _)| on_it(device)).map(|(device, area)| {
            GuestSwap { device: area.clone(), discards: discards_of(&fstab, device, area) }
        });
        let places = mounts.iter().filter(|mount| on_it(Path::new(&mount.source)));
        let places = places.map(|mount| GuestMount {
            place: mount.place.display().to_string(),
            discards: mount
                .options
                .iter()
                .any(|option| option.split('=').next() == Some("discard")),
            trimmed,
        });
        GuestDisk {
            rotational: file("queue/rotational").unwrap_or(0) != 0,
            takes_discards: file("queue/discard_max_bytes").unwrap_or(0) != 0,
            // Fields of Documentation/block/stat.rst.
            written: stat.get(6).copied().unwrap_or(0).saturating_mul(SECTOR),
            discards: stat.get(11).copied().unwrap_or(0),
            swaps: swaps.collect(),
            mounts: places.collect(),
            name: name.clone(),
        }
    });
    let disks = disks.collect();
    Guest { disks, page_cluster: system.number("/proc/sys/vm/page-cluster") }
}

/// Whether the device `/dev/NAME` is the disk, or a part of it.
fn is_on(system: &System<'_>, disk: &str, device: &Path) -> bool {
    let Some(name) = device.strip_prefix("/dev").ok().and_then(Path::to_str) else { return false };
    name == disk
        || (name.starts_with(disk) && system.place(format!("/sys/block/{disk}/{name}")).is_dir())
}

/// Swap areas: the device that each is on, and its name. A file is on the device of its file system.
fn swaps(system: &System<'_>, mounts: &[Mount]) -> Vec<(PathBuf, String)> {
    let text = system.read("/proc/swaps").unwrap_or_default();
    let lines = text.lines().skip(1);
    let area = |line: &str| {
        let mut words = line.split_whitespace();
        let (area, kind) = (words.next()?, words.next()?);
        let device = match kind {
            "file" => {
                let on = mounts.iter().filter(|mount| Path::new(area).starts_with(&mount.place));
                PathBuf::from(&on.max_by_key(|mount| mount.place.components().count())?.source)
            }
            _ => PathBuf::from(area),
        };
        Some((device, area.to_owned()))
    };
    lines.filter_map(area).collect()
}

fn fstab(system: &System<'_>) -> Vec<FstabLine> {
    let text = system.read("/etc/fstab").unwrap_or_default();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, _, kind, options, ..] = words[..] else { return None };
        if device.starts_with('#') {
            return None;
        }
        let options = options.split(',').map(str::to_owned).collect();
        Some(FstabLine { device: resolve(system, device), swap: kind == "swap", options })
    };
    text.lines().filter_map(line).collect()
}

/// The device that `UUID=`, `LABEL=` or a link below `/dev/disk` names.
fn resolve(system: &System<'_>, device: &str) -> PathBuf {
    let named = [("UUID=", "by-uuid"), ("LABEL=", "by-label"), ("PARTUUID=", "by-partuuid")];
    let link = named.iter().find_map(|(prefix, dir)| {
        let name = device.strip_prefix(prefix)?.trim_matches('"');
        Some(Path::new("/dev/disk").join(dir).join(name))
    });
    let link = link.unwrap_or_else(|| device.into());
    match fs::read_link(system.place(&link)) {
        // udev's links are relative: "../../vda".
        Ok(target) => target.file_name().map_or(link, |name| Path::new("/dev").join(name)),
        Err(_) => link,
    }
}

/// Whether `/etc/fstab` has the area discard what is freed; `None` without a line for it.
fn discards_of(fstab: &[FstabLine], device: &Path, area: &str) -> Option<bool> {
    let mut lines = fstab.iter().filter(|line| line.swap);
    let line = lines.find(|line| line.device == device || line.device == Path::new(area))?;
    Some(line.options.iter().any(|option| option.split('=').next() == Some("discard")))
}
