//! The daemon's output: its log on stderr, and lines for scripts on stdout.
//!
//! No caller ever waits for a reader. A line goes into a queue of bounded size, and each stream has a
//! thread that writes its queue with blocking calls. `O_NONBLOCK` would need no thread, but it belongs to
//! the open file, which other processes share. Lines that find the queue full are counted. The count
//! takes their place in the stream as soon as the stream accepts data again.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::write;

use crate::sync;

/// Most bytes that wait in a stream's queue. Its thread may be writing as many again.
const ROOM: usize = 64 << 10;
/// Bytes that an empty queue keeps allocated.
const KEPT: usize = 1 << 10;
/// The longest time that a daemon that ends waits until its output is written. The next daemon waits
/// longer than that for the socket and the state.
const FLUSH: Duration = Duration::from_secs(2);

/// The daemon's stdout and stderr.
///
/// Dropping it waits until the queued lines are written, two seconds at most.
#[derive(Debug)]
pub struct Console {
    lines: Lines,
    log: Arc<Stream>,
}

/// The daemon's stdout.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Stream>);

impl Lines {
    /// Writes a line.
    pub(super) fn say(&self, line: Arguments<'_>) {
        self.0.push(format!("{line}\n").as_bytes());
    }
}

impl Console {
    /// Starts the threads that write to stdout and stderr. They block all signals.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let lines =
            Stream::start("stdout", io::stdout(), |count| format!("dropped: lines={count}\n"))?;
        let log = Stream::start("log", io::stderr(), |count| {
            format!("[WARN ] {count} lines of the log were dropped, since nothing read them\n")
        })?;
        Ok(Self { lines: Lines(lines), log })
    }

    /// Stdout.
    pub(super) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Writes a line to stderr, beside the log.
    pub fn complain(&self, line: Arguments<'_>) {
        self.log.push(format!("{line}\n").as_bytes());
    }

    /// A writer for a logger, which writes each line with one call.
    pub fn log(&self) -> impl Write + Send + 'static {
        LogWriter(Arc::clone(&self.log))
    }

    /// Sends panics to the log. The standard library would write them to stderr and wait for its reader.
    pub fn log_panics() {
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.to_string().replace('\n', " ");
            let thread = thread::current();
            log::error!("thread {}: {text}", thread.name().unwrap_or("without a name"));
            let trace = std::backtrace::Backtrace::capture();
            if trace.status() == std::backtrace::BacktraceStatus::Captured {
                log::error!("{trace}");
            }
        }));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH;
        self.lines.0.flush(deadline);
        self.log.flush(deadline);
    }
}

/// One call writes one line or several, which are kept or dropped together.
struct LogWriter(Arc<Stream>);

impl Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream and the queue in front of it.
#[derive(Debug, Default)]
struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    text: Vec<u8>,
    /// Lines after `text` that found no room. While it is not 0, no line is queued: the count takes
    /// their place.
    dropped: u64,
    /// The thread is writing what it took from the queue.
    writing: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.dropped == 0
    }
}

impl Stream {
    /// A stream to `file`, with a thread that lives as long as the process. `note` formats the number
    /// of lines that were dropped.
    fn start(
        name: &str,
        file: impl AsFd + Send + 'static,
        note: fn(u64) -> String,
    ) -> io::Result<Arc<Self>> {
        let stream = Arc::<Self>::default();
        let its_stream = Arc::clone(&stream);
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let body = move || its_stream.run(&file, note);
        let started = thread::Builder::new().name(name.into()).spawn(body);
        before.thread_set_mask()?;
        started.map(|_| stream)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = sync::lock(&self.queue);
        if queue.dropped > 0 || queue.text.len() + line.len() > ROOM {
            queue.dropped += 1;
        } else {
            queue.text.extend_from_slice(line);
        }
        drop(queue);
        self.changed.notify_all();
    }

    fn run(&self, file: &impl AsFd, note: fn(u64) -> String) {
        let mut text = Vec::new();
        loop {
            let mut queue = self.wait_until(None, |queue| !queue.is_empty());
            std::mem::swap(&mut queue.text, &mut text);
            let dropped = std::mem::take(&mut queue.dropped);
            queue.writing = true;
            drop(queue);
            write_all(file, &text);
            if dropped > 0 {
                write_all(file, note(dropped).as_bytes());
            }
            text.clear();
            text.shrink_to(KEPT);
            sync::lock(&self.queue).writing = false;
            self.changed.notify_all();
        }
    }

