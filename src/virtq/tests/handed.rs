use std::fs::File;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtq::handed::{Handed, HandedError};
use crate::virtq::sys;

fn alarm() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("handed", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn secret_memory_is_memory() {
    let Ok(secret) = sys::secret_memory() else {
        eprintln!("skipped: this host has no secret memory");
        return;
    };
    let secret = File::from(secret);
    secret.set_len(0x3000).unwrap();
    let mapped = Handed::new(secret).unwrap().map(0x1000, 0x2000, &alarm()).unwrap();
    assert_eq!(mapped.mapping.size(), 0x2000);
    assert!(!mapped.watch.faulted());
}

#[test]
fn what_would_be_mapped_in_part_is_refused() {
    let map = |offset, len| Handed::new(memfd(0x4000)).unwrap().map(offset, len, &alarm());
    assert!(matches!(map(0, 0), Err(HandedError::Empty)));
    assert!(matches!(map(0x800, 0x1000), Err(HandedError::Offset { offset: 0x800, page: 0x1000 })));
    assert!(matches!(map(u64::MAX - 0xfff, 0x2000), Err(HandedError::Range)));
    let short = map(0x3000, 0x1001);
    assert!(matches!(short, Err(HandedError::FileTooShort { needed: 0x4001, found: 0x4000 })));
    // The kernel maps, replaces and unmaps the rest of the last page with it.
    map(0x1000, 0x2fff).unwrap();
}

#[test]
fn kinds_that_are_not_memory_have_names() {
    let kind = |path: &str| match Handed::new(File::open(path).unwrap()) {
        Err(HandedError::Kind(kind)) => kind,
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(kind("/"), "a directory");
    assert_eq!(kind("/dev/zero"), "a device");
    assert_eq!(kind("/proc/self/maps"), "of another file system");
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let pipe = Handed::new(File::from(reader));
    assert!(matches!(pipe, Err(HandedError::Kind("a pipe"))));
}
