//! A guest's own zram: the steps of `guest-zram.sh`.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::{Outcome, Side, outcome, script::Action};
use crate::machine::Machine;

/// The zram of a guest that runs.
pub struct Driver<'a, 'm>(&'a mut Machine<'m>);

impl<'a, 'm> Driver<'a, 'm> {
    /// Has the guest load the driver.
    pub fn start(machine: &'a mut Machine<'m>) -> Result<Self> {
        machine.ask("zram_start", &[])?;
        Ok(Self(machine))
    }
}

impl Side for Driver<'_, '_> {
    fn act(&mut self, action: &Action) -> Result<Outcome> {
        let pages = |first: &u64, count: &u64| [first.to_string(), count.to_string()];
        let (step, args): (_, Vec<String>) = match action {
            Action::Write { name, text } => ("zram_write", vec![name.clone(), hex(text)]),
            Action::Read { name, .. } => ("zram_read", vec![name.clone()]),
            Action::Fill { kind, first, count } => {
                ("zram_fill", [&[kind.clone()][..], &pages(first, count)].concat())
            }
            Action::Check { kind, first, count } => {
                ("zram_check", [&[kind.clone()][..], &pages(first, count)].concat())
            }
            Action::Discard { first, count } => ("zram_discard", pages(first, count).into()),
            Action::Open => ("zram_open", Vec::new()),
            Action::Close => ("zram_close", Vec::new()),
        };
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let values = self.0.ask(step, &args)?;
        let result = values.word("result")?.to_owned();
        let read = match action {
            _ if result.starts_with('E') => Err(result),
            Action::Read { .. } => Ok(unhex(values.word("hex")?)?),
            _ => Ok(result),
        };
        outcome(action, read)
    }
}

fn hex(text: &str) -> String {
    text.bytes().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

fn unhex(digits: &str) -> Result<String> {
    let byte = |at| {
        let pair = digits.get(at..at + 2).context("half a byte from the guest")?;
        Ok::<u8, anyhow::Error>(u8::from_str_radix(pair, 16)?)
    };
    let bytes = (0..digits.len()).step_by(2).map(byte).collect::<Result<Vec<_>>>()?;
    String::from_utf8(bytes).context("what was read is not a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_travel_as_digits() {
        assert_eq!(hex("a\n"), "610a");
        assert_eq!(unhex("610a").unwrap(), "a\n");
        assert_eq!(unhex("").unwrap(), "");
        for wrong in ["6", "6x", "ff"] {
            assert!(unhex(wrong).is_err(), "{wrong}");
        }
    }
}
