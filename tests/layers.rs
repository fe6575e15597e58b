//! The module layers of docs/architecture.md, checked against the imports in src/: no import runs up or
//! sideways, and no module is without a row. The table in the document is the only list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module, with its directory's or file's path below `src`.
type Layers = BTreeMap<String, u32>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Rows of the form "| 5 | `src/blk/`, `src/upkeep/` | ...".
fn rows(document: &str) -> Layers {
    let mut layers = Layers::new();
    for line in document.lines() {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (Some(layer), Some(modules)) = (cells.next(), cells.next()) else { continue };
        let Ok(layer) = layer.parse() else { continue };
        for path in modules.split('`').filter_map(|word| word.strip_prefix("src/")) {
            let module = path.trim_end_matches('/').trim_end_matches(".rs");
            assert!(root().join("src").join(path).exists(), "{path} has a row and does not exist");
            assert_eq!(layers.insert(module.into(), layer), None, "{module} has two rows");
        }
    }
    layers
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code without comments. A string that holds `//` loses its end, which does not matter here.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Names that follow `prefix`: one, or the first of each path in a list in braces.
fn names_after<'t>(text: &'t str, prefix: &str) -> Vec<&'t str> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = Some(0);
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = Some(at + 1),
                letter if depth == 0 && !letter.is_whitespace() => {
                    names.extend(start.take().map(|_| name(&list[at..])));
                }
                _ => {}
            }
        }
    }
    names
}

fn name(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The tool is a program of its own, and a client: it uses the types of the API and nothing else of the library.
const CLIENT: &str = "ctl";

fn client_faults(path: &str, code: &str) -> Vec<String> {
    let names = names_after(code, "internals::").into_iter().filter(|name| *name != "api");
    names.map(|name| format!("{path}: imports '{name}', and a client has the API alone")).collect()
}

/// What is wrong with the imports of the file `path`, below `src`.
fn faults(path: &str, text: &str, layers: &Layers) -> Vec<String> {
    let module = path.split(['/', '.']).next().unwrap();
    let code = code(text);
    let mut faults = Vec::new();
    if module == "lib" {
        return faults;
    }
    if module == CLIENT {
        faults.extend(client_faults(path, &code));
    }
    // The binary's files name the library as any other crate does.
    let binary = matches!(module, "main" | "cli" | CLIENT);
    let prefix = if binary { "vhost_user_zram::" } else { "crate::" };
    let Some(own) = layers.get(module) else {
        return vec![format!("{path}: its module has no row in docs/architecture.md")];
    };
    for name in names_after(&code, prefix) {
        // The library's one door stands above all layers.
        if name == module || (binary && name == "internals") {
            continue;
        }
        match layers.get(name) {
            // The lowest modules may use each other, as far as there is no circle.
            Some(other) if other < own || (*own == 1 && *other == 1) => {}
            Some(other) => faults.push(format!(
                "{path}: layer {own} imports '{name}' of layer {other}; only lower ones may be"
            )),
            None => faults.push(format!("{path}: imports '{name}', which has no row")),
        }
    }
    // A way out of the module by `super` would pass the check above.
    let depth = path.trim_end_matches("/mod.rs").trim_end_matches(".rs").split('/').count();
    for (at, _) in code.match_indices("super::") {
        let before = &code[..at];
        if before.ends_with("super::") {
            continue;
        }
        let count = 1 + code[at + 7..].split("super::").take_while(|part| part.is_empty()).count();
        // A module that is written out in the file, such as its tests, is one deeper.
        let line = before.rsplit('\n').next().unwrap_or_default();
        let written_out = before
            .lines()
            .any(|line| line.ends_with('{') && line.split_whitespace().any(|word| word == "mod"));
        let inner = usize::from(line.starts_with("    ") && written_out);
        if count >= depth + inner {
            faults.push(format!("{path}: leaves its module by 'super', where 'crate' is clearer"));
        }
    }
    faults
}

#[test]
fn no_import_runs_up() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let layers = rows(&document);
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 100 && layers.len() > 15, "{} files, {layers:?}", files.len());
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(root().join("src")).unwrap().to_str().unwrap();
        all.extend(faults(path, &text, &layers));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Takes away, again and again, what uses nothing that is left. A circle stays.
fn circles(mut uses: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    while let Some(leaf) =
        uses.iter().find(|(_, used)| used.is_empty()).map(|(name, _)| name.clone())
    {
        uses.remove(&leaf);
        uses.values_mut().for_each(|used| _ = used.remove(&leaf));
    }
    uses
}

/// Whether a file holds tests only. What they use does not make a circle that a reader meets.
fn is_test(path: &Path) -> bool {
    let mut parts = path.iter().map(|part| part.to_str().unwrap());
    parts.any(|part| part == "tests" || part == "fuzzing.rs" || part.ends_with("tests.rs"))
}

