use std::fs::File;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::blk::request::GuestBytes;
use crate::device::{Payload, PayloadFault};
use crate::virtq::chain::Segment;
use crate::virtq::handed::HandedError;
use crate::virtq::memory::{Layout, MemoryError, MemoryMap};

fn file(size: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

fn layout(guest_addr: u64, user_addr: u64, size: u64) -> Layout {
    Layout { guest_addr, user_addr, size, file_offset: 0 }
}

fn map() -> (MemoryMap, EventFd) {
    let alarm = EventFd::new(EFD_NONBLOCK).unwrap();
    (MemoryMap::new(alarm.try_clone().unwrap()), alarm)
}

#[test]
fn addresses_are_translated_within_regions_only() {
    let (mut map, _alarm) = map();
    map.add(layout(0x10000, 0x7000_0000, 0x2000), file(0x2000)).unwrap();
    map.add(layout(0, 0x5000_0000, 0x1000), file(0x1000)).unwrap();
    assert_eq!(map.guest_address(0x7000_0000), Some(0x10000));
    assert_eq!(map.guest_address(0x7000_1fff), Some(0x11fff));
    assert_eq!(map.guest_address(0x7000_2000), None);
    assert_eq!(map.guest_address(0x5000_0fff), Some(0xfff));
    assert_eq!(map.guest_address(0), None);
    map.remove(layout(0x10000, 0x7000_0000, 0x2000)).unwrap();
    assert_eq!(map.guest_address(0x7000_0000), None);
    map.remove(layout(0, 0x5000_0000, 0x1000)).unwrap();
    let gone = map.remove(layout(0, 0x5000_0000, 0x1000));
    assert!(matches!(gone, Err(MemoryError::Unknown)));
}

#[test]
fn regions_that_cannot_be_are_refused_and_change_nothing() {
    let (mut map, _alarm) = map();
    map.add(layout(0, 0, 0x2000), file(0x2000)).unwrap();
    let short = map.add(layout(0x10000, 0x10000, 0x2000), file(0x1fff));
    assert!(matches!(
        short,
        Err(MemoryError::Map(HandedError::FileTooShort { needed: 0x2000, found: 0x1fff }))
    ));
    let overlap = map.add(layout(0x1000, 0x10000, 0x1000), file(0x1000));
    assert!(matches!(overlap, Err(MemoryError::Overlap)));
    for (guest, user) in [(u64::MAX - 0xfff, 0), (0x10000, u64::MAX - 0xfff)] {
        let wrapped = map.add(layout(guest, user, 0x2000), file(0x2000));
        assert!(matches!(wrapped, Err(MemoryError::Address)));
    }
    let empty = map.add(layout(0x10000, 0x10000, 0), file(0));
    assert!(matches!(empty, Err(MemoryError::Map(HandedError::Empty))));
    assert_eq!(map.guest_address(0x1fff), Some(0x1fff));
    assert_eq!(map.guest_address(0x10000), None);
}

#[test]
fn memory_that_is_cut_off_is_an_error_and_an_alarm_and_no_signal() {
    let (mut map, alarm) = map();
    let file = file(0x4000);
    let kept = File::from(file.as_fd().try_clone_to_owned().unwrap());
    map.add(layout(0, 0, 0x4000), file).unwrap();
    let shared = map.shared();
    let segments = vec![Segment { addr: GuestAddress(0x2000), len: 0x1000 }];
    let mut bytes = GuestBytes::new(shared.memory().into(), segments);
    let mut page = [0; 0x1000];
    shared.memory().write_slice(&[7; 0x1000], GuestAddress(0x2000)).unwrap();
    bytes.fetch(0, &mut page).unwrap();
    assert_eq!(page, [7; 0x1000]);
    assert!(!map.is_lost());

    kept.set_len(0x1000).unwrap();
    assert_eq!(bytes.fill(0, 0x1000, |place| place.copy_from(&page[..])), Err(PayloadFault));
    assert_eq!(bytes.fetch(0, &mut page), Err(PayloadFault));
    assert!(map.is_lost());
    assert_eq!(alarm.read().unwrap(), 1);
    // From now on it is plain memory, and can be touched without harm.
    shared.memory().write_slice(&[1], GuestAddress(0x3000)).unwrap();
    assert_eq!(bytes.fetch(0, &mut page), Err(PayloadFault), "lost is lost");
}
