//! virtio-blk requests on a queue: built, submitted at depth, reaped.
//!
//! Everything a request needs is laid out when the client is made; submitting and reaping allocate
//! nothing. A slot's buffer has the request header right before it and room for the status byte right
//! behind it, so that any framing of the bytes (split header, header and data in one descriptor, data and
//! status in one) is only a matter of where the descriptors cut.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Error, Result},
    memory::Region,
    queue::Queue,
    ring::{Desc, write_desc},
    spec::{
        DESC_LEN, DESC_NEXT, DESC_WRITE, HEADER_LEN, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT,
        T_WRITE_ZEROES,
    },
};

/// Status byte before the device has written one.
const UNWRITTEN: u8 = 0xff;
/// Bytes of a slot's head: header at 0, status at 16, discard segment at 32.
const HEAD_LEN: u64 = 64;
const HEAD_STATUS: u64 = 16;
const NONE: u16 = u16::MAX;

/// A request type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read.
    In,
    /// Write.
    Out,
    /// Flush.
    Flush,
    /// Read the serial.
    GetId,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Any other type; its data is device-writable.
    Other(u32),
}

impl Op {
    /// The number in the request header.
    pub fn code(self) -> u32 {
        match self {
            Self::In => T_IN,
            Self::Out => T_OUT,
            Self::Flush => T_FLUSH,
            Self::GetId => T_GET_ID,
            Self::Discard => T_DISCARD,
            Self::WriteZeroes => T_WRITE_ZEROES,
            Self::Other(code) => code,
        }
    }

    /// Whether the device writes the data part.
    pub fn device_writes(self) -> bool {
        matches!(self, Self::In | Self::GetId | Self::Other(_))
    }

    /// Its name in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "read",
            Self::Out => "write",
            Self::Flush => "flush",
            Self::GetId => "get-id",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::Other(_) => "other",
        }
    }
}

/// The status byte of a completed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed or refused.
    IoErr,
    /// Not supported.
    Unsupp,
    /// The device wrote no status.
    Unwritten,
    /// A byte of no meaning.
    Unknown(u8),
}

impl From<u8> for Status {
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Ok,
            1 => Self::IoErr,
            2 => Self::Unsupp,
            UNWRITTEN => Self::Unwritten,
            other => Self::Unknown(other),
        }
    }
}

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Where a chain's descriptors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// All in the ring's table.
    #[default]
    Direct,
    /// All in an indirect table.
    Indirect,
    /// This many in the ring's table, the rest in an indirect table that the last of them leads to.
    Tail(u16),
}

/// How the bytes of a request are cut into descriptors.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Lengths of the pieces of header and data-out (one byte string); what they leave over is one more.
    pub readable: Vec<u32>,
    /// Lengths of the pieces of data-in and status (one byte string); what they leave over is one more.
    pub writable: Vec<u32>,
    /// Where the descriptors are.
    pub place: Place,
    /// Whether the descriptor of an indirect table carries the WRITE flag, which means nothing.
    pub write_flag_on_table: bool,
}

/// A request slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u16);

impl Tag {
    /// The slot's number, below the depth.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A request that was submitted and did not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// Its slot, whose buffer has to stay as it is.
    pub tag: Tag,
    /// First descriptor of its chain: what in-flight region and used ring call it.
    pub head: u16,
    /// What the caller gave along.
    pub user: u64,
}

/// A request that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Its slot, free again; the buffer keeps its bytes until the slot is acquired.
    pub tag: Tag,
    /// What the caller gave along.
    pub user: u64,
    /// Request type.
    pub op: Op,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// Status byte.
    pub status: Status,
    /// Length in the used element: bytes the device says it wrote, status included.
    pub used_len: u32,
}

#[derive(Debug, Clone)]
struct Slot {
    /// Guest-physical address of the header, status and discard segment.
    head: u64,
    /// Guest-physical address of the data buffer.
    buffer: u64,
    /// Guest-physical address of the indirect table.
    table: u64,
    /// Where this request's status byte is.
    status: u64,
    op: Op,
    sector: u64,
    user: u64,
    descs: u16,
}

