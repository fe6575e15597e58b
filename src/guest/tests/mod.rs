//! Chains, requests, rings and queues against hand-laid guest memory.

mod chain;
mod handed;
mod leave;
mod lost;
mod memory;
mod queue;
mod recovery;
mod refused;
mod request;
mod resume;
mod rig;
mod ring;
mod unanswerable;
mod watchdog;
mod worker;

use vm_memory::{Bytes, GuestAddress};

use super::chain::DescriptorTable;
use super::memory::Memory;

/// Where the tests put the descriptor table, and an indirect one.
const TABLE: u64 = 0x1000;
const INDIRECT: u64 = 0x2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

fn put(memory: &Memory, table: u64, descriptors: &[Desc]) {
    for (at, d) in (0_u64..).zip(descriptors) {
        let base = table + at * 16;
        memory.write_obj(d.addr, GuestAddress(base)).unwrap();
        memory.write_obj(d.len, GuestAddress(base + 8)).unwrap();
        memory.write_obj(d.flags, GuestAddress(base + 12)).unwrap();
        memory.write_obj(d.next, GuestAddress(base + 14)).unwrap();
    }
}

fn table(size: u16) -> DescriptorTable {
    DescriptorTable { addr: GuestAddress(TABLE), size }
}
