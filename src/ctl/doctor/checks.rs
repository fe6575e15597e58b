//! The checks of a host: each looks at the facts only, and names what is wrong with its remedy.

use super::facts::{Disk, Facts, FrontEnd, Options, Unit};
use super::finding::{Finding, Severity};
use crate::units::human;

use Severity::{Fault, Warning};

/// Descriptors of a state.
const DESCRIPTORS: u64 = 3;
/// The oldest QEMU that the disks are tried with.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// Pages written before a disk without a single discard is worth a word: a file system is made with few.
const MANY_WRITES: u64 = 10_000;
/// Bytes stored before that.
const MUCH: u64 = 16 << 20;

/// A check of a host.
pub type Check = fn(&Facts) -> Vec<Finding>;

/// All checks.
pub const ALL: &[Check] = &[
    stale_sockets,
    silent_daemons,
    killed_by_oom,
    failed_units,
    bad_options,
    config_unreadable,
    config_unused,
    memory_not_shared,
    reconnect_missing,
    qemu_too_old,
    state_not_on_tmpfs,
    state_too_small,
    state_with_two_users,
    fd_store_too_small,
    mlock_limited,
    group_below_limit,
    host_too_small,
    no_discards,
    limit_reached,
    broken_queues,
    stalled_requests,
];

/// The most memory that a disk of these options can take, if its daemon does not say: all pages raw, and
/// 12 bytes a page for table and notes.
fn worst_case(disk: &Disk) -> Option<u64> {
    let known = disk.figures.map(|figures| figures.worst_case);
    known.or_else(|| {
        options(disk).find_map(|options| {
            let most = options.size? / 4096 * (4096 + 12);
            Some(options.mem_limit.filter(|limit| *limit > 0).map_or(most, |limit| limit.min(most)))
        })
    })
}

/// What its process and its unit were told.
fn options(disk: &Disk) -> impl Iterator<Item = &Options> {
    let process = disk.process.iter().map(|process| &process.options);
    process.chain(disk.unit.iter().map(|unit| &unit.options))
}

/// Findings of each disk.
fn each_disk(facts: &Facts, check: impl Fn(&Disk) -> Option<Finding>) -> Vec<Finding> {
    facts.disks.iter().filter_map(check).collect()
}

/// Where a setting of the daemon is made.
fn place(disk: &Disk) -> String {
    match &disk.unit {
        Some(unit) => format!("a drop-in of {} (systemctl edit)", unit.name),
        None => "the command that starts the daemon".into(),
    }
}

fn stale_sockets(facts: &Facts) -> Vec<Finding> {
    let sockets = facts
        .disks
        .iter()
        .flat_map(|disk| disk.stale_sockets.iter().map(move |socket| (disk, socket)));
    sockets
        .map(|(disk, socket)| {
            let socket = socket.display();
            Finding::new(
                "stale-socket",
                Fault,
                &disk.name,
                format!("nothing listens on {socket}: its daemon is gone"),
                format!(
                    "Start the daemon again (it replaces the socket), or remove what is left: rm {socket}"
                ),
            )
        })
        .collect()
}

fn silent_daemons(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let reason = disk.silent.as_ref()?;
        Some(Finding::new(
            "silent-daemon",
            Fault,
            &disk.name,
            format!("its daemon does not answer: {reason}"),
            "See the daemon's log; --timeout waits longer, and root may ask every daemon.".into(),
        ))
    })
}

fn killed_by_oom(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref().filter(|unit| unit.result == "oom-kill");
        let group = disk.process.iter().flat_map(|process| &process.groups);
        let group = group.take(1).find(|group| group.oom_kills > 0);
        let what = match (unit, group) {
            (Some(unit), _) => {
                format!("the last run of {} was killed for lack of memory", unit.name)
            }
            (None, Some(group)) => format!(
                "the kernel killed {} process(es) of its control group {} for lack of memory",
                group.oom_kills, group.path
            ),
            (None, None) => return None,
        };
        Some(Finding::new(
            "oom-kill",
            Fault,
            &disk.name,
            what,
            format!(
                "Give the disk a limit below what the host or the group can spare (--mem-limit), or \
                 raise MemoryMax= in {}; OOMScoreAdjust=-900 has the kernel take others first.",
                place(disk)
            ),
        ))
    })
}