    fn flush(&self, deadline: Instant) {
        drop(self.wait_until(Some(deadline), |queue| queue.is_empty() && !queue.writing));
    }

    fn wait_until(
        &self,
        deadline: Option<Instant>,
        condition: impl Fn(&Queue) -> bool,
    ) -> MutexGuard<'_, Queue> {
        let queue = sync::lock(&self.queue);
        let not_yet = |queue: &mut Queue| !condition(queue);
        let Some(deadline) = deadline else {
            return self.changed.wait_while(queue, not_yet).unwrap_or_else(PoisonError::into_inner);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(queue, left, not_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Writes all of it. An error is ignored: there is no other stream to report it on.
fn write_all(file: &impl AsFd, mut text: &[u8]) {
    while !text.is_empty() {
        match write(file, text) {
            Ok(count) => text = &text[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                // A process that shares the open file made it non-blocking.
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, Read, pipe};

    use super::*;

    /// Longest time that any step takes.
    const LIMIT: Duration = Duration::from_secs(60);

    fn stream() -> (Arc<Stream>, BufReader<PipeReader>) {
        let (reader, writer) = pipe().unwrap();
        let stream = Stream::start("test", writer, |count| format!("dropped {count}\n")).unwrap();
        (stream, BufReader::new(reader))
    }

    /// Waits until the thread has taken what was pushed.
    fn wait_until_taken(stream: &Stream) {
        while !sync::lock(&stream.queue).is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn next(reader: &mut BufReader<PipeReader>) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    #[test]
    fn lines_are_written_in_order() {
        let (stream, mut reader) = stream();
        for number in 0..100 {
            stream.push(format!("line {number}\n").as_bytes());
        }
        stream.flush(Instant::now() + LIMIT);
        for number in 0..100 {
            assert_eq!(next(&mut reader), format!("line {number}"));
        }
    }

    /// With blocking writes the pushes would never end.
    #[test]
    fn lines_that_are_not_read_are_dropped_and_counted_in_their_place() {
        const LINES: u64 = 5000;
        let (stream, mut reader) = stream();
        for number in 0..LINES {
            stream.push(format!("line {number} {}\n", "x".repeat(100)).as_bytes());
        }
        let mut number = 0;
        let mut dropped = 0;
        while number < LINES {
            let line = next(&mut reader);
            if let Some(count) = line.strip_prefix("dropped ") {
                let count: u64 = count.parse().unwrap();
                (number, dropped) = (number + count, dropped + count);
            } else {
                assert!(line.starts_with(&format!("line {number} x")), "{number}: {line}");
                number += 1;
            }
        }
        assert_eq!(number, LINES);
        // A pipe's 64 KiB, and twice the queue's size.
        assert!(dropped > LINES / 2, "{dropped}");
        stream.flush(Instant::now() + LIMIT);
        stream.push(b"after\n");
        assert_eq!(next(&mut reader), "after");
    }

    #[test]
    fn a_flush_ends_without_a_reader() {
        let (stream, _reader) = stream();
        // One for the pipe, one for the thread, one for the queue.
        for _ in 0..3 {
            wait_until_taken(&stream);
            stream.push(&[b'x'; ROOM]);
        }
        stream.flush(Instant::now() + Duration::from_millis(10));
        assert!(!sync::lock(&stream.queue).is_empty());
    }

    #[test]
    fn a_reader_that_has_closed_its_end_blocks_no_line() {
        let (stream, reader) = stream();
        drop(reader);
        for _ in 0..10 {
            stream.push(&[b'x'; ROOM]);
        }
        stream.flush(Instant::now() + LIMIT);
        let queue = sync::lock(&stream.queue);
        assert!(queue.is_empty() && !queue.writing);
    }

    #[test]
    fn the_thread_waits_for_a_non_blocking_file() {
        let (mut reader, writer) = pipe().unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&writer, flags).unwrap();
        let mut full = 0;
        while let Ok(count) = write(&writer, &[0; 4096]) {
            full += count;
        }
        let stream = Stream::start("test", writer, |count| format!("dropped {count}\n")).unwrap();
        stream.push(b"line\n");
        wait_until_taken(&stream);
        reader.read_exact(&mut vec![0; full]).unwrap();
        assert_eq!(next(&mut BufReader::new(reader)), "line");
    }
}