/// A virtio-blk disk seen through one queue.
#[derive(Debug)]
pub struct Blk {
    queue: Queue,
    region: Arc<Region>,
    slots: Vec<Slot>,
    free_slots: Vec<u16>,
    free_descs: Vec<u16>,
    /// Next descriptor of each chain in flight, kept here because the device could change the ring's.
    next: Vec<u16>,
    /// Slot of the chain that begins at a descriptor.
    owner: Vec<u16>,
    max_bytes: u32,
    table_len: u16,
    indirect: bool,
    timeout: Duration,
}

impl Blk {
    /// Lays out `depth` request slots with buffers of `max_bytes` each in the queue's region.
    ///
    /// # Errors
    ///
    /// When the region has no room.
    pub fn new(queue: Queue, depth: u16, max_bytes: u32, indirect: bool) -> Result<Self> {
        let region = Arc::clone(queue.ring().region());
        let size = queue.ring().size();
        let table_len = size;
        let heads = region.alloc(HEAD_LEN * u64::from(depth), 64)?;
        let buffer_len = (u64::from(max_bytes) + 1).next_multiple_of(4096);
        let slots = (0..u64::from(depth))
            .map(|i| {
                let table = region.alloc(DESC_LEN * u64::from(table_len), 16)?;
                // One page before, so that the buffer is page-aligned and the header can precede it.
                let buffer = region.alloc(4096 + buffer_len, 4096)? + 4096;
                let head = heads + HEAD_LEN * i;
                let (status, op, sector, user, descs) = (head + HEAD_STATUS, Op::In, 0, 0, 0);
                Ok(Slot { head, buffer, table, status, op, sector, user, descs })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            region,
            slots,
            free_slots: (0..depth).rev().collect(),
            free_descs: (0..size).rev().collect(),
            next: vec![NONE; usize::from(size)],
            owner: vec![NONE; usize::from(size)],
            max_bytes,
            table_len,
            indirect,
            timeout: Duration::from_secs(30),
            queue,
        })
    }

    /// The queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue, to be used by hand as well. Requests in flight must stay intact.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The region that holds ring, slots and buffers.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Bytes of a slot's buffer.
    pub fn max_bytes(&self) -> u32 {
        self.max_bytes
    }