/// The code of a file up to the tests at its end.
fn code_before_tests(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find("\n#[cfg(test)]\nmod tests {");
    let end = end.or_else(|| text.find("\n#[cfg(test)]\npub(crate) mod tests {"));
    let end = end.or_else(|| text.find("\n#[cfg(test)]\npub(super) mod tests {"));
    code(&text[..end.unwrap_or(text.len())])
}

#[test]
fn the_lowest_layer_has_no_circle() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let lowest: Vec<String> =
        rows(&document).into_iter().filter(|row| row.1 == 1).map(|row| row.0).collect();
    let mut uses = BTreeMap::new();
    for module in &lowest {
        let mut files = Vec::new();
        let path = root().join("src").join(module);
        if path.is_dir() {
            sources(&path, &mut files);
        } else {
            files.push(path.with_extension("rs"));
        }
        files.retain(|file| !is_test(file));
        let code: String = files.iter().map(|file| code_before_tests(file)).collect();
        let names = names_after(&code, "crate::");
        let known = lowest.iter().filter(|other| *other != module);
        let used = known.filter(|other| names.contains(&other.as_str())).cloned();
        uses.insert(module.clone(), used.collect());
    }
    assert_eq!(circles(uses), BTreeMap::new(), "modules of the lowest layer use each other");
}

/// What each file or directory of the module at `directory` uses of the others.
fn uses_within(directory: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let module = directory.file_name().unwrap().to_str().unwrap();
    let mut files = Vec::new();
    sources(directory, &mut files);
    files.retain(|file| !is_test(file.strip_prefix(directory).unwrap()));
    let part = |file: &Path| {
        let first = file.strip_prefix(directory).unwrap().iter().next().unwrap();
        first.to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    let parts: BTreeSet<String> = files.iter().map(|file| part(file)).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // The module's own file re-exports what the others have.
    for file in files.iter().filter(|file| !["mod", "main"].contains(&part(file).as_str())) {
        let code = code_before_tests(file);
        let prefix = if module == CLIENT { "crate::".into() } else { format!("crate::{module}::") };
        let mut names = names_after(&code, &prefix);
        let depth = file.strip_prefix(directory).unwrap().iter().count();
        names.extend(names_after(&code, &"super::".repeat(depth)));
        let used = names.into_iter().filter(|name| parts.contains(*name) && *name != part(file));
        uses.entry(part(file)).or_default().extend(used.map(str::to_owned));
    }
    uses
}

#[test]
fn the_files_of_a_module_have_no_circle() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for module in rows(&document).keys() {
        let directory = root().join("src").join(module);
        if directory.is_dir() {
            let found = circles(uses_within(&directory));
            assert_eq!(found, BTreeMap::new(), "files of {module} use each other in a circle");
        }
    }
}

#[test]
fn the_check_sees_what_it_is_for() {
    let layers: Layers = [("low", 1), ("mid", 2), ("beside", 2), ("high", 3), (CLIENT, 9)]
        .map(|(n, l)| (n.into(), l))
        .into();
    let check = |path: &str, text: &str| faults(path, text, &layers);
    assert_eq!(check("mid/a.rs", "use crate::low::X;\nuse super::b;").len(), 0);
    assert_eq!(check("mid/a.rs", "use crate::mid::X; // use crate::high").len(), 0);
    assert_eq!(check("mid/a.rs", "use crate::high::X;").len(), 1);
    assert_eq!(check("mid.rs", "use crate::beside;").len(), 1);
    assert_eq!(check("mid/a.rs", "use crate::{low, high::{X, low}, beside};").len(), 2);
    assert_eq!(check("mid/a/b.rs", "let x = crate::high::new();").len(), 1);
    assert_eq!(check("mid/a.rs", "use crate::unknown::X;").len(), 1);
    assert_eq!(check("mid/a.rs", "use crate::internals::X;").len(), 1);
    assert_eq!(check("new/a.rs", "").len(), 1);
    assert_eq!(check("mid/mod.rs", "use super::high::X;").len(), 1);
    assert_eq!(check("mid/a.rs", "use super::super::high::X;").len(), 1);
    assert_eq!(check("mid/a.rs", "mod tests {\n    use super::super::b;\n}").len(), 0);
    assert_eq!(check("mid/a.rs", "mod tests {\n    use super::super::super::b;\n}").len(), 1);
    assert_eq!(check("main.rs", "use vhost_user_zram::low;").len(), 1, "main has no row here");
    assert_eq!(
        check("ctl/a.rs", "use vhost_user_zram::internals::api::X;\nuse crate::b;").len(),
        0
    );
    assert_eq!(check("ctl/a.rs", "use vhost_user_zram::internals::Device;").len(), 1);
    assert_eq!(check("ctl/a.rs", "use vhost_user_zram::internals::{api, Device};").len(), 1);
}