fn failed_units(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref().filter(|unit| unit.active == "failed")?;
        (unit.result != "oom-kill").then(|| {
            Finding::new(
                "failed-unit",
                Fault,
                &disk.name,
                format!("{} has failed ({})", unit.name, unit.result),
                format!("Its last lines say why: journalctl -u {} -n 20", unit.name),
            )
        })
    })
}

/// Where the options of a unit come from.
fn sources(unit: &Unit) -> String {
    let files = [&unit.settings, &unit.options.config];
    let files: Vec<String> =
        files.into_iter().flatten().map(|path| path.display().to_string()).collect();
    if files.is_empty() { unit.name.clone() } else { files.join(" or ") }
}

fn bad_options(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref()?;
        let mistake = unit.mistake.as_ref()?;
        Some(Finding::new(
            "bad-options",
            Fault,
            &disk.name,
            format!("{} does not start with the options that it has now: {mistake}", unit.name),
            format!(
                "Mend {}. A daemon that runs keeps what it was started with, until the next start.",
                sources(unit)
            ),
        ))
    })
}

fn config_unreadable(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref().filter(|unit| unit.config_is_closed)?;
        let path = unit.options.config.as_ref()?.display();
        Some(Finding::new(
            "config-unreadable",
            Fault,
            &disk.name,
            format!("{} does not run as root, and only some users may read {path}", unit.name),
            format!("chmod o+r {path} (and o+x its directory): there is nothing secret in it."),
        ))
    })
}

fn config_unused(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref()?;
        let path = unit.unused_config.as_ref()?.display();
        let settings = unit.settings.as_ref().map_or_else(
            || format!("a drop-in of {}", unit.name),
            |settings| settings.display().to_string(),
        );
        Some(Finding::new(
            "config-unused",
            Warning,
            &disk.name,
            format!("{path} counts for nothing: {} is not told of it", unit.name),
            format!(
                "Put --config {path} into OPTIONS in {settings}, and restart the unit; or remove the file."
            ),
        ))
    })
}

/// The disk that a front end is connected to, for a finding's subject.
fn name_of_front_end(front_end: &FrontEnd) -> String {
    let FrontEnd { program, pid, guest, .. } = front_end;
    if guest.is_empty() { format!("{program} {pid}") } else { format!("{guest} ({program} {pid})") }
}

const SHARE: &str = "Share the guest's memory. QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on \
                     -machine memory-backend=mem; libvirt: <memoryBacking><source type='memfd'/><access \
                     mode='shared'/></memoryBacking>.";

fn memory_not_shared(facts: &Facts) -> Vec<Finding> {
    let told = facts.front_ends.iter().filter(|front_end| {
        front_end.memory_shared == Some(false) && !front_end.connections.is_empty()
    });
    let told = told.map(|front_end| {
        Finding::new(
            "memory-not-shared",
            Fault,
            name_of_front_end(front_end),
            "its memory is private, so the daemon cannot see the guest's requests".into(),
            SHARE.into(),
        )
    });
    let seen = facts.disks.iter().filter_map(|disk| {
        let blind = disk.figures.map(|figures| figures.blind_queues).filter(|count| *count > 0)?;
        Some(Finding::new(
            "memory-not-shared",
            Fault,
            &disk.name,
            format!("{blind} virtqueue(s) were kicked and never showed a request, as those of a guest whose memory is private"),
            SHARE.into(),
        ))
    });
    told.chain(seen).collect()
}

fn reconnect_missing(facts: &Facts) -> Vec<Finding> {
    let connections = facts.front_ends.iter().flat_map(|front_end| {
        front_end.connections.iter().map(move |connection| (front_end, connection))
    });
    connections
        .filter(|(_, connection)| !connection.reconnects)
        .map(|(front_end, connection)| {
            Finding::new(
                "reconnect-missing",
                Fault,
                name_of_front_end(front_end),
                format!(
                    "it does not reconnect to {}: after a restart of the daemon the guest hangs",
                    connection.socket.display()
                ),
                "QEMU: reconnect=1 (from 9.2 on reconnect-ms=1000) in the -chardev; libvirt: <reconnect \
                 enabled='yes' timeout='1'/> in the <source> (libvirt 9 forgets it when a disk is attached \
                 to a running guest)."
                    .into(),
            )
        })
        .collect()
}

