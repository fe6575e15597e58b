//! What pages are filled with: the same bytes on both sides, other ones in each page.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use vhost_user_zram_frontend::Random;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of each content; those of a disk have the same numbers.
const PAGES: usize = 64;

/// All contents.
pub const KINDS: [&str; 5] = ["zero", "narrow", "wide", "text", "noise"];

/// All pages of a content.
pub fn pages(kind: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PAGES * PAGE);
    for page in 0..PAGES {
        let mut random = Random::new(page as u64 + 1);
        match kind {
            "zero" => bytes.resize(bytes.len() + PAGE, 0),
            "narrow" => repeat(&mut bytes, &(page as u32 + 1).to_le_bytes()),
            // The lower half is the number of no page.
            "wide" => repeat(&mut bytes, &((page as u64 + 1) << 32 | 0xffff).to_le_bytes()),
            // Of a small vocabulary.
            "text" => {
                let words: Vec<_> = (0..32).map(|_| random.next_u64().to_le_bytes()).collect();
                let word = |random: &mut Random| words[random.below(32) as usize];
                (0..PAGE / 8).for_each(|_| bytes.extend(word(&mut random)));
            }
            "noise" => (0..PAGE / 8).for_each(|_| bytes.extend(random.next_u64().to_le_bytes())),
            _ => anyhow::bail!("no content is called {kind}"),
        }
    }
    Ok(bytes)
}

fn repeat(bytes: &mut Vec<u8>, word: &[u8]) {
    (0..PAGE / word.len()).for_each(|_| bytes.extend(word));
}

/// Makes a file of each content for guests: `pages.KIND`.
pub fn make_files(dir: &Path) -> Result<()> {
    for kind in KINDS {
        let path = dir.join(format!("pages.{kind}"));
        fs::write(&path, pages(kind)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_what_its_name_says() {
        for kind in KINDS {
            let all = pages(kind).unwrap();
            assert_eq!(all.len(), PAGES * PAGE);
            for page in all.chunks(PAGE) {
                let words: std::collections::BTreeSet<_> = page.chunks(8).collect();
                let halves = page[..4] == page[4..8];
                let expected = match kind {
                    "zero" | "narrow" => words.len() == 1 && halves,
                    "wide" => words.len() == 1 && !halves,
                    "text" => (20..=32).contains(&words.len()),
                    _ => words.len() == PAGE / 8,
                };
                assert!(expected, "{kind}: {} words", words.len());
            }
        }
        assert!(pages("else").is_err());
    }
}
