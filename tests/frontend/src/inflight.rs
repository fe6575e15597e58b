//! The in-flight region of split rings: what a back end has taken and not given back.
//!
//! The front end keeps it while the back end dies, and gives it to the next one. Here it can be read,
//! to see what a death has left behind, and written, to play a back end that died anywhere.

use std::{fs::File, os::fd::AsRawFd, sync::atomic::Ordering};

use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::error::{Error, Result};

/// Bytes of a queue's header.
pub const HEADER_LEN: u64 = 16;
/// Bytes of a descriptor's entry.
pub const ENTRY_LEN: u64 = 16;

/// Bytes of one queue's part, with entries for `queue_size` descriptors.
pub fn stride(queue_size: u16) -> u64 {
    (HEADER_LEN + ENTRY_LEN * u64::from(queue_size)).next_multiple_of(64)
}

/// The header of a queue's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Feature bits; none are known.
    pub features: u64,
    /// 0 while the part is fresh, 1 from the first start of the ring on.
    pub version: u16,
    /// Entries of the part.
    pub desc_num: u16,
    /// The head that the batch given back last was chained up to.
    pub last_batch_head: u16,
    /// The used index up to which the entries are up to date.
    pub used_idx: u16,
}

/// What the part says of one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// 1 while it is in flight.
    pub in_flight: u8,
    /// The head before it in its batch.
    pub next: u16,
    /// When it was taken, in numbers that grow.
    pub counter: u64,
}

/// An in-flight region, mapped.
pub struct Inflight {
    info: VhostUserInflight,
    file: File,
    map: MmapRegion,
}

impl Inflight {
    /// Maps what a back end answered to `GET_INFLIGHT_FD`, or what is to be given to one. Of the file
    /// only what the queues' parts take is mapped.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped, or is too small for what it claims to hold.
    pub fn new(info: VhostUserInflight, file: File) -> Result<Self> {
        let need = u64::from(info.num_queues) * stride(info.queue_size);
        if info.mmap_size < need {
            let why = format!("{} bytes where {need} are needed", info.mmap_size);
            return Err(Error::BadReply { what: "in-flight region", why });
        }
        let clone = file.try_clone().map_err(crate::error::io_err("dup"))?;
        let map = MmapRegion::from_file(FileOffset::new(clone, info.mmap_offset), need as usize)
            .map_err(|e| Error::Io { what: "mmap", source: std::io::Error::other(e) })?;
        Ok(Self { info, file, map })
    }

    /// Sizes and place, as the messages carry them.
    pub fn info(&self) -> &VhostUserInflight {
        &self.info
    }

    /// The memfd.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The memfd's number, for messages.
    pub fn raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// Heads of `queue` that are in flight, in the order in which they were taken.
    pub fn in_flight(&self, queue: usize) -> Vec<u16> {
        let mut heads: Vec<_> = self.entries(queue).filter(|(_, e)| e.in_flight != 0).collect();
        heads.sort_by_key(|(_, entry)| entry.counter);
        heads.into_iter().map(|(head, _)| head).collect()
    }

    /// Heads of `queue` that are not in flight and were taken after one that is: they had been given
    /// back out of order. A head that was taken again since is not seen.
    pub fn completed_out_of_order(&self, queue: usize) -> Vec<u16> {
        let least = self.entries(queue).filter(|(_, e)| e.in_flight != 0).map(|(_, e)| e.counter);
        let Some(least) = least.min() else { return Vec::new() };
        let later = |(_, e): &(u16, Entry)| e.in_flight == 0 && e.counter > least;
        self.entries(queue).filter(later).map(|(head, _)| head).collect()
    }

