//! Asynchronous compression, as on an offload engine: submit, complete, refuse, fail.
//!
//! A [`Job`] carries a copy of its input, so the work can always be done over again: the request
//! that submitted it does so inline, with the same codec, if the engine refuses it, fails, or does not
//! come back in time. Completion is a waker's call. Nothing here knows of slots or of requests.
//!
//! The engine is a pool of threads behind a bounded queue. What a device would do to it (delays,
//! refusals, results in another order, failures, damage, silence) a model does.

#[cfg(not(loom))]
mod cost;
#[cfg(not(loom))]
mod figures;
#[cfg(not(loom))]
mod host;
// The model needs but a part of these two.
#[cfg_attr(loom, allow(dead_code))]
mod job;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(not(loom))]
mod model;
#[cfg_attr(loom, allow(dead_code))]
mod queue;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
mod trial;
#[cfg(not(loom))]
mod worker;

#[cfg(not(loom))]
pub use self::cost::Sampler;
#[cfg(not(loom))]
pub use self::figures::{EngineReport, Histogram};
#[cfg(not(loom))]
use self::host::Shared;
#[cfg(not(loom))]
pub use self::host::{Engine, EngineConfig, EngineError, Policy};
pub use self::job::{Job, Output, Pending, Spares, Work};
#[cfg(not(loom))]
pub use self::model::EngineModel;
#[cfg(not(loom))]
pub use self::threads::Cpus;
#[cfg(not(loom))]
pub(crate) use self::threads::run_in_background;

/// Why a job came back undone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The codec says no.
    #[cfg(not(loom))]
    #[error(transparent)]
    Codec(crate::codec::CodecError),
    /// The engine failed.
    #[error("the engine failed")]
    Failed,
    /// The output does not have the checksum it was sent with.
    #[error("the engine's output was damaged on its way")]
    Corrupt,
    /// The engine did not answer.
    #[error("the engine did not answer in time")]
    TimedOut,
    /// The worker died.
    #[error("the engine's worker died")]
    Lost,
}
