//! A client's connection: how long it may keep its place without getting on.
//!
//! A client that sends a request slowly, does not read its answer, or says nothing at all has a time limit. And
//! when all places are taken, the connection that got on least recently makes way for a new one, unless a
//! request of it is being carried out. So clients that do nothing keep no other client out.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{self, Sleep};

use crate::sync;

/// Longest time that a client may take for the header of a request, the time before it included.
pub(super) const HEADER_TIME: Duration = Duration::from_secs(30);
/// Longest time that a client may not read what it is sent.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    /// Milliseconds after `began` of the last byte that went either way.
    last: AtomicU64,
    /// A request is being carried out that takes its time.
    busy: AtomicBool,
    /// The client listens to events, and need not say anything.
    listens: AtomicBool,
    /// The client does not read.
    blocked: AtomicBool,
    /// Fires when the connection is to end at once.
    end: Notify,
}

impl Watch {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            end: Notify::new(),
        }
    }

    fn got_on(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
    }

    /// A request is being carried out until the value is dropped. Only those need it that wait for something:
    /// others are over before the thread does anything else.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// The client listens to events from now on.
    pub(super) fn listens(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    /// Ready when the connection is to end at once.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }

    fn may_go(&self) -> bool {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        !is(&self.busy) && (!is(&self.listens) || is(&self.blocked))
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A request is being carried out.
#[derive(Debug)]
pub(super) struct Busy(Arc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    all: Mutex<HashMap<u64, Arc<Watch>>>,
    last: AtomicU64,
    /// Fires when one is gone.
    gone: Notify,
}

impl Connections {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        sync::lock(&self.all).len()
    }

    /// One more, until the place is dropped.
    pub(super) fn add(self: &Arc<Self>) -> Place {
        let watch = Arc::new(Watch::new());
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        sync::lock(&self.all).insert(number, Arc::clone(&watch));
        Place { connections: Arc::clone(self), number, watch }
    }

    /// Ends the connection that got on least recently, if any may go.
    pub(super) fn make_room(&self) -> bool {
        let all = sync::lock(&self.all);
        let first = all.values().filter(|watch| watch.may_go()).min_by_key(|watch| watch.last());
        first.map(|watch| watch.end.notify_one()).is_some()
    }

    /// Waits until one is gone, or a moment.
    pub(super) async fn wait(&self) {
        const MOMENT: Duration = Duration::from_millis(50);
        // A connection that goes between the caller's look and this has left its note.
        let _ = time::timeout(MOMENT, self.gone.notified()).await;
    }
}

/// The place of one connection among all.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    watch: Arc<Watch>,
}

impl Place {
    /// What is known of the connection.
    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        sync::lock(&self.connections.all).remove(&self.number);
        self.connections.gone.notify_one();
    }
}

/// The bytes of a connection, as it reads and writes them.
pub(super) struct Watched {
    inner: TokioIo<UnixStream>,
    watch: Arc<Watch>,
    /// Runs while the client does not read.
    limit: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(stream: UnixStream, watch: Arc<Watch>) -> Self {
        Self { inner: TokioIo::new(stream), watch, limit: None }
    }

    fn inner(&mut self) -> Pin<&mut TokioIo<UnixStream>> {
        Pin::new(&mut self.inner)
    }

    /// What became of a write: one that has waited for too long fails.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.limit = None;
            self.watch.got_on();
            return result;
        }
        self.watch.blocked.store(true, Ordering::Relaxed);
        let limit = self.limit.get_or_insert_with(|| Box::pin(time::sleep(WRITE_TIME)));
        ready!(limit.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = self.inner().poll_read(cx, into);
        if result.is_ready() {
            self.watch.got_on();
        }
        result
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.inner().poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.inner().poll_write_vectored(cx, slices);
        self.written(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ended(watch: &Watch) -> bool {
        let mut ended = std::pin::pin!(watch.ended());
        ended.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn the_connection_that_got_on_least_recently_makes_way() {
        let connections = Arc::new(Connections::default());
        let places: Vec<Place> = (0..4).map(|_| connections.add()).collect();
        for (place, last) in places.iter().zip([1000, 2000, 3000, 500]) {
            place.watch().last.store(last, Ordering::Relaxed);
        }
        // One is being served, and one listens and reads.
        let busy = places[3].watch().begin();
        places[0].watch().listens();
        assert!(connections.make_room());
        assert!(is_ended(places[1].watch()));
        for other in [0, 2, 3] {
            assert!(!is_ended(places[other].watch()), "{other}");
        }
        drop(busy);
        assert!(connections.make_room());
        assert!(is_ended(places[3].watch()));
        // A listener that does not read has no right to its place.
        places[0].watch().blocked.store(true, Ordering::Relaxed);
        places[3].watch().last.store(9000, Ordering::Relaxed);
        places[1].watch().last.store(9000, Ordering::Relaxed);
        assert!(connections.make_room());
        assert!(is_ended(places[0].watch()));
    }

    #[test]
    fn none_makes_way_while_all_are_served() {
        let connections = Arc::new(Connections::default());
        let places: Vec<Place> = (0..2).map(|_| connections.add()).collect();
        let busy: Vec<Busy> = places.iter().map(|place| place.watch().begin()).collect();
        assert!(!connections.make_room());
        drop(busy);
        assert!(connections.make_room());
        assert_eq!(connections.count(), 2);
        drop(places);
        assert_eq!(connections.count(), 0);
        assert!(!connections.make_room());
    }
}
