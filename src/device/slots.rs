//! What each slot holds, for reports.

use std::sync::Arc;
use std::time::Duration;

use super::Device;
use crate::slot::{Content, Reader, Word};

/// Slots that are looked at in one go. Parts of the table cannot go meanwhile, so it is short: some
/// microseconds.
const AT_ONCE: usize = 1024;

/// What a slot holds that holds something: the flags of the kernel's `block_state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotState {
    /// The page is filled with one repeated 8-byte word.
    pub same: bool,
    /// The page is stored raw.
    pub huge: bool,
    /// Nothing accessed the page since it was marked.
    pub idle: bool,
    /// The page was compressed again, by a secondary algorithm of today.
    pub recompressed: bool,
    /// No codec makes less of the page.
    pub incompressible: bool,
    /// When it was last accessed, by the host's clock; zero if that is not kept.
    pub accessed: Duration,
}

impl SlotState {
    /// `None` if nothing is there. A slot that makes no sense has something.
    fn of(word: Word, secondaries: u16, accessed: Option<Duration>) -> Option<Self> {
        let (same, huge) = match word.content() {
            Content::Empty | Content::Discarded => return None,
            Content::Same(_) | Content::SameWide(_) => (true, false),
            Content::Object(_, object) => (false, object.is_huge()),
            Content::Unknown => (false, false),
        };
        let (idle, incompressible) = (word.is_idle(), word.is_incompressible());
        let recompressed = matches!(word.content(), Content::Object(codec, _)
            if !huge && secondaries >> codec & 1 == 1);
        let accessed = accessed.unwrap_or_default();
        Some(Self { same, huge, idle, recompressed, incompressible, accessed })
    }
}

/// A walk over all slots of a device, a part at a time. It takes no lock and keeps nobody waiting; each slot
/// is shown as it is when it is passed.
pub struct Slots {
    device: Arc<Device>,
    reader: Reader,
    next: u64,
}

impl Slots {
    /// A walk from the first slot on.
    pub fn new(device: Arc<Device>) -> Self {
        let reader = device.table.reader();
        Self { device, reader, next: 0 }
    }

    /// Calls `visit` with the number and state of the next slots that hold something, at most some 1000.
    /// False if that was the last of them.
    pub fn visit_some(&mut self, mut visit: impl FnMut(u64, SlotState)) -> bool {
        let (table, mut next) = (&self.device.table, self.next);
        let secondaries = self.device.recompressed();
        self.reader.inside(|| {
            for _ in 0..AT_ONCE {
                next = table.next_existing(next);
                let Some(word) = table.glance(next) else { break };
                if let Some(state) = SlotState::of(word, secondaries, table.accessed(next)) {
                    visit(next, state);
                }
                next += 1;
            }
        });
        self.next = next;
        next < table.len()
    }
}
