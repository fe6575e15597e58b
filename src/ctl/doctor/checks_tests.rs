use super::*;
use crate::doctor::facts::{Connection, Figures, Group, HostMemory, Process, StateDir, Unit};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A host with one disk and its guest, all as it should be.
fn good() -> Facts {
    let options = Options {
        name: Some("vm1".into()),
        socket: Some("/run/vm1.sock".into()),
        state_dir: Some("/run/vm1.state".into()),
        size: Some(GIB),
        mem_limit: Some(512 * MIB),
        fd_store: true,
        mlock: true,
        ..Options::default()
    };
    let group = |path: &str, max| Group { path: path.into(), max, high: None, oom_kills: 0 };
    let disk = Disk {
        name: "vm1".into(),
        api: "/run/vhost-user-zram/vm1/api.sock".into(),
        figures: Some(Figures {
            mem_limit: 512 * MIB,
            worst_case: 512 * MIB,
            used: 100 * MIB,
            stored: 300 * MIB,
            writes: 100_000,
            discards: 3,
            freed_pages: 70,
            ..Figures::default()
        }),
        process: Some(Process {
            pid: 100,
            options: options.clone(),
            mlock_limit: None,
            groups: vec![group("/a/b", Some(GIB)), group("/a", None), group("/", None)],
        }),
        socket: Some("/run/vm1.sock".into()),
        state: Some(StateDir {
            path: "/run/vm1.state".into(),
            fs_type: Some("tmpfs".into()),
            fs_size: Some(GIB),
            users: vec![100],
        }),
        unit: Some(Unit {
            name: "vhost-user-zram@vm1.service".into(),
            active: "active".into(),
            result: "success".into(),
            fd_store_max: Some(3),
            mlock_limit: None,
            options,
            settings: Some("/etc/vhost-user-zram/vm1.conf".into()),
            ..Unit::default()
        }),
        ..Disk::default()
    };
    let front_end = FrontEnd {
        pid: 200,
        program: "qemu-system-x86_64".into(),
        guest: "web".into(),
        version: Some((7, 2)),
        memory_shared: Some(true),
        connections: vec![Connection { socket: "/run/vm1.sock".into(), reconnects: true }],
    };
    Facts {
        memory: Some(HostMemory { total: 4 * GIB, available: GIB }),
        disks: vec![disk],
        front_ends: vec![front_end],
    }
}

fn findings(facts: &Facts) -> Vec<Finding> {
    ALL.iter().flat_map(|check| check(facts)).collect()
}

/// Names of the checks that find something after a change of what is as it should be.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = good();
    change(&mut facts);
    findings(&facts).iter().map(|finding| finding.check).collect()
}

/// The same, for a change of the one disk.
fn of_disk(change: impl FnOnce(&mut Disk)) -> Vec<&'static str> {
    found(|facts| change(&mut facts.disks[0]))
}

fn of_figures(change: impl FnOnce(&mut Figures)) -> Vec<&'static str> {
    of_disk(|disk| change(disk.figures.as_mut().unwrap()))
}

fn of_process(change: impl FnOnce(&mut Process)) -> Vec<&'static str> {
    of_disk(|disk| change(disk.process.as_mut().unwrap()))
}

fn of_unit(change: impl FnOnce(&mut Unit)) -> Vec<&'static str> {
    of_disk(|disk| change(disk.unit.as_mut().unwrap()))
}

fn of_state(change: impl FnOnce(&mut StateDir)) -> Vec<&'static str> {
    of_disk(|disk| change(disk.state.as_mut().unwrap()))
}

#[test]
fn a_host_that_is_as_it_should_be_has_no_findings() {
    assert_eq!(findings(&good()), []);
    assert_eq!(findings(&Facts::default()), []);
    // A disk of which only its socket is known.
    assert_eq!(of_disk(|disk| *disk = Disk { name: "x".into(), ..Disk::default() }), [""; 0]);
}

#[test]
fn each_finding_says_what_to_do() {
    let mut facts = good();
    let disk = &mut facts.disks[0];
    disk.stale_sockets = vec!["/run/vm1.sock".into()];
    disk.silent = Some("x".into());
    let state = disk.state.as_mut().unwrap();
    (state.fs_type, state.users) = (Some("ext4".into()), vec![1, 2]);
    let all = findings(&facts);
    assert!(all.len() >= 4, "{all:?}");
    for finding in all {
        assert!(finding.what.len() > 20 && finding.remedy.len() > 20, "{finding:?}");
        assert_eq!(finding.subject, "vm1");
    }
}

