//! What the documentation points to is there: files that it links, and tests that promises name.

use std::fs;
use std::path::{Path, PathBuf};

/// Where documents lie; results of benchmarks are records and stay as they were written.
const PLACES: [&str; 6] = [".", "docs", "docs/adr", "docs/bench", "docs/recipes", "dist"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let files = PLACES.iter().flat_map(|place| fs::read_dir(root().join(place)).expect(place));
    let paths = files.map(|file| file.expect("a file").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// What stands between `from` and `to`, each time.
fn between<'t>(text: &'t str, from: &'t str, to: char) -> impl Iterator<Item = &'t str> {
    text.split(from).skip(1).filter_map(move |rest| rest.split_once(to).map(|(inner, _)| inner))
}

#[test]
fn linked_files_are_there() {
    let (mut missing, mut links) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).expect("text");
        for link in between(&text, "](", ')').filter(|link| !link.contains("://")) {
            links += 1;
            let file = link.split('#').next().unwrap_or_default();
            if !document.parent().expect("a directory").join(file).exists() {
                missing.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(links > 40, "{links} links were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_tests_that_promises_name_are_there() {
    let text = fs::read_to_string(root().join("docs/promises.md")).expect("text");
    // A test is in code font inside of what is set in italics at the end of a promise.
    let (mut missing, mut tests) = (Vec::new(), 0);
    for promise in text.split("\n## Not promised").next().unwrap_or_default().split("\n\n") {
        for word in promise.split('`').skip(1).step_by(2).filter(|word| is_path(word)) {
            tests += 1;
            if ![root().join(word), root().join("src").join(word)].iter().any(|file| file.exists())
            {
                missing.push(word);
            }
        }
    }
    assert!(tests > 30, "{tests} tests were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

fn is_path(word: &str) -> bool {
    word.contains('/') && !word.contains([' ', '=']) && !word.starts_with(['-', '/'])
}

/// What the kernel's driver does has a row each in `docs/parity.md`, by the ids of its checklist.
#[test]
fn each_feature_of_the_driver_has_one_row() {
    const FEATURES: [(char, usize); 8] =
        [('D', 11), ('I', 20), ('L', 9), ('C', 20), ('W', 18), ('T', 9), ('Z', 4), ('V', 2)];
    const WORDS: [&str; 5] =
        ["done", "done, and more", "adapted", "not applicable", "not there yet"];
    let text = fs::read_to_string(root().join("docs/parity.md")).expect("text");
    let mut found = Vec::new();
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let ["", id, feature, word, how, ""] = cells[..] else { continue };
        if id.len() != 3 || !id[1..].chars().all(|c| c.is_ascii_digit()) {
            continue;
        }
        assert!(!feature.is_empty() && WORDS.contains(&word), "{line}");
        // What is not as in the kernel says how or why.
        assert!(!how.is_empty() || ["done", "not there yet"].contains(&word), "{line}");
        found.push(id.to_owned());
    }
    let row = |(letter, count)| (1..=count).map(move |number| format!("{letter}{number:02}"));
    assert_eq!(found, FEATURES.into_iter().flat_map(row).collect::<Vec<_>>());
}
