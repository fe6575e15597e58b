//! Files handed over to be mapped, by each of the messages that do so.

use std::os::fd::AsRawFd;

use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::wire::{Answer, memory_region};

use super::{LIMIT, daemon::Daemon, raw::GPA};

/// What the line says that refuses a file.
pub const ACCEPTED: &str =
    "guest memory is a memfd, a file on tmpfs or hugetlbfs, or secret memory (memfd_secret)";

/// Hands `file` over by one of the three messages that map one; says whether it was taken.
pub fn hand_over(
    daemon: &Daemon,
    code: FrontendReq,
    file: &impl AsRawFd,
    len: u64,
    at: u64,
) -> bool {
    let region = memory_region(GPA, len, 0x7000_0000_0000, at);
    let body = match code {
        FrontendReq::SET_MEM_TABLE => [&[1, 0, 0, 0, 0, 0, 0, 0], &region[..]].concat(),
        FrontendReq::ADD_MEM_REG => [&[0; 8], &region[..]].concat(),
        _ => {
            let sizes = [1_u16.to_le_bytes(), 128_u16.to_le_bytes()].concat();
            [&len.to_le_bytes()[..], &at.to_le_bytes(), &sizes, &[0; 4]].concat()
        }
    };
    let session = daemon.session();
    let answer = session.wire().ask(code, &body, &[file.as_raw_fd()], LIMIT).expect("an answer");
    assert!(answer == Answer::Ack || answer.is_refusal(), "{answer:?}");
    answer == Answer::Ack
}

/// The messages that hand over a file to be mapped.
pub const ALL: [FrontendReq; 3] =
    [FrontendReq::SET_MEM_TABLE, FrontendReq::ADD_MEM_REG, FrontendReq::SET_INFLIGHT_FD];