#[test]
fn sockets_and_daemons_that_do_not_answer() {
    assert_eq!(of_disk(|disk| disk.stale_sockets = vec!["/run/x".into()]), ["stale-socket"]);
    assert_eq!(of_disk(|disk| disk.silent = Some("time-out".into())), ["silent-daemon"]);
}

#[test]
fn deaths_for_lack_of_memory() {
    assert_eq!(of_unit(|unit| unit.result = "oom-kill".into()), ["oom-kill"]);
    // It is one finding, however it is known.
    let both = of_unit(|unit| (unit.result, unit.active) = ("oom-kill".into(), "failed".into()));
    assert_eq!(both, ["oom-kill"]);
    assert_eq!(of_process(|process| process.groups[0].oom_kills = 2), ["oom-kill"]);
    // Others of the same host.
    assert_eq!(of_process(|process| process.groups[1].oom_kills = 2), [""; 0]);
}

#[test]
fn units_that_failed() {
    let failed = of_unit(|unit| (unit.result, unit.active) = ("exit-code".into(), "failed".into()));
    assert_eq!(failed, ["failed-unit"]);
    assert_eq!(of_unit(|unit| unit.active = "inactive".into()), [""; 0]);
}

#[test]
fn options_with_a_mistake_and_configuration_files_that_do_not_count() {
    assert_eq!(of_unit(|unit| unit.mistake = Some("x.toml:3: no".into())), ["bad-options"]);
    assert_eq!(of_unit(|unit| unit.unused_config = Some("/etc/x.toml".into())), ["config-unused"]);
    let closed = |config: Option<&str>| {
        of_unit(|unit| {
            unit.options.config = config.map(Into::into);
            unit.config_is_closed = true;
        })
    };
    assert_eq!(closed(Some("/etc/vm1.toml")), ["config-unreadable"]);
    assert_eq!(closed(None), [""; 0]);
    let mut facts = good();
    let unit = facts.disks[0].unit.as_mut().unwrap();
    unit.options.config = Some("/etc/vm1.toml".into());
    unit.mistake = Some("no".into());
    let remedy = &findings(&facts)[0].remedy;
    assert!(remedy.contains("/etc/vhost-user-zram/vm1.conf or /etc/vm1.toml"), "{remedy}");
}

#[test]
fn memory_that_is_not_shared() {
    assert_eq!(
        found(|facts| facts.front_ends[0].memory_shared = Some(false)),
        ["memory-not-shared"]
    );
    assert_eq!(of_figures(|figures| figures.blind_queues = 1), ["memory-not-shared"]);
    assert_eq!(found(|facts| facts.front_ends[0].memory_shared = None), [""; 0]);
    // A guest of something else.
    assert_eq!(
        found(|facts| {
            facts.front_ends[0].memory_shared = Some(false);
            facts.front_ends[0].connections.clear();
        }),
        [""; 0]
    );
}

#[test]
fn front_ends_that_do_not_reconnect_or_are_too_old() {
    let lost = found(|facts| facts.front_ends[0].connections[0].reconnects = false);
    assert_eq!(lost, ["reconnect-missing"]);
    let version = |version| found(|facts| facts.front_ends[0].version = version);
    assert_eq!(version(Some((7, 1))), ["qemu-too-old"]);
    assert_eq!(version(Some((5, 2))), ["qemu-too-old"]);
    assert_eq!(version(Some((10, 0))), [""; 0]);
    assert_eq!(version(None), [""; 0]);
}

#[test]
fn states_in_the_wrong_place() {
    assert_eq!(of_state(|state| state.fs_type = Some("ext4".into())), ["state-not-on-tmpfs"]);
    assert_eq!(of_state(|state| state.fs_type = None), [""; 0]);
    assert_eq!(of_state(|state| state.fs_size = Some(511 * MIB)), ["state-too-small"]);
    assert_eq!(of_state(|state| state.fs_size = Some(512 * MIB)), [""; 0]);
    assert_eq!(of_state(|state| state.users = vec![100, 101]), ["state-in-use"]);
    // Two disks that name one state are one finding.
    let two = found(|facts| {
        facts.disks[0].state.as_mut().unwrap().users = vec![100, 101];
        let again = facts.disks[0].clone();
        facts.disks.push(again);
        facts.memory = None;
    });
    assert_eq!(two, ["state-in-use"]);
}

