//! Changes of a disk while it is served, and its reset.

use super::door::Taken;
use super::{Disk, DiskConfig};
use crate::codec::CodecSpec;
use crate::device::{DeviceError, GrowError, ResetFailed};
use crate::events::Event;
use crate::rates::{Rate, Rates};
use crate::sync;
use crate::upkeep::Host;

/// What can be changed while a disk is served, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSettings {
    /// Most bytes of arena and table; 0 means no limit.
    pub mem_limit: u64,
    /// Memory of the host that is left free, in bytes.
    pub host_reserve: u64,
    /// Rate limits.
    pub rates: Rates,
}

/// Settings to be changed; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskChange {
    /// Size of the disk in bytes, rounded up to a page; not less than it has.
    pub size: Option<u64>,
    /// The codec of new pages.
    pub codec: Option<CodecSpec>,
    /// Most bytes of arena and table, rounded up to a page; 0 means no limit.
    pub mem_limit: Option<u64>,
    /// Memory of the host that is left free, in bytes.
    pub host_reserve: Option<u64>,
    /// The rate limit of reads.
    pub read_rate: RateChange,
    /// The rate limit of what changes the disk.
    pub write_rate: RateChange,
}

/// What of a rate limit is to be changed; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateChange {
    /// Operations a second; 0 is no limit.
    pub operations_per_second: Option<u64>,
    /// Bytes a second; 0 is no limit.
    pub bytes_per_second: Option<u64>,
    /// What may be saved up for a burst, in milliseconds of the limits: 1 to [`MAX_BURST_MS`].
    pub burst_ms: Option<u32>,
}

/// The longest burst of a rate limit, in milliseconds.
pub const MAX_BURST_MS: u32 = 3_600_000;

impl RateChange {
    /// The limit that replaces `old`.
    fn of(self, old: Rate) -> Result<Rate, ChangeError> {
        let burst_ms = self.burst_ms.unwrap_or(old.burst_ms);
        if !(1..=MAX_BURST_MS).contains(&burst_ms) {
            return Err(ChangeError::Burst(burst_ms));
        }
        Ok(Rate {
            operations_per_second: self.operations_per_second.unwrap_or(old.operations_per_second),
            bytes_per_second: self.bytes_per_second.unwrap_or(old.bytes_per_second),
            burst_ms,
        })
    }
}

impl From<Rate> for RateChange {
    /// All of it.
    fn from(rate: Rate) -> Self {
        let Rate { operations_per_second, bytes_per_second, burst_ms } = rate;
        Self {
            operations_per_second: Some(operations_per_second),
            bytes_per_second: Some(bytes_per_second),
            burst_ms: Some(burst_ms),
        }
    }
}

