//! Slots: what is known of each page of the disk, and the lock that guards it.

#[cfg(all(test, not(loom)))]
mod crowd_tests;
mod lock;
#[cfg(all(test, loom))]
mod loom_tests;
mod parking;
#[cfg(not(loom))]
mod table;
#[cfg(all(test, not(loom)))]
mod tests;
mod word;

pub use self::lock::{Ticket, Waiter};
#[cfg(not(loom))]
pub use table::{SlotTable, TableUsage};
pub use word::{Content, Object, Word};
