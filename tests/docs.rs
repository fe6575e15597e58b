//! What the documentation points to is there: files that it links, and tests that promises name.

use std::fs;
use std::path::{Path, PathBuf};

/// Where documents lie; results of benchmarks are records and stay as they were written.
const PLACES: [&str; 5] = [".", "docs", "docs/adr", "docs/bench", "dist"];

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
