//! virtio-blk requests, from a descriptor chain to a status byte (VIRTIO 1.2, 5.2.6).
//!
//! The type of a request changes with its stage, so that it is completed exactly once:
//!
//! ```text
//! Head --parse--> Request --start--> InFlight --poll--> UsedElem --put--> used ring
//! ```
//!
//! A [`Head`](crate::virtq::elem::Head) is made when a head is popped and ends in a [`UsedElem`](crate::virtq::elem::UsedElem), which the used ring
//! consumes, or goes back to where it was taken from. Neither can be copied, and dropping one
//! on the way is an error that is logged.
//!
//! A `UsedElem` is made by writing a status, and in no other way: a driver reads only the status byte,
//! which holds the status of an earlier request until it is written, and that is mostly OK. A request
//! whose status cannot be written is [`Unanswerable`]. It is not carried out and not completed, and its
//! queue stops.

use std::rc::Rc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryLoadGuard, VolatileSlice,
};

use crate::blk::config::{GuestOptions, MAX_FREE_SECTORS, MAX_FREE_SEGMENTS};
use crate::blk::refusal::{Refusal, Refused};
use crate::blk::reply::{Reply, Status};
use crate::device::{Op, Payload, PayloadFault};
use crate::units::SECTOR_SIZE;
use crate::virtq::access;
use crate::virtq::chain::{Chain, Segment, total, trim_front, trim_last_byte};
use crate::virtq::elem::Unanswerable;
use crate::virtq::memory::{self, Memory};

/// Bytes of a request's header: le32 type, le32 reserved, le64 sector.
const HEADER_BYTES: usize = 16;
/// Bytes of a discard or write-zeroes segment: le64 sector, le32 sectors, le32 flags.
const FREE_SEGMENT_BYTES: usize = 16;

/// What a chain asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A range of the disk.
    Io { op: Op, sector: u64, bytes: u64, data: Vec<Segment>, reply: Reply },
    /// Make earlier writes stable.
    Flush { reply: Reply },
    /// Return the serial.
    GetId { data: Vec<Segment>, reply: Reply },
    /// Not valid, or not supported.
    Refused { refused: Refused, reply: Reply },
}

/// Guest memory at one moment.
pub(crate) type Snapshot = Rc<GuestMemoryLoadGuard<Memory>>;

/// Moves bytes between guest memory, named by segments, and private memory.
#[derive(Debug)]
pub(crate) struct GuestBytes {
    memory: Snapshot,
    segments: Vec<Segment>,
    /// Number of the segment that the last access ended in, and the offset where it starts: the
    /// device works through a request front to back.
    cursor: (usize, u64),
}

