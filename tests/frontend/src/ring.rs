//! A split ring in guest memory, laid out and filled by hand.
//!
//! Nothing here judges what it writes: descriptors, indexes and flags may be as wrong as a test likes.

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicU64, Ordering},
};

use crate::{
    error::Result,
    memory::Region,
    spec::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE},
};

// The in-memory form of the two halves of a descriptor; the rings' words are atomics on both sides.
const _: () = assert!(size_of::<AtomicU64>() == 8 && size_of::<AtomicU16>() == 2);

/// A descriptor: a buffer of the guest, and how its chain continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_*` flags of [`crate::spec`].
    pub flags: u16,
    /// Index of the next descriptor when `DESC_NEXT` is set.
    pub next: u16,
}

impl Desc {
    /// A device-readable buffer.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// A device-writable buffer.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: DESC_WRITE, next: 0 }
    }

    /// A table of `len` bytes of descriptors.
    pub fn indirect(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: DESC_INDIRECT, next: 0 }
    }

    /// The same, continued at descriptor `next`.
    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | DESC_NEXT, next, ..self }
    }

    /// Adds flags.
    pub fn with(self, flags: u16) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// Everything but the address as the second little-endian word of the descriptor.
    fn tail(self) -> u64 {
        u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48
    }

    /// The bytes of the descriptor in memory.
    pub fn bytes(self) -> [u8; DESC_LEN as usize] {
        let mut bytes = [0; DESC_LEN as usize];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tail().to_le_bytes());
        bytes
    }
}

/// One element of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor.
    pub id: u32,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// A split ring of `size` entries.
#[derive(Debug, Clone)]
pub struct Ring {
    region: Arc<Region>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
}

impl Ring {
    /// Lays out a zeroed ring of `size` entries (a power of two, up to 32768) in `region`.
    ///
    /// # Errors
    ///
    /// When the region has no room.
    pub fn new(region: &Arc<Region>, size: u16) -> Result<Self> {
        let n = u64::from(size);
        // A page for each part: a wrong length in the back end cannot hide in a neighbour.
        let desc = region.alloc(DESC_LEN * n, 4096)?;
        let avail = region.alloc(6 + 2 * n, 4096)?;
        let used = region.alloc(6 + 8 * n, 4096)?;
        Ok(Self::at(region, size, desc, avail, used))
    }

    /// A ring whose parts are at given guest-physical addresses.
    pub fn at(region: &Arc<Region>, size: u16, desc: u64, avail: u64, used: u64) -> Self {
        Self { region: Arc::clone(region), size, desc, avail, used }
    }

    /// The region it lies in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical addresses of the descriptor table, the avail ring and the used ring.
    pub fn addresses(&self) -> (u64, u64, u64) {
        (self.desc, self.avail, self.used)
    }

    /// Zeroes all three parts.
    ///
    /// # Errors
    ///
    /// When a part lies outside the region.
    pub fn clear(&self) -> Result<()> {
        let n = usize::from(self.size);
        self.region.write(self.desc, &vec![0; 16 * n])?;
        self.region.write(self.avail, &vec![0; 6 + 2 * n])?;
        self.region.write(self.used, &vec![0; 6 + 8 * n])
    }

