//! Descriptors that no good front end hands over: too many, of a wrong kind, or such that block. None is kept, none
//! blocks a thread or keeps it busy.

mod common;

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::Duration,
};

use common::{
    LIMIT,
    daemon::client_options,
    disk::expect_served,
    raw::{GPA, Raw},
    victim::{refused, victim},
    wait_until,
};
use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{
    Region,
    spec::T_FLUSH,
    wire::{Answer, FLAG_NEED_REPLY, FLAG_VERSION, header},
};

#[test]
fn descriptors_that_no_message_needs_are_closed() {
    let mut daemon = victim();
    expect_served(&mut daemon);
    let before = daemon.open_fds();
    let file = File::open("/dev/null").unwrap();
    let fds = [file.as_raw_fd(); 8];
    let zeros = [0; 64];
    let cases = [
        (FrontendReq::GET_FEATURES, 0),
        (FrontendReq::SET_FEATURES, 8),
        (FrontendReq::SET_OWNER, 0),
        (FrontendReq::SET_VRING_NUM, 8),
        (FrontendReq::SET_VRING_ADDR, 40),
        (FrontendReq::SET_VRING_KICK, 8),
        (FrontendReq::SET_VRING_CALL, 8),
        (FrontendReq::SET_VRING_ERR, 8),
        (FrontendReq::SET_MEM_TABLE, 40),
        (FrontendReq::ADD_MEM_REG, 40),
        (FrontendReq::REM_MEM_REG, 40),
        (FrontendReq::GET_CONFIG, 20),
        (FrontendReq::SET_LOG_BASE, 16),
        (FrontendReq::SET_LOG_FD, 0),
        (FrontendReq::SET_BACKEND_REQ_FD, 0),
        (FrontendReq::SET_INFLIGHT_FD, 24),
        (FrontendReq::SET_STATUS, 8),
        (FrontendReq::GET_MAX_MEM_SLOTS, 0),
    ];
    for _ in 0..2 {
        for (code, len) in cases {
            let session = daemon.session();
            let flags = FLAG_VERSION | FLAG_NEED_REPLY;
            // Refused or not: only what stays open counts.
            let _ = session.wire().send_message(u32::from(code), flags, &zeros[..len], &fds);
            let _ = session.wire().recv_message(Duration::from_millis(20));
            drop(session);
        }
    }
    // In the middle of a message, too.
    let session = daemon.session();
    let _ = session.wire().send(&header(8, FLAG_VERSION, 8), &fds);
    drop(session);
    expect_served(&mut daemon);
    wait_until("descriptors to be closed", || daemon.open_fds() <= before);
}

#[test]
fn sessions_leave_no_descriptors_behind() {
    let mut daemon = victim();
    expect_served(&mut daemon);
    let before = daemon.open_fds();
    for i in 0..20 {
        let mut client = daemon.client_with(&vhost_user_zram_frontend::ClientOptions {
            mem_slots: i % 2 == 0,
            ..client_options()
        });
        client.blk().flush().unwrap();
    }
    wait_until("descriptors to be closed", || daemon.open_fds() <= before);
}

#[test]
fn descriptors_of_a_wrong_kind_for_events_are_refused() {
    let mut daemon = victim();
    let (a, _b) = UnixStream::pair().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let region = Region::new(GPA, 4096).unwrap();
    let (pipe, _end) = std::io::pipe().unwrap();
    let epoll = vmm_sys_util::epoll::Epoll::new().unwrap();
    let wrong = [&a as &dyn AsRawFd, &null, region.file(), &pipe, &epoll];
    for fd in wrong.map(AsRawFd::as_raw_fd) {
        for code in
            [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR]
        {
            let raw = Raw::new(&daemon);
            refused(&raw.session, code, &0_u64.to_le_bytes(), &[fd]);
            drop(raw);
            expect_served(&mut daemon);
        }
    }
}

/// A kick descriptor that stays readable for ever is checked once for each kick.
#[test]
fn a_kick_descriptor_that_stays_readable_keeps_no_thread_busy() {
    let mut daemon = victim();
    let mut raw = Raw::new(&daemon);
    // It counts down by ones.
    let kick = vmm_sys_util::eventfd::EventFd::new(libc::EFD_SEMAPHORE).unwrap();
    const MANY: u64 = 1 << 40;
    kick.write(MANY).unwrap();
    let (code, fds) = (FrontendReq::SET_VRING_KICK, [kick.as_raw_fd()]);
    let answer = raw.session.wire().ask(code, &0_u64.to_le_bytes(), &fds, LIMIT).unwrap();
    assert_eq!(answer, Answer::Ack);
    raw.set_header(T_FLUSH, 0);
    raw.set_chain(&[raw.header_desc(), raw.status_desc()]);
    for _ in 0..3 {
        raw.queue.push(0).unwrap();
        raw.queue.publish().unwrap();
        kick.write(1).unwrap();
        raw.queue.spin_used(LIMIT).unwrap();
        while raw.queue.pop().unwrap().is_some() {}
    }
    for _ in 0..100 {
        raw.session.config(0, 60).unwrap();
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", kick.as_raw_fd())).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap();
    let left = u64::from_str_radix(line.trim(), 16).unwrap();
    // One look when it is set, and one for each kick.
    assert!((MANY - 1..MANY + 3).contains(&left), "{left:#x}");
    drop(raw);
    expect_served(&mut daemon);
}

#[test]
fn a_saturated_blocking_call_descriptor_blocks_no_queue() {
    let mut daemon = victim();
    let mut raw = Raw::new(&daemon);
    let call = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    call.write(u64::MAX - 1).unwrap();
    let code = FrontendReq::SET_VRING_CALL;
    let answer =
        raw.session.wire().ask(code, &0_u64.to_le_bytes(), &[call.as_raw_fd()], LIMIT).unwrap();
    assert_eq!(answer, Answer::Ack);
    raw.set_header(T_FLUSH, 0);
    raw.set_chain(&[raw.header_desc(), raw.status_desc()]);
    for _ in 0..8 {
        raw.queue.want_call().unwrap();
        raw.queue.push(0).unwrap();
        raw.queue.publish().unwrap();
        raw.queue.kick().unwrap();
        raw.queue.spin_used(LIMIT).unwrap();
        while raw.queue.pop().unwrap().is_some() {}
    }
    drop(raw);
    expect_served(&mut daemon);
}
