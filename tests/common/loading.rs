//! A daemon that is caught while it loads its disk. Of debug builds, which can be told to stall.
#![cfg(debug_assertions)]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use vhost_user_zram_frontend::Random;

use super::wait_until;

/// Blocks of 512 bytes that an arena has for certain when the first MiB of the image is stored.
const BLOCKS: u64 = 2048;

/// A daemon that is loading an image of which the last part does not come.
pub struct Loading(pub Child);

impl Loading {
    /// Starts `command`, which loads `image`, and returns when a part of that is stored, told by the
    /// 512-byte blocks of the disk's arena.
    pub fn start(
        mut command: Command,
        image: &Path,
        mut blocks_of_arena: impl FnMut() -> u64,
    ) -> Self {
        // Noise: what is stored of it is as long as it is.
        let mut noise = vec![0; 4 << 20];
        Random::new(1).fill(&mut noise);
        fs::write(image, &noise).expect("image");
        // The daemon reads what the file is, and then 1 MiB at a time.
        command.env("VUZ_STALL_AT", "load.read:4");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let loading = Self(command.spawn().expect("daemon starts"));
        wait_until("a part of the image", || blocks_of_arena() > BLOCKS);
        loading
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
