//! The events that clients listen to: server-sent events, each as JSON.
//!
//! One task takes what happened from the disk's bus, and puts it into a queue of each client. A client that
//! does not read has its queue full after a while, loses events, and is told how many.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::Frame;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time;

use super::api::{self, Happening};
use crate::events::{Bus, Event, Tally};
use crate::sync;

/// Most clients that listen at a time.
pub(super) const LISTENERS: usize = 64;
/// Most events that wait for a client.
const QUEUED: usize = 64;
/// Least time between two looks at what happened: what a guest causes again and again is one event.
const PACE: Duration = Duration::from_millis(100);
/// After this time a client hears that the daemon is alive, and the daemon that the client is not.
const BEAT: Duration = Duration::from_secs(15);
/// What it hears then, which is a comment.
const ALIVE: &str = ":\n\n";

/// The clients that listen to one disk.
#[derive(Debug)]
pub(super) struct Stream {
    bus: Arc<Bus>,
    listeners: Mutex<Vec<Listener>>,
    /// Fires when one arrives.
    arrived: Notify,
}

#[derive(Debug)]
struct Listener {
    queue: mpsc::Sender<Bytes>,
    lost: u64,
}

/// As many clients listen as can.
#[derive(Debug)]
pub(super) struct TooMany;

impl Stream {
    /// No one listens yet.
    pub(super) fn new(bus: Arc<Bus>) -> Self {
        Self { bus, listeners: Mutex::default(), arrived: Notify::new() }
    }

    /// A new listener: what a response sends to its client.
    pub(super) fn listen(&self) -> Result<Body, TooMany> {
        let mut listeners = sync::lock(&self.listeners);
        listeners.retain(|listener| !listener.queue.is_closed());
        if listeners.len() >= LISTENERS {
            return Err(TooMany);
        }
        let (queue, events) = mpsc::channel(QUEUED);
        // The client hears at once that it is listening.
        let _ = queue.try_send(Bytes::from_static(ALIVE.as_bytes()));
        listeners.push(Listener { queue, lost: 0 });
        self.bus.listen(true);
        self.arrived.notify_one();
        Ok(Body::new(Events(events)))
    }

    /// No one listens any more: all responses end.
    pub(super) fn close(&self) {
        sync::lock(&self.listeners).clear();
        self.bus.listen(false);
    }

    /// Passes on what happens. Does not return.
    ///
    /// # Errors
    /// The process has no descriptor left, or the kernel refuses to wait for one.
    pub(super) async fn run(&self) -> io::Result<Infallible> {
        let bell = UnixStream::from_std(self.bus.bell()?)?;
        let mut last = 0;
        loop {
            // An idle daemon has no timer.
            if sync::lock(&self.listeners).is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let wait = if self.anyone_lost() { PACE } else { BEAT };
            match time::timeout(wait, bell.readable()).await {
                Ok(ready) => {
                    ready?;
                    // The bus reads from it. This says that there is nothing more to be read.
                    let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = bell.try_io(Interest::READABLE, nothing);
                    self.pass_on(&mut last);
                    time::sleep(PACE).await;
                }
                Err(_) => self.send_all(last, wait == BEAT),
            }
        }
    }

    fn anyone_lost(&self) -> bool {
        sync::lock(&self.listeners).iter().any(|listener| listener.lost > 0)
    }

    /// Sends nothing new: only what was lost, and a sign of life.
    fn send_all(&self, last: u64, alive: bool) {
        let mut listeners = sync::lock(&self.listeners);
        listeners.retain_mut(|listener| {
            let told = listener.tell_lost(last);
            if alive && told {
                // A full queue has signs of life in it.
                let _ = listener.queue.try_send(Bytes::from_static(ALIVE.as_bytes()));
            }
            !listener.queue.is_closed()
        });
        if listeners.is_empty() {
            self.bus.listen(false);
        }
    }

    fn pass_on(&self, last: &mut u64) {
        let taken = self.bus.take();
        let now = SystemTime::now();
        let once = taken.events.into_iter().map(|(time, event)| (time, happening(event)));
        let counted = taken.tallies.into_iter().map(|(tally, count)| (now, tallied(tally, count)));
        let lost = (taken.lost > 0).then_some((now, Happening::Lost { count: taken.lost }));
        let mut listeners = sync::lock(&self.listeners);
        for (time, what) in once.chain(counted).chain(lost) {
            *last += 1;
            let bytes = text(*last, time, what);
            for listener in listeners.iter_mut() {
                listener.send(*last, &bytes);
            }
        }
        listeners.retain(|listener| !listener.queue.is_closed());
        if listeners.is_empty() {
            self.bus.listen(false);
        }
    }
}

impl Listener {
    fn send(&mut self, id: u64, bytes: &Bytes) {
        if !self.tell_lost(id) || self.queue.try_send(bytes.clone()).is_err() {
            self.lost += 1;
        }
    }

    /// Tells it what it has lost, if there is room. False if there is none.
    fn tell_lost(&mut self, id: u64) -> bool {
        if self.lost == 0 {
            return true;
        }
        // Not with the first place that gets free: what comes behind would be lost again.
        if self.queue.capacity() < QUEUED / 2 {
            return false;
        }
        let what = Happening::Lost { count: self.lost };
        let told = self.queue.try_send(text(id, SystemTime::now(), what)).is_ok();
        if told {
            self.lost = 0;
        }
        told
    }
}