/// Why settings are not changed. None of them is, then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The codec of new pages, or of recompression.
    #[error("pages cannot be compressed by {0}")]
    Codec(CodecSpec, #[source] DeviceError),
    /// The disk does not get that size.
    #[error(transparent)]
    Size(#[from] GrowError),
    /// The burst of a rate limit.
    #[error("a burst of {0} ms is not possible: burst_ms is 1 to {MAX_BURST_MS}")]
    Burst(u32),
    /// The disk's upkeep has ended.
    #[error("the daemon is about to end, so nothing is changed")]
    Ending,
}

/// Why a disk is not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Its image is still loaded.
    #[error("the disk is still being loaded: try again when /readyz says that it is ready")]
    Loading,
    /// A front end is served.
    #[error(
        "a front end{} uses the disk: end its guest or detach the disk, and try again",
        .0.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    InUse(Option<i32>),
    /// Another reset is under way.
    #[error("another reset is under way: wait until it is done")]
    Twice,
    /// Guests may not change the disk.
    #[error("the disk is read-only: start its daemon without --read-only to reset it")]
    ReadOnly,
    /// The daemon is to end.
    #[error("the daemon is about to end, so the disk is not reset")]
    Ending,
    /// It failed.
    #[error("the reset failed half-way: front ends wait until another one succeeds")]
    Failed(#[source] ResetFailed),
}

impl DiskConfig {
    /// What the settings are at the start.
    pub(super) fn at_start(&self, default_reserve: u64) -> DiskChange {
        DiskChange {
            // A disk does not shrink.
            size: None,
            codec: Some(self.device.codec),
            mem_limit: Some(self.device.mem_limit),
            host_reserve: Some(self.host_reserve.unwrap_or(default_reserve)),
            read_rate: self.rates.read.into(),
            write_rate: self.rates.write.into(),
        }
    }
}

impl Disk {
    /// The settings that can be changed. Waits for nothing.
    pub fn settings(&self) -> DiskSettings {
        let (_, mem_limit) = self.device.limit_use();
        let host_reserve = self.host.reserve();
        DiskSettings { mem_limit, host_reserve, rates: self.rates() }
    }

    /// The memory of the host that is left free if nothing is said, in bytes. It is a part of what the host
    /// has, or the process's control group, and both can change.
    pub fn default_host_reserve(&self) -> u64 {
        Host::with_default_reserve().reserve()
    }

    /// Changes settings: all that are given, or none. Callers take turns.
    ///
    /// # Errors
    /// One of them cannot be changed so.
    pub fn change(&self, change: &DiskChange) -> Result<(), ChangeError> {
        let _turn = sync::lock(&self.changing);
        // First all is checked, and then nothing fails.
        let upkeep = sync::lock(&self.upkeep);
        let upkeep = upkeep.as_ref().ok_or(ChangeError::Ending)?;
        let old = self.rates();
        let (read, write) = (change.read_rate.of(old.read)?, change.write_rate.of(old.write)?);
        if let Some(codec) = change.codec {
            let failed = |error| ChangeError::Codec(codec, error);
            self.device.learn_codec(codec).map_err(failed)?;
        }
        // Of all that can fail the last, and it fails as a whole.
        if let Some(bytes) = change.size {
            self.grow(bytes)?;
        }
        if let Some(codec) = change.codec {
            // The disk knows it by now, so nothing of it can fail.
            self.device.set_codec(codec).map_err(|error| ChangeError::Codec(codec, error))?;
        }
        self.set_rates(Rates { read, write });
        if let Some(bytes) = change.mem_limit {
            self.device.set_mem_limit(bytes);
        }
        if let Some(bytes) = change.host_reserve {
            upkeep.set_host_reserve(bytes);
        }
        if *change != DiskChange::default() {
            self.device.events().tell(|| Event::SettingsChanged);
        }
        Ok(())
    }

    /// Makes the disk blank, as if it had just been created: frees all pages, has the figures begin anew, and
    /// gives the settings the values of the start. Front ends wait meanwhile.
    ///
    /// A disk with a state is blank after it also if the daemon dies meanwhile.
    ///
    /// # Errors
    /// A front end is served, the disk is read-only, or the daemon is to end.
    pub fn reset(&self) -> Result<(), ResetError> {
        let _entered = self.name.enter();
        if self.read_only {
            return Err(ResetError::ReadOnly);
        }
        let inside = self.door.begin_reset().map_err(|taken| match taken {
            Taken::Loading => ResetError::Loading,
            Taken::Session(served) => ResetError::InUse(served.pid),
            Taken::Reset => ResetError::Twice,
            Taken::Closed => ResetError::Ending,
        })?;
        self.device.reset(|| self.door.is_open()).map_err(|failed| match failed {
            ResetFailed::Stopped => ResetError::Ending,
            failed => ResetError::Failed(failed),
        })?;
        // It is nothing that could be refused: the daemon started with it.
        if let Err(error) = self.change(&self.at_start) {
            log::debug!("after a reset: {error}");
        }
        self.device.forget_secondaries();
        inside.done();
        self.device.events().tell(|| Event::Reset);
        log::info!("the disk was reset");
        // What it took goes back to the host now, and not in a while.
        self.compact(|_| ());
        Ok(())
    }
}
