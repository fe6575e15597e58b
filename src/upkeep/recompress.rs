//! Recompression as a job, in a thread of its own: it may take minutes, and upkeep goes on meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::jobs::{Job, JobKind, Jobs};
use crate::causes::with_causes;
use crate::device::{Device, RecompressError, Recompression, Wanted};
use crate::engine;
use crate::{sync, threads};

/// Why a recompression is not begun.
#[derive(Debug, thiserror::Error)]
pub enum RecompressRefused {
    /// One at a time.
    #[error("another recompression is under way, job {0}: wait for its end, or cancel it")]
    Busy(u64),
    /// Upkeep has ended.
    #[error("the daemon is about to end, so nothing is recompressed")]
    Ending,
    /// No thread can be started.
    #[error("no thread can be started for the recompression")]
    Thread(#[source] std::io::Error),
}

/// How a recompression ended. What it did stays.
#[derive(Debug)]
pub enum RecompressEnd {
    /// All that was wanted was tried.
    Done,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed(RecompressError),
}

/// The thread of the last recompression. Dropping it ends the thread.
#[derive(Default)]
pub(super) struct Recompressor {
    running: Mutex<Option<Running>>,
    stopped: Arc<AtomicBool>,
}

struct Running {
    job: Arc<Job>,
    thread: JoinHandle<()>,
}

impl Recompressor {
    /// Begins one, and calls `told` at its end. Returns the number of the job.
    pub(super) fn begin(
        &self,
        device: &Arc<Device>,
        jobs: &Arc<Jobs>,
        wanted: Wanted,
        told: impl FnOnce(RecompressEnd) + Send + 'static,
    ) -> Result<u64, RecompressRefused> {
        let mut running = sync::lock(&self.running);
        if let Some(running) = &*running
            && !running.job.is_over()
        {
            return Err(RecompressRefused::Busy(running.job.id()));
        }
        let job = jobs.add(JobKind::Recompress);
        let id = job.id();
        let body = {
            let (device, jobs, job) = (Arc::clone(device), Arc::clone(jobs), Arc::clone(&job));
            let stopped = Arc::clone(&self.stopped);
            move || told(run(&device, &jobs, &job, wanted, &stopped))
        };
        let thread = threads::spawn("recompress", body).map_err(|error| {
            jobs.end(&job, true);
            RecompressRefused::Thread(error)
        })?;
        join(running.replace(Running { job, thread }));
        Ok(id)
    }
}

impl Drop for Recompressor {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        join(sync::lock(&self.running).take());
    }
}

fn join(running: Option<Running>) {
    if running.is_some_and(|running| running.thread.join().is_err()) {
        log::error!("a recompression had died");
    }
}

fn run(
    device: &Device,
    jobs: &Jobs,
    job: &Job,
    wanted: Wanted,
    stopped: &AtomicBool,
) -> RecompressEnd {
    engine::run_in_background(&engine::Cpus::default());
    jobs.begin(job);
    let is_unwanted = || job.is_cancelled() || stopped.load(Ordering::Relaxed);
    let ended = device.recompress(wanted, |so_far| {
        job.advance_recompression(so_far);
        !is_unwanted()
    });
    match ended {
        Ok(done) => {
            job.advance_recompression(&done);
            let Recompression { tried, replaced, saved_bytes, damaged, .. } = done;
            log::info!("recompression: {replaced} of {tried} pages, {saved_bytes} bytes saved");
            if damaged > 0 {
                log::warn!("recompression met {damaged} damaged pages");
            }
            // What was cancelled after its last page is done.
            let cancelled = is_unwanted();
            jobs.end(job, cancelled);
            if cancelled { RecompressEnd::Cancelled } else { RecompressEnd::Done }
        }
        Err(error) => {
            log::warn!("recompression: {}", with_causes(&error));
            jobs.end(job, true);
            RecompressEnd::Failed(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::device::{BlockChoice, DeviceConfig, MemoryKind, Op, Pages, Payload, PayloadFault};
    use crate::engine::EngineConfig;
    use crate::upkeep::{Host, JobState, Upkeep};

    /// Words that compress, the better by zstd.
    struct Words(u64);

    impl Payload for Words {
        fn fetch(&mut self, _: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
            for byte in into {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                *byte = b'a' + (self.0 >> 61) as u8;
            }
            Ok(())
        }

        fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
            Err(PayloadFault)
        }
    }

    #[test]
    fn one_job_at_a_time_is_cancelled_and_ends_with_upkeep() {
        let device = Device::new(&DeviceConfig {
            size: 64 << 20,
            block_size: BlockChoice::default(),
            codec: "lz4".parse().unwrap(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine: EngineConfig::default(),
        });
        let device = Arc::new(device.unwrap());
        let mut context = device.worker_context().unwrap();
        for page in 0..8192 {
            let mut io = device.request(Op::Write, page * 8, 4096, Words(page)).unwrap();
            sync::block_on(|cx| io.poll(&mut context, cx)).unwrap();
        }
        let upkeep = Upkeep::start(Arc::clone(&device), Host::unlimited().into()).unwrap();
        let (told, ends) = channel();
        let wanted = Wanted { pages: Pages::All, threshold: 0, max_pages: None, priority: 1 };
        let begin = || {
            let told = told.clone();
            upkeep.recompress(wanted, move |end| told.send(end).unwrap())
        };
        begin().unwrap();
        let none = ends.recv().unwrap();
        assert!(matches!(none, RecompressEnd::Failed(RecompressError::NoAlgorithm(1))), "{none:?}");
        device.set_secondary(1, "zstd(level=22)".parse().unwrap()).unwrap();
        let job = begin().unwrap();
        let second = begin();
        assert!(matches!(second, Err(RecompressRefused::Busy(id)) if id == job), "{second:?}");
        upkeep.jobs().cancel(job).unwrap();
        let end = ends.recv().unwrap();
        assert!(matches!(end, RecompressEnd::Cancelled), "{end:?}");
        assert_eq!(upkeep.jobs().get(job).unwrap().state, JobState::Cancelled);
        // What was left is done by the next one, to its end.
        device.set_secondary(1, "zstd(level=1)".parse().unwrap()).unwrap();
        let max_pages = Some(100);
        let wanted = Wanted { max_pages, ..wanted };
        let told_too = told.clone();
        let job = upkeep.recompress(wanted, move |end| told_too.send(end).unwrap()).unwrap();
        let end = ends.recv().unwrap();
        assert!(matches!(end, RecompressEnd::Done), "{end:?}");
        let report = upkeep.jobs().get(job).unwrap();
        let done = report.recompressed;
        assert_eq!(done.tried, 100);
        assert!(done.replaced > 0 && done.saved_bytes > 0, "{done:?}");
        assert_eq!((report.state, report.percent), (JobState::Done, 100));
        device.set_secondary(1, "zstd(level=22)".parse().unwrap()).unwrap();
        begin().unwrap();
        drop(upkeep);
        assert!(matches!(ends.recv().unwrap(), RecompressEnd::Cancelled));
    }
}
