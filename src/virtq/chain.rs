//! Descriptor chains: from a head to the byte ranges it means.
//!
//! The chain iterator of the virtio-queue crate ends a bad chain silently, so the caller takes it for a
//! short one. This walk reports bad chains, and reads an indirect table in one piece.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress};

use crate::virtq::access;
use crate::virtq::memory::Memory;

/// Most descriptors of one chain (QEMU's VIRTQUEUE_MAX_SIZE). Linux exceeds the ring's size with
/// indirect tables when the ring is shorter than the segments it may use.
const MAX_DESCRIPTORS: usize = 1024;

/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u32 = 16;

/// Bytes that are fetched ahead of what a descriptor names: the table of a small request.
const PREFETCHED: usize = 64;

/// A range of guest memory that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: GuestAddress,
    pub(crate) len: u32,
}

/// Where the descriptors of a ring lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DescriptorTable {
    pub(crate) addr: GuestAddress,
    pub(crate) size: u16,
}

/// Why a chain has no meaning (VIRTIO 1.2, 2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("a descriptor's next index is out of range")]
    NextOutOfRange,
    #[error("a descriptor chain loops: it is longer than its table")]
    Loop,
    #[error("a descriptor lies outside of guest memory")]
    Unreachable,
    #[error("an indirect table contains an indirect descriptor")]
    NestedIndirect,
    #[error("an indirect descriptor has the NEXT flag")]
    IndirectWithNext,
    #[error("an indirect table's length is not a multiple of 16, or is too large")]
    IndirectLength,
}

/// The segments of one chain. They are reused, so that a request allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// What the device reads, in order.
    pub(crate) readable: Vec<Segment>,
    /// What the device writes, in order.
    pub(crate) writable: Vec<Segment>,
    /// A device-readable descriptor came after a device-writable one (VIRTIO 1.2, 2.7.4.2).
    pub(crate) misordered: bool,
    /// The indirect table, copied out of guest memory.
    table: Vec<u8>,
}

impl Chain {
    /// Reads the chain that starts at `head`, which is below the ring's size.
    ///
    /// Each descriptor is read from guest memory once.
    pub(crate) fn read(
        &mut self,
        memory: &Memory,
        ring: DescriptorTable,
        head: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.misordered = false;
        let mut next = head;
        for _ in 0..ring.size {
            let offset = u64::from(next) * u64::from(DESCRIPTOR_BYTES);
            let addr = ring.addr.checked_add(offset).ok_or(ChainError::Unreachable)?;
            let descriptor: Descriptor =
                access::read(memory, addr).ok_or(ChainError::Unreachable)?;
            if descriptor.refers_to_indirect_table() {
                // The write flag means nothing here (2.7.5.3.1), a next one is forbidden.
                return match descriptor.has_next() {
                    true => Err(ChainError::IndirectWithNext),
                    false => self.read_indirect(memory, descriptor),
                };
            }
            self.push(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            next = descriptor.next();
            if next >= ring.size {
                return Err(ChainError::NextOutOfRange);
            }
        }
        Err(ChainError::Loop)
    }

    fn read_indirect(&mut self, memory: &Memory, table: Descriptor) -> Result<(), ChainError> {
        let count = (table.len() / DESCRIPTOR_BYTES) as usize;
        if !table.len().is_multiple_of(DESCRIPTOR_BYTES) || count == 0 || count > MAX_DESCRIPTORS {
            return Err(ChainError::IndirectLength);
        }
        self.table.resize(table.len() as usize, 0);
        access::copy_from(memory, table.addr(), &mut self.table).ok_or(ChainError::Unreachable)?;
        let mut next = 0;
        for _ in 0..count {
            let at = next * DESCRIPTOR_BYTES as usize;
            let descriptor = parse(&self.table[at..at + DESCRIPTOR_BYTES as usize]);
            if descriptor.refers_to_indirect_table() {
                return Err(ChainError::NestedIndirect);
            }
            self.push(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            next = usize::from(descriptor.next());
            if next >= count {
                return Err(ChainError::NextOutOfRange);
            }
        }
        Err(ChainError::Loop)
    }

    fn push(&mut self, descriptor: Descriptor) {
        let segment = Segment { addr: descriptor.addr(), len: descriptor.len() };
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else {
            self.misordered |= !self.writable.is_empty();
            self.readable.push(segment);
        }
    }
}

/// Has the memory fetched that the first descriptor of a chain names: its indirect table, or its header.
pub(crate) fn prefetch_table(memory: &Memory, ring: DescriptorTable, head: u16) {
    if let Some(first) = peek(memory, ring.addr, head) {
        access::prefetch(memory, first.addr(), (first.len() as usize).min(PREFETCHED));
    }
}

/// Has the header of a chain fetched, if that has an indirect table, which was fetched.
pub(crate) fn prefetch_header(memory: &Memory, ring: DescriptorTable, head: u16) {
    if let Some(table) = peek(memory, ring.addr, head)
        && table.refers_to_indirect_table()
        && let Some(first) = peek(memory, table.addr(), 0)
    {
        access::prefetch(memory, first.addr(), (first.len() as usize).min(PREFETCHED));
    }
}

/// A descriptor of a table, of which nothing is checked.
fn peek(memory: &Memory, table: GuestAddress, at: u16) -> Option<Descriptor> {
    let offset = u64::from(at) * u64::from(DESCRIPTOR_BYTES);
    access::read(memory, table.checked_add(offset)?)
}

/// A descriptor from its 16 bytes: le64 address, le32 length, le16 flags, le16 next.
fn parse(bytes: &[u8]) -> Descriptor {
    let mut fields = [0; DESCRIPTOR_BYTES as usize];
    fields.copy_from_slice(bytes);
    let value = u128::from_le_bytes(fields);
    Descriptor::new(value as u64, (value >> 64) as u32, (value >> 96) as u16, (value >> 112) as u16)
}

/// Bytes of some segments together.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Takes `count` bytes off the front of `segments`. Returns false if there are fewer.
pub(crate) fn trim_front(segments: &mut Vec<Segment>, mut count: u32) -> bool {
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if segment.len > count {
            segment.addr = GuestAddress(segment.addr.0.wrapping_add(u64::from(count)));
            segment.len -= count;
            count = 0;
            break;
        }
        count -= segment.len;
        whole += 1;
    }
    segments.drain(..whole);
    count == 0
}

/// Takes the last byte off `segments` and returns its address, if there is one.
pub(crate) fn trim_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    while let Some(last) = segments.last_mut() {
        if last.len == 0 {
            segments.pop();
            continue;
        }
        last.len -= 1;
        let addr = last.addr.checked_add(u64::from(last.len));
        if last.len == 0 {
            segments.pop();
        }
        return addr;
    }
    None
}
