//! Background work of a disk: gives memory back to the host, and watches what the host has.
//!
//! One thread, which sleeps without a timer as long as nothing changes: an idle disk costs nothing.

mod host;
mod jobs;
mod pressure;
mod recompress;

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::host::Host;
use self::jobs::Job;
pub use self::jobs::{JobKind, JobReport, JobState, Jobs};
use self::pressure::Pressure;
use self::recompress::Recompressor;
pub use self::recompress::{RecompressEnd, RecompressRefused};
use crate::checker;
use crate::device::{Compaction, Compactor, Device, Effort, Wanted as Recompress};
use crate::engine;
use crate::{sync, threads};

/// From a change to the work that it makes: what is freed in between is worked off in one go.
const DELAY: Duration = Duration::from_millis(200);

/// Longest time between two tries for something that was not available yet.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The upkeep thread of one disk. Dropping it ends the thread.
pub struct Upkeep {
    shared: Arc<Shared>,
    jobs: Arc<Jobs>,
    device: Arc<Device>,
    host: Arc<Host>,
    recompressor: Recompressor,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    signals: Mutex<Signals>,
    changed: Condvar,
}

/// What other threads want of the upkeep thread.
#[derive(Default)]
struct Signals {
    stopped: bool,
    woken: bool,
    /// Everything is to be compacted now.
    wanted: Option<Wanted>,
}

/// What is called with the result of a compaction.
type Told = Box<dyn FnOnce(Compaction) + Send>;

/// A compaction that was asked for.
struct Wanted {
    job: Arc<Job>,
    /// The callers that are told when it is done.
    told: Vec<Told>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wakened {
    Stopped,
    /// Something was stored or freed.
    Rung,
    TimeOut,
}

impl Upkeep {
    /// Starts the thread. What the host has is read before this returns, so the first write
    /// is refused already if there is less than the reserve.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(device: Arc<Device>, host: Arc<Host>) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        if host.is_blind() {
            log::warn!(
                "nothing says how much memory the host has to spare (/proc/meminfo): no reserve is kept (--host-reserve)"
            );
        }
        let watched = Arc::clone(&host);
        device.watch_host(move || watched.spare());
        device.set_upkeep_waker(Waker::from(Arc::clone(&shared)));
        let jobs = Arc::new(Jobs::new(Arc::clone(device.events())));
        let body = {
            let (shared, device, jobs) =
                (Arc::clone(&shared), Arc::clone(&device), Arc::clone(&jobs));
            move || run(&shared, &device, &jobs)
        };
        let thread = threads::spawn("upkeep", body)?;
        let recompressor = Recompressor::default();
        Ok(Self { shared, jobs, device, host, recompressor, thread: Some(thread) })
    }

    /// Has all there is compacted, and calls `told` when that is done; not at all if upkeep ends
    /// before. Returns the number of the job. A compaction that was asked for and has not begun yet is one
    /// with this, so at most two are not over, whatever is asked for.
    pub fn compact(&self, told: impl FnOnce(Compaction) + Send + 'static) -> u64 {
        let mut signals = sync::lock(&self.shared.signals);
        let add = || self.jobs.add(JobKind::Compact);
        let wanted = signals.wanted.get_or_insert_with(|| Wanted { job: add(), told: Vec::new() });
        if wanted.job.is_cancelled() {
            self.jobs.end(&wanted.job, true);
            wanted.job = add();
        }
        wanted.told.push(Box::new(told));
        let id = wanted.job.id();
        signals.woken = true;
        drop(signals);
        self.shared.changed.notify_all();
        id
    }

    /// Has pages compressed again, one such job at a time, and calls `told` at its end, however it ends. Returns
    /// the number of the job.
    ///
    /// # Errors
    /// Another one is under way, or no thread can be started.
    pub fn recompress(
        &self,
        wanted: Recompress,
        told: impl FnOnce(RecompressEnd) + Send + 'static,
    ) -> Result<u64, RecompressRefused> {
        self.recompressor.begin(&self.device, &self.jobs, wanted, told)
    }

    /// Its jobs.
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Changes the memory of the host that is left free, from now on.
    pub fn set_host_reserve(&self, bytes: u64) {
        self.host.set_reserve(bytes);
        self.device.read_host();
        self.device.ring_upkeep();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        sync::lock(&self.shared.signals).stopped = true;
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
        sync::lock(&self.signals).woken = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// Sleeps until something is to be done, or until `limit` is over.
    fn wait(&self, limit: Option<Duration>) -> Wakened {
        let idle = |signals: &mut Signals| !signals.stopped && !signals.woken;
        let signals = sync::lock(&self.signals);
        let mut signals = match limit {
            None => self
                .changed
                .wait_while(signals, idle)
                .unwrap_or_else(std::sync::PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(signals, limit, idle);
                waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
        };
        match (signals.stopped, std::mem::take(&mut signals.woken)) {
            (true, _) => Wakened::Stopped,
            (false, true) => Wakened::Rung,
            (false, false) => Wakened::TimeOut,
        }
    }

    /// Sleeps this long, unless the thread is to end or a caller wants a compaction now.
    fn delay(&self, time: Duration) {
        let signals = sync::lock(&self.signals);
        let idle = |signals: &mut Signals| !signals.stopped && signals.wanted.is_none();
        drop(self.changed.wait_timeout_while(signals, time, idle));
    }

    fn is_stopped(&self) -> bool {
        sync::lock(&self.signals).stopped
    }
}

/// The work of upkeep, round by round, and when each is due. Apart from the thread that waits in
/// between, so that tests go through hours without one.
struct Rounds<'d> {
    device: &'d Device,
    compactor: Compactor,
    /// How long to wait at most before the last round that was due by itself.
    pause: Option<Duration>,
    pressure: Pressure,
}

