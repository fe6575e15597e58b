//! Accesses to guest memory: in one region, over a border, and outside.

use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::virtq::access;
use crate::virtq::memory::{Layout, MemoryMap};

/// Two regions that touch at 0x2000, and one by itself.
fn map() -> MemoryMap {
    let mut map = MemoryMap::new(EventFd::new(0).unwrap());
    for (start, size) in [(0x8000, 0x1000), (0x2000, 0x1000), (0x1000, 0x1000)] {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        let layout = Layout { guest_addr: start, user_addr: start, size, file_offset: 0 };
        map.add(layout, file).unwrap();
    }
    map
}

#[test]
fn a_region_is_found_by_each_of_its_addresses_and_by_no_other() {
    let map = map();
    let memory = map.shared().memory();
    let start = |addr| memory.to_region_addr(GuestAddress(addr)).map(|(_, at)| addr - at.0);
    for addr in [0x1000, 0x1fff] {
        assert_eq!(start(addr), Some(0x1000), "{addr:#x}");
    }
    assert_eq!((start(0x2000), start(0x2fff)), (Some(0x2000), Some(0x2000)));
    assert_eq!((start(0x8000), start(0x8fff)), (Some(0x8000), Some(0x8000)));
    for addr in [0, 0xfff, 0x3000, 0x7fff, 0x9000, u64::MAX] {
        assert_eq!(start(addr), None, "{addr:#x}");
    }
    assert_eq!(memory.num_regions(), 3);
    assert_eq!(memory.iter().count(), 3);
}

#[test]
fn values_and_bytes_move_within_a_region_and_over_a_border() {
    let map = map();
    let memory = map.shared().memory();
    // Aligned or not, as a guest's buffers are.
    for addr in [0x1000, 0x1003, 0x1ff8, 0x1ffd, 0x2000, 0x8ff8] {
        let addr = GuestAddress(addr);
        let value = 0x0123_4567_89ab_cdef_u64 ^ addr.0;
        access::write(&memory, addr, value).unwrap();
        assert_eq!(access::read::<u64>(&memory, addr), Some(value), "{addr:?}");
        let bytes: Vec<u8> = (0..8).map(|at| at ^ addr.0 as u8).collect();
        access::copy_to(&memory, addr, &bytes).unwrap();
        let mut found = [0; 8];
        access::copy_from(&memory, addr, &mut found).unwrap();
        assert_eq!(found[..], bytes, "{addr:?}");
        assert!(access::is_in_reach(&memory, addr, 8), "{addr:?}");
        access::prefetch(&memory, addr, 8);
    }
}

#[test]
fn what_lies_outside_is_not_touched() {
    let map = map();
    let memory = map.shared().memory();
    for addr in [0, 0xffd, 0x2ffd, 0x5000, 0x8ffd, u64::MAX - 3, u64::MAX] {
        let addr = GuestAddress(addr);
        assert_eq!(access::read::<u64>(&memory, addr), None, "{addr:?}");
        assert_eq!(access::write(&memory, addr, 7_u64), None, "{addr:?}");
        assert_eq!(access::copy_from(&memory, addr, &mut [0; 8]), None, "{addr:?}");
        assert_eq!(access::copy_to(&memory, addr, &[0; 8]), None, "{addr:?}");
        assert!(!access::is_in_reach(&memory, addr, 8), "{addr:?}");
        // A hint is allowed for any address.
        access::prefetch(&memory, addr, 8);
    }
}
