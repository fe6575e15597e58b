//! A zram device of our own in this machine's kernel: made, measured, and removed at the end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

const CONTROL: &str = "/sys/class/zram-control";

/// A zram device; no other device is touched.
#[derive(Debug)]
pub struct Zram {
    number: String,
    node: PathBuf,
    made_node: bool,
}

/// What the kernel says of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes after compression.
    pub compressed: u64,
    /// Bytes of its pool. The device's table is not among them.
    pub pool: u64,
}

impl Zram {
    /// Whether this kernel can make zram devices, and this process may.
    pub fn available() -> bool {
        // The module may only have to be loaded; a kernel without it says so by what is missing then.
        if !Path::new(CONTROL).exists() {
            let _ = Command::new("modprobe").arg("zram").output();
        }
        nix::unistd::geteuid().is_root() && Path::new(CONTROL).join("hot_add").exists()
    }

    /// Makes a device of `size` bytes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, for example an algorithm that it does not know.
    pub fn new(size: u64, algorithm: &str) -> Result<Self> {
        // Reading this file is what makes a device (Documentation/admin-guide/blockdev/zram.rst).
        let number = fs::read_to_string(format!("{CONTROL}/hot_add")).context("no zram device")?;
        let number = number.trim().to_owned();
        let node = PathBuf::from(format!("/dev/zram{number}"));
        let mut zram = Self { number, node, made_node: false };
        zram.set("comp_algorithm", algorithm)?;
        zram.set("disksize", &size.to_string())?;
        if !zram.node.exists() {
            let device = fs::read_to_string(zram.attribute("dev"))?;
            let (major, minor) = device.trim().split_once(':').context("no device number")?;
            let made = Command::new("mknod").arg(&zram.node).args(["b", major, minor]).status()?;
            ensure!(made.success(), "mknod {}", zram.node.display());
            zram.made_node = true;
        }
        Ok(zram)
    }

    /// Its device node.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Its memory now.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn memory(&self) -> Result<Memory> {
        memory_of(&fs::read_to_string(self.attribute("mm_stat"))?).context("mm_stat")
    }

    fn attribute(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.number))
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = self.attribute(name);
        fs::write(&path, value).with_context(|| format!("{value} to {}", path.display()))
    }

    fn remove(&self) -> io::Result<()> {
        fs::write(self.attribute("reset"), "1")?;
        fs::write(format!("{CONTROL}/hot_remove"), &self.number)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // udev may still read the device for a moment.
        for _ in 0..20 {
            if self.remove().is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        if self.attribute("reset").exists() {
            eprintln!("zram-compare: {} could not be removed", self.node.display());
        }
        if self.made_node {
            // Without a device it is of no use, and of no harm.
            let _ = fs::remove_file(&self.node);
        }
    }
}

/// What the columns `compr_data_size` and `mem_used_total` of an `mm_stat` say.
fn memory_of(mm_stat: &str) -> Option<Memory> {
    let mut columns = mm_stat.split_whitespace().skip(1).map(str::parse);
    let (compressed, pool) = (columns.next()?.ok()?, columns.next()?.ok()?);
    Some(Memory { compressed, pool })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_the_second_and_third_column() {
        let line = "  100  40  48  0  131969024  0  0  0  16987\n";
        assert_eq!(memory_of(line), Some(Memory { compressed: 40, pool: 48 }));
        assert_eq!(memory_of("100 40"), None);
    }
}
