//! Whether memory is short: when a disk comes near to its limit, or the host has none to spare.

use crate::device::Device;
use crate::events::Event;

/// Parts of the limit in percent: from the one on it is near, below the other it is not any more.
const NEAR: u64 = 90;
const FAR: u64 = 85;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    near: bool,
    short: bool,
}

impl Pressure {
    /// Looks at the disk, and tells what is different from the last time.
    pub(super) fn look(&mut self, device: &Device) {
        let (used, limit) = device.limit_use();
        let near = is_near(self.near, used, limit);
        if near != self.near {
            self.near = near;
            device.events().tell(|| Event::MemLimit { near, used, limit });
        }
        let short = device.host_is_short();
        if short != self.short {
            self.short = short;
            device.events().tell(|| Event::HostMemory { short });
        }
    }
}

/// Whether `used` bytes are near to `limit`, 0 for none, if they were or were not before.
fn is_near(before: bool, used: u64, limit: u64) -> bool {
    let percent = if before { FAR } else { NEAR };
    limit > 0 && u128::from(used) * 100 >= u128::from(limit) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_near_until_there_is_clearly_more_room() {
        assert!(!is_near(false, 89, 100) && is_near(false, 90, 100));
        assert!(is_near(true, 85, 100) && !is_near(true, 84, 100));
        assert!(is_near(false, 200, 100), "it was lowered");
        assert!(!is_near(true, u64::MAX, 0) && !is_near(false, 5, u64::MAX));
    }
}
