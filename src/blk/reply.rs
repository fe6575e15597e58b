//! How a request is answered: its status, and where it is written (VIRTIO 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::virtq::elem::{Head, Unanswerable, UsedElem};
use crate::virtq::memory::Memory;

/// The status of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Where the status is written, and how many bytes of data precede it on success.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) status: GuestAddress,
    pub(crate) data: u32,
}

impl Reply {
    /// Writes the status and ends the request.
    ///
    /// # Errors
    /// The guest cannot see what was written, since the memory was lost meanwhile. The request is
    /// abandoned then.
    pub(crate) fn finish(
        self,
        memory: &Memory,
        head: Head,
        status: Status,
    ) -> Result<UsedElem, Unanswerable> {
        let written = match memory.to_region_addr(self.status) {
            None => Err(Unanswerable::Outside),
            Some((region, addr)) => match region.write_obj(status as u8, addr) {
                Err(_) => Err(Unanswerable::Outside),
                // After the write: what was written before the loss was seen by the guest.
                Ok(()) if region.is_lost() => Err(Unanswerable::Lost),
                Ok(()) => Ok(()),
            },
        };
        if let Err(why) = written {
            head.abandon();
            return Err(why);
        }
        let data = if status == Status::Ok { self.data } else { 0 };
        Ok(head.finish(data.saturating_add(1)))
    }
}
