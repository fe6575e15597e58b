//! What all requests use, and what requests of more than one kind do.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::oneshot;

use super::connection::Watch;
use super::error::ApiError;
use super::stream::Stream;
use super::view::About;
use crate::disk::Disk;
use crate::threads;

/// What all requests use.
pub(super) struct Api {
    pub(super) disk: Arc<Disk>,
    pub(super) about: About,
    pub(super) ready: AtomicBool,
    pub(super) stream: Stream,
}

/// It as handlers get it.
pub(super) type Shared = State<Arc<Api>>;

/// Resets the disk, in a thread of its own.
///
/// # Errors
/// The disk is in use or read-only, or it fails.
pub(super) async fn reset(disk: &Arc<Disk>, watch: &Arc<Watch>) -> Result<(), ApiError> {
    let _busy = watch.begin();
    let (told, done) = oneshot::channel();
    let disk = Arc::clone(disk);
    // It may take seconds, and other clients are not to wait. At most one gets beyond its first look.
    let body = move || {
        let ended = disk.reset();
        drop(disk);
        // The client may be gone.
        let _ = told.send(ended);
    };
    threads::spawn("reset", body).map_err(|error| {
        let error = format!("no thread can be started for the reset ({error}): try again");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "EAGAIN", error)
    })?;
    Ok(done.await.map_err(|_| ApiError::ending())??)
}

/// Compacts all of the disk's memory, and waits for that.
///
/// # Errors
/// The daemon is about to end.
pub(super) async fn compact(disk: &Disk, watch: &Arc<Watch>) -> Result<(), ApiError> {
    let _busy = watch.begin();
    let (told, done) = oneshot::channel();
    let told = move |_| {
        // The client may be gone.
        let _ = told.send(());
    };
    disk.compact(told).ok_or_else(ApiError::ending)?;
    done.await.map_err(|_| ApiError::ending())
}
