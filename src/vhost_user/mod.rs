//! vhost-user sessions: one front end, from connection to end.
//!
//! * `session`: the seam behind which all else lies
//! * `incoming`: what lies in the socket, before it is read
//! * `channel`: what the disk tells a front end by itself
//! * `events`: eventfds that a front end hands over
//! * `admission`: which rings a disk serves
//! * `handler`: what each message does to rings and memory

mod admission;
mod channel;
mod error;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handler;
mod incoming;
mod session;

pub use self::error::SessionError;
pub use self::session::{Others, Server, SessionEnd};
