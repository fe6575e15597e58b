//! A finding: what is wrong with what, and what to do.

use serde::Serialize;

use crate::table::plain;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or will not when the daemon comes back.
    Fault,
    /// Something may go wrong later, or costs more than it has to.
    Warning,
}

/// A misconfiguration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, for scripts.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The disk, front end or host that has it.
    pub subject: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// A finding of the check `check`.
    pub fn new(
        check: &'static str,
        severity: Severity,
        subject: impl Into<String>,
        what: String,
        remedy: String,
    ) -> Self {
        Self { check, severity, subject: subject.into(), what, remedy }
    }
}

/// The findings as text, the worst first, and a line that counts them.
pub fn render(findings: &[Finding], looked_at: &str) -> String {
    let mut text = String::new();
    for Finding { check, severity, subject, what, remedy } in findings {
        let severity = match severity {
            Severity::Fault => "FAULT",
            Severity::Warning => "WARNING",
        };
        text += &format!("{severity} {}: {} [{check}]\n", plain(subject), plain(what));
        text += &format!("    {}\n", plain(remedy));
    }
    let faults = findings.iter().filter(|finding| finding.severity == Severity::Fault).count();
    let warnings = findings.len() - faults;
    text += &match findings {
        [] => format!("{looked_at}: nothing is wrong\n"),
        _ => format!("{looked_at}: {faults} fault(s), {warnings} warning(s)\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_two_lines() {
        let finding = Finding::new("x", Severity::Fault, "vm1", "a\nb".into(), "do c".into());
        assert_eq!(
            render(&[finding], "1 disk"),
            "FAULT vm1: a\\nb [x]\n    do c\n1 disk: 1 fault(s), 0 warning(s)\n"
        );
        assert_eq!(render(&[], "2 disks"), "2 disks: nothing is wrong\n");
    }
}