fn qemu_too_old(facts: &Facts) -> Vec<Finding> {
    let old = facts.front_ends.iter().filter_map(|front_end| {
        let version = front_end.version.filter(|version| *version < OLDEST_QEMU)?;
        (!front_end.connections.is_empty()).then_some((front_end, version))
    });
    old.map(|(front_end, (major, minor))| {
        let (oldest_major, oldest_minor) = OLDEST_QEMU;
        Finding::new(
            "qemu-too-old",
            Warning,
            name_of_front_end(front_end),
            format!(
                "QEMU {major}.{minor} is older than {oldest_major}.{oldest_minor}, the oldest that these \
                 disks are tried with"
            ),
            format!("Use QEMU {oldest_major}.{oldest_minor} or newer: reconnecting is not reliable before."),
        )
    })
    .collect()
}

fn state_not_on_tmpfs(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let state = disk.state.as_ref()?;
        let fs_type = state.fs_type.as_ref().filter(|fs_type| *fs_type != "tmpfs")?;
        Some(Finding::new(
            "state-not-on-tmpfs",
            Fault,
            &disk.name,
            format!(
                "its state directory {} is on {fs_type}, and has to be on a tmpfs",
                state.path.display()
            ),
            "Use a directory below /run, or mount one: mount -t tmpfs -o size=SIZE tmpfs DIR"
                .into(),
        ))
    })
}

fn state_too_small(facts: &Facts) -> Vec<Finding> {
    // Disks on one file system share it.
    let mut findings = Vec::new();
    for disk in &facts.disks {
        let Some(state) = &disk.state else { continue };
        let (Some(size), Some(most)) = (state.fs_size, worst_case(disk)) else { continue };
        if most > size {
            let parent = state.path.parent().unwrap_or(&state.path).display();
            findings.push(Finding::new(
                "state-too-small",
                Warning,
                &disk.name,
                format!(
                    "its state may take {}, and the tmpfs of {} holds {}",
                    human(most),
                    state.path.display(),
                    human(size)
                ),
                format!(
                    "Enlarge the tmpfs (mount -o remount,size={} {parent}), or set --mem-limit below it.",
                    human(most)
                ),
            ));
        }
    }
    findings
}

fn state_with_two_users(facts: &Facts) -> Vec<Finding> {
    let mut seen: Vec<&std::path::Path> = Vec::new();
    each_disk_with_state(facts)
        .filter(|(_, state)| {
            let new = state.users.len() > 1 && !seen.contains(&state.path.as_path());
            if new {
                seen.push(&state.path);
            }
            new
        })
        .map(|(disk, state)| {
            let users: Vec<String> = state.users.iter().map(u32::to_string).collect();
            Finding::new(
                "state-in-use",
                Fault,
                &disk.name,
                format!(
                    "processes {} are all to use its state directory {}",
                    users.join(" and "),
                    state.path.display()
                ),
                "One state is one disk: end the daemon that should not be there, and give each disk a \
                 directory of its own."
                    .into(),
            )
        })
        .collect()
}

fn each_disk_with_state(facts: &Facts) -> impl Iterator<Item = (&Disk, &super::facts::StateDir)> {
    facts.disks.iter().filter_map(|disk| Some((disk, disk.state.as_ref()?)))
}

fn fd_store_too_small(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let unit = disk.unit.as_ref()?;
        if !options(disk).any(|options| options.fd_store) {
            return None;
        }
        let most = unit.fd_store_max.filter(|most| *most < DESCRIPTORS)?;
        Some(Finding::new(
            "fd-store-too-small",
            Fault,
            &disk.name,
            format!("{} stores {most} descriptors, and a state has {DESCRIPTORS}", unit.name),
            format!("Set FileDescriptorStoreMax={DESCRIPTORS} in {}.", place(disk)),
        ))
    })
}

fn mlock_limited(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        if !options(disk).any(|options| options.mlock) {
            return None;
        }
        let process = disk.process.as_ref().map(|process| process.mlock_limit);
        let limit = process.or(disk.unit.as_ref().map(|unit| unit.mlock_limit))??;
        Some(Finding::new(
            "mlock-limited",
            Fault,
            &disk.name,
            format!(
                "--mlock locks the whole address space of the disk, and only {} may be locked",
                human(limit)
            ),
            format!("Set LimitMEMLOCK=infinity in {} (ulimit -l unlimited).", place(disk)),
        ))
    })
}

