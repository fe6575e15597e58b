use super::reopen::Home;
use super::*;
use crate::store::scratch::{Image, edit};

const MIB: u64 = 1 << 20;
const PAGES: u64 = 4096;
const WRITTEN: u64 = 64;

/// A state with things in it that an opening gives back: pages of the arena that no slot names, in a
/// region that is used, in one that is not, and before the seal; and a page of sums without words.
struct Base {
    home: Home,
    image: Image,
    left: [u64; 3],
    bare_sums: u64,
}

impl Base {
    fn new() -> Self {
        let home = Home::new(PAGES, "lz4");
        let device = home.make();
        let mut context = device.worker_context().unwrap();
        for index in 0..WRITTEN {
            run(&device, &mut context, Op::Write, index * 8, text(9, PAGE_SIZE)).unwrap();
        }
        drop((context, device));
        let length = home.dir.join("arena").metadata().unwrap().len();
        let left = [8 * MIB, 16 * MIB, length - 2 * 4096];
        for at in left {
            edit(&home.dir.join("arena"), at, 4096, |page| page.fill(0xa5));
        }
        // 1024 sums a page, and 512 words: these are of words that do not exist.
        let bare_sums = home.sum_at(3 * 1024);
        edit(&home.dir.join("table"), bare_sums, 4096, |page| page.fill(0));
        let image = Image::of(home.dir.path());
        Self { home, image, left, bare_sums }
    }

    /// Opens the state after `damage`, and insists that it is refused, and is as it was.
    fn refuses(&self, name: &str, damage: impl FnOnce(&Home)) {
        self.image.restore(self.home.dir.path());
        damage(&self.home);
        assert!(Image::of(self.home.dir.path()) != self.image, "{name}: no damage");
        self.refuses_as(name, &self.home.config);
    }

    /// Opens the state as one of `config`, and insists on the same.
    fn refuses_as(&self, name: &str, config: &DeviceConfig) {
        let before = Image::of(self.home.dir.path());
        let state = config.state_in(self.home.dir.path(), true, None);
        let opened = state.and_then(|state| Device::with_state(config, state));
        let error = opened.map(|_| ()).expect_err(name);
        let after = Image::of(self.home.dir.path());
        assert!(after == before, "{name}: {error}, and something was changed");
    }
}

#[test]
fn a_refused_state_keeps_every_byte_and_every_hole() {
    let base = Base::new();
    let exists = |image: &Image, file: &str, at: u64| image.existing(file).any(|byte| byte == at);
    for at in base.left {
        assert!(exists(&base.image, "arena", at));
    }
    base.refuses("a word that no slot can have", |home| {
        home.set_word(WRITTEN - 1, home.word(WRITTEN - 1) | (3 << 2));
    });
    base.refuses("two slots with one object", |home| {
        home.set_word(WRITTEN - 1, home.word(WRITTEN - 2));
    });
    base.refuses("an object on a page that does not exist", |home| {
        // In the same region, far behind all others: as many bytes as 256 objects of it at a time.
        let word = home.word(WRITTEN - 1);
        let length = word >> 11 & 0xfff;
        home.set_word(WRITTEN - 1, word + (((length + 4).div_ceil(16) * 256 * 4) << 23));
    });
    base.refuses("an object at no place of its class", |home| {
        home.set_word(WRITTEN - 1, home.word(WRITTEN - 1) + (1 << 23));
    });
    base.refuses("an object behind the arena", |home| {
        home.set_word(WRITTEN - 1, home.word(WRITTEN - 1) | (1 << 63));
    });
    base.refuses("a sum without a word", |home| home.set_sum(3 * 1024, 7));
    for (file, from_end) in [("table", 4096), ("arena", 4096)] {
        base.refuses("a seal that is damaged", |home| {
            let path = home.dir.join(file);
            let at = path.metadata().unwrap().len() - from_end;
            edit(&path, at, 1, |byte| byte[0] ^= 1);
        });
    }

    for file in ["table", "arena"] {
        base.refuses("a file that is gone", |home| {
            std::fs::remove_file(home.dir.join(file)).unwrap();
        });
    }
    base.image.restore(base.home.dir.path());
    let other = Home::new(PAGES - 1, "lz4").config;
    base.refuses_as("a smaller size", &other);
    let other = Home::new((64 << 30) / 4096 + 1, "lz4").config;
    base.refuses_as("a size that there is no room for", &other);
    base.refuses("a word behind the end", |home| home.set_word(100 * PAGES, 4));
    base.refuses("an entry of the codec table that is damaged", |home| {
        edit(&home.dir.join("superblock"), 64 + 32, 1, |level| level[0] += 1);
    });

    // What was kept is what an opening gives back, so this has seen that it does not.
    base.image.restore(base.home.dir.path());
    drop(base.home.open().unwrap());
    let opened = Image::of(base.home.dir.path());
    for at in base.left {
        assert!(!exists(&opened, "arena", at), "{at}");
    }
    assert!(exists(&base.image, "table", base.bare_sums));
    assert!(!exists(&opened, "table", base.bare_sums));
}
