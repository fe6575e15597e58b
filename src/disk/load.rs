//! Filling a disk from a raw image.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::image::{Image, ImageError, ImageFormat};
use crate::device::{Device, DeviceError, IoError, Op, Payload, PayloadFault, WorkerContext};
use crate::stop::{Stop, Stopped};
use crate::units::{PAGE_SIZE, SECTOR_SIZE};
use crate::{sync, threads};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// How often progress is reported.
const REPORT: Duration = Duration::from_secs(2);
/// The longest wait for a load that is to stop, in milliseconds. It stops between two chunks, unless
/// the file stalls.
const STOP_TIME: u16 = 1000;

/// Why an image cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image is longer than the disk.
    #[error("an image of {image} bytes does not fit on a disk of {disk} bytes")]
    TooLong {
        /// Bytes of the image.
        image: u64,
        /// Bytes of the disk.
        disk: u64,
    },
    /// The device cannot store it.
    #[error("the disk cannot store the image")]
    Store(#[from] IoError),
    /// The codec cannot be set up.
    #[error("cannot set up the codec of the thread that loads the image")]
    Context(#[from] DeviceError),
    /// The thread that loads cannot be started, or died.
    #[error("the thread that loads the image failed")]
    Thread(#[source] io::Error),
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
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

/// Writes the image at `path` to the start of the disk, which is blank; its last page is filled up
/// with zeroes.
///
/// A thread of its own reads the file, since a file can stall. When the process is to stop, it waits for that
/// thread no longer than a second.
///
/// # Errors
/// The image cannot be read to its end, is not raw, is longer than the disk, or the disk cannot
/// store it; or the process is to stop.
pub(super) fn load(
    device: &Arc<Device>,
    path: &Path,
    format: ImageFormat,
    stop: &Stop,
    progress: impl Fn() + Send + 'static,
) -> Result<(), LoadError> {
    let thread = |error| LoadError::Thread(error);
    let ended = Arc::new(EventFd::new().map_err(|errno| thread(errno.into()))?);
    let result = Arc::new(Mutex::new(None));
    let body = {
        let end = End(Arc::clone(&ended));
        let (result, stop) = (Arc::clone(&result), stop.clone());
        let (device, path) = (Arc::clone(device), path.to_owned());
        move || {
            let loaded = Image::open(&path, format)
                .map_err(LoadError::from)
                .and_then(|image| fill(&device, &image, &path, &stop, &progress));
            // Before the end is signalled: the disk may be closed then.
            drop(device);
            *sync::lock(&result) = Some(loaded);
            drop(end);
        }
    };
    threads::spawn("load", body).map_err(thread)?;
    if let Err(stopped) = stop.wait_for(ended.as_fd(), PollFlags::POLLIN, Duration::MAX) {
        let _ = poll(
            &mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(STOP_TIME),
        );
        return Err(stopped.into());
    }
    let died = || Err(thread(io::Error::other("it panicked")));
    sync::lock(&result).take().unwrap_or_else(died)
}

/// Signals the end of the thread, by unwinding too.
struct End(Arc<EventFd>);

impl Drop for End {
    fn drop(&mut self) {
        if let Err(errno) = self.0.write(1) {
            log::error!("cannot signal the end of the load: {errno}");
        }
    }
}

/// Writes `image` to the disk. Pages of zeroes are left as they are on a blank disk, and holes are
/// not even read.
fn fill(
    device: &Device,
    image: &Image,
    path: &Path,
    stop: &Stop,
    progress: impl Fn(),
) -> Result<(), LoadError> {
    let length = image.length();
    if length > device.size() {
        return Err(LoadError::TooLong { image: length, disk: device.size() });
    }
    let mut context = device.worker_context()?;
    let mut chunk = vec![0; CHUNK];
    let mut reported = Instant::now();
    let mut at = 0;
    while let Some((start, end)) = image.next_data(at) {
        stop.check()?;
        let bytes = (end - start).min(CHUNK as u64) as usize;
        image.read(start, &mut chunk[..bytes])?;
        let padded = bytes.next_multiple_of(PAGE_SIZE);
        chunk[bytes..padded].fill(0);
        store(device, &mut context, start, &chunk[..padded])?;
        at = start + padded as u64;
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let percent = at.min(length) * 100 / length.max(1);
            log::info!("loading {}: {} MiB, {percent} %", path.display(), at >> 20);
            progress();
        }
    }
    image.check_unchanged()?;
    log::info!("loaded {length} bytes from {}", path.display());
    Ok(())
}

/// Writes the pages of `bytes` that have data other than zeroes to the disk, from byte `at` on.
fn store(
    device: &Device,
    context: &mut WorkerContext,
    at: u64,
    bytes: &[u8],
) -> Result<(), LoadError> {
    let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
    let is_blank = |page: &[u8; PAGE_SIZE]| *page == [0; PAGE_SIZE];
    let mut at = at;
    for run in pages.chunk_by(|one, next| is_blank(one) == is_blank(next)) {
        let bytes = run.as_flattened();
        if !is_blank(&run[0]) {
            let length = bytes.len() as u64;
            let mut request = device.request(Op::Write, at / SECTOR_SIZE, length, Piece(bytes))?;
            sync::block_on(|cx| request.poll(context, cx))?;
        }
        at += bytes.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;
    use crate::device::{BlockChoice, DeviceConfig, MemoryKind};
    use crate::engine::EngineConfig;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// An image in a file of its own, which is removed with its value.
    struct Source(PathBuf);

    impl Source {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let name = format!("vhost-user-zram-load.{}.{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn file(&self) -> File {
            OpenOptions::new().write(true).open(&self.0).unwrap()
        }

        fn open(&self) -> Result<Image, ImageError> {
            Image::open(&self.0, ImageFormat::Auto)
        }
    }

    impl Drop for Source {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn device(size: u64) -> Device {
        let config = DeviceConfig {
            size,
            block_size: BlockChoice::default(),
            codec: "lz4".parse().unwrap(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine: EngineConfig::default(),
        };
        Device::new(&config).unwrap()
    }

    fn fill_from(device: &Device, source: &Source, image: &Image) -> Result<(), LoadError> {
        fill(device, image, &source.0, &Stop::new().unwrap(), || ())
    }

    /// Bytes that differ from one offset to the next.
    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| ((at / 7) ^ (at >> 9)) as u8 | 1).collect()
    }

    #[test]
    fn a_file_that_changes_its_length_is_not_loaded() {
        let source = Source::new("length", &bytes(3 << 20));
        for (length, cut) in [(1 << 20, true), (0, true), ((3 << 20) - 1, true), (4 << 20, false)] {
            let image = source.open().unwrap();
            source.file().set_len(length).unwrap();
            let error = fill_from(&device(16 << 20), &source, &image).unwrap_err();
            match error {
                LoadError::Image(ImageError::Cut { at, length: 0x30_0000 }) if cut => {
                    assert_eq!(at, length);
                }
                // If the file system reports that no data is there.
                LoadError::Image(ImageError::Changed) => {}
                error => panic!("{length}: {error:?}"),
            }
            fs::write(&source.0, bytes(3 << 20)).unwrap();
        }
        let image = source.open().unwrap();
        fill_from(&device(16 << 20), &source, &image).unwrap();
    }

    #[test]
    fn a_part_that_was_cut_off_is_not_read() {
        let source = Source::new("gone", &bytes(PAGE_SIZE));
        let image = source.open().unwrap();
        source.file().set_len(100).unwrap();
        let mut buffer = [0; PAGE_SIZE];
        image.read(0, &mut buffer[..100]).unwrap();
        let error = image.read(0, &mut buffer).unwrap_err();
        assert!(matches!(error, ImageError::Cut { at: 100, length: PAGE }), "{error:?}");
    }

    #[test]
    fn a_file_that_was_written_to_is_not_loaded() {
        let source = Source::new("written", &bytes(1 << 20));
        let image = source.open().unwrap();
        source.file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let error = fill_from(&device(16 << 20), &source, &image).unwrap_err();
        assert!(matches!(error, LoadError::Image(ImageError::Changed)), "{error:?}");
    }

    #[test]
    fn a_file_that_says_it_is_empty_and_is_not_is_not_loaded() {
        let path = Path::new("/proc/self/status");
        let image = Image::open(path, ImageFormat::Auto).unwrap();
        assert_eq!(image.length(), 0);
        let loaded = fill(&device(1 << 20), &image, path, &Stop::new().unwrap(), || ());
        assert!(matches!(loaded, Err(LoadError::Image(ImageError::Changed))), "{loaded:?}");
    }

    #[test]
    fn zeroes_and_holes_store_nothing() {
        let source = Source::new("holes", &bytes(PAGE_SIZE));
        let length = 64 << 30;
        let file = source.file();
        file.set_len(length).unwrap();
        // Zeroes that the file stores, between pages that it does not store, and a partial last page.
        file.write_all_at(&[0; 5 * PAGE_SIZE], 100 * PAGE).unwrap();
        file.write_all_at(&bytes(PAGE_SIZE), 102 * PAGE).unwrap();
        file.write_all_at(&bytes(100), length - 100).unwrap();
        let image = source.open().unwrap();
        let device = device(64 << 30);
        fill_from(&device, &source, &image).unwrap();
        let report = device.report();
        assert_eq!((report.orig_data_size, report.same_pages), (3 * PAGE, 0), "{report}");
        // One page of the table for each.
        assert!(report.table_bytes <= 3 * PAGE, "{report}");
    }

    #[test]
    fn ranges_of_data_cover_all_that_was_written() {
        let source = Source::new("ranges", &[]);
        let file = source.file();
        file.set_len(1000 * PAGE + 5).unwrap();
        for page in [0, 1, 7, 500, 999] {
            file.write_all_at(&[1], page * PAGE + 5).unwrap();
        }
        file.write_all_at(&[1], 1000 * PAGE + 4).unwrap();
        let image = source.open().unwrap();
        let mut covered = Vec::new();
        let mut at = 0;
        while let Some((start, end)) = image.next_data(at) {
            assert!(start >= at && start % PAGE == 0 && end > start, "{at} {start} {end}");
            assert!(end % PAGE == 0 || end == image.length(), "{end}");
            covered.extend(start / PAGE..end.div_ceil(PAGE));
            at = end.next_multiple_of(PAGE);
        }
        for page in [0, 1, 7, 500, 999, 1000] {
            assert!(covered.contains(&page), "{page}: {covered:?}");
        }
    }

    #[test]
    fn an_image_that_is_not_raw_is_refused_unless_it_is_requested() {
        let heads: [(&str, usize, &[u8]); 8] = [
            ("qcow", 0, b"QFI\xfb\0\0\0\x03"),
            ("gzip", 0, b"\x1f\x8b\x08\0"),
            ("xz", 0, b"\xfd7zXZ\0\0\x04"),
            ("zstd", 0, b"\x28\xb5\x2f\xfd"),
            ("VMDK", 0, b"KDMV\x01"),
            ("VDI", 64, b"\x7f\x10\xda\xbe"),
            ("bzip2", 0, b"BZh91AY&SY"),
            ("tar", 257, b"ustar"),
        ];
        for (name, at, magic) in heads {
            let mut text = vec![b'x'; 3 * PAGE_SIZE];
            text[at..at + magic.len()].copy_from_slice(magic);
            let source = Source::new(name, &text);
            let error = source.open().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("--load-format raw"), "{error}");
            Image::open(&source.0, ImageFormat::Raw).unwrap();
            // At another offset the bytes are not a signature.
            text.insert(0, b'x');
            fs::write(&source.0, &text).unwrap();
            source.open().unwrap();
        }
        for short in [&b""[..], b"QFI", b"BZh9"] {
            Source::new("short", short).open().unwrap();
        }
    }
}
