//! Messages about in-flight regions: what a region looks like that is asked for, and which ones are refused.

mod common;

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, RawFd},
};

use common::{
    daemon::Daemon,
    disk::{expect_served, mark},
    memfd, wait_until,
};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{inflight::stride, wire::Answer};

#[test]
fn a_region_is_zeroed_and_sealed_and_of_the_size_that_any_queue_needs() {
    let daemon = Daemon::start("16M", &["--num-queues", "4", "--queue-size", "256"]);
    let session = daemon.session();
    for (queues, size) in [(1, 128), (4, 256), (3, 2), (2, 64), (1, 512)] {
        let region = session.take_inflight(queues, size).unwrap().expect("offered");
        // Behind the parts that are asked for there are some for the largest rings that are allowed.
        let large = if size < 256 { stride(256) } else { 0 };
        let bytes = u64::from(queues) * (stride(size) + large);
        assert_eq!((region.info().mmap_size, region.info().mmap_offset), (bytes, 0));
        assert_eq!((region.info().num_queues, region.info().queue_size), (queues, size));
        assert_eq!(region.file().metadata().unwrap().len(), bytes);
        assert!(region.bytes().iter().all(|byte| *byte == 0));
        let seals = fcntl(region.file(), FcntlArg::F_GET_SEALS).unwrap();
        let all = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        assert_eq!(SealFlag::from_bits_retain(seals), all);
    }
}

fn body(mmap_size: u64, mmap_offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut body = [mmap_size.to_le_bytes(), mmap_offset.to_le_bytes()].concat();
    body.extend([queues.to_le_bytes(), queue_size.to_le_bytes(), [0; 2], [0; 2]].concat());
    body
}

#[test]
fn messages_about_regions_that_cannot_be_are_refused_and_keep_no_descriptor() {
    let mut daemon = Daemon::start("16M", &["--num-queues", "2", "--queue-size", "128"]);
    mark(&daemon);
    let before = daemon.open_fds();
    let (file, need) = (memfd(1 << 20), 2 * stride(128));
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let device = OpenOptions::new().read(true).write(true).open("/dev/zero").unwrap();
    let (pipe, _end) = io::pipe().unwrap();
    let good = file.as_raw_fd();
    let cases: Vec<(&str, Vec<u8>, Vec<RawFd>)> = vec![
        ("no queues", body(need, 0, 0, 128), vec![good]),
        ("too many queues", body(1 << 20, 0, 3, 128), vec![good]),
        ("far too many queues", body(1 << 20, 0, 0xffff, 128), vec![good]),
        ("no size", body(need, 0, 2, 0), vec![good]),
        ("a size that is not a power of two", body(need, 0, 2, 100), vec![good]),
        ("a size that no queue has", body(1 << 20, 0, 2, 0x8001), vec![good]),
        ("a region that is too small", body(need - 1, 0, 2, 128), vec![good]),
        ("an empty region", body(0, 0, 2, 128), vec![good]),
        ("one that goes around", body(need, u64::MAX - 4095, 2, 128), vec![good]),
        ("one that ends behind the file", body(1 << 20, 4096, 2, 128), vec![good]),
        ("one that lies behind the file", body(need, 1 << 30, 2, 128), vec![good]),
        ("one of all there is", body(u64::MAX, 0, 2, 128), vec![good]),
        ("one that begins within a page", body(need, 8, 2, 128), vec![good]),
        ("a file that cannot be written", body(need, 0, 2, 128), vec![read_only.as_raw_fd()]),
        ("a device", body(need, 0, 2, 128), vec![device.as_raw_fd()]),
        ("a pipe", body(need, 0, 2, 128), vec![pipe.as_raw_fd()]),
        ("no descriptor", body(need, 0, 2, 128), vec![]),
        ("two descriptors", body(need, 0, 2, 128), vec![good, good]),
        ("a short message", body(need, 0, 2, 128)[..16].to_vec(), vec![good]),
    ];
    for (name, body, fds) in cases {
        let session = daemon.session();
        let answer = session.wire().ask(FrontendReq::SET_INFLIGHT_FD, &body, &fds, common::LIMIT);
        assert!(answer.unwrap().is_refusal(), "{name}");
        drop(session);
    }
    for (queues, size) in [(0, 128), (3, 128), (1, 0), (1, 3), (2, 0x8001), (0xffff, 0xffff)] {
        let session = daemon.session();
        assert!(session.get_inflight(queues, size).is_err(), "{queues} of {size}");
    }
    // Good ones, again and again, each in place of the one before.
    let session = daemon.session();
    for offset in [0, 4096, 8192] {
        for _ in 0..100 {
            let body = body(need, offset, 2, 128);
            let asked =
                session.wire().ask(FrontendReq::SET_INFLIGHT_FD, &body, &[good], common::LIMIT);
            assert_eq!(asked.unwrap(), Answer::Ack);
        }
    }
    drop(session);
    wait_until("descriptors to be closed", || daemon.open_fds() <= before);
    expect_served(&mut daemon);
}
