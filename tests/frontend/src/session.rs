//! One vhost-user connection: negotiation, configuration space, memory, rings.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{
            VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
        },
    },
};

use crate::{
    error::{Error, Result, io_err},
    inflight::Inflight,
    memory::Region,
    queue::{Queue, Wiring},
    ring::Ring,
    spec::{BlkConfig, CONFIG_LEN, CONFIG_WRITEBACK, feature},
    watchdog::Watchdog,
    wire::Wire,
};

/// What a session asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Virtio features to take if offered: bits of [`feature`].
    pub features: u64,
    /// vhost-user protocol features to take if offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Limit for the connection and for each message's answer.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: feature::ALL,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// Takes only the given virtio features (those needed by the session itself come on top).
    pub fn only(features: u64) -> Self {
        Self { features: features | feature::PROTOCOL_FEATURES, ..Self::default() }
    }

    /// Does without the given virtio features.
    pub fn without(features: u64) -> Self {
        Self { features: feature::ALL & !features, ..Self::default() }
    }

    /// Does without in-flight tracking, as front ends do that do not know it.
    #[must_use]
    pub fn untracked(self) -> Self {
        let protocol = self.protocol - VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        Self { protocol, ..self }
    }
}

/// Connects to a vhost-user socket, retrying until a back end accepts or the time is over.
///
/// # Errors
///
/// [`Error::Connect`] with the last refusal.
pub fn connect_socket(path: impl AsRef<Path>, timeout: Duration) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path.as_ref()) {
            Ok(sock) => return Ok(sock),
            Err(source) if start.elapsed() >= timeout => {
                let path = path.as_ref().display().to_string();
                return Err(Error::Connect { path, waited: timeout, source });
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A connection to a back end. Methods send one message each and wait for its answer.
pub struct Session {
    frontend: Frontend,
    wire: Wire,
    watchdog: Watchdog,
    timeout: Duration,
    offered: u64,
    features: u64,
    protocol_offered: VhostUserProtocolFeatures,
    protocol: VhostUserProtocolFeatures,
    regions: Vec<Arc<Region>>,
}

impl Session {
    /// Connects to `path` and negotiates features.
    ///
    /// # Errors
    ///
    /// When no back end accepts, or a message is refused.
    pub fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let sock = connect_socket(path, options.timeout)?;
        Self::from_stream(sock, options)
    }

    /// Negotiates features on a connected socket.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn from_stream(sock: UnixStream, options: &Options) -> Result<Self> {
        let mut session = Self::unnegotiated(sock, options.timeout)?;
        session.negotiate(options)?;
        Ok(session)
    }

    /// Takes a connected socket without saying a word on it.
    ///
    /// # Errors
    ///
    /// When the socket cannot be duplicated.
    pub fn unnegotiated(sock: UnixStream, timeout: Duration) -> Result<Self> {
        let wire = Wire::new(sock.try_clone().map_err(io_err("dup"))?);
        let watchdog = Watchdog::new(sock.try_clone().map_err(io_err("dup"))?);
        Ok(Self {
            // No limit on the queue index here: whether a wrong one is refused is for the back end to show.
            frontend: Frontend::from_stream(sock, u64::MAX),
            wire,
            watchdog,
            timeout,
            offered: 0,
            features: 0,
            protocol_offered: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            regions: Vec::new(),
        })
    }

    fn call<T>(
        &self,
        what: &'static str,
        message: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        // Clones share one connection; the methods that need `&mut` have no other state.
        let mut frontend = self.frontend.clone();
        match self.watchdog.guard(self.timeout, || message(&mut frontend)) {
            (Ok(value), _) => Ok(value),
            (Err(_), true) => Err(Error::Timeout { what, waited: self.timeout }),
            (Err(source), false) => Err(Error::Vhost { what, source }),
        }
    }

    /// Takes ownership and negotiates features, in QEMU's order.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn negotiate(&mut self, options: &Options) -> Result<()> {
        self.call("SET_OWNER", |f| f.set_owner())?;
        self.offered = self.call("GET_FEATURES", |f| f.get_features())?;
        self.features = self.offered & options.features;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            self.protocol_offered =
                self.call("GET_PROTOCOL_FEATURES", VhostUserFrontend::get_protocol_features)?;
            self.protocol = self.protocol_offered & options.protocol;
            let taken = self.protocol;
            self.call("SET_PROTOCOL_FEATURES", |f| f.set_protocol_features(taken))?;
            if taken.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        self.set_features(self.features)
    }

    /// Sends `SET_FEATURES` with any bits.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.call("SET_FEATURES", |f| f.set_features(features))
    }

    /// Virtio features the back end offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Virtio features taken.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether all the given virtio features are taken.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Protocol features the back end offers.
    pub fn protocol_offered(&self) -> VhostUserProtocolFeatures {
        self.protocol_offered
    }

    /// Protocol features taken.
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Limit for each message's answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same socket without the stock front end, for raw bytes and messages. Every message is
    /// answered before a method here returns, so the two do not mix.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The stock front end on the same socket, without a limit on its waits.
    pub fn frontend(&self) -> Frontend {
        self.frontend.clone()
    }

    /// Number of queues the back end serves.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn queue_num(&self) -> Result<u64> {
        // By hand: the stock front end would take the number for its own limit on indexes.
        self.ask_u64(vhost::vhost_user::message::FrontendReq::GET_QUEUE_NUM)
    }

    fn ask_u64(&self, code: vhost::vhost_user::message::FrontendReq) -> Result<u64> {
        self.wire.send_message(u32::from(code), crate::wire::FLAG_VERSION, &[], &[])?;
        let reply = self.wire.recv_message(self.timeout)?;
        match reply.body.as_slice().try_into() {
            Ok(bytes) if reply.code == u32::from(code) => Ok(u64::from_le_bytes(bytes)),
            _ => Err(Error::BadReply { what: "number", why: format!("{reply:?}") }),
        }
    }

    /// `len` bytes of the configuration space from `offset`.
    ///
    /// # Errors
    ///
    /// When the message is refused, or answered with another length.
    pub fn config(&self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let buf = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.call("GET_CONFIG", |f| f.get_config(offset, len, flags, &buf))?;
        Ok(bytes)
    }

    /// The decoded configuration space.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn blk_config(&self) -> Result<BlkConfig> {
        let bytes = self.config(0, CONFIG_LEN)?;
        let bytes = bytes.as_slice().try_into().map_err(|_| Error::BadReply {
            what: "GET_CONFIG",
            why: format!("{} bytes", bytes.len()),
        })?;
        Ok(BlkConfig::parse(bytes))
    }

    /// Writes `bytes` to the configuration space at `offset`.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.call("SET_CONFIG", |f| f.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes))
    }

    /// Sets the cache mode: true is write-back.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_writeback(&self, on: bool) -> Result<()> {
        self.set_config(CONFIG_WRITEBACK, &[u8::from(on)])
    }

    /// Replaces all memory by one `SET_MEM_TABLE`.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_mem_table(&mut self, regions: &[Arc<Region>]) -> Result<()> {
        let infos: Vec<_> = regions.iter().map(|r| r.info()).collect();
        self.call("SET_MEM_TABLE", |f| f.set_mem_table(&infos))?;
        self.regions = regions.to_vec();
        Ok(())
    }

    /// Number of memory slots the back end has.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn max_mem_slots(&self) -> Result<u64> {
        self.call("GET_MAX_MEM_SLOTS", VhostUserFrontend::get_max_mem_slots)
    }

    /// Adds one region by `ADD_MEM_REG`.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn add_mem_region(&mut self, region: &Arc<Region>) -> Result<()> {
        self.call("ADD_MEM_REG", |f| f.add_mem_region(&region.info()))?;
        self.regions.push(Arc::clone(region));
        Ok(())
    }

    /// Takes one region back by `REM_MEM_REG`.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn remove_mem_region(&mut self, region: &Arc<Region>) -> Result<()> {
        self.call("REM_MEM_REG", |f| f.remove_mem_region(&region.info()))?;
        self.regions.retain(|r| !Arc::ptr_eq(r, region));
        Ok(())
    }

    /// Regions the back end has been told of, as far as this session knows.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Sends size, base, addresses and the three descriptors of a queue, without enabling it.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn set_up(&self, queue: &Queue, base: u16) -> Result<()> {
        self.wire_up(queue.wiring(), base)
    }

    /// The same for a queue that is in use elsewhere.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn wire_up(&self, queue: &Wiring, base: u16) -> Result<()> {
        let index = queue.index();
        self.call("SET_VRING_NUM", |f| f.set_vring_num(index, queue.ring().size()))?;
        self.set_base(index, base)?;
        self.set_addr(index, queue.ring())?;
        self.call("SET_VRING_CALL", |f| f.set_vring_call(index, queue.call_event().fd()))?;
        self.call("SET_VRING_ERR", |f| f.set_vring_err(index, queue.err_event().fd()))?;
        self.call("SET_VRING_KICK", |f| f.set_vring_kick(index, queue.kick_event().fd()))
    }

    /// Has the back end take up queues that an earlier one has left, as QEMU does: the in-flight
    /// region first, then memory, then each ring with its used index for a base, then all enabled.
    /// No kick follows.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn take_up(
        &mut self,
        regions: &[Arc<Region>],
        inflight: Option<&Inflight>,
        queues: &[Wiring],
    ) -> Result<()> {
        if let Some(inflight) = inflight {
            self.give_inflight(inflight)?;
        }
        self.set_mem_table(regions)?;
        for queue in queues {
            self.wire_up(queue, queue.ring().used_idx()?)?;
        }
        queues.iter().try_for_each(|queue| self.enable(queue.index(), true))
    }

    /// Sends `SET_VRING_BASE`: the avail index to continue at.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_base(&self, index: usize, base: u16) -> Result<()> {
        self.call("SET_VRING_BASE", |f| f.set_vring_base(index, base))
    }

    /// Sends `SET_VRING_ADDR` with the user addresses of `ring`.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_addr(&self, index: usize, ring: &Ring) -> Result<()> {
        let (desc, avail, used) = ring.addresses();
        let region = ring.region();
        let config = VringConfigData {
            queue_max_size: ring.size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: region.to_user(desc),
            used_ring_addr: region.to_user(used),
            avail_ring_addr: region.to_user(avail),
            log_addr: None,
        };
        self.call("SET_VRING_ADDR", |f| f.set_vring_addr(index, &config))
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn enable(&self, index: usize, on: bool) -> Result<()> {
        self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(index, on))
    }

    /// Sets up and enables a queue, continuing at what was pushed and not yet used.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn start(&self, queue: &Queue) -> Result<()> {
        self.set_up(queue, queue.used_idx())?;
        self.enable(queue.index(), true)
    }

    /// Stops a ring by `GET_VRING_BASE` and returns the avail index it stands at.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn stop(&self, index: usize) -> Result<u16> {
        let base = self.call("GET_VRING_BASE", |f| f.get_vring_base(index))?;
        u16::try_from(base).map_err(|_| Error::BadReply {
            what: "GET_VRING_BASE",
            why: format!("index {base} of a split ring"),
        })
    }

    /// Asks the back end for an in-flight region.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn get_inflight(
        &self,
        num_queues: u16,
        queue_size: u16,
    ) -> Result<(VhostUserInflight, File)> {
        let want = VhostUserInflight { num_queues, queue_size, ..Default::default() };
        self.call("GET_INFLIGHT_FD", |f| f.get_inflight_fd(&want))
    }

    /// Gives the back end an in-flight region.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_inflight(&self, inflight: &VhostUserInflight, fd: RawFd) -> Result<()> {
        self.call("SET_INFLIGHT_FD", |f| f.set_inflight_fd(inflight, fd))
    }

    /// Asks the back end for an in-flight region and maps it; `None` when tracking is not negotiated.
    ///
    /// # Errors
    ///
    /// When the message is refused, or the region cannot be what it says.
    pub fn take_inflight(&self, num_queues: u16, queue_size: u16) -> Result<Option<Inflight>> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let (info, file) = self.get_inflight(num_queues, queue_size)?;
        Inflight::new(info, file).map(Some)
    }

    /// Gives the back end a region that was got from it or from one before it.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn give_inflight(&self, inflight: &Inflight) -> Result<()> {
        self.set_inflight(inflight.info(), inflight.raw_fd())
    }

    /// Hangs up in both directions, as a killed VMM does.
    pub fn hang_up(self) {
        // Already closed by the other side is as good.
        let _ = self.wire.socket().shutdown(std::net::Shutdown::Both);
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.wire.socket().as_raw_fd()
    }
}
