//! Filling a disk from a raw image.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use super::manager;
use crate::codec::CodecError;
use crate::device::{Device, IoError, Op, Payload, PayloadFault};
use crate::sync;
use crate::units::{PAGE_SIZE, SECTOR_SIZE};

/// Bytes that are read and stored at a time.
const CHUNK: usize = 1 << 20;
/// How often progress is reported.
const REPORT: Duration = Duration::from_secs(2);

/// Why an image cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// The file is longer than the disk.
    #[error("its {image} bytes do not fit on a disk of {disk} bytes")]
    TooLong {
        /// Bytes of the image.
        image: u64,
        /// Bytes of the disk.
        disk: u64,
    },
    /// The device cannot store it.
    #[error("the disk cannot store it")]
    Store(#[from] IoError),
    /// No codec context.
    #[error("there is no codec context")]
    Codec(#[from] CodecError),
}

/// A piece of the image as a write's payload.
struct Piece<'a>(&'a [u8]);

impl Payload for Piece<'_> {
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
        let from = usize::try_from(offset).map_err(|_| PayloadFault)?;
        let bytes = self.0.get(from..from + into.len()).ok_or(PayloadFault)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
        Err(PayloadFault)
    }
}

/// Writes the image at `path` to the start of the disk; its last page is filled up with zeroes.
/// False if `stopped` said so before the end.
///
/// # Errors
/// The image cannot be read, is longer than the disk, or the disk cannot store it.
pub(super) fn load(
    device: &Device,
    path: &Path,
    stopped: impl Fn() -> bool,
) -> Result<bool, LoadError> {
    let mut file = File::open(path)?;
    // A block device has no length of its own; what it holds shows when it is read.
    let length = file.metadata()?.len();
    let too_long = |image| LoadError::TooLong { image, disk: device.size() };
    if length > device.size() {
        return Err(too_long(length));
    }
    let mut lane = device.lane()?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    let mut reported = Instant::now();
    loop {
        let read = read_full(&mut file, &mut chunk)?;
        if read == 0 {
            log::info!("loaded {at} bytes from {}", path.display());
            return Ok(true);
        }
        if stopped() {
            return Ok(false);
        }
        let padded = read.next_multiple_of(PAGE_SIZE);
        chunk[read..padded].fill(0);
        let piece = Piece(&chunk[..padded]);
        let request = device.request(Op::Write, at / SECTOR_SIZE, padded as u64, piece);
        let mut request = request.map_err(|error| match error {
            IoError::OutOfRange { .. } => too_long(at + read as u64),
            error => error.into(),
        })?;
        sync::block_on(|cx| request.poll(&mut lane, cx))?;
        at += read as u64;
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let percent = at.checked_mul(100).and_then(|at| at.checked_div(length)).unwrap_or(0);
            log::info!("loading {}: {} MiB, {percent} %", path.display(), at >> 20);
            manager::say_busy();
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
