//! Entry point of the fuzz target `session`: what a client can send.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::session::Server;
use crate::blk::fuzzing::{DEVICE, options};

/// Sends the input's bytes to a session, which has to end by itself when they are all read.
pub fn session(input: &[u8]) {
    let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
    if client.write_all(&input[..input.len().min(16 * 1024)]).is_err() {
        return;
    }
    client.shutdown(std::net::Shutdown::Write).expect("an open socket");
    let stop = EventFd::new().expect("an eventfd");
    let _ = Server::new(Arc::clone(&DEVICE), options()).serve(&server, stop.as_fd(), None);
}