#[test]
fn descriptors_that_are_not_stored() {
    assert_eq!(of_unit(|unit| unit.fd_store_max = Some(0)), ["fd-store-too-small"]);
    assert_eq!(of_unit(|unit| unit.fd_store_max = Some(2)), ["fd-store-too-small"]);
    assert_eq!(of_unit(|unit| unit.fd_store_max = None), [""; 0]);
    // Nobody asked for it.
    let unused = of_disk(|disk| {
        let (unit, process) = (disk.unit.as_mut().unwrap(), disk.process.as_mut().unwrap());
        unit.fd_store_max = Some(0);
        (unit.options.fd_store, process.options.fd_store) = (false, false);
    });
    assert_eq!(unused, [""; 0]);
}

#[test]
fn memory_that_may_not_be_locked() {
    assert_eq!(of_process(|process| process.mlock_limit = Some(8 * MIB)), ["mlock-limited"]);
    // A daemon that did not start: its unit says what it may.
    let dead = of_disk(|disk| {
        disk.process = None;
        disk.unit.as_mut().unwrap().mlock_limit = Some(8 * MIB);
    });
    assert_eq!(dead, ["mlock-limited"]);
    // The process has what counts.
    assert_eq!(of_unit(|unit| unit.mlock_limit = Some(8 * MIB)), [""; 0]);
    let unused = of_disk(|disk| {
        let (unit, process) = (disk.unit.as_mut().unwrap(), disk.process.as_mut().unwrap());
        (unit.options.mlock, process.options.mlock) = (false, false);
        process.mlock_limit = Some(8 * MIB);
    });
    assert_eq!(unused, [""; 0]);
}

#[test]
fn control_groups_that_allow_less_than_the_disk() {
    let max = |at: usize, limit| of_process(|process| process.groups[at].max = Some(limit));
    assert_eq!(max(0, 511 * MIB), ["group-below-limit"]);
    assert_eq!(max(1, 100 * MIB), ["group-below-limit"]);
    assert_eq!(max(0, 512 * MIB), [""; 0]);
    assert_eq!(of_process(|process| process.groups[2].high = Some(MIB)), ["group-below-limit"]);
    // Without a limit of its own a disk may take its worst case.
    let unlimited = of_figures(|figures| (figures.mem_limit, figures.worst_case) = (0, GIB + MIB));
    assert!(unlimited.contains(&"group-below-limit"), "{unlimited:?}");
}

#[test]
fn hosts_without_memory_for_all_disks() {
    let available =
        |bytes| found(|facts| facts.memory = Some(HostMemory { total: GIB, available: bytes }));
    // 412 MiB are still to come.
    assert_eq!(available(411 * MIB), ["host-too-small"]);
    assert_eq!(available(412 * MIB), [""; 0]);
    assert_eq!(found(|facts| facts.memory = None), [""; 0]);
    let many = found(|facts| {
        let disk = facts.disks[0].clone();
        facts.disks.extend([disk.clone(), disk]);
    });
    assert_eq!(many, ["host-too-small"]);
    // A daemon that does not say what it may take has its options.
    let silent = found(|facts| {
        facts.disks[0].figures = None;
        facts.memory = Some(HostMemory { total: GIB, available: 500 * MIB });
    });
    assert_eq!(silent, ["host-too-small"]);
}

#[test]
fn guests_that_never_give_memory_back() {
    let never = |figures: &mut Figures| (figures.discards, figures.freed_pages) = (0, 0);
    assert_eq!(of_figures(never), ["no-discards"]);
    // A file system that was just made.
    assert_eq!(
        of_figures(|figures| {
            never(figures);
            figures.writes = 100;
        }),
        [""; 0]
    );
    assert_eq!(
        of_figures(|figures| {
            never(figures);
            figures.stored = MIB;
        }),
        [""; 0]
    );
}

#[test]
fn figures_that_tell_of_trouble() {
    assert_eq!(of_figures(|figures| figures.failed_writes = 1), ["failed-writes"]);
    assert_eq!(of_figures(|figures| figures.broken_queues = 1), ["broken-queues"]);
    assert_eq!(of_figures(|figures| figures.stalled = 1), ["stalled-requests"]);
    let mut facts = good();
    let figures = facts.disks[0].figures.as_mut().unwrap();
    (figures.failed_writes, figures.used) = (1, figures.mem_limit);
    let finding = &findings(&facts)[0];
    assert!(
        finding.what.contains("limit of 512M") && finding.remedy.contains("Raise"),
        "{finding:?}"
    );
}
