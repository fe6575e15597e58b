//! Chains written by hand, and what becomes of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use vhost_user_zram_frontend::{
    Desc, Error, Options, Queue, Region, Session, Status,
    spec::{DESC_LEN, HEADER_LEN},
};

use super::{LIMIT, daemon::Daemon, daemon::session_options};

/// Entries of the raw ring.
pub const SIZE: u16 = 16;
/// Guest-physical address of the memory.
pub const GPA: u64 = 0x4000_0000;
/// Bytes of the memory.
pub const MEMORY: u64 = 16 << 20;

/// What a device made of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It came back with a used length and this byte where the status was expected.
    Used {
        /// Length in the used element.
        len: u32,
        /// Status byte.
        status: Status,
    },
    /// The queue was stopped: the error descriptor was signalled, or the session closed.
    Stopped,
}

impl Outcome {
    /// Whether the chain was refused in one of the allowed ways: an error status, or the queue visibly
    /// stopped. A chain that comes back without a status is none: a driver takes what the byte held
    /// before for the status, which is mostly OK.
    pub fn is_refusal(self) -> bool {
        match self {
            Self::Stopped => true,
            Self::Used { len, status } => {
                len >= 1 && matches!(status, Status::IoErr | Status::Unsupp)
            }
        }
    }
}

/// A chain's status of I/O error, one byte written.
pub const IOERR: Outcome = Outcome::Used { len: 1, status: Status::IoErr };
/// A chain's status of "unsupported", one byte written.
pub const UNSUPP: Outcome = Outcome::Used { len: 1, status: Status::Unsupp };
/// What a status byte holds before the device has written one, where that is to be told from a success.
pub const UNWRITTEN: u8 = 0xff;

/// A session with one queue whose ring is filled by hand.
pub struct Raw {
    pub session: Session,
    pub region: Arc<Region>,
    pub queue: Queue,
    /// Address of a request header.
    pub header: u64,
    /// Address of a data buffer of 64 KiB.
    pub data: u64,
    /// Address of a status byte.
    pub status: u64,
    /// Address of room for an indirect table, 64 KiB.
    pub table: u64,
    /// What the status byte holds when a chain is offered. A guest's mostly holds 0, from the last
    /// request; where a success is expected it is [`UNWRITTEN`].
    pub preset: u8,
}

impl Raw {
    pub fn new(daemon: &Daemon) -> Self {
        Self::with(daemon, &session_options())
    }

    pub fn with(daemon: &Daemon, options: &Options) -> Self {
        let mut session = Session::connect(daemon.socket(), options).expect("session");
        let region = Region::new(GPA, MEMORY).expect("memory");
        session.set_mem_table(&[Arc::clone(&region)]).expect("SET_MEM_TABLE");
        let event_idx = session.has(vhost_user_zram_frontend::spec::feature::EVENT_IDX);
        let queue = Queue::new(0, &region, SIZE, event_idx).expect("queue");
        session.start(&queue).expect("start");
        let alloc = |len| region.alloc(len, 4096).expect("alloc");
        let (header, data, status, table) = (alloc(4096), alloc(65536), alloc(4096), alloc(65536));
        Self { session, queue, header, data, status, table, region, preset: 0 }
    }

    /// The same, with status bytes in which a success can be seen.
    pub fn unwritten(mut self) -> Self {
        self.preset = UNWRITTEN;
        self
    }

    /// Writes the request header.
    pub fn set_header(&self, op: u32, sector: u64) {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..4].copy_from_slice(&op.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.region.write(self.header, &bytes).expect("header");
    }

    /// Descriptor of the header.
    pub fn header_desc(&self) -> Desc {
        Desc::readable(self.header, HEADER_LEN)
    }

    /// Descriptor of the status byte.
    pub fn status_desc(&self) -> Desc {
        Desc::writable(self.status, 1)
    }

    /// Writes descriptors into the ring's table from index 0, as they are.
    pub fn set_descs(&self, descs: &[Desc]) {
        for (i, desc) in descs.iter().enumerate() {
            self.queue.ring().set_desc(i as u16, *desc).expect("descriptor");
        }
    }

    /// Writes descriptors into the ring's table from index 0, each leading to the next.
    pub fn set_chain(&self, descs: &[Desc]) {
        self.set_descs(&linked(descs));
    }

    /// Writes descriptors as an indirect table, each leading to the next; returns its bytes.
    pub fn set_table(&self, descs: &[Desc]) -> u32 {
        for (i, desc) in linked(descs).iter().enumerate() {
            self.region.write(self.table + DESC_LEN * i as u64, &desc.bytes()).expect("table");
        }
        descs.len() as u32 * DESC_LEN as u32
    }

    /// Offers the chain that begins at `head` and waits for what becomes of it.
    pub fn offer(&mut self, head: u16) -> Outcome {
        self.region.write(self.status, &[self.preset]).expect("status");
        self.queue.push(head).expect("push");
        self.queue.publish().expect("publish");
        self.queue.kick().expect("kick");
        self.outcome(u32::from(head))
    }

    /// A whole request: header, descriptors and what becomes of it.
    pub fn request(&mut self, op: u32, sector: u64, descs: &[Desc]) -> Outcome {
        self.set_header(op, sector);
        self.set_chain(descs);
        self.offer(0)
    }

    /// Waits until the chain at `head` comes back or the queue is stopped.
    pub fn outcome(&mut self, head: u32) -> Outcome {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(used) = self.queue.pop().expect("used ring") {
                assert_eq!(used.id, head, "another chain came back");
                let status = self.region.read_vec(self.status, 1).expect("status")[0];
                return Outcome::Used { len: used.len, status: Status::from(status) };
            }
            if self.queue.err_event().take() > 0 || self.is_closed() {
                return Outcome::Stopped;
            }
            assert!(Instant::now() < deadline, "the chain was forgotten");
            match self.queue.wait_used(Duration::from_millis(5)) {
                Ok(()) | Err(Error::Timeout { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Whether the daemon has closed the session.
    pub fn is_closed(&self) -> bool {
        matches!(self.session.wire().wait_closed(Duration::ZERO), Ok(()))
    }
}

/// The same descriptors, each leading to the next.
pub fn linked(descs: &[Desc]) -> Vec<Desc> {
    let last = descs.len().saturating_sub(1);
    let link = |(i, desc): (usize, &Desc)| if i < last { desc.then(i as u16 + 1) } else { *desc };
    descs.iter().enumerate().map(link).collect()
}
