//! Which tests run on which algorithms, kernels and QEMUs.

use anyhow::{Context, Result, bail};

use crate::{
    artifacts::{Combination, Kernel, Qemu, Setup},
    tests::Test,
};

/// Kernels or QEMUs: the machine's own first, then those of the next release.
struct Found<T> {
    all: Vec<T>,
    own: usize,
}

impl<T> Found<T> {
    /// Adds one unless there is one of the same version.
    fn add(&mut self, new: T, version: impl Fn(&T) -> &str) {
        if self.all.iter().all(|old| version(old) != version(&new)) {
            self.all.push(new);
        }
    }
}

/// What is not tested, and why.
pub type LeftOut = Vec<(String, String)>;

/// What the user chose.
pub struct Choice<'a> {
    pub algorithms: &'a [String],
    pub kernels: &'a [String],
    pub qemus: &'a [String],
}

/// All combinations, and what is left out with the reason.
pub fn combinations(setup: &Setup, choice: &Choice<'_>) -> Result<(Vec<Combination>, LeftOut)> {
    let mut left_out = Vec::new();
    let mut leave_out = |what: &str, why: String| left_out.push((what.to_owned(), why));
    let codename = setup.shell("os_field VERSION_CODENAME", &[])?.trim().to_owned();
    let mut kernels = Found { all: Vec::new(), own: 0 };
    let mut qemus = Found { all: Vec::new(), own: 0 };
    let default = ["default".to_owned()];
    for spec in if choice.kernels.is_empty() { &default } else { choice.kernels } {
        let kernel = setup.kernel(spec).with_context(|| format!("kernel '{spec}'"))?;
        kernels.add(kernel, |kernel| &kernel.version);
    }
    for spec in if choice.qemus.is_empty() { &default } else { choice.qemus } {
        let qemu = setup.qemu(spec).with_context(|| format!("QEMU '{spec}'"))?;
        qemus.add(qemu, |qemu| &qemu.version);
    }
    // What cannot be had is left out where it was our idea, and an error where it was the user's.
    let backports = format!("{codename}-backports");
    if setup.full && choice.kernels.is_empty() {
        match setup.kernel(&backports) {
            Ok(kernel) => kernels.add(kernel, |kernel| &kernel.version),
            Err(_) => leave_out("a second kernel", format!("{backports} has none")),
        }
    }
    if setup.full && choice.qemus.is_empty() {
        for suite in [&codename, &backports] {
            match setup.qemu(suite) {
                Ok(qemu) => qemus.add(qemu, |qemu| &qemu.version),
                Err(_) => leave_out("a second QEMU", format!("{suite} has none")),
            }
        }
    }
    (kernels.own, qemus.own) = (kernels.all.len(), qemus.all.len());
    // What came with the next release: other rings (QEMU 10), other packages (kernel 7).
    if choice.kernels.is_empty() && choice.qemus.is_empty() {
        if setup.shell("os_field ID", &[])?.trim() == "debian" {
            match setup.kernel("trixie-backports") {
                Ok(kernel) => kernels.add(kernel, |kernel| &kernel.version),
                Err(_) => leave_out("kernel 7", "trixie-backports cannot be had here".to_owned()),
            }
            for suite in ["trixie", "trixie-backports"] {
                if suite != "trixie" && !setup.full {
                    continue;
                }
                match setup.qemu(suite) {
                    Ok(qemu) => qemus.add(qemu, |qemu| &qemu.version),
                    Err(_) => leave_out("a newer QEMU", format!("{suite} cannot be had here")),
                }
            }
        }
        if !setup.full {
            leave_out("more kernels and QEMUs", "only with --full".to_owned());
        }
    }
    Ok((combine(&kernels, &qemus, choice.algorithms, setup.full), left_out))
}

/// The machine's own kernels and QEMUs all meet, and those of the next release; where only one of the two
/// is there, it meets the machine's first.
fn combine(
    kernels: &Found<Kernel>,
    qemus: &Found<Qemu>,
    algorithms: &[String],
    full: bool,
) -> Vec<Combination> {
    let mut all = Vec::new();
    for (k, kernel) in kernels.all.iter().enumerate() {
        for (q, qemu) in qemus.all.iter().enumerate() {
            let (own_kernel, own_qemu) = (k < kernels.own, q < qemus.own);
            let meets = match (own_kernel, own_qemu) {
                (true, true) | (false, false) => true,
                (true, false) => kernels.all.len() == kernels.own && k == 0,
                (false, true) => qemus.all.len() == qemus.own && q == 0,
            };
            if !meets {
                continue;
            }
            let own = own_kernel && own_qemu;
            // What is new there has nothing to do with the algorithm.
            let algorithms = if own { algorithms } else { &algorithms[..1] };
            all.extend(algorithms.iter().map(|algorithm| Combination {
                algorithm: algorithm.clone(),
                kernel: kernel.clone(),
                qemu: qemu.clone(),
                few: !own && !full,
            }));
        }
    }
    all
}

