//! Whose a state is: one that another user could have made, changed or swapped is refused, and what is made
//! is its owner's alone. And what becomes of a disk whose files its owner cuts short.

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::{expect_pattern, mark, write_pattern},
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Op, Shape};

const FILES: [&str; 3] = ["arena", "superblock", "table"];
const NOBODY: u32 = 65534;

/// A state in a directory on a tmpfs.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::in_memory())
    }

    fn path(&self) -> PathBuf {
        self.0.join("state")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn command(&self, dir: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(self.0.join("socket")).args(["--size", "16M"]);
        command.arg("--state-dir").arg(dir).args(more);
        command
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let path = self.path();
        let path = path.to_str().expect("a path of plain letters");
        Daemon::start("16M", &[&["--state-dir", path], more].concat())
    }

    /// A home with a state that has the mark in it.
    fn made() -> Self {
        let home = Self::new();
        let daemon = home.start(&["--create"]);
        mark(&daemon);
        daemon.end(Signal::SIGTERM);
        home
    }

    /// Names, owners, modes, lengths and blocks of all that is there.
    fn look(&self) -> BTreeMap<String, [u64; 4]> {
        let entries = fs::read_dir(self.path()).expect("state").map(|entry| {
            let entry = entry.expect("entry");
            let meta = entry.metadata().expect("meta");
            let figures = [meta.uid().into(), meta.mode().into(), meta.len(), meta.blocks()];
            (entry.file_name().into_string().expect("name"), figures)
        });
        entries.collect()
    }

    /// Insists on one line with these words, with --create and without, and that nothing changes.
    fn refuses(&self, dir: &Path, more: &[&str], words: &[&str]) {
        let before = self.look();
        for create in [&[][..], &["--create"]] {
            let (code, line) = refusal(self.command(dir, &[more, create].concat()));
            assert_eq!(code, 1, "{line}");
            assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
            assert_eq!(self.look(), before, "{line}");
        }
    }

    fn is_opened(&self, more: &[&str]) {
        let daemon = self.start(more);
        assert_eq!(daemon.origin(), "opened");
        expect_pattern(daemon.client().blk(), common::disk::MARK_AT, common::disk::MARK_LEN, 1);
        daemon.end(Signal::SIGTERM);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_state_of_another_user_is_refused_unless_it_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let home = Home::made();
    let parts = [vec![home.path()], FILES.map(|name| home.file(name)).to_vec()].concat();
    for part in &parts {
        chown(part, Some(NOBODY), None).unwrap();
        home.refuses(&home.path(), &[], &["belongs to user 65534", "--state-owner 65534"]);
        home.refuses(&home.path(), &["--state-owner", "1"], &["belongs to user 65534"]);
        home.is_opened(&["--state-owner", "65534"]);
        chown(part, Some(0), None).unwrap();
        home.is_opened(&[]);
    }
    // A directory that another user made where this one was to be.
    let home = Home::new();
    fs::create_dir(home.path()).unwrap();
    chown(home.path(), Some(NOBODY), None).unwrap();
    home.refuses(&home.path(), &[], &["belongs to user 65534"]);
    assert!(home.look().is_empty());
}

#[test]
fn a_state_that_is_open_to_others_is_refused() {
    let home = Home::made();
    for mode in [0o702, 0o720, 0o777, 0o1777] {
        set_mode(&home.path(), mode);
        home.refuses(&home.path(), &[], &["state directory", "other users can access", "700"]);
    }
    set_mode(&home.path(), 0o755);
    home.is_opened(&[]);
    for name in FILES {
        for mode in [0o604, 0o640, 0o620, 0o602, 0o666] {
            set_mode(&home.file(name), mode);
            home.refuses(&home.path(), &[], &[name, "other users can access", "600"]);
        }
        set_mode(&home.file(name), 0o600);
    }
    home.is_opened(&[]);
}

#[test]
fn a_file_that_has_another_name_is_refused() {
    for name in FILES {
        let home = Home::made();
        let other = home.0.join("other");
        fs::hard_link(home.file(name), &other).unwrap();
        home.refuses(&home.path(), &[], &[name, "2 hard links"]);
        fs::remove_file(other).unwrap();
        home.is_opened(&[]);
    }
}

#[test]
fn links_of_others_are_not_followed() {
    let home = Home::made();
    let link = home.0.join("link");
    symlink(home.path(), &link).unwrap();
    if rustix::process::geteuid().is_root() {
        lchown(&link, Some(NOBODY), None).unwrap();
        for path in [link, home.0.join("link/"), home.0.join("link/.")] {
            home.refuses(&path, &[], &["symbolic link of user 65534"]);
        }
    } else {
        eprintln!("skipped: only root can give links away");
    }
    for name in FILES {
        let moved = home.0.join("moved");
        fs::rename(home.file(name), &moved).unwrap();
        symlink(&moved, home.file(name)).unwrap();
        home.refuses(&home.path(), &[], &[name]);
        fs::remove_file(home.file(name)).unwrap();
        fs::rename(&moved, home.file(name)).unwrap();
    }
    home.is_opened(&[]);
}

#[test]
fn what_is_made_is_its_owners_alone_whatever_the_umask() {
    for umask in ["000", "022", "027", "0177", "0777"] {
        let home = Home::new();
        let dir = TempDir::new();
        let mut command = Command::new("sh");
        // In a directory that was made by a process with another umask.
        let script = "umask $0 && exec \"$@\"";
        command.args(["-c", script, umask, BINARY, "--socket-path"]).arg(dir.join("socket"));
        command.args(["--size", "16M", "--create", "--state-dir"]).arg(home.path());
        let daemon = Daemon::spawn(command, dir);
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&home.path()), 0o700, "{umask}");
        for name in FILES {
            assert_eq!(mode(&home.file(name)), 0o600, "{umask}, {name}");
        }
        daemon.end(Signal::SIGTERM);
    }
}

/// The daemon's own memory is gone then: it dies, and the next one does not serve what is left.
#[test]
fn a_running_state_that_is_cut_short_ends_its_daemon_and_is_refused_then() {
    for name in ["table", "arena"] {
        for grown_again in [false, true] {
            let home = Home::made();
            let mut daemon = home.start(&[]);
            let file = fs::OpenOptions::new().write(true).open(home.file(name)).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(0).unwrap();
            if grown_again {
                // Not seen while it runs: what was cut off is there again, and is zeroes.
                file.set_len(length).unwrap();
                daemon.end(Signal::SIGKILL);
            } else {
                // Not waited for: there will be no answer.
                let mut client = daemon.client();
                let tag = client.blk().acquire().expect("a tag");
                let sector = common::disk::MARK_AT;
                client
                    .blk()
                    .submit_shaped(tag, Op::In, sector, 4096, &Shape::default(), 0)
                    .unwrap();
                client.blk().publish().unwrap();
                assert_eq!(daemon.join().signal(), Some(Signal::SIGBUS as i32), "{name}");
            }
            home.refuses(&home.path(), &[], &[name]);
        }
    }
    // Nothing of this is left in another state.
    let home = Home::made();
    let daemon = home.start(&[]);
    write_pattern(daemon.client().blk(), 0, 8, 3);
    daemon.end(Signal::SIGTERM);
    home.is_opened(&[]);
}
