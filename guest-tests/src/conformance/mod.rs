//! The same steps on a guest's own zram and on a daemon, and how the two differ.
//!
//! * `script`: the steps
//! * `driver`, `disk`: what does them
//! * `contents`: what pages are filled with

pub mod contents;
mod disk;
mod driver;
pub mod script;

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

pub use self::disk::Disk;
pub use self::driver::Driver;
use self::script::{Action, Step};

/// What a step gave: `ok`, the name of an error, or what was read.
pub type Outcome = String;

/// Something that steps are done on.
pub trait Side {
    /// Does one step.
    fn act(&mut self, action: &Action) -> Result<Outcome>;
}

/// How the two sides compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Steps that gave the same.
    pub same: usize,
    /// Steps that differ for a known reason, one line each.
    pub known: Vec<String>,
    /// Steps that differ without one, or do not differ though they are said to.
    pub unknown: Vec<String>,
}

/// Does all steps on both sides.
pub fn compare(
    steps: &[Step],
    kernel: &str,
    driver: &mut dyn Side,
    disk: &mut dyn Side,
) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    for step in steps {
        let Step { action, .. } = step;
        let on = |side: &mut dyn Side, name| {
            side.act(action).with_context(|| format!("{action}, on the {name}"))
        };
        let (there, here) = (on(driver, "driver")?, on(disk, "daemon")?);
        let mut line = action.to_string();
        if there != here {
            let _ = write!(line, ": the driver {there:?}, here {here:?}");
        }
        match (step.difference(kernel)?, there == here) {
            (None, true) => comparison.same += 1,
            (None, false) => comparison.unknown.push(line),
            (Some(known), false) => comparison.known.push(format!("{line}: {}", known.reason)),
            (Some(known), true) => {
                let line =
                    format!("{line}: no difference any more, where it says: {}", known.reason);
                comparison.unknown.push(line);
            }
        }
    }
    Ok(comparison)
}

/// What is left of what was read, or the error's name.
fn outcome(action: &Action, read: Result<String, String>) -> Result<Outcome> {
    match (action, read) {
        (Action::Read { mask, .. }, Ok(text)) => mask.of(&text),
        (_, Ok(word)) => Ok(word),
        (_, Err(errno)) if errno.starts_with('E') => Ok(errno),
        (_, Err(errno)) => bail!("an error without a name: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it is told to.
    struct Says(Vec<&'static str>);

    impl Side for Says {
        fn act(&mut self, action: &Action) -> Result<Outcome> {
            let said = self.0.remove(0);
            outcome(action, said.strip_prefix('!').map_or(Ok(said.into()), |e| Err(e.into())))
        }
    }

    #[test]
    fn each_difference_is_known_or_is_not() {
        let script = "read a\nread a\n  differs: so\nread b\nread b\n  differs before 7.1: so\n";
        let steps = script::parse(script).unwrap();
        let found = |kernel| {
            let mut driver = Says(vec!["1\n", "1\n", "!EBUSY", "1\n"]);
            let mut disk = Says(vec!["1\n", "2\n", "!EINVAL", "1\n"]);
            compare(&steps, kernel, &mut driver, &mut disk).unwrap()
        };
        let new = found("7.1");
        assert_eq!((new.same, new.known.len(), new.unknown.len()), (2, 1, 1));
        assert_eq!(new.known[0], "read a: the driver \"1\\n\", here \"2\\n\": so");
        assert_eq!(new.unknown[0], "read b: the driver \"EBUSY\", here \"EINVAL\"");
        let old = found("6.12");
        assert_eq!((old.same, old.known.len(), old.unknown.len()), (1, 1, 2));
        assert!(old.unknown[1].contains("no difference any more"), "{old:?}");
    }
}
