//! A raw image: whether a file is one, its length, and where it has data.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use nix::unistd::{Whence, lseek64};

use crate::failpoint;
use crate::units::PAGE_SIZE;

/// Which formats an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageFormat {
    /// A raw image that does not begin like a file of another format.
    #[default]
    Auto,
    /// Any image: its bytes are loaded as they are.
    Raw,
}

/// The text is not a choice of formats.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a format: auto or raw")]
pub struct ImageFormatError(String);

impl FromStr for ImageFormat {
    type Err = ImageFormatError;

    fn from_str(text: &str) -> Result<Self, ImageFormatError> {
        match text {
            "auto" => Ok(Self::Auto),
            "raw" => Ok(Self::Raw),
            _ => Err(ImageFormatError(text.to_owned())),
        }
    }
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened, or its metadata cannot be read.
    #[error("cannot open the image")]
    Open(#[source] io::Error),
    /// It is a file without a length.
    #[error("the image is a {0}, not a regular file or a block device")]
    Kind(&'static str),
    /// It is not raw.
    #[error(
        "the image looks like {0}, which is not a raw image: {1}, or use --load-format raw to load its bytes as they are"
    )]
    Format(&'static str, Remedy),
    /// The file cannot be read.
    #[error("cannot read the image at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// The file ends before its length.
    #[error("the image ended at byte {at} of {length}")]
    Cut {
        /// Where it ended.
        at: u64,
        /// Its length at the start.
        length: u64,
    },
    /// The file differs from what it was at the start.
    #[error("the image changed while it was read")]
    Changed,
}

/// How a user makes a raw image of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// By qemu-img.
    Convert,
    /// By a program that unpacks it.
    Unpack(&'static str),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Convert => f.write_str("convert it (qemu-img convert -O raw)"),
            Remedy::Unpack(how) => write!(f, "unpack it ({how})"),
        }
    }
}

/// Formats by the bytes that they begin with: name, offset, bytes, remedy. File systems and encrypted
/// disks are not in the table: a raw image contains them.
const FORMATS: &[(&str, usize, &[u8], Remedy)] = &[
    ("a qcow image", 0, b"QFI\xfb", Remedy::Convert),
    ("a QED image", 0, b"QED\0", Remedy::Convert),
    ("a VMDK image", 0, b"KDMV", Remedy::Convert),
    ("a VMDK image", 0, b"COWD", Remedy::Convert),
    ("a VMDK descriptor", 0, b"# Disk DescriptorFile", Remedy::Convert),
    ("a VHDX image", 0, b"vhdxfile", Remedy::Convert),
    ("a VHD image", 0, b"conectix", Remedy::Convert),
    ("a VDI image", 64, b"\x7f\x10\xda\xbe", Remedy::Convert),
    ("a Parallels image", 0, b"WithoutFreeSpace", Remedy::Convert),
    ("a Parallels image", 0, b"WithouFreSpacExt", Remedy::Convert),
    ("an Android sparse image", 0, b"\x3a\xff\x26\xed", Remedy::Unpack("simg2img")),
    ("a gzip file", 0, b"\x1f\x8b\x08", Remedy::Unpack("gzip -d")),
    ("an xz file", 0, b"\xfd7zXZ\0", Remedy::Unpack("xz -d")),
    ("a zstd file", 0, b"\x28\xb5\x2f\xfd", Remedy::Unpack("zstd -d")),
    ("an lz4 file", 0, b"\x04\x22\x4d\x18", Remedy::Unpack("lz4 -d")),
    ("a bzip2 file", 4, b"\x31\x41\x59\x26\x53\x59", Remedy::Unpack("bzip2 -d")),
    ("an lzip file", 0, b"LZIP\x01", Remedy::Unpack("lzip -d")),
    ("an lzop file", 0, b"\x89LZO\0\r\n\x1a\n", Remedy::Unpack("lzop -d")),
    ("a 7-Zip archive", 0, b"7z\xbc\xaf\x27\x1c", Remedy::Unpack("7z x")),
    ("a zip archive", 0, b"PK\x03\x04", Remedy::Unpack("unzip")),
    ("a tar archive", 257, b"ustar", Remedy::Unpack("tar -x")),
];

/// Bytes at the start of an image that tell its format.
const HEAD: usize = 512;

