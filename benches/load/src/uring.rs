//! Block device as a target, through io_uring with O_DIRECT.
//!
//! All unsafe code of this crate is here.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use io_uring::{IoUring, opcode, types::Fd};
use nix::fcntl::OFlag;
use vhost_user_zram_frontend::Region;

use crate::target::{Done, Io, Kind, Lane, Need, Result, Target, TargetError, Wait};

nix::ioctl_write_ptr_bad! {
    /// Discards the bytes of a block device: offset, length.
    blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]
}

struct UringLane {
    ring: IoUring,
    // The rings address this memory and this file by pointer and number: both live as long as they do.
    region: Arc<Region>,
    file: Arc<File>,
    lens: Vec<u32>,
    /// Discards, which are done within their call.
    discarded: Vec<Done>,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> TargetError {
    let what = what.into();
    move |source| TargetError::Io { what, source }
}

impl Lane for UringLane {
    #[inline]
    fn submit(&mut self, slot: usize, io: &Io) -> Result<()> {
        if io.kind == Kind::Discard {
            let range = [io.offset, u64::from(io.len)];
            // SAFETY: The file is open for as long as this lane lives, and the call reads these two numbers.
            let result = unsafe { blkdiscard(self.file.as_raw_fd(), &raw const range) };
            self.discarded.push(Done { slot, ok: result.is_ok() });
            return Ok(());
        }
        let buffer = self.region.host_ptr(io.addr, u64::from(io.len))?;
        let fd = Fd(self.file.as_raw_fd());
        let entry = if io.kind == Kind::Write {
            opcode::Write::new(fd, buffer, io.len).offset(io.offset).build()
        } else {
            opcode::Read::new(fd, buffer, io.len).offset(io.offset).build()
        };
        self.lens[slot] = io.len;
        // SAFETY: `host_ptr` has checked that the buffer lies inside the region, which this lane keeps
        // mapped; the region is shared memory that is only ever accessed through raw pointers.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        pushed.map_err(|_| TargetError::Unfit("more operations than ring entries".into()))
    }

    #[inline]
    fn publish(&mut self) -> Result<()> {
        self.ring.submit().map(drop).map_err(failed("io_uring_enter"))
    }

    #[inline]
    fn reap(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<()> {
        done.append(&mut self.discarded);
        loop {
            for entry in self.ring.completion() {
                let slot = entry.user_data() as usize;
                let ok = u32::try_from(entry.result()).is_ok_and(|n| n == self.lens[slot]);
                done.push(Done { slot, ok });
            }
            if !done.is_empty() {
                return Ok(());
            }
            match wait {
                Wait::Irq => match self.ring.submit_and_wait(1) {
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(failed("io_uring_enter")(e)),
                },
                Wait::Poll => std::hint::spin_loop(),
            }
        }
    }
}

/// Opens the block device (or file) at `path`.
pub fn open(path: &Path, need: &Need) -> Result<Target> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .map_err(failed(path.display().to_string()))?;
    let capacity = (&file).seek(SeekFrom::End(0)).map_err(failed("seek"))?;
    let file = Arc::new(file);
    let region = Region::new(0x4000_0000, (need.memory + (4 << 20)).next_multiple_of(2 << 20))?;
    let lanes = (0..need.queues)
        .map(|_| {
            let entries = u32::from(need.depth).next_power_of_two();
            let ring = IoUring::new(entries).map_err(failed("io_uring_setup"))?;
            Ok(Box::new(UringLane {
                ring,
                region: Arc::clone(&region),
                file: Arc::clone(&file),
                lens: vec![0; usize::from(need.depth)],
                discarded: Vec::new(),
            }) as Box<dyn Lane>)
        })
        .collect::<Result<_>>()?;
    Ok(Target { lanes, region, capacity })
}