fn group_below_limit(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let most = worst_case(disk)?;
        let mem_limit = disk.figures.map_or(0, |figures| figures.mem_limit);
        let groups = disk.process.iter().flat_map(|process| &process.groups);
        let limits = groups.filter_map(|group| {
            let limits = [(group.max, "memory.max"), (group.high, "memory.high")];
            let (limit, name) =
                limits.into_iter().filter_map(|(limit, name)| Some((limit?, name))).min()?;
            Some((limit, name, &group.path))
        });
        let (limit, name, path) = limits.min().filter(|(limit, ..)| *limit < most)?;
        let allowed = match mem_limit {
            0 => format!("it has no limit of its own and may take {}", human(most)),
            limit => format!("its limit is {}", human(limit)),
        };
        Some(Finding::new(
            "group-below-limit",
            Warning,
            &disk.name,
            format!("{allowed}, and {name} of its control group {path} is {}", human(limit)),
            format!(
                "Set --mem-limit to less than {} so that writes fail one by one instead of the whole \
                 daemon, or raise MemoryMax= and MemoryHigh= in {}.",
                human(limit),
                place(disk)
            ),
        ))
    })
}

fn host_too_small(facts: &Facts) -> Vec<Finding> {
    let Some(memory) = facts.memory else { return Vec::new() };
    let disks = facts.disks.iter().filter_map(|disk| {
        let used = disk.figures.map_or(0, |figures| figures.used);
        Some((worst_case(disk)?, used))
    });
    let (count, most, growth) =
        disks.fold((0, 0_u64, 0_u64), |(count, most, growth), (worst, used)| {
            (
                count + 1,
                most.saturating_add(worst),
                growth.saturating_add(worst.saturating_sub(used)),
            )
        });
    if growth <= memory.available {
        return Vec::new();
    }
    let finding = Finding::new(
        "host-too-small",
        Warning,
        "host",
        format!(
            "the {count} disk(s) may take {} together, {} more than now, and the host has {} available of {}",
            human(most),
            human(growth),
            human(memory.available),
            human(memory.total)
        ),
        "Set --mem-limit of the disks so that their sum fits, or count on their ratio and keep \
         --host-reserve: writes fail then before the host runs out."
            .into(),
    );
    vec![finding]
}

fn no_discards(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let figures = disk.figures?;
        let never = figures.freed_pages == 0 && figures.discards == 0;
        if !never || figures.writes < MANY_WRITES || figures.stored < MUCH {
            return None;
        }
        Some(Finding::new(
            "no-discards",
            Warning,
            &disk.name,
            format!(
                "its guest wrote {} times, {} is stored, and not one page was ever given back",
                figures.writes,
                human(figures.stored)
            ),
            "In the guest run `vhost-user-zramctl doctor --guest`. Swap needs queue/rotational = 0 and \
             swapon --discard=pages, a file system -o discard or fstrim."
                .into(),
        ))
    })
}

fn limit_reached(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let figures = disk.figures.filter(|figures| figures.failed_writes > 0)?;
        let near = figures.mem_limit > 0 && figures.used >= figures.mem_limit / 20 * 19;
        Some(Finding::new(
            "failed-writes",
            Fault,
            &disk.name,
            if near {
                format!(
                    "{} write(s) failed: {} of its limit of {} is taken",
                    figures.failed_writes,
                    human(figures.used),
                    human(figures.mem_limit)
                )
            } else {
                format!("{} write(s) failed", figures.failed_writes)
            },
            if near {
                "Raise the limit (set mem_limit SIZE), or free space in the guest.".into()
            } else {
                "The daemon's log has the reason: no memory to spare on the host, or requests that make \
                 no sense."
                    .into()
            },
        ))
    })
}

fn broken_queues(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let count = disk.figures?.broken_queues;
        (count > 0).then(|| {
            Finding::new(
                "broken-queues",
                Fault,
                &disk.name,
                format!("{count} virtqueue(s) were stopped, since what their guest put there made no sense"),
                "The daemon's log has the reason; the guest has to reset the disk, as a reboot does.".into(),
            )
        })
    })
}

fn stalled_requests(facts: &Facts) -> Vec<Finding> {
    each_disk(facts, |disk| {
        let count = disk.figures?.stalled;
        (count > 0).then(|| {
            Finding::new(
                "stalled-requests",
                Warning,
                &disk.name,
                format!("{count} request(s) took longer than --watchdog allows"),
                "The daemon's log names them. A host that swaps the disk out makes it slow: see --mlock and \
                 --mem-limit."
                    .into(),
            )
        })
    })
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
