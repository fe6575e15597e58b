//! A back end that completes every request and touches no data: what is measured against it is the
//! generator and the way of a request, nothing else.
//!
//! It polls its rings for a while before it sleeps. Else it would be asleep again before a client that
//! has one request in flight sends the next, each would pay for a wake-up, and a back end that takes two
//! microseconds for a request, and so is still awake, would be faster than none.

use std::{
    hint, io,
    path::Path,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use vhost::vhost_user::{Listener, message::VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use vhost_user_zram_frontend::spec::{SECTOR, feature};
use virtio_queue::{QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

/// How long a ring is polled after the last request.
const AWAKE: Duration = Duration::from_micros(50);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

struct Null {
    queues: usize,
    capacity: u64,
    memory: RwLock<Option<Memory>>,
}

impl VhostUserBackend for Null {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
            | feature::PROTOCOL_FEATURES
            | feature::INDIRECT
            | feature::EVENT_IDX
            | feature::MQ
            | feature::FLUSH
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = (self.capacity / SECTOR).to_le_bytes().to_vec();
        config.resize((offset + size) as usize, 0);
        config.split_off(offset as usize)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.write().map_err(|_| io::Error::other("poisoned"))? = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues).map(|i| 1 << i).collect()
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _: EventSet,
        vrings: &[VringMutex],
        _: usize,
    ) -> io::Result<()> {
        let memory = self.memory.read().map_err(|_| io::Error::other("poisoned"))?;
        let (Some(memory), Some(vring)) = (memory.as_ref(), vrings.get(usize::from(event))) else {
            return Ok(());
        };
        let memory = memory.memory();
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            let mut last = Instant::now();
            while last.elapsed() < AWAKE {
                if complete_all(vring, &memory).map_err(io::Error::other)? {
                    last = Instant::now();
                } else {
                    hint::spin_loop();
                }
            }
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

/// Completes everything in the avail ring, with one interrupt for all; whether there was anything.
fn complete_all(vring: &VringMutex, memory: &GuestMemoryMmap) -> Result<bool, virtio_queue::Error> {
    let mut state = vring.get_mut();
    let mut any = false;
    loop {
        let queue = state.get_queue_mut();
        let Some(chain) = queue.iter(memory)?.next() else { break };
        let head = chain.head_index();
        let mut len = 0;
        let mut status = None;
        for desc in chain.filter(Descriptor::is_write_only) {
            len += desc.len();
            status = Some(desc.addr().0 + u64::from(desc.len()).saturating_sub(1));
        }
        if let Some(status) = status {
            // A status that cannot be written is the driver's mistake; the chain still comes back.
            let _ = memory.write_obj(0_u8, vm_memory::GuestAddress(status));
        }
        queue.add_used(memory, head, len)?;
        any = true;
    }
    if any && state.needs_notification()? {
        // Without a call descriptor the driver polls.
        let _ = state.signal_used_queue();
    }
    Ok(any)
}

/// Serves connections on a socket at `path`, one after the other, until the process is killed.
///
/// # Errors
///
/// When the socket cannot be made.
pub fn serve(path: &Path, queues: usize, capacity: u64) -> io::Result<()> {
    let mut listener = Listener::new(path, true).map_err(io::Error::other)?;
    loop {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let null = Arc::new(Null { queues, capacity, memory: RwLock::new(None) });
        let mut daemon = VhostUserDaemon::new("null".into(), null, memory).map_err(other)?;
        daemon.start(&mut listener).map_err(other)?;
        // A hang-up is the normal end of a connection, and so is a broken one here.
        let _ = daemon.wait();
    }
}

fn other(error: vhost_user_backend::Error) -> io::Error {
    // That enum is not a `std::error::Error`.
    io::Error::other(error.to_string())
}