impl GuestBytes {
    pub(crate) fn new(memory: Snapshot, segments: Vec<Segment>) -> Self {
        Self { memory, segments, cursor: (0, 0) }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Calls `part` for each piece of guest memory that makes up `len` bytes from `offset` on,
    /// with the range of these bytes.
    fn pieces(
        &mut self,
        offset: u64,
        len: usize,
        mut part: impl FnMut(&Memory, GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<(), PayloadFault> {
        let (mut at, mut base) = self.cursor;
        if offset < base {
            (at, base) = (0, 0);
        }
        let mut done = 0;
        while done < len {
            let segment = self.segments.get(at).ok_or(PayloadFault)?;
            let within = offset + done as u64 - base;
            if within >= u64::from(segment.len) {
                base += u64::from(segment.len);
                at += 1;
                continue;
            }
            let count = (len - done).min((u64::from(segment.len) - within) as usize);
            let addr = segment.addr.0.checked_add(within).ok_or(PayloadFault)?;
            if !part(&self.memory, GuestAddress(addr), done..done + count) {
                return Err(PayloadFault);
            }
            done += count;
        }
        self.cursor = (at, base);
        Ok(())
    }
}

impl Payload for GuestBytes {
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
        self.pieces(offset, into.len(), |memory, addr, range| {
            access::copy_from(memory, addr, &mut into[range]).is_some()
        })?;
        // Memory that was lost reads as zeroes, which must not become the disk's content.
        if memory::is_lost(&self.memory) { Err(PayloadFault) } else { Ok(()) }
    }

    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault> {
        self.pieces(offset, from.len(), |memory, addr, range| {
            access::copy_to(memory, addr, &from[range]).is_some()
        })?;
        // Bytes that were written to the zeroes in place of lost memory did not arrive.
        if memory::is_lost(&self.memory) { Err(PayloadFault) } else { Ok(()) }
    }

    fn fill<R>(
        &mut self,
        offset: u64,
        len: usize,
        fill: impl FnOnce(VolatileSlice<'_>) -> R,
    ) -> Result<Option<R>, PayloadFault> {
        let (mut fill, mut filled) = (Some(fill), None);
        self.pieces(offset, len, |memory, addr, range| {
            if range.len() == len
                && let Ok(place) = memory.get_slice(addr, len)
                && let Some(fill) = fill.take()
            {
                filled = Some(fill(place));
            }
            true
        })?;
        // As in `deliver`.
        if memory::is_lost(&self.memory) { Err(PayloadFault) } else { Ok(filled) }
    }
}

/// What a request is, before its data is read.
struct Header {
    kind: u32,
    sector: u64,
}

impl Request {
    /// How it is answered.
    pub(crate) fn reply(&self) -> Reply {
        match self {
            Request::Io { reply, .. }
            | Request::Flush { reply }
            | Request::GetId { reply, .. }
            | Request::Refused { reply, .. } => *reply,
        }
    }

    /// Parses the request in `chain`. Framing is free: header, data and status are found by their byte
    /// positions, in whatever descriptors they are.
    ///
    /// `chain` is consumed, its vectors may be taken.
    ///
    /// # Errors
    /// It has no status byte, or none within reach.
    pub(crate) fn parse(
        memory: &Memory,
        chain: &mut Chain,
        options: &GuestOptions,
    ) -> Result<Self, Unanswerable> {
        let status = trim_last_byte(&mut chain.writable).ok_or(Unanswerable::NoStatus)?;
        let (region, _) = memory.to_region_addr(status).ok_or(Unanswerable::Outside)?;
        if region.is_lost() {
            return Err(Unanswerable::Lost);
        }
        Ok(Self::parse_answerable(memory, chain, options, Reply { status, data: 0 }))
    }

    fn parse_answerable(
        memory: &Memory,
        chain: &mut Chain,
        options: &GuestOptions,
        reply: Reply,
    ) -> Self {
        if chain.misordered {
            return refused(Refusal::Order, None, reply);
        }
        let Some(header) = read_header(memory, chain) else {
            return refused(Refusal::Header, None, reply);
        };
        let (input, output) = (total(&chain.writable), total(&chain.readable));
        let request = match header.kind {
            VIRTIO_BLK_T_IN => (|| {
                // Data in the wrong direction is an error.
                check(output == 0, Refusal::Direction)?;
                check_data(memory, &chain.writable, options)?;
                let data = std::mem::take(&mut chain.writable);
                let reply = Reply { data: input as u32, ..reply };
                Ok(Request::Io { op: Op::Read, sector: header.sector, bytes: input, data, reply })
            })(),
            VIRTIO_BLK_T_OUT => (|| {
                check(!options.read_only, Refusal::ReadOnly)?;
                check(input == 0, Refusal::Direction)?;
                check_data(memory, &chain.readable, options)?;
                let data = std::mem::take(&mut chain.readable);
                Ok(Request::Io { op: Op::Write, sector: header.sector, bytes: output, data, reply })
            })(),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush { reply }),
            VIRTIO_BLK_T_GET_ID => (|| {
                check(output == 0, Refusal::Direction)?;
                check(is_in_reach(memory, &chain.writable), Refusal::Outside)?;
                let data = std::mem::take(&mut chain.writable);
                let reply = Reply { data: input.min(options.id().len() as u64) as u32, ..reply };
                Ok(Request::GetId { data, reply })
            })(),
            VIRTIO_BLK_T_DISCARD => parse_free(memory, chain, Op::Discard, options, reply),
            VIRTIO_BLK_T_WRITE_ZEROES => parse_free(memory, chain, Op::WriteZeroes, options, reply),
            kind => Err(Refusal::Type(kind)),
        };
        request.unwrap_or_else(|why| refused(why, op_of(header.kind), reply))
    }
}

fn refused(why: Refusal, op: Option<Op>, reply: Reply) -> Request {
    Request::Refused { refused: Refused { why, op }, reply }
}

/// What a type of request does with the disk's contents, if anything.
fn op_of(kind: u32) -> Option<Op> {
    match kind {
        VIRTIO_BLK_T_IN => Some(Op::Read),
        VIRTIO_BLK_T_OUT => Some(Op::Write),
        VIRTIO_BLK_T_DISCARD => Some(Op::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => Some(Op::WriteZeroes),
        _ => None,
    }
}

fn check(fits: bool, otherwise: Refusal) -> Result<(), Refusal> {
    if fits { Ok(()) } else { Err(otherwise) }
}

/// Whether data can be moved as a whole: of a length that may be, and all of it within reach. A
/// request is refused before it has moved a byte, not in the middle.
fn check_data(
    memory: &Memory,
    segments: &[Segment],
    options: &GuestOptions,
) -> Result<(), Refusal> {
    let bytes = total(segments);
    check(bytes.is_multiple_of(SECTOR_SIZE), Refusal::Length)?;
    check(bytes <= options.max_request_bytes(), Refusal::TooLong)?;
    check(is_in_reach(memory, segments), Refusal::Outside)
}

fn is_in_reach(memory: &Memory, segments: &[Segment]) -> bool {
    segments.iter().all(|segment| access::is_in_reach(memory, segment.addr, segment.len as usize))
}

/// Takes the header off the front of the readable part.
fn read_header(memory: &Memory, chain: &mut Chain) -> Option<Header> {
    let mut bytes = [0; HEADER_BYTES];
    copy_front(memory, &chain.readable, &mut bytes)?;
    trim_front(&mut chain.readable, HEADER_BYTES as u32).then_some(())?;
    let (kind, rest) = bytes.split_first_chunk::<4>()?;
    let sector = rest.last_chunk::<8>()?;
    Some(Header { kind: u32::from_le_bytes(*kind), sector: u64::from_le_bytes(*sector) })
}

/// A discard or write-zeroes request: a list of segments, of which one is allowed.
fn parse_free(
    memory: &Memory,
    chain: &mut Chain,
    op: Op,
    options: &GuestOptions,
    reply: Reply,
) -> Result<Request, Refusal> {
    check(!options.read_only, Refusal::ReadOnly)?;
    let bytes = total(&chain.readable);
    check(bytes != 0 && bytes.is_multiple_of(FREE_SEGMENT_BYTES as u64), Refusal::Length)?;
    check(bytes <= (MAX_FREE_SEGMENTS * FREE_SEGMENT_BYTES) as u64, Refusal::Ranges)?;
    let mut segment = [0; FREE_SEGMENT_BYTES];
    copy_front(memory, &chain.readable, &mut segment).ok_or(Refusal::Outside)?;
    let value = u128::from_le_bytes(segment);
    let (sector, sectors, flags) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
    check(sectors <= MAX_FREE_SECTORS, Refusal::TooManySectors)?;
    let allowed = match op {
        Op::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        _ => 0,
    };
    check(flags & !allowed == 0, Refusal::Flags(flags))?;
    let bytes = u64::from(sectors) * SECTOR_SIZE;
    Ok(Request::Io { op, sector, bytes, data: Vec::new(), reply })
}

/// Copies the first bytes of some segments; `None` if there are not as many, or out of reach.
fn copy_front(memory: &Memory, segments: &[Segment], into: &mut [u8]) -> Option<()> {
    let mut done = 0;
    for segment in segments {
        if done == into.len() {
            break;
        }
        let count = (segment.len as usize).min(into.len() - done);
        access::copy_from(memory, segment.addr, &mut into[done..done + count])?;
        done += count;
    }
    (done == into.len()).then_some(())
}

/// Returns the serial to a GET_ID request.
pub(crate) fn deliver_id(memory: &Memory, data: &[Segment], id: &[u8; 20]) -> Status {
    let mut left = &id[..];
    for segment in data {
        let (now, later) = left.split_at((segment.len as usize).min(left.len()));
        if access::copy_to(memory, segment.addr, now).is_none() {
            return Status::IoErr;
        }
        left = later;
    }
    if memory::is_lost(memory) { Status::IoErr } else { Status::Ok }
}

/// A snapshot of guest memory for one turn of a queue. Its requests share it without writing to what other
/// threads read.
pub(crate) fn snapshot(memory: &memory::SharedMemory) -> Snapshot {
    Rc::new(memory.memory())
}
