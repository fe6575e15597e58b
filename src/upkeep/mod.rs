//! Background work of a disk: gives memory back to the host, and watches what the host has.
//!
//! One thread, which sleeps without a timer as long as nothing changes: an idle disk costs nothing.

mod host;

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use self::host::{Host, default_reserve};
use crate::checker;
use crate::device::{Compaction, Compactor, Device, Effort};
use crate::engine;
use crate::sync;

/// From a change to the work that it makes: what is freed in between is worked off in one go.
const SETTLE: Duration = Duration::from_millis(200);

/// Longest time between two looks at something that could not be had yet.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The upkeep thread of one disk. Dropping it ends the thread.
pub struct Upkeep {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    woken: bool,
    /// Who wants everything compacted now, and is told when that is done.
    wanted: Vec<Told>,
}

/// What is called with the result of a compaction.
type Told = Box<dyn FnOnce(Compaction) + Send>;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wakened {
    Stopped,
    /// Something was stored or freed.
    Rung,
    TimeOut,
}

impl Upkeep {
    /// Starts the thread. What the host has is looked at before this returns, so the first write
    /// is refused already if there is less than the reserve.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(device: Arc<Device>, host: Host) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        device.watch_host(move || host.spare());
        device.set_upkeep_waker(Waker::from(Arc::clone(&shared)));
        let its_shared = Arc::clone(&shared);
        let body = move || run(&its_shared, &device);
        let thread = thread::Builder::new().name("upkeep".into()).spawn(body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has all there is compacted, and calls `told` when that is done; not at all if upkeep ends
    /// before.
    pub fn compact(&self, told: impl FnOnce(Compaction) + Send + 'static) {
        let mut state = sync::lock(&self.shared.state);
        state.wanted.push(Box::new(told));
        state.woken = true;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        sync::lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the upkeep thread had died");
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        sync::lock(&self.state).woken = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// Sleeps until something is to be done; without a time limit if there is none.
    fn wait(&self, limit: Option<Duration>) -> Wakened {
        let idle = |state: &mut State| !state.stopped && !state.woken;
        let state = sync::lock(&self.state);
        let mut state = match limit {
            None => self
                .changed
                .wait_while(state, idle)
                .unwrap_or_else(std::sync::PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(state, limit, idle);
                waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
        };
        match (state.stopped, std::mem::take(&mut state.woken)) {
            (true, _) => Wakened::Stopped,
            (false, true) => Wakened::Rung,
            (false, false) => Wakened::TimeOut,
        }
    }

    /// Sleeps this long, unless the thread is to end or somebody wants something now.
    fn settle(&self, time: Duration) {
        let state = sync::lock(&self.state);
        let idle = |state: &mut State| !state.stopped && state.wanted.is_empty();
        drop(self.changed.wait_timeout_while(state, time, idle));
    }

    fn is_stopped(&self) -> bool {
        sync::lock(&self.state).stopped
    }
}

fn run(shared: &Shared, device: &Device) {
    engine::settle(&engine::Cpus::default());
    let mut compactor = Compactor::default();
    let mut pause = None;
    loop {
        checker::may_not_hold("upkeep sleeps");
        let wakened = shared.wait(pause);
        device.answer();
        device.look_at_host();
        if wakened == Wakened::Rung {
            shared.settle(SETTLE);
        }
        if shared.is_stopped() {
            return;
        }
        let mut looked = Instant::now();
        let go_on = || {
            // A large disk takes its time, and meanwhile the host's memory changes.
            if looked.elapsed() >= SETTLE {
                looked = Instant::now();
                device.look_at_host();
            }
            !shared.is_stopped()
        };
        let wanted = std::mem::take(&mut sync::lock(&shared.state).wanted);
        let effort = if wanted.is_empty() { Effort::Upkeep } else { Effort::Full };
        let done = device.compact(&mut compactor, effort, go_on);
        if done.pages > 0 {
            log::debug!("{} pages given back, {} objects moved", done.pages, done.moves);
        }
        let progress = wakened == Wakened::Rung || done.pages + done.moves > 0;
        // What was wanted says nothing of what is left to upkeep.
        let more = done.more || !wanted.is_empty();
        wanted.into_iter().for_each(|told| told(done));
        pause = match pause {
            _ if !more => None,
            // Objects in use can keep a page for as long as they are: no reason to spin.
            Some(last) if !progress => Some((last * 2).min(LONGEST_PAUSE)),
            _ => Some(SETTLE),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::device::{BlockChoice, DeviceConfig, Lane, MemoryKind, Op, Payload, PayloadFault};
    use crate::engine::EngineConfig;
    use crate::units::{PAGE_SIZE, SECTORS_PER_PAGE};

    /// Bytes that do not compress, different for each page.
    struct Noise(u64);

    impl Payload for Noise {
        fn fetch(&mut self, _: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
            for piece in into.chunks_exact_mut(8) {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                piece.copy_from_slice(&(self.0 ^ self.0 >> 29).to_le_bytes());
            }
            Ok(())
        }

        fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
            Err(PayloadFault)
        }
    }

    fn request(device: &Device, lane: &mut Lane, op: Op, page: u64, pages: u64) -> bool {
        let sector = page * SECTORS_PER_PAGE;
        let bytes = pages * PAGE_SIZE as u64;
        let mut io = device.request(op, sector, bytes, Noise(page + 1)).unwrap();
        sync::block_on(|cx| io.poll(lane, cx)).is_ok()
    }

    fn device() -> Arc<Device> {
        let codec = "lz4".parse().unwrap();
        let memory = MemoryKind::default();
        let config = DeviceConfig {
            size: 64 << 20,
            block_size: BlockChoice::default(),
            codec,
            mem_limit: 0,
            memory,
            engine: EngineConfig::default(),
        };
        Arc::new(Device::new(&config).unwrap())
    }

    #[test]
    fn memory_goes_back_to_the_host_by_itself() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::unlimited()).unwrap();
        let mut lane = device.lane().unwrap();
        for page in 0..4096 {
            assert!(request(&device, &mut lane, Op::Write, page, 1));
        }
        assert!(device.report().mem_used_total > 4096 * 4096);
        assert!(request(&device, &mut lane, Op::Discard, 0, 4096));
        let began = Instant::now();
        while device.report().mem_used_total > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "the memory does not come back");
            thread::sleep(Duration::from_millis(10));
        }
        drop(upkeep);
    }