    /// Number of slots.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Requests submitted and not reaped, acquired slots included.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// Requests submitted and not reaped, in no order.
    pub fn outstanding(&self) -> impl Iterator<Item = Outstanding> + '_ {
        let owned = (0..).zip(&self.owner).filter(|(_, owner)| **owner != NONE);
        owned.map(|(head, owner)| {
            let user = self.slots[usize::from(*owner)].user;
            Outstanding { tag: Tag(*owner), head, user }
        })
    }

    /// Limit of the waits of the synchronous helpers.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Forgets all requests in flight and zeroes the ring, as after a device reset.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn reset(&mut self) -> Result<()> {
        self.queue.reset()?;
        self.free_slots = (0..self.slots.len() as u16).rev().collect();
        self.free_descs = (0..self.queue.ring().size()).rev().collect();
        self.owner.fill(NONE);
        Ok(())
    }

    /// Takes a free slot.
    #[inline]
    pub fn acquire(&mut self) -> Option<Tag> {
        self.free_slots.pop().map(Tag)
    }

    /// Gives an acquired slot back unused.
    pub fn release(&mut self, tag: Tag) {
        self.free_slots.push(tag.0);
    }

    /// Guest-physical address of a slot's buffer.
    #[inline]
    pub fn buffer(&self, tag: Tag) -> u64 {
        self.slots[tag.index()].buffer
    }

    /// Puts a request with its data in `data` into the avail ring, in the plain shape: header, data
    /// segments, status. It is seen by the device with the next [`Queue::publish`].
    ///
    /// # Errors
    ///
    /// When the descriptors do not suffice; the slot is free again then.
    #[inline]
    pub fn submit(
        &mut self,
        tag: Tag,
        op: Op,
        sector: u64,
        data: &[Segment],
        user: u64,
    ) -> Result<()> {
        let status = self.slots[tag.index()].head + HEAD_STATUS;
        let header = self.slots[tag.index()].head;
        self.prepare(tag, op, sector, user, header, status)?;
        let flags = if op.device_writes() { DESC_WRITE } else { 0 };
        let total = data.len() + 2;
        let desc_at = |i: usize| {
            if i == 0 {
                Desc::readable(header, HEADER_LEN)
            } else if i == total - 1 {
                Desc::writable(status, 1)
            } else {
                let Segment { addr, len } = data[i - 1];
                Desc { addr, len, flags, next: 0 }
            }
        };
        // As Linux does: an indirect table for whatever is longer than one descriptor.
        let place = if self.indirect && total <= usize::from(self.table_len) {
            Place::Indirect
        } else {
            Place::Direct
        };
        self.chain(tag, total, place, 0, desc_at)
    }

    /// Submits a request on the slot's own buffer with its bytes cut into descriptors as `shape` says.
    ///
    /// # Errors
    ///
    /// When the descriptors or the buffer do not suffice; the slot is free again then.
    pub fn submit_shaped(
        &mut self,
        tag: Tag,
        op: Op,
        sector: u64,
        len: u32,
        shape: &Shape,
        user: u64,
    ) -> Result<()> {
        if len > self.max_bytes {
            self.release(tag);
            return Err(Error::Full("slot buffer"));
        }
        let buffer = self.slots[tag.index()].buffer;
        let header = buffer - u64::from(HEADER_LEN);
        let (out, status) = match op.device_writes() {
            true => (0, buffer + u64::from(len)),
            false => (len, self.slots[tag.index()].head + HEAD_STATUS),
        };
        self.prepare(tag, op, sector, user, header, status)?;
        let mut descs = Vec::new();
        cut(header, HEADER_LEN + out, &shape.readable, 0, &mut descs);
        match op.device_writes() {
            true => cut(buffer, len + 1, &shape.writable, DESC_WRITE, &mut descs),
            false => descs.push(Desc::writable(status, 1)),
        }
        let flag = if shape.write_flag_on_table { DESC_WRITE } else { 0 };
        self.chain(tag, descs.len(), shape.place, flag, |i| descs[i])
    }

    #[inline]
    fn prepare(
        &mut self,
        tag: Tag,
        op: Op,
        sector: u64,
        user: u64,
        header: u64,
        status: u64,
    ) -> Result<()> {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..4].copy_from_slice(&op.code().to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.region.write(header, &bytes)?;
        self.region.write(status, &[UNWRITTEN])?;
        let slot = &mut self.slots[tag.index()];
        (slot.status, slot.op, slot.sector, slot.user) = (status, op, sector, user);
        Ok(())
    }

    /// Writes a chain of `total` descriptors and pushes its head.
    #[inline]
    fn chain(
        &mut self,
        tag: Tag,
        total: usize,
        place: Place,
        table_flags: u16,
        desc_at: impl Fn(usize) -> Desc,
    ) -> Result<()> {
        let direct = match place {
            Place::Direct => total,
            Place::Indirect => 0,
            Place::Tail(n) => usize::from(n).min(total),
        };
        let with_table = direct < total;
        let ring_descs = direct + usize::from(with_table);
        if self.free_descs.len() < ring_descs || total - direct > usize::from(self.table_len) {
            self.release(tag);
            return Err(Error::Full("descriptors"));
        }
        let table = self.slots[tag.index()].table;
        for i in direct..total {
            let desc = desc_at(i);
            let at = (i - direct) as u16;
            let desc = if i + 1 < total { desc.then(at + 1) } else { desc };
            write_desc(&self.region, table + DESC_LEN * u64::from(at), desc)?;
        }
        let mut next = NONE;
        // From the end: each descriptor needs the index of the one after it.
        for i in (0..ring_descs).rev() {
            let Some(index) = self.free_descs.pop() else { break };
            let mut desc = if i == direct {
                let len = (total - direct) as u32 * DESC_LEN as u32;
                Desc::indirect(table, len).with(table_flags)
            } else {
                desc_at(i)
            };
            if next != NONE {
                desc.flags |= DESC_NEXT;
                desc.next = next;
            }
            self.queue.ring().set_desc(index, desc)?;
            self.next[usize::from(index)] = next;
            next = index;
        }
        self.slots[tag.index()].descs = ring_descs as u16;
        self.owner[usize::from(next)] = tag.0;
        self.queue.push(next)
    }

    /// Shows the device what was submitted and kicks it if it asks for that.
    ///
    /// # Errors
    ///
    /// When the kick cannot be sent.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        self.queue.publish()
    }

    /// Takes the next request that came back, if there is one.
    ///
    /// # Errors
    ///
    /// When the used ring names no request in flight.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Completion>> {
        let Some(used) = self.queue.pop()? else { return Ok(None) };
        let owner = self.owner.get_mut(used.id as usize).map(|o| std::mem::replace(o, NONE));
        let Some(tag) = owner.filter(|o| *o != NONE) else {
            let why = format!("head {} is not in flight", used.id);
            return Err(Error::UsedRing { queue: self.queue.index(), why });
        };
        let slot = &self.slots[usize::from(tag)];
        let mut index = used.id as u16;
        for _ in 0..slot.descs {
            self.free_descs.push(index);
            index = self.next[usize::from(index)];
        }
        let mut status = [0];
        self.region.read(slot.status, &mut status)?;
        let done = Completion {
            tag: Tag(tag),
            user: slot.user,
            op: slot.op,
            sector: slot.sector,
            status: Status::from(status[0]),
            used_len: used.len,
        };
        self.free_slots.push(tag);
        Ok(Some(done))
    }

    /// Publishes, and waits for the next request that comes back.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when none comes.
    pub fn wait(&mut self, timeout: Duration) -> Result<Completion> {
        self.publish()?;
        loop {
            if let Some(done) = self.reap()? {
                return Ok(done);
            }
            self.queue.wait_used(timeout)?;
        }
    }

    /// Runs one request alone and returns its completion, whatever its status.
    ///
    /// # Errors
    ///
    /// When it does not come back in time, or other requests are in flight.
    pub fn run(&mut self, op: Op, sector: u64, len: u32, shape: &Shape) -> Result<Completion> {
        let tag = self.acquire().ok_or(Error::Full("slots"))?;
        self.submit_shaped(tag, op, sector, len, shape, 0)?;
        let done = self.wait(self.timeout)?;
        if done.tag != tag {
            return Err(Error::Full("other requests are in flight"));
        }
        Ok(done)
    }
}

