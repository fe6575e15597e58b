//! Each misconfiguration as files, through the collectors to what is found.

use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::*;
use crate::client::Client;
use crate::doctor::facts::Guest;
use crate::doctor::{checks, guest_checks};
use crate::samples;

/// A directory that stands for `/`, gone at the end.
struct Root {
    dir: PathBuf,
    /// What systemctl says.
    units: String,
    /// What a daemon says against its options.
    complaint: String,
}

impl Root {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("zramctl-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let root = Self { dir, units: String::new(), complaint: String::new() };
        root.file("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n");
        root
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A process with a command line of words without blanks.
    fn process(&self, pid: u32, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.file(&format!("proc/{pid}/cmdline"), &(words.join("\0") + "\0"));
        self.link(&format!("proc/{pid}/cwd"), "/");
    }

    /// A daemon that was started by hand, with nothing that limits it.
    fn daemon(&self, pid: u32, more: &str) {
        let line = format!("/usr/bin/vhost-user-zram --socket-path /run/vm1.sock --size 1G {more}");
        self.process(pid, &line);
        self.file(
            &format!("proc/{pid}/limits"),
            "Max locked memory  unlimited  unlimited  bytes\n",
        );
        self.file(&format!("proc/{pid}/cgroup"), "0::/vm\n");
        self.file(
            &format!("proc/{pid}/mountinfo"),
            "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 0:20 / /run rw - tmpfs tmpfs rw,size=4194304k\n",
        );
    }

    fn system<T>(&self, look: impl FnOnce(&System<'_>) -> T) -> T {
        let run = |program: &Path, arguments: &[&str]| {
            let (text, complaint) = match program.to_str().unwrap() {
                "systemctl" => (self.units.clone(), String::new()),
                DAEMON => {
                    assert_eq!(arguments.last(), Some(&"--check-config"));
                    (String::new(), self.complaint.clone())
                }
                other => panic!("{other} is run"),
            };
            Some(Said { well: complaint.is_empty(), text, complaint })
        };
        look(&System { root: self.dir.clone(), run: &run })
    }

    /// Facts without any daemon that answers.
    fn facts(&self) -> Facts {
        self.system(|system| host(system, Vec::new()))
    }

    fn found(&self) -> Vec<&'static str> {
        let facts = self.facts();
        let all = checks::ALL.iter().flat_map(|check| check(&facts));
        all.map(|finding| finding.check).collect()
    }

    fn guest(&self) -> Guest {
        self.system(|system| guest(system, None))
    }

    fn found_in_guest(&self) -> Vec<&'static str> {
        let guest = self.guest();
        let all = guest_checks::ALL.iter().flat_map(|check| check(&guest));
        all.map(|finding| finding.check).collect()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A program that only root can change stands for the daemon.
const DAEMON: &str = "/usr/bin/env";

const QEMU: &str = "/usr/bin/qemu-system-x86_64 -name guest=web \
                    -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \
                    -chardev socket,id=d,path=/run/vm1.sock,reconnect=1 -device vhost-user-blk-pci,chardev=d";

#[test]
fn a_host_that_is_as_it_should_be_has_no_findings() {
    let root = Root::new("good");
    root.daemon(100, "--state-dir /run/vm1.state --mem-limit 512M --mlock");
    root.process(200, QEMU);
    root.process(300, "/usr/bin/qemu-system-x86_64 -m 1G");
    root.process(400, "");
    assert_eq!(root.found(), [""; 0]);
    let facts = root.facts();
    assert_eq!((facts.disks.len(), facts.front_ends.len()), (1, 1));
    let disk = &facts.disks[0];
    assert_eq!((disk.name.as_str(), disk.process.as_ref().unwrap().pid), ("vm1", 100));
    let state = disk.state.as_ref().unwrap();
    assert_eq!((state.fs_type.as_deref(), state.fs_size), (Some("tmpfs"), Some(4 << 30)));
    assert_eq!(facts.front_ends[0].guest, "web");
}

#[test]
fn guests_that_are_badly_connected_are_found_by_their_command_lines() {
    let root = Root::new("guests");
    root.daemon(100, "");
    root.process(200, &QEMU.replace("share=on", "share=off"));
    assert_eq!(root.found(), ["memory-not-shared"]);
    root.file("proc/200/cmdline", &QEMU.replace(",reconnect=1", "").replace(' ', "\0"));
    assert_eq!(root.found(), ["reconnect-missing"]);
}

#[test]
fn states_are_found_by_command_lines_mounts_and_locks() {
    let root = Root::new("states");
    root.daemon(100, "--state-dir /var/lib/vm1");
    assert_eq!(root.found(), ["state-not-on-tmpfs"]);
    root.daemon_again("--state-dir /run/small/vm1");
    let mounts = "20 1 0:2 / /run rw - tmpfs tmpfs rw\n21 20 0:20 / /run/small rw - tmpfs tmpfs rw,size=1024k\n";
    root.file("proc/100/mountinfo", mounts);
    assert_eq!(root.found(), ["state-too-small"]);
    // Two that were told to use it.
    root.file("proc/100/mountinfo", "20 1 0:2 / /run rw - tmpfs tmpfs rw\n");
    root.process(
        101,
        "vhost-user-zram --socket-path /run/vm2.sock --size 1G --state-dir /run/small/vm1",
    );
    root.file("proc/101/mountinfo", "20 1 0:2 / /run rw - tmpfs tmpfs rw\n");
    assert_eq!(root.found(), ["state-in-use"]);
    // Or another process that locks it.
    fs::remove_dir_all(root.dir.join("proc/101")).unwrap();
    fs::create_dir_all(root.dir.join("run/small/vm1")).unwrap();
    assert_eq!(root.found(), [""; 0]);
    let meta = fs::metadata(root.dir.join("run/small/vm1")).unwrap();
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let lock = |pid| {
        let ino = meta.ino();
        format!("1: FLOCK  ADVISORY  WRITE {pid} {major:02x}:{minor:02x}:{ino} 0 EOF\n")
    };
    root.file("proc/locks", &lock(100));
    assert_eq!(root.found(), [""; 0]);
    root.file("proc/locks", &lock(999));
    assert_eq!(root.found(), ["state-in-use"]);
}

impl Root {
    fn daemon_again(&self, more: &str) {
        fs::remove_dir_all(self.dir.join("proc/100")).unwrap();
        self.daemon(100, more);
    }
}

#[test]
fn limits_of_processes_and_groups_are_read() {
    let root = Root::new("limits");
    root.daemon(100, "--mlock --mem-limit 512M");
    root.file("proc/100/limits", "Max locked memory         8388608      8388608    bytes\n");
    assert_eq!(root.found(), ["mlock-limited"]);
    root.file("proc/100/status", "Name: x\nCapEff:\t0000000000004000\n");
    assert_eq!(root.found(), [""; 0]);
    root.daemon_again("--mem-limit 512M");
    root.file("sys/fs/cgroup/vm/memory.max", "268435456\n");
    assert_eq!(root.found(), ["group-below-limit"]);
    root.file("sys/fs/cgroup/vm/memory.max", "max\n");
    root.file("sys/fs/cgroup/vm/memory.events", "low 0\noom 1\noom_kill 1\n");
    assert_eq!(root.found(), ["oom-kill"]);
    root.file("sys/fs/cgroup/vm/memory.events", "oom_kill 0\n");
    root.file("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 500000 kB\n");
    assert_eq!(root.found(), ["host-too-small"]);
}

#[test]
fn units_are_read_with_their_settings() {
    let mut root = Root::new("units");
    let unit = |result: &str, most: u32| {
        format!(
            "Id=vhost-user-zram@vm1.service\nActiveState=failed\nResult={result}\n\
             FileDescriptorStoreMax={most}\nLimitMEMLOCK=8388608\n\
             EnvironmentFiles=/etc/vhost-user-zram/vm1.conf (ignore_errors=no)\n\
             ExecStart={{ path=/usr/bin/vhost-user-zram ; argv[]=/usr/bin/vhost-user-zram --name vm1 --size \
             ${{SIZE}} --fd-store $OPTIONS ; ignore_errors=no ; status=0/0 }}\n"
        )
    };
    root.units = unit("oom-kill", 3);
    assert_eq!(root.found(), ["oom-kill"]);
    root.units = unit("success", 1).replace("failed", "active");
    assert_eq!(root.found(), ["fd-store-too-small"]);
    root.units = unit("exit-code", 3);
    root.file(
        "etc/vhost-user-zram/vm1.conf",
        "# a disk\nSIZE=2G\nOPTIONS=\"--mlock --mem-limit 1G\"\n",
    );
    assert_eq!(root.found(), ["failed-unit", "mlock-limited"]);
    let facts = root.facts();
    let options = &facts.disks[0].unit.as_ref().unwrap().options;
    assert_eq!((options.size, options.mem_limit), (Some(2 << 30), Some(1 << 30)));
    assert_eq!(options.name.as_deref(), Some("vm1"));
    // Two units are two disks.
    root.units = unit("success", 3) + "\n" + &unit("success", 3).replace("vm1", "vm2");
    assert_eq!(root.facts().disks.len(), 2);
}

#[test]
fn a_unit_is_asked_what_is_wrong_with_its_options() {
    let mut root = Root::new("options");
    root.units = format!(
        "Id=vhost-user-zram@vm1.service\nActiveState=active\nResult=success\nDynamicUser=yes\n\
         EnvironmentFiles=/etc/vhost-user-zram/vm1.conf (ignore_errors=no)\n\
         ExecStart={{ path={DAEMON} ; argv[]={DAEMON} --size ${{SIZE}} $OPTIONS ; x=y }}\n"
    );
    root.file("etc/vhost-user-zram/vm1.conf", "SIZE=1G\nOPTIONS=\"--algorithm lz5\"\n");
    assert_eq!(root.found(), [""; 0]);
    root.complaint = "error: no algorithm is called 'lz5'\nmore\n".into();
    assert_eq!(root.found(), ["bad-options"]);
    let unit = |root: &Root| root.facts().disks[0].unit.clone().unwrap();
    assert_eq!(unit(&root).mistake.as_deref(), Some("no algorithm is called 'lz5'"));
    // Settings that are not seen have no mistakes.
    let settings = root.dir.join("etc/vhost-user-zram/vm1.conf");
    fs::rename(&settings, settings.with_extension("away")).unwrap();
    assert_eq!(unit(&root).mistake, None);
    fs::rename(settings.with_extension("away"), &settings).unwrap();
    // A program that others could have put there is not run, by a root that looks.
    root.units = root.units.replace(DAEMON, "/tmp/vhost-user-zram");
    assert_eq!(unit(&root).mistake, None);
}

#[test]
fn a_configuration_file_of_the_units_name_has_to_be_named_and_readable() {
    use std::os::unix::fs::PermissionsExt;
    let mut root = Root::new("own-config");
    root.units =
        "Id=vhost-user-zram@vm1.service\nActiveState=active\nResult=success\nDynamicUser=yes\n\
                  EnvironmentFiles=/etc/vhost-user-zram/vm1.conf (ignore_errors=no)\n\
                  ExecStart={ argv[]=/nonexistent --size ${SIZE} $OPTIONS ; x=y }\n"
            .into();
    let (settings, config) = ("etc/vhost-user-zram/vm1.conf", "etc/vhost-user-zram/vm1.toml");
    root.file(settings, "SIZE=1G\nOPTIONS=\"\"\n");
    assert_eq!(root.found(), [""; 0]);
    root.file(config, "mem-limit = \"512M\"\n");
    assert_eq!(root.found(), ["config-unused"]);
    root.file(settings, "SIZE=1G\nOPTIONS=\"--config /etc/vhost-user-zram/vm1.toml\"\n");
    assert_eq!(root.found(), [""; 0]);
    let options = root.facts().disks[0].unit.clone().unwrap().options;
    assert_eq!(options.mem_limit, Some(512 << 20));
    let mode = |path: &str, mode| {
        fs::set_permissions(root.dir.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(config, 0o640);
    assert_eq!(root.found(), ["config-unreadable"]);
    mode(config, 0o644);
    mode("etc/vhost-user-zram", 0o750);
    assert_eq!(root.found(), ["config-unreadable"]);
    // Root may read all.
    root.units = root.units.replace("DynamicUser=yes", "DynamicUser=no\nUser=");
    assert_eq!(root.found(), [""; 0]);
}

#[test]
fn options_of_a_configuration_file_count() {
    let root = Root::new("config");
    root.file("etc/vm1.toml", "size = \"1G\"\nmlock = true\nmem-limit = 4096\nname = \"other\"\n");
    root.daemon(100, "--config /etc/vm1.toml --name vm1");
    let options = root.facts().disks[0].process.clone().unwrap().options;
    assert_eq!((options.name.as_deref(), options.mem_limit), (Some("vm1"), Some(4096)));
    assert!(options.mlock);
}

#[test]
fn sockets_that_a_daemon_left_behind_are_found() {
    let mut root = Root::new("stale");
    fs::create_dir_all(root.dir.join("run")).unwrap();
    let place = root.dir.join("run/vm1.sock");
    let listener = UnixListener::bind(&place).unwrap();
    root.units = "Id=vhost-user-zram@vm1.service\nActiveState=inactive\nResult=success\n\
                  ExecStart={ argv[]=/usr/bin/x --socket-path /run/vm1.sock --size 1G ; x=y }\n"
        .into();
    assert_eq!(root.found(), [""; 0]);
    drop(listener);
    assert_eq!(root.found(), ["stale-socket"]);
}

#[test]
fn answers_and_processes_are_put_together() {
    let root = Root::new("answers");
    let api = root.dir.join("run/vhost-user-zram/vm1/api.sock");
    let daemon = Daemon { name: "vm1".into(), client: Client::new(&api, Duration::ZERO) };
    root.daemon(100, "--name vm1 --api-socket /run/vhost-user-zram/vm1/api.sock");
    let mut answer = samples::disk("vm1");
    answer.requests.blind_queues = 3;
    let facts = root.system(|system| host(system, vec![(&daemon, Ok(answer))]));
    assert_eq!(facts.disks.len(), 1);
    let disk = &facts.disks[0];
    assert_eq!(disk.process.as_ref().unwrap().pid, 100);
    assert_eq!(disk.figures.unwrap().blind_queues, 3);
    let stale = Err(ClientError::Stale(api.clone()));
    let facts = root.system(|system| host(system, vec![(&daemon, stale)]));
    assert_eq!(facts.disks[0].stale_sockets, [Path::new("/run/vhost-user-zram/vm1/api.sock")]);
    let silent = Err(ClientError::Silent { path: api, limit: Duration::ZERO });
    let facts = root.system(|system| host(system, vec![(&daemon, silent)]));
    assert!(facts.disks[0].silent.as_ref().unwrap().contains("does not answer"));
}

/// A guest with swap on vda and a file system on a part of vdb, both as they should be.
fn good_guest(name: &str) -> Root {
    let root = Root::new(name);
    for disk in ["vda", "vdb"] {
        let file = |file: &str, text: &str| root.file(&format!("sys/block/{disk}/{file}"), text);
        file("serial", "vhost-user-zram\n");
        file("queue/rotational", "0\n");
        file("queue/discard_max_bytes", "2199023255040\n");
        file("stat", "1 0 8 0 90 0 80000 0 0 0 0 5 0 8 0 0 0\n");
    }
    root.file("sys/block/vdb/vdb1/partition", "1\n");
    // A disk of something else, with what would be faults.
    root.file("sys/block/vdc/serial", "other\n");
    root.file("sys/block/vdc/queue/rotational", "1\n");
    root.file(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/vda partition 1048572 0 -2\n/dev/vdc partition 1 0 -3\n",
    );
    root.file(
        "proc/self/mountinfo",
        "30 1 254:17 / /data rw,noatime - ext4 /dev/vdb1 rw,discard\n31 1 254:32 / /o rw - ext4 /dev/vdc1 rw\n",
    );
    root.file("etc/fstab", "# comment\nUUID=abc none swap sw,discard=pages 0 0\n");
    root.link("dev/disk/by-uuid/abc", "../../vda");
    root.file("proc/sys/vm/page-cluster", "0\n");
    root
}

#[test]
fn a_guest_that_is_as_it_should_be_has_no_findings() {
    let root = good_guest("guest-good");
    assert_eq!(root.found_in_guest(), [""; 0]);
    let guest = root.guest();
    assert_eq!(
        guest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(),
        ["vda", "vdb"]
    );
    assert_eq!(guest.disks[0].swaps[0].discards, Some(true));
    assert_eq!(guest.disks[1].mounts[0].place, "/data");
    let one = root.system(|system| super::guest(system, Some("vdc")));
    assert_eq!(one.disks.len(), 1);
}

#[test]
fn each_misconfiguration_of_a_guest_is_found() {
    let root = good_guest("guest-bad");
    root.file("sys/block/vda/queue/rotational", "1\n");
    assert_eq!(root.found_in_guest(), ["guest-rotational"]);
    root.file("sys/block/vda/queue/rotational", "0\n");
    root.file("etc/fstab", "/dev/vda none swap sw 0 0\n");
    assert_eq!(root.found_in_guest(), ["guest-swap-without-discard"]);
    // Turned on by hand: it is what was sent that counts.
    root.file("etc/fstab", "");
    assert_eq!(root.found_in_guest(), [""; 0]);
    root.file("sys/block/vda/stat", "1 0 8 0 90 0 80000 0 0 0 0 0 0 0 0 0 0\n");
    assert_eq!(root.found_in_guest(), ["guest-swap-without-discard"]);
    root.file("sys/block/vda/stat", "1 0 8 0 90 0 80000 0 0 0 0 5 0 8 0 0 0\n");
    root.file("proc/self/mountinfo", "30 1 254:17 / /data rw - ext4 /dev/vdb1 rw\n");
    assert_eq!(root.found_in_guest(), ["guest-mount-without-discard"]);
    root.file("etc/systemd/system/timers.target.wants/fstrim.timer", "");
    assert_eq!(root.found_in_guest(), [""; 0]);
    root.file("proc/sys/vm/page-cluster", "3\n");
    assert_eq!(root.found_in_guest(), ["guest-read-ahead"]);
    // A file on the disk is swap, too.
    root.file("proc/swaps", "Filename Type Size Used Priority\n/data/swap file 1048572 0 -2\n");
    root.file("sys/block/vdb/queue/rotational", "1\n");
    assert_eq!(root.found_in_guest(), ["guest-rotational", "guest-read-ahead"]);
}
