//! Images that a disk is filled from: which ones are taken, and that a part is never shown as the
//! whole. `src/disk/load.rs` tests files that change while they are read, `tests/state.rs` loads
//! that are cut short.

mod common;

use std::{
    fs::{self, File},
    os::unix::{fs::FileExt, net::UnixListener},
    path::Path,
    process::Command,
};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::{expect_pattern, expect_same, expect_zeroes, pattern},
};
use nix::{sys::stat::Mode, unistd::mkfifo};

/// Insists that an image is refused by one line with these words.
fn refuses(image: &Path, words: &[&str]) {
    let dir = TempDir::new();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M", "--load"]);
    command.arg(image);
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    for word in words.iter().chain(&[image.to_str().expect("a path of plain letters")]) {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!dir.join("socket").exists());
}

#[test]
fn what_has_no_length_is_refused() {
    let dir = TempDir::new();
    let fifo = dir.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    // Nothing writes to it, and nothing is waited for.
    refuses(&fifo, &["pipe", "regular file"]);
    let _listener = UnixListener::bind(dir.join("listener")).unwrap();
    refuses(&dir.join("listener"), &["socket", "regular file"]);
    refuses(Path::new("/dev/zero"), &["character device", "regular file"]);
    refuses(dir.path(), &["directory", "regular file"]);
    // It says that it is a regular file of no bytes, and has some.
    refuses(Path::new("/proc/self/status"), &["changed"]);
}

#[test]
fn an_image_of_another_format_is_loaded_only_if_that_is_meant() {
    let dir = TempDir::new();
    let image = dir.join("image");
    let mut bytes = pattern(0, 64, 3);
    bytes[..4].copy_from_slice(b"QFI\xfb");
    fs::write(&image, &bytes).unwrap();
    refuses(&image, &["qcow", "qemu-img convert", "--load-format raw"]);
    let image = image.to_str().unwrap();
    let daemon = Daemon::start("1M", &["--load", image, "--load-format", "raw"]);
    let got = daemon.client().blk().read_vec(0, bytes.len()).unwrap();
    expect_same(0, &got, &bytes);
}

/// An image of 64 GiB of which a page at each end is there.
#[test]
fn holes_of_an_image_cost_nothing() {
    const SECTORS: u64 = 64 << 21;
    let dir = TempDir::new();
    let image = dir.join("image");
    let file = File::create(&image).unwrap();
    file.set_len(SECTORS * 512).unwrap();
    file.write_all_at(&pattern(8, 8, 1), 8 * 512).unwrap();
    file.write_all_at(&pattern(SECTORS - 8, 8, 2), (SECTORS - 8) * 512).unwrap();
    let mut daemon = Daemon::start("64G", &["--load", image.to_str().unwrap()]);
    let stats = daemon.stats();
    assert_eq!((stats["orig_data_size"], stats["same_pages"]), (2 * 4096, 0));
    assert!(stats["table_bytes"] <= 2 * 4096, "{}", stats["table_bytes"]);
    let mut client = daemon.client();
    expect_zeroes(client.blk(), 0, 8);
    expect_pattern(client.blk(), 8, 8, 1);
    expect_zeroes(client.blk(), 16, 8);
    expect_zeroes(client.blk(), SECTORS - 16, 8);
    expect_pattern(client.blk(), SECTORS - 8, 8, 2);
}

/// A loop device, which goes with its value.
struct Loop(String);

impl Loop {
    /// `None` where there can be none.
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(name.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Its metadata say that it has no bytes.
#[test]
fn a_block_device_is_loaded_to_its_end() {
    let dir = TempDir::new();
    let image = dir.join("image");
    let sectors = 2 << 11;
    let file = File::create(&image).unwrap();
    file.write_all_at(&pattern(0, sectors, 4), 0).unwrap();
    file.sync_all().unwrap();
    let Some(device) = Loop::over(&image) else {
        eprintln!("there are no loop devices here: skipped");
        return;
    };
    let daemon = Daemon::start("16M", &["--load", &device.0]);
    expect_pattern(daemon.client().blk(), 0, sectors, 4);
    drop(daemon);
    file.set_len(17 << 20).unwrap();
    drop(device);
    let Some(device) = Loop::over(&image) else { return };
    refuses(Path::new(&device.0), &["17825792 bytes does not fit"]);
}