    /// All entries of `queue` with their heads.
    pub fn entries(&self, queue: usize) -> impl Iterator<Item = (u16, Entry)> + '_ {
        (0..self.info.queue_size).map(move |head| (head, self.entry(queue, head)))
    }

    /// What the region says of a head.
    ///
    /// # Panics
    ///
    /// When there is no such queue or head.
    pub fn entry(&self, queue: usize, head: u16) -> Entry {
        let at = self.entry_at(queue, head);
        let (in_flight, next, counter) = (self.load(at), self.load(at + 6), self.load(at + 8));
        Entry { in_flight, next, counter }
    }

    /// Overwrites what the region says of a head.
    ///
    /// # Panics
    ///
    /// When there is no such queue or head.
    pub fn set_entry(&self, queue: usize, head: u16, entry: Entry) {
        let at = self.entry_at(queue, head);
        self.store(at + 8, entry.counter);
        self.store(at + 6, entry.next);
        self.store(at, entry.in_flight);
    }

    /// The header of a queue's part.
    ///
    /// # Panics
    ///
    /// When there is no such queue.
    pub fn header(&self, queue: usize) -> Header {
        let at = self.part_at(queue);
        Header {
            features: self.load(at),
            version: self.load(at + 8),
            desc_num: self.load(at + 10),
            last_batch_head: self.load(at + 12),
            used_idx: self.load(at + 14),
        }
    }

    /// Overwrites the header of a queue's part.
    ///
    /// # Panics
    ///
    /// When there is no such queue.
    pub fn set_header(&self, queue: usize, header: Header) {
        let at = self.part_at(queue);
        self.store(at, header.features);
        self.store(at + 8, header.version);
        self.store(at + 10, header.desc_num);
        self.store(at + 12, header.last_batch_head);
        self.store(at + 14, header.used_idx);
    }

    /// All bytes of the queues' parts.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.map.size()];
        self.map.as_volatile_slice().copy_to(&mut bytes);
        bytes
    }

    /// Overwrites the bytes from the start of the first part on.
    pub fn set_bytes(&self, bytes: &[u8]) {
        self.map.as_volatile_slice().copy_from(bytes);
    }

    fn part_at(&self, queue: usize) -> usize {
        assert!(queue < usize::from(self.info.num_queues), "no queue {queue} in the region");
        queue * stride(self.info.queue_size) as usize
    }

    fn entry_at(&self, queue: usize, head: u16) -> usize {
        assert!(head < self.info.queue_size, "no head {head} in the region");
        self.part_at(queue) + (HEADER_LEN + ENTRY_LEN * u64::from(head)) as usize
    }

    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        // All offsets lie inside: the mapping has the size that they are computed from.
        self.map.as_volatile_slice().load(at, Ordering::Acquire).unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        let stored = self.map.as_volatile_slice().store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "offset {at} lies outside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn region(num_queues: u16, queue_size: u16) -> Inflight {
        let file = File::from(memfd_create("inflight", MFdFlags::MFD_CLOEXEC).unwrap());
        let mmap_size = u64::from(num_queues) * stride(queue_size);
        file.set_len(mmap_size).unwrap();
        let info = VhostUserInflight { mmap_size, num_queues, queue_size, mmap_offset: 0 };
        Inflight::new(info, file).unwrap()
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let region = region(2, 4);
        assert_eq!(stride(4), 128);
        let header =
            Header { features: 0, version: 1, desc_num: 4, last_batch_head: 2, used_idx: 0x1234 };
        region.set_header(1, header);
        region.set_entry(1, 3, Entry { in_flight: 1, next: 0x102, counter: 7 });
        let bytes = region.bytes();
        assert_eq!(bytes[128..144], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 2, 0, 0x34, 0x12]);
        assert_eq!(bytes[192..208], [1, 0, 0, 0, 0, 0, 2, 1, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert!(bytes[..128].iter().all(|byte| *byte == 0));
        assert_eq!(region.header(1), header);
    }

    #[test]
    fn heads_come_in_the_order_of_their_counters() {
        let region = region(1, 8);
        for (head, in_flight, counter) in [(0, 1, 9), (1, 0, 10), (2, 1, 8), (3, 0, 7), (4, 0, 9)] {
            region.set_entry(0, head, Entry { in_flight, next: 0, counter });
        }
        assert_eq!(region.in_flight(0), [2, 0]);
        assert_eq!(region.completed_out_of_order(0), [1, 4]);
    }
}
