//! SIGHUP: the options are read again, and those that may change while the disk is served are changed.

use std::fmt;
use std::sync::Weak;

use super::service_manager;
use crate::causes::with_causes;
use crate::codec::CodecSpec;
use crate::disk::{Disk, DiskChange};
use crate::rates::Rates;
use crate::stop::Stop;

/// What the options say that may change while the disk is served.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Bytes of the disk, which does not shrink; `None` is what it has.
    pub size: Option<u64>,
    /// The codec of new pages.
    pub codec: CodecSpec,
    /// Most bytes of arena and table; 0 means no limit.
    pub mem_limit: u64,
    /// Memory of the host that is left free, in bytes; `None` is the default.
    pub host_reserve: Option<u64>,
    /// The rate limits.
    pub rates: Rates,
    /// Level of the log.
    pub log_level: log::LevelFilter,
}

/// Reads the options again. The error is a mistake in them, or says what differs and cannot change, in one
/// line.
pub type Reread = Box<dyn Fn() -> Result<Change, String> + Send>;

/// Reads the options again and changes what they say, all of it or nothing, and logs which. The service
/// manager knows meanwhile.
pub(super) fn reload(reread: &Reread, disk: &Weak<Disk>, stop: &Stop) {
    let Some(disk) = disk.upgrade() else { return };
    service_manager::say_reloading(stop);
    match reread().and_then(|change| change.make(&disk)) {
        Ok(change) => {
            // The line is for the more talkative of both levels.
            log::set_max_level(log::max_level().max(change.log_level));
            log::info!("the options were read again: {change}");
            log::set_max_level(change.log_level);
        }
        Err(mistake) => log::error!("the options were read again, and nothing changes: {mistake}"),
    }
    service_manager::say_ready(stop);
}

impl Change {
    /// Makes it.
    fn make(self, disk: &Disk) -> Result<Self, String> {
        let host_reserve = self.host_reserve.unwrap_or_else(|| disk.default_host_reserve());
        let change = DiskChange {
            size: self.size,
            codec: Some(self.codec),
            mem_limit: Some(self.mem_limit),
            host_reserve: Some(host_reserve),
            read_rate: self.rates.read.into(),
            write_rate: self.rates.write.into(),
        };
        disk.change(&change).map_err(|error| with_causes(&error))?;
        Ok(self)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, codec, mem_limit, host_reserve, rates, log_level } = self;
        let reserve = host_reserve.map_or_else(|| "default".to_owned(), |bytes| bytes.to_string());
        let level = log_level.as_str().to_ascii_lowercase();
        if let Some(bytes) = size {
            write!(f, "size={bytes} ")?;
        }
        write!(f, "algorithm={codec} mem-limit={mem_limit} host-reserve={reserve} ")?;
        write!(f, "log-level={level} rates: {rates}")
    }
}
