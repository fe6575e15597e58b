//! A disk client in one call: session, memory, queues; and helpers that do one thing and wait.

use std::{os::unix::net::UnixStream, path::Path, sync::Arc};

use crate::{
    blk::{Blk, Completion, Op, Shape, Status},
    error::{Error, Result},
    inflight::Inflight,
    memory::Region,
    queue::{Queue, Wiring},
    session::{Options, Session, connect_socket},
    spec::{ID_LEN, SECTOR, feature},
};

/// How a [`Client`] is made.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// What the session asks for.
    pub session: Options,
    /// Number of queues to start.
    pub queues: usize,
    /// Entries of each ring, a power of two.
    pub queue_size: u16,
    /// Entries that an in-flight region is asked for, if not those of the rings: QEMU does so over
    /// virtio-mmio.
    pub inflight_size: Option<u16>,
    /// Request slots of each queue.
    pub depth: u16,
    /// Bytes of each slot's buffer.
    pub max_bytes: u32,
    /// Bytes of guest memory on top of what rings, slots and buffers need.
    pub spare_memory: u64,
    /// Guest-physical address of the memory.
    pub gpa: u64,
    /// Whether memory is announced by `ADD_MEM_REG` and not by `SET_MEM_TABLE`.
    pub mem_slots: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            session: Options::default(),
            queues: 1,
            queue_size: 128,
            inflight_size: None,
            depth: 32,
            max_bytes: 256 << 10,
            spare_memory: 1 << 20,
            gpa: 0x4000_0000,
            mem_slots: false,
        }
    }
}

/// A connected disk with running queues.
pub struct Client {
    /// The connection.
    pub session: Session,
    /// Guest memory.
    pub region: Arc<Region>,
    /// One disk per queue; may be moved to other threads.
    pub queues: Vec<Blk>,
    /// What the back end has taken and not given back, if that is tracked.
    pub inflight: Option<Inflight>,
    /// All queues as the back end knows them, wherever they are.
    wirings: Vec<Wiring>,
    options: Options,
}

impl Client {
    /// Connects to `path` and starts the queues.
    ///
    /// # Errors
    ///
    /// When no back end accepts, or a message is refused.
    pub fn connect(path: impl AsRef<Path>, options: &ClientOptions) -> Result<Self> {
        let sock = connect_socket(path, options.session.timeout)?;
        Self::from_stream(sock, options)
    }

    /// Starts the queues on a connected socket.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn from_stream(sock: UnixStream, options: &ClientOptions) -> Result<Self> {
        let mut session = Session::from_stream(sock, &options.session)?;
        // Before memory and rings, as QEMU does.
        let inflight = match options.queues as u16 {
            0 => None,
            queues => {
                let size = options.inflight_size.unwrap_or(options.queue_size);
                session.take_inflight(queues, size)?
            }
        };
        inflight.iter().try_for_each(|inflight| session.give_inflight(inflight))?;
        let region = Region::new(options.gpa, memory_needed(options))?;
        if options.mem_slots {
            session.add_mem_region(&region)?;
        } else {
            session.set_mem_table(std::slice::from_ref(&region))?;
        }
        let queues = (0..options.queues)
            .map(|index| {
                let event_idx = session.has(feature::EVENT_IDX);
                let queue = Queue::new(index, &region, options.queue_size, event_idx)?;
                let indirect = session.has(feature::INDIRECT);
                let blk = Blk::new(queue, options.depth, options.max_bytes, indirect)?;
                session.start(blk.queue())?;
                Ok(blk)
            })
            .collect::<Result<Vec<_>>>()?;
        let wirings = queues.iter().map(|blk| blk.queue().wiring().clone()).collect();
        let options = options.session.clone();
        Ok(Self { session, region, queues, inflight, wirings, options })
    }

    /// Continues with another back end on the same disk, as QEMU does when the one before has died:
    /// with the same memory, rings, events and in-flight region, and with all that was submitted
    /// still to be reaped. Signals that were on their way are lost and no kick comes, so the back end
    /// has to look for itself. The queues may be in use by other threads meanwhile.
    ///
    /// # Errors
    ///
    /// When no back end accepts in time, or a message is refused. It may be retried.
    pub fn reconnect(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let sock = connect_socket(path, self.options.timeout)?;
        self.reconnect_stream(sock)
    }

    /// The same on a connected socket.
    ///
    /// # Errors
    ///
    /// When a message is refused. It may be tried again.
    pub fn reconnect_stream(&mut self, sock: UnixStream) -> Result<()> {
        // The old socket is closed first: a back end that is alive serves one front end at a time.
        let _ = self.session.wire().socket().shutdown(std::net::Shutdown::Both);
        self.wirings.iter().for_each(Wiring::silence);
        let mut session = Session::from_stream(sock, &self.options)?;
        let regions = [Arc::clone(&self.region)];
        session.take_up(&regions, self.inflight.as_ref(), &self.wirings)?;
        self.session = session;
        Ok(())
    }

    /// Number of requests of all queues that the in-flight region shows in flight, and of those that
    /// were completed though one taken before them is in flight.
    pub fn left_behind(&self) -> (usize, usize) {
        let Some(inflight) = &self.inflight else { return (0, 0) };
        let queues = self.wirings.iter().map(Wiring::index);
        queues.fold((0, 0), |(taken, later), queue| {
            let (now, done) = (inflight.in_flight(queue), inflight.completed_out_of_order(queue));
            (taken + now.len(), later + done.len())
        })
    }

    /// The disk through queue 0.
    ///
    /// # Panics
    ///
    /// When the client was made without queues, or they were moved away.
    pub fn blk(&mut self) -> &mut Blk {
        &mut self.queues[0]
    }

    /// Size of the disk in bytes.
    ///
    /// # Errors
    ///
    /// When the configuration space cannot be read.
    pub fn capacity(&self) -> Result<u64> {
        Ok(self.session.blk_config()?.capacity * SECTOR)
    }
}

