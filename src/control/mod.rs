//! The control API of a daemon: HTTP/1.1 with JSON on a Unix socket.
//!
//! * `api`: what is said and taken, as types that a client shares
//! * `view`: one moment of a disk, from which they are made
//! * `attributes`, `metrics`: zram's attributes and Prometheus' text, made from such a moment
//! * `error`, `body`, `object`: requests that are refused, and what comes with a request
//! * `shared`: what all requests use, and what several of them do
//! * `attribute_routes`, `routes`: what each request does; `openapi`: its description
//! * `stream`: the events that clients listen to
//! * `connection`: a client's connection, with its time limits
//! * `server`: the thread, the socket, and how many connections there are
//!
//! All of it runs in one thread, which comes behind those that serve a queue. No request waits for a job, a
//! guest, or another client: what may take long (a reset) has a thread of its own. `docs/api.md` is for users.

pub mod api;
mod attribute_routes;
mod attributes;
mod body;
mod connection;
mod error;
mod metrics;
#[cfg(test)]
mod metrics_tests;
mod object;
#[cfg(test)]
mod openapi;
mod routes;
mod server;
mod shared;
mod stream;
mod view;

pub use self::server::{CONNECTIONS, Control, ControlError};
pub use self::view::About;