/// Whether a test runs in a combination. Those of states, machines and images depend little on the
/// algorithm.
pub fn runs(test: &Test, combination: &Combination, first_algorithm: &str, all: bool) -> bool {
    if combination.few {
        return test.few;
    }
    all || !test.once || combination.algorithm == first_algorithm
}

/// The tests that match any of the patterns, or all without a pattern.
pub fn chosen(tests: &'static [Test], patterns: &[String]) -> Result<Vec<&'static Test>> {
    let wanted =
        |test: &&Test| patterns.is_empty() || patterns.iter().any(|p| matches(p, test.name));
    let chosen: Vec<_> = tests.iter().filter(wanted).collect();
    if chosen.is_empty() {
        bail!("no test is called '{}' (see --list)", patterns.join(" "));
    }
    Ok(chosen)
}

/// Whether `name` matches a pattern where `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tests::TESTS;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, want) in [
            ("swap", "swap", true),
            ("swap", "swap-freed", false),
            ("swap*", "swap-freed", true),
            ("*e*d", "swap-freed", true),
            ("*", "kills", true),
            ("k*x", "kills", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
        assert!(chosen(TESTS, &["nothing".to_owned()]).is_err());
        assert_eq!(chosen(TESTS, &["swap*".to_owned()]).unwrap().len(), 2);
        assert_eq!(chosen(TESTS, &[]).unwrap().len(), TESTS.len());
    }

    fn kernel(version: &str) -> Kernel {
        let version = version.to_owned();
        Kernel { version, path: PathBuf::new(), modules: None, initrd: PathBuf::new() }
    }

    fn qemu(version: &str) -> Qemu {
        Qemu { version: version.to_owned(), path: PathBuf::new() }
    }

    fn names(
        kernels: &[&str],
        own_kernels: usize,
        qemus: &[&str],
        own_qemus: usize,
    ) -> Vec<String> {
        let kernels = Found { all: kernels.iter().map(|v| kernel(v)).collect(), own: own_kernels };
        let qemus = Found { all: qemus.iter().map(|v| qemu(v)).collect(), own: own_qemus };
        let algorithms = ["lz4".to_owned(), "zstd".to_owned()];
        let all = combine(&kernels, &qemus, &algorithms, false);
        all.iter().map(|c| format!("{c}{}", if c.few { " few" } else { "" })).collect()
    }

    #[test]
    fn the_next_release_meets_itself_with_one_algorithm_and_few_tests() {
        assert_eq!(
            names(&["6.1", "7.3"], 1, &["7.2.22", "10.0.13"], 1),
            [
                "lz4 linux-6.1 qemu-7.2.22",
                "zstd linux-6.1 qemu-7.2.22",
                "lz4 linux-7.3 qemu-10.0.13 few"
            ]
        );
    }

    #[test]
    fn a_newer_part_that_is_alone_meets_the_machines_own() {
        assert_eq!(
            names(&["6.1"], 1, &["7.2.22", "10.0.13"], 1).last().unwrap(),
            "lz4 linux-6.1 qemu-10.0.13 few"
        );
        assert_eq!(
            names(&["6.1", "7.3"], 1, &["7.2.22"], 1).last().unwrap(),
            "lz4 linux-7.3 qemu-7.2.22 few"
        );
        assert_eq!(names(&["6.1", "6.12"], 2, &["7.2.22", "8.2"], 2).len(), 8);
    }

    #[test]
    fn the_same_version_twice_is_one() {
        let mut found = Found { all: vec![kernel("6.1")], own: 1 };
        found.add(kernel("6.1"), |kernel| &kernel.version);
        found.add(kernel("6.12"), |kernel| &kernel.version);
        assert_eq!(found.all.len(), 2);
    }

    #[test]
    fn tests_of_states_run_with_the_first_algorithm() {
        let find = |name| TESTS.iter().find(|test| test.name == name).unwrap();
        let combination = |algorithm: &str, few| Combination {
            algorithm: algorithm.to_owned(),
            kernel: kernel("6.1"),
            qemu: qemu("7.2"),
            few,
        };
        let zstd = combination("zstd", false);
        assert!(runs(find("fio"), &zstd, "lz4", false));
        assert!(!runs(find("kills"), &zstd, "lz4", false));
        assert!(runs(find("kills"), &zstd, "lz4", true));
        assert!(runs(find("kills"), &combination("lz4", false), "lz4", false));
        assert!(runs(find("microvm"), &combination("lz4", true), "lz4", false));
        assert!(!runs(find("swap"), &combination("lz4", true), "lz4", false));
    }
}