fn memory_needed(options: &ClientOptions) -> u64 {
    let size = u64::from(options.queue_size);
    let ring = (16 * size).next_multiple_of(4096)
        + (6 + 2 * size).next_multiple_of(4096)
        + (6 + 8 * size).next_multiple_of(4096);
    let slot = 64 + 16 * size + 3 * 4096 + u64::from(options.max_bytes).next_multiple_of(4096);
    let queue = ring + u64::from(options.depth) * slot + 4 * 4096;
    (options.queues as u64 * queue + options.spare_memory).next_multiple_of(2 << 20)
}

impl Blk {
    /// Reads into `data` from `sector` (units of 512 bytes), in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when a request fails.
    pub fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<()> {
        let step = self.step();
        for (i, chunk) in data.chunks_mut(step).enumerate() {
            let sector = sector + (i * step) as u64 / SECTOR;
            let done = self.run(Op::In, sector, chunk.len() as u32, &Shape::default())?;
            expect_ok(&done, chunk.len() as u32 + 1)?;
            let buffer = self.buffer(done.tag);
            self.region().read(buffer, chunk)?;
        }
        Ok(())
    }

    /// Reads `len` bytes from `sector` into a new vector.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when a request fails.
    pub fn read_vec(&mut self, sector: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.read(sector, &mut data)?;
        Ok(data)
    }

    /// Writes `data` at `sector` (units of 512 bytes), in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when a request fails.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        let step = self.step();
        for (i, chunk) in data.chunks(step).enumerate() {
            let sector = sector + (i * step) as u64 / SECTOR;
            expect_ok(&self.run_with(Op::Out, sector, chunk)?, 1)?;
        }
        Ok(())
    }

    /// Runs one request alone whose device-readable data is `data`.
    ///
    /// # Errors
    ///
    /// When it does not come back in time.
    pub fn run_with(&mut self, op: Op, sector: u64, data: &[u8]) -> Result<Completion> {
        self.run_with_shape(op, sector, data, &Shape::default())
    }

    /// The same, its bytes cut into descriptors as `shape` says.
    ///
    /// # Errors
    ///
    /// When it does not come back in time.
    pub fn run_with_shape(
        &mut self,
        op: Op,
        sector: u64,
        data: &[u8],
        shape: &Shape,
    ) -> Result<Completion> {
        // The slot that `run` will acquire is the one given back last.
        let tag = self.acquire().ok_or(Error::Full("slots"))?;
        let filled = self.region().write(self.buffer(tag), data);
        self.release(tag);
        filled?;
        self.run(op, sector, data.len() as u32, shape)
    }

    /// Discards `sectors` sectors from `sector`.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it fails.
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<()> {
        let done = self.run_with(Op::Discard, 0, &range(sector, sectors, 0))?;
        expect_ok(&done, 1)
    }

    /// Writes zeroes to `sectors` sectors from `sector`; `unmap` allows the space to be freed.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it fails.
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, unmap: bool) -> Result<()> {
        let data = range(sector, sectors, u32::from(unmap));
        expect_ok(&self.run_with(Op::WriteZeroes, 0, &data)?, 1)
    }

    /// Flushes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it fails.
    pub fn flush(&mut self) -> Result<()> {
        expect_ok(&self.run(Op::Flush, 0, 0, &Shape::default())?, 1)
    }

    /// The serial, padded with zeroes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it fails.
    pub fn get_id(&mut self) -> Result<[u8; ID_LEN]> {
        let done = self.run(Op::GetId, 0, ID_LEN as u32, &Shape::default())?;
        expect_ok(&done, ID_LEN as u32 + 1)?;
        let mut id = [0; ID_LEN];
        self.region().read(self.buffer(done.tag), &mut id)?;
        Ok(id)
    }

    fn step(&self) -> usize {
        self.max_bytes() as usize / SECTOR as usize * SECTOR as usize
    }
}

/// One segment of a discard or write-zeroes request.
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn expect_ok(done: &Completion, used_len: u32) -> Result<()> {
    if done.status == Status::Ok && done.used_len == used_len {
        Ok(())
    } else {
        let Completion { op, sector, status, used_len, .. } = *done;
        Err(Error::Request { op: op.name(), sector, status, used_len })
    }
}