/// An event as it is sent.
fn text(id: u64, time: SystemTime, what: Happening) -> Bytes {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let event = api::Event { id, time_seconds: since.as_secs_f64(), what };
    // It consists of numbers and texts, which always are JSON.
    let json = serde_json::to_value(&event).unwrap_or_default();
    let kind = json["kind"].as_str().unwrap_or_default();
    Bytes::from(format!("id: {id}\nevent: {kind}\ndata: {json}\n\n"))
}

fn happening(event: Event) -> Happening {
    match event {
        Event::SessionBegun { pid } => Happening::SessionBegun { front_end_pid: pid },
        Event::SessionEnded { reason } => Happening::SessionEnded { reason },
        Event::MemLimit { near, used, limit } => {
            Happening::MemLimit { near, used_bytes: used, limit_bytes: limit }
        }
        Event::HostMemory { short } => Happening::HostMemory { short },
        Event::SettingsChanged => Happening::SettingsChanged,
        Event::Reset => Happening::DiskReset,
        Event::JobBegun { job } => Happening::JobBegun { job },
        Event::JobEnded { job, cancelled } => {
            let state = if cancelled { api::JobState::Cancelled } else { api::JobState::Done };
            Happening::JobEnded { job, state }
        }
    }
}

fn tallied(tally: Tally, count: u64) -> Happening {
    match tally {
        Tally::WritesRefused => Happening::WritesRefused { count },
        Tally::RequestsStalled => Happening::RequestsStalled { count },
        Tally::RequestsExpired => Happening::RequestsExpired { count },
        Tally::QueuesBroken => Happening::QueuesBroken { count },
        Tally::QueuesBlind => Happening::QueuesBlind { count },
    }
}

/// The events of one client, as a body that ends when the daemon does.
struct Events(mpsc::Receiver<Bytes>);

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn stream() -> Stream {
        Stream::new(Arc::default())
    }

    /// What is sent to a client until its queue is empty.
    fn received(body: &mut Body) -> Vec<String> {
        let mut texts = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut *body).poll_frame(&mut cx) {
            texts.push(String::from_utf8(frame.into_data().unwrap().into()).unwrap());
        }
        texts
    }

    #[test]
    fn all_listeners_get_all_events_in_order() {
        let stream = stream();
        let mut bodies = [stream.listen().unwrap(), stream.listen().unwrap()];
        stream.bus.tell(|| Event::SessionBegun { pid: Some(3) });
        for _ in 0..5 {
            stream.bus.count(Tally::WritesRefused);
        }
        stream.bus.tell(|| Event::JobEnded { job: 9, cancelled: true });
        stream.pass_on(&mut 0);
        for body in &mut bodies {
            let [alive, begun, ended, refused] = &received(body)[..] else { panic!("{body:?}") };
            assert_eq!(alive, ALIVE);
            assert!(begun.starts_with("id: 1\nevent: session_begun\ndata: {"), "{begun}");
            assert!(begun.contains("\"front_end_pid\":3") && begun.ends_with("}\n\n"), "{begun}");
            assert!(ended.contains("\"state\":\"cancelled\""), "{ended}");
            assert!(refused.contains("\"count\":5"), "{refused}");
            let data = refused.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            let event: api::Event = serde_json::from_str(data).unwrap();
            assert_eq!(event.what, Happening::WritesRefused { count: 5 });
        }
    }

    #[test]
    fn a_listener_that_does_not_read_loses_events_and_is_told_how_many() {
        let stream = stream();
        let (mut slow, mut quick) = (stream.listen().unwrap(), stream.listen().unwrap());
        let mut last = 0;
        let mut seen = 0;
        for job in 0..2 * QUEUED as u64 {
            stream.bus.tell(|| Event::JobBegun { job });
            stream.pass_on(&mut last);
            seen += received(&mut quick).iter().filter(|text| text.contains("job_begun")).count();
        }
        assert_eq!(seen, 2 * QUEUED);
        let got = received(&mut slow);
        let begun = got.iter().filter(|text| text.contains("job_begun")).count();
        assert_eq!(begun, QUEUED - 1, "a sign of life came first");
        // There is room again, and nothing else happens.
        assert!(stream.anyone_lost());
        stream.send_all(last, false);
        let got = received(&mut slow);
        let lost = format!("\"count\":{}", QUEUED + 1);
        assert!(
            got.len() == 1 && got[0].contains("event: lost") && got[0].contains(&lost),
            "{got:?}"
        );
        assert!(!stream.anyone_lost());
        assert!(received(&mut quick).is_empty());
    }

    #[test]
    fn a_listener_that_left_makes_room_and_the_bus_rests_without_any() {
        let stream = stream();
        let bodies: Vec<Body> = (0..LISTENERS).map(|_| stream.listen().unwrap()).collect();
        stream.listen().unwrap_err();
        drop(bodies);
        let body = stream.listen().unwrap();
        stream.bus.tell(|| Event::Reset);
        drop(body);
        stream.pass_on(&mut 0);
        stream.bus.tell(|| unreachable!("no one listens"));
    }

    #[test]
    fn the_end_ends_each_response() {
        let stream = stream();
        let body = stream.listen().unwrap();
        stream.close();
        let all = sync::block_on({
            let mut collect = Box::pin(body.collect());
            move |cx| collect.as_mut().poll(cx)
        });
        assert_eq!(all.unwrap().to_bytes(), ALIVE);
    }
}
