//! A front end that is not ours: the virtio-driver crate, which libblkio is built on.
#![allow(unsafe_code)]

mod common;

use std::{fs::File, os::fd::AsRawFd, sync::Arc};

use common::{daemon::Daemon, disk::pattern, wait_until};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

/// Bytes of the buffer that requests use.
const BUFFER: usize = 1 << 20;

/// The foreign driver, its queues, and a buffer that the daemon can reach.
struct Driver {
    queues: Vec<VirtioBlkQueue<'static, u32>>,
    doorbells: Vec<(Box<dyn QueueNotifier>, Arc<EventFd>)>,
    buffer: MmapRegion,
    // After the queues, which lie in its memory.
    transport: Box<VirtioBlkTransport>,
}

impl Driver {
    fn connect(daemon: &Daemon, queues: usize) -> Self {
        let features = VirtioBlkFeatureFlags::all().bits() | VirtioFeatureFlags::VERSION_1.bits();
        let path = daemon.socket();
        let transport = VhostUser::new(path.to_str().expect("UTF-8"), features);
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport.expect("negotiation"));
        let file = File::from(memfd_create("buffer", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.set_len(BUFFER as u64).expect("size");
        let fd = file.as_raw_fd();
        let offset = FileOffset::new(file.try_clone().expect("dup"), 0);
        let buffer = MmapRegion::from_file(offset, BUFFER).expect("mapping");
        transport.map_mem_region(buffer.as_ptr() as usize, BUFFER, fd, 0).expect("a region");
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, 128).expect("queues");
        let doorbells = (0..queues.len())
            .map(|n| (transport.get_submission_notifier(n), transport.get_completion_fd(n)))
            .collect();
        Self { queues, doorbells, buffer, transport }
    }

    /// A part of the buffer. The daemon writes to it only while a request that names it is out.
    fn part(&self, offset: usize, len: usize) -> &'static mut [u8] {
        assert!(offset + len <= BUFFER);
        let start = self.buffer.as_ptr().wrapping_add(offset);
        // SAFETY: within the mapping, which lives as long as the test; a test uses each part for
        // one request at a time, and checks it when that is completed.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Tells the daemon of what was queued, and waits for `count` completions without an error.
    fn complete(&mut self, queue: usize, count: usize) -> Vec<u32> {
        self.doorbells[queue].0.notify().expect("a kick");
        let mut done = Vec::new();
        let queue = &mut self.queues[queue];
        wait_until("the completions", || {
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0, "request {}", completion.context);
                done.push(completion.context);
            }
            done.len() == count
        });
        done.sort_unstable();
        done
    }
}

#[test]
fn a_foreign_front_end_reads_what_it_wrote_on_every_queue() {
    let daemon = Daemon::start("64M", &["--num-queues", "2"]);
    let mut driver = Driver::connect(&daemon, 2);
    let config = driver.transport.get_config().expect("configuration");
    assert_eq!(config.capacity.to_native(), (64 << 20) / 512);
    for round in 1..=20 {
        for queue in 0..2 {
            let base = (queue as u64 * 40 + round * 100) * 8;
            for n in 0..16 {
                let data = driver.part(n * 8192, 8192);
                data.copy_from_slice(&pattern(base + n as u64 * 16, 16, round));
                let at = (base + n as u64 * 16) * 512;
                driver.queues[queue].write(at, data, n as u32).expect("a write");
            }
            assert_eq!(driver.complete(queue, 16), (0..16).collect::<Vec<_>>());
            let data = driver.part(BUFFER / 2, 16 * 8192);
            data.fill(0xee);
            driver.queues[1 - queue].read(base * 512, data, 7).expect("a read");
            assert_eq!(driver.complete(1 - queue, 1), [7]);
            assert!(data == pattern(base, 256, round), "queue {queue}, round {round}");
        }
    }
}

#[test]
fn a_foreign_front_end_discards_zeroes_and_flushes() {
    let mut daemon = Daemon::start("16M", &[]);
    let mut driver = Driver::connect(&daemon, 1);
    let data = driver.part(0, BUFFER / 2);
    data.copy_from_slice(&pattern(0, BUFFER / 1024, 1));
    driver.queues[0].write(0, data, 1).expect("a write");
    driver.complete(0, 1);
    driver.queues[0].discard(4096, 8192, 2).expect("a discard");
    driver.queues[0].write_zeroes(65536, 4096, true, 3).expect("zeroes");
    driver.queues[0].write_zeroes(69632, 512, false, 4).expect("zeroes");
    driver.queues[0].flush(5).expect("a flush");
    assert_eq!(driver.complete(0, 4), [2, 3, 4, 5]);
    let mut expected = pattern(0, BUFFER / 1024, 1);
    expected[4096..12288].fill(0);
    expected[65536..70144].fill(0);
    let back = driver.part(BUFFER / 2, BUFFER / 2);
    driver.queues[0].read(0, back, 6).expect("a read");
    driver.complete(0, 1);
    assert!(*back == expected);
    let stats = daemon.stats();
    assert_eq!((stats["discards"], stats["write_zeroes"], stats["flushes"]), (1, 2, 1));
    assert_eq!(stats["notify_free"], 3);
}
