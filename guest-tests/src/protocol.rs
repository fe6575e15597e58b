//! What a guest says on its console: lines that begin with `@@`, among those of its kernel.
//!
//! `guest-main.sh` has the form: `@@ WORD NAME=VALUE... text=REST OF THE LINE`.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow};

/// How a step ended, as the guest saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail,
    Skip,
}

/// The values of one line, by name, and its text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    words: HashMap<String, String>,
    pub text: String,
}

impl Values {
    /// The value as it was written.
    pub fn word(&self, name: &str) -> Result<&str> {
        self.words.get(name).map(String::as_str).ok_or_else(|| anyhow!("the guest gave no {name}"))
    }

    /// The value as a number.
    pub fn number(&self, name: &str) -> Result<u64> {
        let word = self.word(name)?;
        word.parse().with_context(|| format!("{name}={word} from the guest is not a number"))
    }
}

/// One line to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The answer to the command with this number.
    Result { id: u64, verdict: Verdict, values: Values },
    /// Anything that happens by itself.
    Event { name: String, values: Values },
}

impl Said {
    /// `None` for lines that are not to the host.
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.strip_prefix("@@ ")?.split_once(' ')?;
        let (pairs, text) = match rest.strip_prefix("text=") {
            Some(text) => ("", text),
            None => rest.split_once(" text=").unwrap_or((rest, "")),
        };
        let mut values = Values { text: text.trim().to_owned(), ..Values::default() };
        for pair in pairs.split_whitespace() {
            let (name, value) = pair.split_once('=')?;
            values.words.insert(name.to_owned(), value.to_owned());
        }
        if word != "result" {
            return Some(Self::Event { name: word.to_owned(), values });
        }
        let verdict = match values.word("verdict").ok()? {
            "pass" => Verdict::Pass,
            "fail" => Verdict::Fail,
            "skip" => Verdict::Skip,
            _ => return None,
        };
        Some(Self::Result { id: values.number("id").ok()?, verdict, values })
    }

    /// The values of an event of this name.
    pub fn event(line: &str, wanted: &str) -> Option<Values> {
        match Self::parse(line)? {
            Self::Event { name, values } if name == wanted => Some(values),
            _ => None,
        }
    }

    /// The verdict and the values of the answer to command `number`.
    pub fn answer(line: &str, number: u64) -> Option<(Verdict, Values)> {
        match Self::parse(line)? {
            Self::Result { id, verdict, values } if id == number => Some((verdict, values)),
            _ => None,
        }
    }
}

/// Whether a line shows that the guest's kernel has started its init, which says so before it does anything.
pub fn is_past_init(line: &str) -> bool {
    matches!(Said::parse(line), Some(Said::Event { .. }))
}

/// The number `key` of the last event `name` among `lines`.
pub fn last_number<'a>(
    lines: impl DoubleEndedIterator<Item = &'a String>,
    name: &str,
    key: &str,
) -> Option<u64> {
    lines.rev().find_map(|line| Said::event(line, name)?.number(key).ok())
}

/// What a guest's kernel says when something went wrong. It has no figure for any of these: its log is
/// all there is to judge.
const COMPLAINTS: [&str; 13] = [
    "I/O error",
    "critical target",
    "critical medium",
    "critical space",
    "EXT4-fs error",
    "EXT4-fs warning",
    "blocked for more",
    "BUG:",
    "WARNING:",
    "Call Trace",
    "not a head",
    "Kernel panic",
    "Oops",
];
/// The driver, if it says one of [`TROUBLE`] behind its name.
const DRIVER: &str = "virtio_blk";
const TROUBLE: [&str; 2] = ["fail", "error"];

/// The complaints for `grep -E`, without blanks: they travel to the guest as one word.
pub fn complaints() -> String {
    let plain = COMPLAINTS.map(|complaint| complaint.replace(' ', ".")).join("|");
    format!("{plain}|{DRIVER}.*({})", TROUBLE.join("|"))
}

