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
use crate::disk::{Disk, RecompressEnd, Wanted};
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

/// Recompresses pages, and waits for that.
///
/// # Errors
/// Another one is under way, this one is cancelled or fails, or the daemon is about to end.
pub(super) async fn recompress(
    disk: &Disk,
    wanted: Wanted,
    watch: &Arc<Watch>,
) -> Result<(), ApiError> {
    let _busy = watch.begin();
    let (told, done) = oneshot::channel();
    let told = move |end| {
        // The client may be gone.
        let _ = told.send(end);
    };
    disk.recompress(wanted, told)?;
    match done.await.map_err(|_| ApiError::ending())? {
        RecompressEnd::Done => Ok(()),
        RecompressEnd::Cancelled => {
            let error = "the recompression was cancelled: what it did stays";
            Err(ApiError::new(StatusCode::CONFLICT, "EINTR", error))
        }
        RecompressEnd::Failed(error) => Err(error.into()),
    }
}

/// Marks pages as idle, in a thread of its own, and waits for that.
///
/// # Errors
/// Pages have no such age, no thread can be started, or the daemon is about to end.
pub(super) async fn mark_idle(
    disk: &Arc<Disk>,
    age: Option<u64>,
    watch: &Arc<Watch>,
) -> Result<(), ApiError> {
    let _busy = watch.begin();
    let (told, done) = oneshot::channel();
    let disk = Arc::clone(disk);
    let body = move || {
        let marked = disk.mark_idle(age);
        drop(disk);
        let _ = told.send(marked);
    };
    threads::spawn("idle", body).map_err(|error| {
        let error = format!("no thread can be started to mark pages ({error}): try again");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "EAGAIN", error)
    })?;
    done.await.map_err(|_| ApiError::ending())??;
    Ok(())
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