/// Cuts `len` bytes at `addr` into descriptors of the given lengths and one of the rest.
fn cut(addr: u64, len: u32, pieces: &[u32], flags: u16, descs: &mut Vec<Desc>) {
    let (mut at, mut left) = (addr, len);
    for piece in pieces.iter().copied().chain([len]) {
        let piece = piece.min(left);
        if piece > 0 {
            descs.push(Desc { addr: at, len: piece, flags, next: 0 });
            at += u64::from(piece);
            left -= piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_everything_once() {
        let mut descs = Vec::new();
        cut(0x100, 20, &[5, 0, 11], DESC_WRITE, &mut descs);
        let spans: Vec<_> = descs.iter().map(|d| (d.addr, d.len)).collect();
        assert_eq!(spans, [(0x100, 5), (0x105, 11), (0x110, 4)]);
        assert!(descs.iter().all(|d| d.flags == DESC_WRITE));
        descs.clear();
        cut(0, 16, &[16], 0, &mut descs);
        assert_eq!(descs.len(), 1);
    }

    #[test]
    fn a_tail_chain_leads_into_its_table() {
        let region = Region::new(0, 0x10_0000).unwrap();
        let queue = Queue::new(0, &region, 8, false).unwrap();
        let mut blk = Blk::new(queue, 1, 4096, true).unwrap();
        let tag = blk.acquire().unwrap();
        let shape = Shape { readable: vec![7, 9], place: Place::Tail(1), ..Shape::default() };
        blk.submit_shaped(tag, Op::In, 8, 512, &shape, 0).unwrap();
        let header = blk.buffer(tag) - 16;
        let (desc, avail, _) = blk.queue().ring().addresses();
        let head = u64::from(region.read_vec(avail + 4, 1).unwrap()[0]);
        let read = |addr: u64| region.read_vec(addr, 16).unwrap();
        let table_at = u16::from(read(desc + 16 * head)[14]);
        assert_eq!(read(desc + 16 * head), Desc::readable(header, 7).then(table_at).bytes());
        let table = blk.slots[0].table;
        assert_eq!(read(desc + 16 * u64::from(table_at)), Desc::indirect(table, 32).bytes());
        assert_eq!(read(table), Desc::readable(header + 7, 9).then(1).bytes());
        assert_eq!(read(table + 16), Desc::writable(header + 16, 513).bytes());
    }
}
