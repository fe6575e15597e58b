//! The thread of the API: its socket, its connections, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time;
use tower_service::Service;

use super::connection::{Connections, HEADER_TIME, Place, Watched};
use super::routes;
use super::shared::Api;
use super::stream::Stream;
use super::view::About;
use crate::disk::Disk;
use crate::engine;
use crate::threads;

/// Most connections at a time. Further ones wait in the socket's queue until a place is free.
pub const CONNECTIONS: usize = 1000;

/// Most bytes that a connection keeps of what it read, which is also the most of a header, and of what it has to
/// write.
const BUFFER: usize = 16 << 10;
/// Most headers of a request.
const HEADERS: usize = 64;
/// How long clients may take for what they are getting when the daemon ends.
const END_TIME: Duration = Duration::from_millis(500);
/// The time between two attempts to accept when that fails.
const RETRY: Duration = Duration::from_millis(100);

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The thread, or what it needs, cannot be had.
    #[error("cannot start the thread of the control API")]
    Thread(#[source] io::Error),
    /// The socket cannot be used.
    #[error("cannot use the socket of the control API")]
    Socket(#[source] io::Error),
}

/// The API of one disk, until it is dropped.
pub struct Control {
    api: Arc<Api>,
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the API on a socket that listens. It has at most `connections` connections at a time.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn start(
        socket: UnixListener,
        disk: Arc<Disk>,
        about: About,
        connections: usize,
    ) -> Result<Self, ControlError> {
        let stream = Stream::new(Arc::clone(disk.events()));
        let api = Arc::new(Api { disk, about, ready: AtomicBool::new(false), stream });
        socket.set_nonblocking(true).map_err(ControlError::Socket)?;
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(ControlError::Thread)?;
        let socket = {
            let _entered = runtime.enter();
            tokio::net::UnixListener::from_std(socket).map_err(ControlError::Socket)?
        };
        let (end, ended) = watch::channel(false);
        let its_api = Arc::clone(&api);
        let body = move || run(&runtime, socket, &its_api, connections.max(1), ended);
        let thread = threads::spawn("control", body).map_err(ControlError::Thread)?;
        Ok(Self { api, end, thread: Some(thread) })
    }

    /// Front ends can connect from now on.
    pub fn set_ready(&self) {
        self.api.ready.store(true, Ordering::Relaxed);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the control API had died");
        }
    }
}

fn run(
    runtime: &Runtime,
    socket: tokio::net::UnixListener,
    api: &Arc<Api>,
    most: usize,
    ended: watch::Receiver<bool>,
) {
    // Threads that serve a queue come first.
    engine::run_in_background(&engine::Cpus::default());
    let connections = Arc::new(Connections::default());
    runtime.block_on(async {
        let events = Arc::clone(api);
        runtime.spawn(async move {
            let Err(error) = events.stream.run().await;
            log::warn!("control: events are not passed on any more: {error}");
        });
        let accepting = accept_all(&socket, api, &connections, most, &ended);
        first(accepting, until_end(ended.clone())).await;
        drop(socket);
        api.stream.close();
        let gone = async {
            while connections.count() > 0 {
                connections.wait().await;
            }
        };
        if time::timeout(END_TIME, gone).await.is_err() {
            log::debug!("control: {} connections are cut off", connections.count());
        }
    });
}

/// Accepts clients. Does not return.
async fn accept_all(
    socket: &tokio::net::UnixListener,
    api: &Arc<Api>,
    connections: &Arc<Connections>,
    most: usize,
    ended: &watch::Receiver<bool>,
) -> Infallible {
    let router = routes::router(Arc::clone(api));
    let mut failed = false;
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    log::warn!("control: no client can be accepted: {error}");
                }
                connections.make_room();
                time::sleep(RETRY).await;
                continue;
            }
        };
        failed = false;
        // It waits for its place, and those behind it in the socket's queue.
        while connections.count() >= most {
            connections.make_room();
            connections.wait().await;
        }
        tokio::spawn(serve(stream, router.clone(), connections.add(), ended.clone()));
    }
}

/// Serves one client to its end.
async fn serve(stream: UnixStream, router: Router, place: Place, ended: watch::Receiver<bool>) {
    let watch = Arc::clone(place.watch());
    let service = service_fn({
        let watch = Arc::clone(&watch);
        move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&watch));
            router.clone().call(request)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    http.max_buf_size(BUFFER).max_headers(HEADERS);
    let io = Watched::new(stream, Arc::clone(&watch));
    let mut connection = pin!(http.serve_connection(io, service));
    let served = async {
        if let Some(result) = first(connection.as_mut(), until_end(ended)).await {
            return result;
        }
        // What the client is getting is finished, and nothing new begun.
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Some(Err(error)) = first(served, watch.ended()).await {
        log::debug!("control: a client's connection ended: {error}");
    }
}

/// Ready when the API is to end.
async fn until_end(mut ended: watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the end, too.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Waits for one of two. Returns what the first one gives, if that is it.
async fn first<T>(one: impl Future<Output = T>, other: impl Future) -> Option<T> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(value) = one.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        other.as_mut().poll(cx).map(|_| None)
    })
    .await
}
