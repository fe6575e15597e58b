//! Slots: what is known of each page of the disk, and the lock that guards it.

#[cfg(not(any(loom, shuttle)))]
mod ages;
#[cfg(all(test, debug_assertions, not(any(loom, shuttle))))]
mod checker_tests;
#[cfg(not(shuttle))]
mod claims;
#[cfg(all(test, not(any(loom, shuttle))))]
mod crowd_tests;
mod lock;
#[cfg(all(test, loom))]
mod loom_tests;
mod parking;
#[cfg(not(shuttle))]
mod readers;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
#[cfg(not(any(loom, shuttle)))]
mod sums;
#[cfg(not(any(loom, shuttle)))]
mod table;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
#[cfg(not(shuttle))]
mod unverified;
#[cfg(not(shuttle))]
mod vacant;
#[cfg(all(test, loom))]
mod vacant_loom_tests;
mod word;

#[cfg(not(shuttle))]
pub use self::claims::Claim;
pub use self::lock::{SlotGuard, Waiter};
#[cfg(not(any(loom, shuttle)))]
pub use readers::Reader;
#[cfg(not(any(loom, shuttle)))]
pub use table::{Damaged, GivenBack, SlotTable, TableUsage};
#[cfg(not(any(loom, shuttle)))]
pub use word::Word;
pub use word::{Content, Object};
