//! Chains, rings and recovery against hand-laid guest memory.

mod access;
mod chain;
mod handed;
mod recovery;
mod ring;

use vm_memory::{Bytes, GuestAddress};

use super::chain::DescriptorTable;
use super::memory::Memory;

/// Where the tests put the descriptor table, and an indirect one.
pub(crate) const TABLE: u64 = 0x1000;
pub(crate) const INDIRECT: u64 = 0x2000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT_FLAG: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

pub(crate) fn put(memory: &Memory, table: u64, descriptors: &[Desc]) {
    for (at, d) in (0_u64..).zip(descriptors) {
        let base = table + at * 16;
        memory.write_obj(d.addr, GuestAddress(base)).unwrap();
        memory.write_obj(d.len, GuestAddress(base + 8)).unwrap();
        memory.write_obj(d.flags, GuestAddress(base + 12)).unwrap();
        memory.write_obj(d.next, GuestAddress(base + 14)).unwrap();
    }
}

pub(crate) fn table(size: u16) -> DescriptorTable {
    DescriptorTable { addr: GuestAddress(TABLE), size }
}