    /// Writes descriptor `index`.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn set_desc(&self, index: u16, desc: Desc) -> Result<()> {
        write_desc(&self.region, self.desc + DESC_LEN * u64::from(index), desc)
    }

    /// Puts `head` into entry `pos` (modulo the size) of the avail ring.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn set_avail(&self, pos: u16, head: u16) -> Result<()> {
        let at = self.avail + 4 + 2 * u64::from(pos & (self.size - 1));
        self.region.store(at, head.to_le(), Ordering::Relaxed)
    }

    /// Publishes the avail index.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn set_avail_idx(&self, idx: u16) -> Result<()> {
        self.region.store(self.avail + 2, idx.to_le(), Ordering::Release)
    }

    /// The avail index as it stands in memory.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn avail_idx(&self) -> Result<u16> {
        Ok(u16::from_le(self.region.load(self.avail + 2, Ordering::Relaxed)?))
    }

    /// Writes the flags of the avail ring.
    ///
    /// # Errors
    ///
    /// When they lie outside the region.
    pub fn set_avail_flags(&self, flags: u16) -> Result<()> {
        self.region.store(self.avail, flags.to_le(), Ordering::Relaxed)
    }

    /// Writes `used_event`: the used index after which an interrupt is wanted.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn set_used_event(&self, idx: u16) -> Result<()> {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.region.store(at, idx.to_le(), Ordering::Relaxed)
    }

    /// The used index that the device has published.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    #[inline]
    pub fn used_idx(&self) -> Result<u16> {
        Ok(u16::from_le(self.region.load(self.used + 2, Ordering::Acquire)?))
    }

    /// Overwrites the used index, as a driver does that takes over a ring.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn set_used_idx(&self, idx: u16) -> Result<()> {
        self.region.store(self.used + 2, idx.to_le(), Ordering::Release)
    }

    /// The flags of the used ring.
    ///
    /// # Errors
    ///
    /// When they lie outside the region.
    pub fn used_flags(&self) -> Result<u16> {
        Ok(u16::from_le(self.region.load(self.used, Ordering::Relaxed)?))
    }

    /// Entry `pos` (modulo the size) of the used ring.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn used(&self, pos: u16) -> Result<Used> {
        let at = self.used + 4 + 8 * u64::from(pos & (self.size - 1));
        Ok(Used {
            id: u32::from_le(self.region.load(at, Ordering::Relaxed)?),
            len: u32::from_le(self.region.load(at + 4, Ordering::Relaxed)?),
        })
    }

    /// `avail_event`: the avail index after which the device wants a kick.
    ///
    /// # Errors
    ///
    /// When it lies outside the region.
    pub fn avail_event(&self) -> Result<u16> {
        let at = self.used + 4 + 8 * u64::from(self.size);
        Ok(u16::from_le(self.region.load(at, Ordering::Relaxed)?))
    }
}

/// Writes a descriptor at any guest-physical address: an entry of an indirect table.
///
/// # Errors
///
/// When it lies outside the region.
#[inline]
pub fn write_desc(region: &Region, addr: u64, desc: Desc) -> Result<()> {
    if addr.is_multiple_of(8) {
        region.store(addr, desc.addr.to_le(), Ordering::Relaxed)?;
        region.store(addr + 8, desc.tail().to_le(), Ordering::Relaxed)
    } else {
        region.write(addr, &desc.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_has_the_layout_of_the_specification() {
        let region = Region::new(0x10_0000, 0x10_0000).unwrap();
        let ring = Ring::new(&region, 4).unwrap();
        let desc = Desc::writable(0x1122_3344_5566_7788, 0x99aa_bbcc).then(0xddee);
        ring.set_desc(1, desc).unwrap();
        let expected = [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 3, 0, 0xee,
            0xdd,
        ];
        assert_eq!(region.read_vec(ring.addresses().0 + 16, 16).unwrap(), expected);
        assert_eq!(desc.bytes(), expected);
        write_desc(&region, 0x10_0000 + 0x8001, desc).unwrap();
        assert_eq!(region.read_vec(0x10_0000 + 0x8001, 16).unwrap(), expected);
    }

    #[test]
    fn rings_wrap_and_events_lie_behind_the_entries() {
        let region = Region::new(0, 0x10_0000).unwrap();
        let ring = Ring::new(&region, 4).unwrap();
        let (_, avail, used) = ring.addresses();
        ring.set_avail(5, 7).unwrap();
        ring.set_avail_idx(6).unwrap();
        ring.set_used_event(9).unwrap();
        assert_eq!(region.read_vec(avail, 14).unwrap(), [0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 0, 0, 9, 0]);
        region.write(used, &[1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5]).unwrap();
        region.write(used + 4 + 32, &[8]).unwrap();
        assert_eq!((ring.used_flags().unwrap(), ring.used_idx().unwrap()), (1, 3));
        assert_eq!(ring.used(5).unwrap(), Used { id: 2, len: 5 });
        assert_eq!(ring.avail_event().unwrap(), 8);
    }
}