/// Whether a line of a console is a complaint of the kernel.
pub fn is_complaint(line: &str) -> bool {
    let Some((stamp, text)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let is_time = !stamp.is_empty() && stamp.chars().all(|c| " 0123456789.".contains(c));
    let said = |words: &[&str], text: &str| words.iter().any(|word| text.contains(word));
    let driver = text.split_once(DRIVER).is_some_and(|(_, rest)| said(&TROUBLE, rest));
    is_time && (driver || said(&COMPLAINTS, text))
}

/// The lines of a console that count: what comes between the command to reboot and the reboot is left out.
/// A Linux that shuts its devices down fails what a program submits after that by itself, whatever the
/// back end (seen with 6.1 on QEMU's own storage daemon, too).
pub fn without_reboots(lines: &[String]) -> impl Iterator<Item = &String> {
    let mut rebooting = false;
    lines.iter().filter(move |line| {
        if line.as_str() == "-- reboot " {
            rebooting = true;
        }
        let counts = !rebooting;
        if line.contains("Restarting system") || line.starts_with("@@ ready ") {
            rebooting = false;
        }
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_of_an_init_shows_that_the_kernel_got_there() {
        assert!(is_past_init("@@ init kernel=6.1.0"));
        assert!(is_past_init("@@ ready kernel=6.1.0"));
        for line in ["", "[    0.796994] mtrr: your CPUs had inconsistent MTRRdefType settings"] {
            assert!(!is_past_init(line), "{line}");
        }
    }

    #[test]
    fn a_result_has_its_figures_and_all_of_its_text() {
        let said =
            Said::parse("@@ result id=7 verdict=fail files=12 text=md5sum: a=b text=c ").unwrap();
        let Said::Result { id, verdict, values } = said else { panic!("{said:?}") };
        assert_eq!((id, verdict, values.text.as_str()), (7, Verdict::Fail, "md5sum: a=b text=c"));
        assert_eq!(values.number("files").unwrap(), 12);
        assert!(values.number("mib").unwrap_err().to_string().contains("mib"));
    }

    #[test]
    fn a_result_needs_no_figures_and_no_text() {
        let said = Said::parse("@@ result id=1 verdict=skip text=").unwrap();
        assert!(matches!(said, Said::Result { id: 1, verdict: Verdict::Skip, .. }));
    }

    #[test]
    fn lines_that_are_none_of_ours_are_nothing() {
        for line in [
            "",
            "@@",
            "@@ result",
            "@@ result verdict=pass text=no number",
            "@@ result id=3 verdict=perhaps text=",
            "@@ result id=x verdict=pass text=",
            "@@ result id=3 pass",
            "[    1.0] @@ result id=3 verdict=pass text=",
            "-- limits ",
        ] {
            assert_eq!(Said::parse(line), None, "{line}");
        }
    }

    #[test]
    fn events_are_found_by_their_names() {
        let values = Said::event("@@ load done=5", "load").unwrap();
        assert_eq!((values.number("done").unwrap(), values.text.as_str()), (5, ""));
        assert_eq!(Said::event("@@ load done=5", "churn"), None);
        assert_eq!(Said::event("@@ result id=3 verdict=pass text=", "result"), None);
        let lines = ["@@ load done=4", "@@ load done=5", "@@ load done="].map(str::to_owned);
        assert_eq!(last_number(lines.iter(), "load", "done"), Some(5));
        assert_eq!(last_number(lines.iter(), "churn", "done"), None);
    }

    #[test]
    fn complaints_of_the_kernel_are_told_from_programs_that_quote_them() {
        let errors = "[    9.1] I/O error, dev vda, sector 8 op 0x1:(WRITE)";
        assert!(is_complaint(errors));
        assert!(is_complaint("[   10.000001] virtio_blk virtio1: failed to do it"));
        assert!(is_complaint("[    1.2] Kernel panic - not syncing"));
        assert!(!is_complaint("[    1.2] virtio_blk virtio1: 2/0/0 queues"));
        assert!(!is_complaint("dd: I/O error"));
        assert!(!is_complaint("[guest] I/O error"));
        assert!(!complaints().contains(' '));
        assert!(complaints().contains("I/O.error|"), "{}", complaints());
    }

    #[test]
    fn what_a_reboot_fails_by_itself_is_left_out() {
        let lines =
            ["a", "-- reboot ", "[ 1.0] I/O error", "[ 2.0] reboot: Restarting system", "b"];
        let lines = lines.map(str::to_owned);
        let kept: Vec<_> = without_reboots(&lines).map(String::as_str).collect();
        assert_eq!(kept, ["a", "b"]);
    }
}
