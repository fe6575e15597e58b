//! A page on its way through the engine, and the request that waits for it.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::JobError;
#[cfg(not(loom))]
use crate::codec::{CodecTable, Workspace};
use crate::sync::{self, AtomicBool, Mutex, Ordering};
use crate::units::{PAGE_SIZE, Page};

/// What is to be done with the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Compress a page, to this many bytes at most.
    Compress {
        /// The codec, by its number in the disk's table.
        codec: u8,
        /// Longest object that is wanted, 1..=4096 bytes.
        limit: usize,
    },
    /// Decompress an object.
    Decompress {
        /// The codec that made it, likewise.
        codec: u8,
    },
}

impl Work {
    /// The codec, by its number in the disk's table.
    pub fn codec(self) -> u8 {
        let (Self::Compress { codec, .. } | Self::Decompress { codec }) = self;
        codec
    }
}

/// What a job needs, a copy of its own: no thread changes it while the job, or a request that does
/// its work over again, reads it.
pub struct Job {
    work: Work,
    /// A page, or an object of `length` bytes.
    input: Box<Page>,
    length: usize,
    /// Where the output goes, until it does.
    room: Mutex<Option<Box<Page>>>,
    state: Mutex<JobState>,
    /// The request went away, and the result is not wanted.
    unwanted: AtomicBool,
}

/// What came out: a page, or an object of a page.
#[derive(Debug)]
pub struct Output {
    /// The bytes; for an object, its first `length`.
    pub bytes: Box<Page>,
    /// Bytes of the object; `None` if the page does not compress below the limit.
    pub length: Option<usize>,
    /// Made where the bytes were, if they come from where they can be damaged.
    checksum: Option<u32>,
}

impl Output {
    /// An output; for a page that does not compress `length` is `None`.
    pub fn new(bytes: Box<Page>, length: Option<usize>) -> Self {
        Self { bytes, length, checksum: None }
    }

    /// Notes a checksum of the output, as hardware does before it sends it.
    pub(super) fn seal(&mut self) {
        self.checksum = Some(self.sum());
    }

    /// Damages it, as happens on the way.
    pub(super) fn damage(&mut self, choice: u64) {
        let length = self.length.unwrap_or(PAGE_SIZE);
        self.bytes[choice as usize % length] ^= 1 << (choice % 8);
    }

    fn is_whole(&self) -> bool {
        self.checksum.is_none_or(|sum| sum == self.sum())
    }

    fn sum(&self) -> u32 {
        let length = self.length.unwrap_or(PAGE_SIZE);
        crc32fast::hash(&self.bytes[..length]) ^ length as u32
    }
}

enum JobState {
    /// Queued or in work; the waker of the request.
    Waiting(Option<Waker>),
    Done(Result<Output, JobError>),
    /// The result was taken.
    Over,
}

impl Job {
    /// The compression of a page by the codec of number `codec`.
    pub fn compress(page: Box<Page>, codec: u8, limit: usize, spares: &mut Spares) -> Arc<Self> {
        Self::new(Work::Compress { codec, limit }, page, PAGE_SIZE, spares)
    }

    /// The decompression of an object of 1 to 4096 bytes by the codec of number `codec`.
    pub fn decompress(object: &[u8], codec: u8, spares: &mut Spares) -> Arc<Self> {
        let mut input = spares.take();
        input[..object.len()].copy_from_slice(object);
        Self::new(Work::Decompress { codec }, input, object.len(), spares)
    }

    fn new(work: Work, input: Box<Page>, length: usize, spares: &mut Spares) -> Arc<Self> {
        let room = Mutex::new(Some(spares.take()));
        let (state, unwanted) = (Mutex::new(JobState::Waiting(None)), AtomicBool::new(false));
        Arc::new(Self { work, input, length, room, state, unwanted })
    }

    /// The memory that was brought along for the output.
    #[cfg_attr(loom, allow(dead_code))]
    fn take_room(&self) -> Box<Page> {
        sync::lock(&self.room).take().unwrap_or_else(blank)
    }

    /// Does the work, on whatever thread it is.
    ///
    /// # Errors
    /// The codec's.
    #[cfg(not(loom))]
    pub fn run(&self, codecs: &CodecTable, workspace: &mut Workspace) -> Result<Output, JobError> {
        let mut bytes = self.take_room();
        let length = match self.work {
            Work::Compress { codec, limit } => codecs
                .get(codec)
                .and_then(|codec| codec.compress(workspace, self.page(), &mut bytes[..limit])),
            Work::Decompress { codec } => codecs
                .decompress(codec, workspace, self.input(), &mut bytes)
                .map(|()| Some(PAGE_SIZE)),
        };
        Ok(Output::new(bytes, length.map_err(JobError::Codec)?))
    }

    /// What is to be done.
    pub fn work(&self) -> Work {
        self.work
    }

    /// The page to be compressed.
    pub fn page(&self) -> &Page {
        &self.input
    }

    /// The object to be decompressed, or the page as bytes.
    pub fn input(&self) -> &[u8] {
        &self.input[..self.length]
    }

    /// Whether the result is not wanted any more, so that the work need not be done.
    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }

    /// Delivers the result of work that the request did itself.
    pub fn finish(&self, result: Result<Output, JobError>) {
        self.complete(result);
    }

    /// Delivers the result and wakes the request. Only the first one counts: a job that was
    /// abandoned by a time-out may still be finished. True if this was the first.
    pub(super) fn complete(&self, result: Result<Output, JobError>) -> bool {
        let mut state = sync::lock(&self.state);
        let JobState::Waiting(waker) = &mut *state else { return false };
        let waker = waker.take();
        *state = JobState::Done(result);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// A submitted job from the side of its request. Dropping it abandons the result.
pub struct Pending {
    job: Arc<Job>,
}

impl Pending {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self { job }
    }

    /// The result, once it is there; until then the waker of `cx` is kept. Not to be called again
    /// once ready.
    ///
    /// # Errors
    /// The engine did not do the work: see [`JobError`]. The input is still there.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<Output, JobError>> {
        let mut state = sync::lock(&self.job.state);
        match &mut *state {
            JobState::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            JobState::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            JobState::Done(_) => match std::mem::replace(&mut *state, JobState::Over) {
                JobState::Done(Ok(output)) if !output.is_whole() => {
                    Poll::Ready(Err(JobError::Corrupt))
                }
                JobState::Done(result) => Poll::Ready(result),
                JobState::Waiting(_) | JobState::Over => unreachable!("it was done a line ago"),
            },
            JobState::Over => panic!("a job was asked again after its result was taken"),
        }
    }

    /// The job, to do its work over again.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Keeps the memory of a job whose result was taken, if no other thread has it any more.
    pub fn recycle(self, spares: &mut Spares) {
        let job = Arc::clone(&self.job);
        drop(self);
        if let Some(job) = Arc::into_inner(job) {
            spares.keep(job.input);
        }
    }
}

/// Pages of memory to be used again, so that a job need not allocate them. One for each thread.
#[derive(Default)]
pub struct Spares(Vec<Box<Page>>);

impl Spares {
    /// Pages kept at most.
    const MOST: usize = 128;

    /// A page with anything in it.
    pub fn take(&mut self) -> Box<Page> {
        self.0.pop().unwrap_or_else(blank)
    }

    /// Keeps a page for later.
    pub fn keep(&mut self, page: Box<Page>) {
        if self.0.len() < Self::MOST {
            self.0.push(page);
        }
    }
}

fn blank() -> Box<Page> {
    Box::new([0; PAGE_SIZE])
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.job.unwanted.store(true, Ordering::Relaxed);
    }
}
