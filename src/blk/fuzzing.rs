//! Entry point of the fuzz target `virtqueue`: everything that a guest can send.

use std::time::Duration;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::blk::config::GuestOptions;
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Mailbox;
use crate::blk::queue::{QueueServer, Shared, Turn, Vring};
use crate::codec::CodecSpec;
use crate::device::{BlockChoice, Device, DeviceConfig, MemoryKind};
use crate::engine::{EngineConfig, Policy};
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::memory::for_tests;

/// Bytes of the fuzzed guest's memory, which the input fills from the start on.
const MEMORY: u64 = 64 * 1024;
/// Where its rings lie: inside of what the input fills.
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;
const SIZE: u16 = 16;

pub(crate) static DEVICE: LazyLock<Arc<Device>> = LazyLock::new(|| {
    let (codec, memory) = (CodecSpec::default(), MemoryKind::default());
    let config = DeviceConfig {
        size: 1 << 20,
        block_size: BlockChoice::default(),
        codec,
        mem_limit: 0,
        memory,
        access_times: false,
        // On a machine where a page's work is measured as slow, the engine's workers would take it, and the
        // drain below would meet requests that wait for a thread.
        engine: EngineConfig { policy: Policy::Inline, ..EngineConfig::default() },
    };
    Arc::new(Device::new(&config).expect("a small disk"))
});

pub(crate) fn options() -> GuestOptions {
    GuestOptions {
        num_queues: 2,
        max_queue_size: 64,
        threads: 1,
        serial: "fuzz".into(),
        read_only: false,
        stall_limits: StallLimits::default(),
        poll: Duration::ZERO,
        latency: false,
    }
}

/// Serves a virtqueue whose descriptors, rings and requests are the input's bytes.
///
/// The server must not panic, wait for ever or lose a request, and must write to the used ring only inside
/// it. Each request that was taken is answered with a status (which `ring` asserts for each used element),
/// and a queue that cannot continue reports that once.
pub fn virtqueue(input: &[u8]) {
    let map = for_tests(0, MEMORY);
    let memory = map.shared();
    let length = input.len().min(MEMORY as usize);
    memory.memory().write_slice(&input[..length], GuestAddress(0)).expect("within memory");
    let event_idx = input.first().is_some_and(|byte| byte & 1 == 1);
    let shared = Shared {
        device: Arc::clone(&DEVICE),
        memory: memory.clone(),
        options: options(),
        log: Arc::default(),
        throttle: Default::default(),
        parked: Default::default(),
        seen: Default::default(),
        announced: Default::default(),
    };
    let vring = Vring::new(memory.clone(), 64).expect("a valid size");
    vring.set_queue_size(SIZE);
    vring.set_queue_info(0, AVAIL, USED).expect("aligned");
    vring.set_queue_event_idx(event_idx);
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    let mailbox = Mailbox::new().expect("an eventfd");
    let mut context = shared.device.worker_context().expect("a context");
    let mut server =
        QueueServer::new(0, vring.clone(), &shared, Arc::clone(&mailbox), Arc::default());
    let error_event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let told = File::from(error_event.as_fd().try_clone_to_owned().expect("a descriptor"));
    server.start(Some(told), InflightLog::default());
    // The ring's own rule bounds the heads to its size; a few turns are more than enough.
    for _ in 0..64 {
        if server.serve(&mut context) == Turn::Idle {
            break;
        }
    }
    server.stop();
    // No other task holds a slot, so requests wait only for their turn.
    let (mut commands, mut woken) = (Vec::new(), Vec::new());
    while !server.is_drained() {
        mailbox.take(&mut commands, &mut woken);
        woken.drain(..).for_each(|(_, head)| server.wake(head));
        assert!(server.has_woken(), "a request was forgotten");
        server.resume_woken(&mut context);
    }
    let state = vring.get_ref();
    let (taken, used) = (state.get_queue().next_avail(), state.get_queue().next_used());
    assert!(used <= SIZE, "{used} requests of a ring of {SIZE}");
    assert_eq!(taken, used, "a request that was taken is not in the used ring");
    let signals = error_event.read().unwrap_or(0);
    assert_eq!(signals, u64::from(server.is_broken()), "a queue that breaks says so once");
}