    #[test]
    fn compaction_is_done_when_it_is_wanted() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::unlimited()).unwrap();
        let (told, done) = std::sync::mpsc::channel();
        upkeep.compact(move |done| told.send(done).unwrap());
        assert_eq!(done.recv().unwrap().pages, 0);
    }

    /// Also on a disk where nothing happens meanwhile: who is refused has looked first.
    #[test]
    fn a_host_that_has_memory_again_gets_writes_again() {
        let device = device();
        let spare = Arc::new(AtomicU64::new(0));
        let its_spare = Arc::clone(&spare);
        device.watch_host(move || Some(its_spare.load(Ordering::Relaxed)));
        let mut lane = device.lane().unwrap();
        assert!(!request(&device, &mut lane, Op::Write, 0, 1));
        spare.store(1 << 20, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(60));
        assert!(request(&device, &mut lane, Op::Write, 0, 1));
        spare.store(0, Ordering::Relaxed);
        device.look_at_host();
        let refused = (1..64).filter(|page| !request(&device, &mut lane, Op::Write, *page, 1));
        assert!(refused.count() > 50);
    }

    #[test]
    fn a_host_without_memory_to_spare_gets_no_writes() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::new(u64::MAX)).unwrap();
        let mut lane = device.lane().unwrap();
        assert!(!request(&device, &mut lane, Op::Write, 0, 1));
        assert!(request(&device, &mut lane, Op::Discard, 0, 1));
        assert_eq!(device.report().failed_writes, 1);
        assert_eq!(device.report().mem_used_total, 0);
        drop(upkeep);
    }
}