impl<'d> Rounds<'d> {
    fn new(device: &'d Device) -> Self {
        let (compactor, pressure) = (Compactor::default(), Pressure::default());
        Self { device, compactor, pause: None, pressure }
    }

    /// A wait is over. Returns how long to wait yet before the work.
    fn begin(&mut self, wakened: Wakened) -> Duration {
        self.device.answer();
        self.device.read_host();
        self.pressure.look(self.device);
        if wakened == Wakened::Rung { DELAY } else { Duration::ZERO }
    }

    /// Works: on all there is if that `is_wanted`. Returns what it did, and when the next round is
    /// due; `None` is not before something changes.
    fn work(
        &mut self,
        wakened: Wakened,
        is_wanted: bool,
        go_on: impl FnMut(&Compaction) -> bool,
    ) -> (Compaction, Option<Duration>) {
        let effort = if is_wanted { Effort::Full } else { Effort::Upkeep };
        let done = self.device.compact(&mut self.compactor, effort, go_on);
        if done.pages > 0 {
            log::debug!("{} pages given back, {} objects moved", done.pages, done.moves);
        }
        let progress = wakened == Wakened::Rung || done.pages + done.moves > 0;
        // What was wanted says nothing of what is left to upkeep.
        self.pause = match self.pause {
            _ if !done.more && !is_wanted => None,
            // Objects in use can keep a page for as long as they are: no reason to spin.
            Some(last) if !progress => Some((last * 2).min(LONGEST_PAUSE)),
            _ => Some(DELAY),
        };
        // What went back is for any process that needs it, and not part of what the disk may take.
        if done.pages > 0 {
            self.device.read_host();
        }
        self.pressure.look(self.device);
        if self.pause.is_none() {
            self.device.rest();
        }
        // An idle disk is woken for its ages alone, some times a day, and not at all if it keeps none.
        let pauses = self.pause.into_iter().chain(self.device.keep_ages());
        (done, pauses.min())
    }
}

