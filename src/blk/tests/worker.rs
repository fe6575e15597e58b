//! Queue threads: what wakes them up, and which events are ignored.

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rig::Rig;
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Command;
use crate::blk::watchdog::Watch;
use crate::blk::worker::Worker;
use crate::virtq::inflight_log::InflightLog;

pub(super) fn worker(rig: &Rig) -> Worker {
    let watch = Watch::new(1, StallLimits::default());
    let trouble = EventFd::new(EFD_NONBLOCK).unwrap();
    let vrings = vec![(0, rig.vring.clone())];
    Worker::spawn(0, vrings, Arc::clone(&rig.shared), rig.worker_context(), trouble, watch).unwrap()
}

pub(super) fn start(worker: &Worker, kick: File) {
    worker.send(Command::Start {
        ring: 0,
        kick,
        error_event: None,
        inflight_log: InflightLog::None,
    });
}

pub(super) fn event() -> File {
    let event = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK);
    File::from(OwnedFd::from(event.unwrap()))
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An earlier process may have received the kick for the heads that were offered before.
#[test]
fn a_ring_is_looked_at_when_it_starts() {
    let rig = Rig::new();
    rig.write(0, 0, 4096);
    let mut worker = worker(&rig);
    for times in 1..=3 {
        start(&worker, event());
        wait_until("the request that was there before", || rig.used().len() == times);
        let (stopped, wait) = channel();
        worker.send(Command::Stop { ring: 0, stopped });
        wait.recv().unwrap();
        rig.vring.set_queue_ready(true);
        rig.write(times as u16, 0, 4096);
    }
    worker.send(Command::Quit);
    assert!(worker.join());
}

/// Each is closed, and logged no more often than other events.
#[test]
fn kick_descriptors_of_no_use_fill_no_log() {
    let rig = Rig::new();
    let mut worker = worker(&rig);
    for _ in 0..50 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        start(&worker, File::from(OwnedFd::from(theirs)));
        // Ends when the thread has closed it.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(
        rig.printed.take(),
        ["queue 0: the kick descriptor cannot be read and is ignored"; 10]
    );
    worker.send(Command::Quit);
    assert!(worker.join());
}