/// An image that can be read.
#[derive(Debug)]
pub struct Image {
    file: File,
    length: u64,
    stamp: Stamp,
}

/// Metadata that change with a file's contents.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    /// Seconds and nanoseconds of the last change; of regular files only.
    modified: Option<(i64, i64)>,
}

impl Image {
    /// Opens the image at `path`. Does not block, even if it is a pipe.
    ///
    /// # Errors
    /// It is not a regular file or a block device, cannot be read, or is of another format than raw.
    pub(super) fn open(path: &Path, format: ImageFormat) -> Result<Self, ImageError> {
        // Before it is opened: opening other kinds of files may have effects.
        check_kind(&fs::metadata(path).map_err(ImageError::Open)?)?;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path).map_err(ImageError::Open)?;
        check_kind(&file.metadata().map_err(ImageError::Open)?)?;
        let stamp = Stamp::of(&file).map_err(ImageError::Open)?;
        let image = Self { file, length: stamp.length, stamp };
        if format == ImageFormat::Auto {
            let mut head = [0; HEAD];
            let length = image.length.min(HEAD as u64) as usize;
            image.read(0, &mut head[..length])?;
            if let Some((name, remedy)) = recognize(&head) {
                return Err(ImageError::Format(name, remedy));
            }
        }
        Ok(image)
    }

    /// Its length in bytes, as it was when it was opened.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` with the bytes from `at` on; the range lies within the length.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter by now.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        failpoint::reach("load.read");
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            match self.file.read_at(&mut buffer[done..], here) {
                Ok(0) => return Err(ImageError::Cut { at: here, length: self.length }),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ImageError::Read { at: here, source }),
            }
        }
        Ok(())
    }

    /// The next range of whole pages at or after `at`, a multiple of a page, that may have data other
    /// than zeroes. Returns its start and its end, which may exceed the length by a part of a page.
    /// `None` if no such range follows.
    pub(super) fn next_data(&self, at: u64) -> Option<(u64, u64)> {
        if at >= self.length {
            return None;
        }
        let page = PAGE_SIZE as u64;
        let seek = |at: u64, whence| lseek64(&self.file, at.cast_signed(), whence);
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => (start.cast_unsigned() / page * page).max(at),
            // Only a hole up to the end. Whether the end moved is checked later.
            Err(nix::Error::ENXIO) => return None,
            // The file system does not support it.
            Err(_) => return Some((at, self.length)),
        };
        let end = seek(start, Whence::SeekHole).map_or(self.length, i64::cast_unsigned);
        let end = end.next_multiple_of(page).max(start + page);
        (start < self.length).then_some((start, end.min(self.length)))
    }

    /// Checks that length and time of the last change are those of the opening, and that no byte comes
    /// after the length.
    ///
    /// # Errors
    /// The image changed, or its metadata cannot be read.
    pub(super) fn check_unchanged(&self) -> Result<(), ImageError> {
        let fail = |source| ImageError::Read { at: self.length, source };
        if Stamp::of(&self.file).map_err(fail)? != self.stamp {
            return Err(ImageError::Changed);
        }
        // Files of /proc and similar ones have a length of 0 although they have bytes.
        match self.file.read_at(&mut [0], self.length) {
            Ok(0) => Ok(()),
            Ok(_) => Err(ImageError::Changed),
            Err(source) => Err(fail(source)),
        }
    }
}

impl Stamp {
    fn of(mut file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if meta.file_type().is_block_device() {
            // Its metadata have no length.
            return Ok(Self { length: file.seek(SeekFrom::End(0))?, modified: None });
        }
        let modified = Some((meta.mtime(), meta.mtime_nsec()));
        Ok(Self { length: meta.len(), modified })
    }
}

fn check_kind(meta: &Metadata) -> Result<(), ImageError> {
    let kind = meta.file_type();
    Err(ImageError::Kind(if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_char_device() {
        "character device"
    } else {
        "socket"
    }))
}

fn recognize(head: &[u8; HEAD]) -> Option<(&'static str, Remedy)> {
    let found = FORMATS.iter().find(|(_, at, bytes, _)| head[*at..].starts_with(bytes));
    found.map(|(name, _, _, remedy)| (*name, *remedy))
}