fn run(shared: &Shared, device: &Device, jobs: &Jobs) {
    engine::run_in_background(&engine::Cpus::default());
    let mut rounds = Rounds::new(device);
    let mut pause = None;
    loop {
        checker::may_not_hold("upkeep sleeps");
        let wakened = shared.wait(pause);
        let delay = rounds.begin(wakened);
        if !delay.is_zero() {
            shared.delay(delay);
        }
        if shared.is_stopped() {
            return;
        }
        let mut checked = Instant::now();
        let wanted = sync::lock(&shared.signals).wanted.take();
        if let Some(Wanted { job, .. }) = &wanted {
            jobs.begin(job);
        }
        let is_cancelled = || wanted.as_ref().is_some_and(|wanted| wanted.job.is_cancelled());
        let go_on = |so_far: &Compaction| {
            // A large disk takes its time, and meanwhile the host's memory changes.
            if checked.elapsed() >= DELAY {
                checked = Instant::now();
                device.read_host();
            }
            if let Some(Wanted { job, .. }) = &wanted {
                job.advance(so_far);
            }
            !shared.is_stopped() && !is_cancelled()
        };
        let (done, next) = rounds.work(wakened, wanted.is_some() && !is_cancelled(), go_on);
        if let Some(Wanted { job, told }) = wanted {
            job.advance(&done);
            jobs.end(&job, job.is_cancelled() || shared.is_stopped());
            told.into_iter().for_each(|told| told(done));
        }
        pause = next;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use vhost_user_zram_frontend::Random;

    use super::*;
    use crate::device::{
        BlockChoice, DeviceConfig, MemoryKind, Op, Payload, PayloadFault, WorkerContext,
    };
    use crate::engine::EngineConfig;
    use crate::units::{PAGE_SIZE, SECTORS_PER_PAGE};

    /// Bytes that do not compress, different for each page.
    struct Noise(Random);

    impl Payload for Noise {
        fn fetch(&mut self, _: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
            self.0.fill(into);
            Ok(())
        }

        fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
            Err(PayloadFault)
        }
    }

    /// A page of zeroes, which is same-filled.
    struct Zeroes;

    impl Payload for Zeroes {
        fn fetch(&mut self, _: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
            into.fill(0);
            Ok(())
        }

        fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
            Err(PayloadFault)
        }
    }

    fn write(
        device: &Device,
        context: &mut WorkerContext,
        page: u64,
        payload: impl Payload,
    ) -> bool {
        let sector = page * SECTORS_PER_PAGE;
        let mut io = device.request(Op::Write, sector, PAGE_SIZE as u64, payload).unwrap();
        sync::block_on(|cx| io.poll(context, cx)).is_ok()
    }

    fn request(
        device: &Device,
        context: &mut WorkerContext,
        op: Op,
        page: u64,
        pages: u64,
    ) -> bool {
        let sector = page * SECTORS_PER_PAGE;
        let bytes = pages * PAGE_SIZE as u64;
        let mut io = device.request(op, sector, bytes, Noise(Random::new(page))).unwrap();
        sync::block_on(|cx| io.poll(context, cx)).is_ok()
    }

    fn device() -> Arc<Device> {
        device_with_times(false)
    }

    fn device_with_times(access_times: bool) -> Arc<Device> {
        let codec = "lz4".parse().unwrap();
        let memory = MemoryKind::default();
        let config = DeviceConfig {
            size: 64 << 20,
            block_size: BlockChoice::default(),
            codec,
            mem_limit: 0,
            memory,
            access_times,
            engine: EngineConfig::default(),
        };
        Arc::new(Device::new(&config).unwrap())
    }

    #[test]
    fn memory_goes_back_to_the_host_by_itself() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::unlimited().into()).unwrap();
        let mut context = device.worker_context().unwrap();
        for page in 0..4096 {
            assert!(request(&device, &mut context, Op::Write, page, 1));
        }
        assert!(device.report().mem_used_total > 4096 * 4096);
        assert!(request(&device, &mut context, Op::Discard, 0, 4096));
        let began = Instant::now();
        while device.report().mem_used_total > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "the memory does not come back");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(upkeep);
    }

    /// What upkeep does after one change, until it has nothing more to do: the time that takes, but
    /// for the work itself, and the objects that it moves.
    fn rounds_after_a_change(device: &Device) -> (Duration, u64) {
        let mut rounds = Rounds::new(device);
        let (mut time, mut moves) = (Duration::ZERO, 0);
        let mut wakened = Wakened::Rung;
        for _ in 0..1000 {
            time += rounds.begin(wakened);
            let (done, pause) = rounds.work(wakened, false, |_| true);
            moves += done.moves;
            let Some(pause) = pause else { return (time, moves) };
            time += pause;
            wakened = Wakened::TimeOut;
        }
        panic!("upkeep does not come to rest");
    }

    #[test]
    fn what_is_freed_goes_back_within_two_seconds() {
        let device = device();
        let mut context = device.worker_context().unwrap();
        for page in 0..4096 {
            assert!(request(&device, &mut context, Op::Write, page, 1));
        }
        assert!(device.report().mem_used_total > 4096 * 4096);
        assert!(request(&device, &mut context, Op::Discard, 0, 4096));
        let (time, _) = rounds_after_a_change(&device);
        assert_eq!(device.report().mem_used_total, 0);
        // At once would make the same pages come and go all the time.
        assert!(time >= Duration::from_millis(100), "{time:?}");
        assert!(time <= Duration::from_secs(2), "{time:?}");
    }

    /// Same-filled pages take table alone, which comes back as the arena does, and wakes upkeep too.
    #[test]
    fn parts_of_the_table_without_content_go_back_within_two_seconds() {
        let device = device();
        let mut context = device.worker_context().unwrap();
        for page in (0..16384).step_by(512) {
            assert!(write(&device, &mut context, page, Zeroes));
        }
        assert_eq!(device.report().table_bytes, 32 * 4096);
        rounds_after_a_change(&device);
        assert_eq!(device.report().table_bytes, 32 * 4096);
        assert!(!device.answer(), "nothing happened since");
        assert!(request(&device, &mut context, Op::Discard, 0, 16384));
        assert!(device.answer(), "upkeep is woken");
        let (time, _) = rounds_after_a_change(&device);
        assert_eq!(device.report().table_bytes, 0);
        assert!(time <= Duration::from_secs(2), "{time:?}");
    }

    /// Every second page is freed, and hardly a page of the arena is bare by that alone.
    #[test]
    fn upkeep_moves_objects_out_of_sparse_pages() {
        let device = device();
        let mut context = device.worker_context().unwrap();
        for page in 0..4096 {
            assert!(request(&device, &mut context, Op::Write, page, 1));
        }
        let full = device.report().mem_used_total;
        for page in (0..4096).step_by(2) {
            assert!(request(&device, &mut context, Op::Discard, page, 1));
        }
        let (time, moves) = rounds_after_a_change(&device);
        let report = device.report();
        assert!(moves >= 1000, "{moves} objects moved");
        assert!(report.mem_used_total <= full / 2 + 4096, "{full} {report}");
        assert!(report.pages_compacted >= 1000, "{report}");
        assert!(time <= Duration::from_secs(2), "{time:?}");
    }

    /// A change during the pauses is worked off after the usual time, however long they have become.
    #[test]
    fn pauses_grow_while_nothing_can_be_done_and_end_with_a_change() {
        let device = device();
        let mut context = device.worker_context().unwrap();
        for page in 0..1024 {
            assert!(request(&device, &mut context, Op::Write, page, 1));
        }
        for page in (0..1024).step_by(2) {
            assert!(request(&device, &mut context, Op::Discard, page, 1));
        }
        // All others are busy, so no page gets bare.
        let held: Vec<_> = (0..1024).filter_map(|page| device.hold(page)).collect();
        let mut rounds = Rounds::new(&device);
        rounds.begin(Wakened::Rung);
        let (_, first) = rounds.work(Wakened::Rung, false, |_| true);
        assert_eq!(first, Some(DELAY));
        let pauses: Vec<_> =
            (0..12).map(|_| rounds.work(Wakened::TimeOut, false, |_| true).1).collect();
        assert!(pauses.is_sorted() && pauses.contains(&Some(2 * DELAY)), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&Some(LONGEST_PAUSE)));
        drop(held);
        assert_eq!(rounds.begin(Wakened::Rung), DELAY);
        let (done, next) = rounds.work(Wakened::Rung, false, |_| true);
        assert!(done.moves >= 200, "{done:?}");
        assert!(next.is_none_or(|pause| pause == DELAY), "{next:?}");
    }

    #[test]
    fn compaction_is_done_when_it_is_wanted() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::unlimited().into()).unwrap();
        let (told, done) = std::sync::mpsc::channel();
        upkeep.compact(move |done| told.send(done).unwrap());
        assert_eq!(done.recv().unwrap().pages, 0);
    }

    /// Others may have what a disk gave back, so it does not take that again without a check.
    #[test]
    fn a_disk_that_gave_memory_back_has_one_share_of_the_host_and_not_what_it_had() {
        const SHARE: usize = 4 << 20;
        let device = device();
        let spare = Arc::new(AtomicU64::new(1 << 30));
        let its_spare = Arc::clone(&spare);
        device.watch_host(move || Some(its_spare.load(Ordering::Relaxed)));
        let mut context = device.worker_context().unwrap();
        for page in 0..4096 {
            assert!(request(&device, &mut context, Op::Write, page, 1));
        }
        let full = device.report().mem_used_total;
        for page in (0..4096).filter(|page| page % 16 != 0) {
            assert!(request(&device, &mut context, Op::Discard, page, 1));
        }
        // These are busy, so there is more to do, and the disk does not come to rest.
        let held: Vec<_> = (0..4096).step_by(16).filter_map(|page| device.hold(page)).collect();
        let mut rounds = Rounds::new(&device);
        rounds.begin(Wakened::Rung);
        let (_, next) = rounds.work(Wakened::Rung, false, |_| true);
        assert_eq!(next, Some(DELAY));
        let left = device.report().mem_used_total;
        assert!(full - left >= 2 * SHARE as u64, "{full} {left}");
        // Another process takes it all.
        spare.store(0, Ordering::Relaxed);
        let stored =
            (4096..16384).take_while(|page| request(&device, &mut context, Op::Write, *page, 1));
        let stored = stored.count() * PAGE_SIZE;
        // What the objects that stayed leave free on their pages costs nothing.
        assert!(stored <= SHARE + SHARE / 2, "{stored} bytes were stored without a check");
        drop(held);
    }

    /// Also on a disk where nothing happens meanwhile: a writer that is refused has checked first.
    #[test]
    fn a_host_that_has_memory_again_gets_writes_again() {
        let device = device();
        let spare = Arc::new(AtomicU64::new(0));
        let its_spare = Arc::clone(&spare);
        device.watch_host(move || Some(its_spare.load(Ordering::Relaxed)));
        let mut context = device.worker_context().unwrap();
        assert!(!request(&device, &mut context, Op::Write, 0, 1));
        spare.store(1 << 20, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(60));
        assert!(request(&device, &mut context, Op::Write, 0, 1));
        spare.store(0, Ordering::Relaxed);
        device.read_host();
        let refused = (1..64).filter(|page| !request(&device, &mut context, Op::Write, *page, 1));
        assert!(refused.count() > 50);
    }

    #[test]
    fn the_host_is_looked_at_while_the_disk_is_in_use_and_not_at_the_start_alone() {
        let device = device();
        let spare = Arc::new(AtomicU64::new(1 << 30));
        let its_spare = Arc::clone(&spare);
        device.watch_host(move || Some(its_spare.load(Ordering::Relaxed)));
        let mut context = device.worker_context().unwrap();
        let mut rounds = Rounds::new(&device);
        for (page, left, stored) in [(0, 1 << 30, true), (64, 0, false), (128, 1 << 30, true)] {
            spare.store(left, Ordering::Relaxed);
            rounds.begin(Wakened::Rung);
            assert_eq!(request(&device, &mut context, Op::Write, page, 32), stored, "page {page}");
        }
        // When there is nothing more to do it counts on nothing that it saw.
        spare.store(0, Ordering::Relaxed);
        while rounds.work(Wakened::TimeOut, false, |_| true).1.is_some() {}
        assert!(!request(&device, &mut context, Op::Write, 192, 32));
    }

    #[test]
    fn a_host_without_memory_to_spare_gets_no_writes() {
        let device = device();
        let upkeep = Upkeep::start(Arc::clone(&device), Host::new(u64::MAX).into()).unwrap();
        let mut context = device.worker_context().unwrap();
        assert!(!request(&device, &mut context, Op::Write, 0, 1));
        assert!(request(&device, &mut context, Op::Discard, 0, 1));
        assert_eq!(device.report().failed_writes, 1);
        assert_eq!(device.report().mem_used_total, 0);
        drop(upkeep);
    }

    /// Days go by, of which an idle disk is woken for its ages alone.
    #[test]
    fn pages_that_nobody_accesses_stay_old() {
        let device = device_with_times(true);
        let mut context = device.worker_context().unwrap();
        assert!(write(&device, &mut context, 1, Noise(Random::new(1))));
        let mut rounds = Rounds::new(&device);
        let mut passed = 0;
        // More than a number of 16 bits of the steps of 4 seconds.
        while passed < 4 * 70_000 {
            rounds.begin(Wakened::TimeOut);
            let (_, pause) = rounds.work(Wakened::TimeOut, false, |_| true);
            let pause = pause.expect("there is something to be done later").as_secs();
            device.let_pass(pause.max(1));
            passed += pause.max(1);
        }
        assert_eq!(device.mark_idle(Some(190_000), || true), Ok(1));
    }
}
