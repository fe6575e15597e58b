//! `metrics`: the pages of all daemons as one page of Prometheus' text format, in which each family has its
//! description once and all its samples together.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

/// A family: its description, and its samples.
#[derive(Default)]
struct Family {
    /// `# HELP`, `# TYPE` and `# UNIT`, as the first daemon has them.
    head: Vec<String>,
    samples: Vec<String>,
}

/// The page that is made.
#[derive(Default)]
pub struct Page {
    /// Names in the order in which they came.
    names: Vec<String>,
    families: HashMap<String, Family>,
    /// Names with labels that are there.
    series: BTreeSet<String>,
    /// Whether a daemon ended its page as OpenMetrics does.
    ended: bool,
}

/// What is not a page of metrics, or would make the whole page invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    /// A line that is neither comment nor sample.
    #[error("not a page of metrics: {0}")]
    Line(String),
    /// Two daemons have the same name.
    #[error("another daemon has the same series, and so the same name: {0}")]
    Twice(String),
}

/// The name of the series of a sample: all before the value.
fn series(line: &str) -> Option<&str> {
    let end = match line.rfind('}') {
        Some(at) => at + 1,
        None => line.find(' ')?,
    };
    let name = &line[..end];
    let begins =
        name.starts_with(|letter: char| letter.is_ascii_alphabetic() || "_:".contains(letter));
    let value = line[end..].split_whitespace().next()?;
    let is_number = value.parse::<f64>().is_ok() || ["+Inf", "-Inf", "NaN"].contains(&value);
    (begins && is_number).then_some(name)
}

impl Page {
    /// Adds the page of one daemon. All of it is refused if any of it cannot be added.
    ///
    /// # Errors
    /// It is not a page of metrics, or has a series that another one has.
    pub fn add(&mut self, text: &str) -> Result<(), PageError> {
        let mut current = String::new();
        let mut lines: Vec<(String, &str, bool)> = Vec::new();
        let mut own = BTreeSet::new();
        let mut ended = false;
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            let wrong = || PageError::Line(line.chars().take(100).collect());
            if let Some(comment) = line.strip_prefix('#') {
                let mut words = comment.split_whitespace();
                match (words.next(), words.next()) {
                    (Some("EOF"), None) => ended = true,
                    (Some("HELP" | "TYPE" | "UNIT"), Some(name)) => {
                        current = name.to_owned();
                        lines.push((current.clone(), line, true));
                    }
                    // Any other comment is for people.
                    _ => {}
                }
                continue;
            }
            let series = series(line).ok_or_else(wrong)?;
            if self.series.contains(series) || !own.insert(series.to_owned()) {
                return Err(PageError::Twice(series.chars().take(200).collect()));
            }
            let name = series.split('{').next().unwrap_or_default();
            if !name.starts_with(current.as_str()) || current.is_empty() {
                current = name.to_owned();
            }
            lines.push((current.clone(), line, false));
        }
        let before: BTreeSet<String> = self.families.keys().cloned().collect();
        for (name, line, is_head) in lines {
            if !self.families.contains_key(&name) {
                self.names.push(name.clone());
            }
            let family = self.families.entry(name.clone()).or_default();
            if !is_head {
                family.samples.push(line.to_owned());
            } else if !before.contains(&name) {
                family.head.push(line.to_owned());
            }
        }
        self.series.append(&mut own);
        self.ended |= ended;
        Ok(())
    }

    /// Adds whether each daemon answered.
    pub fn add_answers<'n>(&mut self, answers: impl IntoIterator<Item = (&'n str, bool)>) {
        const NAME: &str = "vhost_user_zram_answering_daemons";
        let mut text =
            format!("# HELP {NAME} Whether the daemon answered: 1 or 0.\n# TYPE {NAME} gauge\n");
        for (disk, answered) in answers {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{NAME}{{disk=\"{}\"}} {}", escape(disk), u8::from(answered));
        }
        // Two sockets of the same name are complained of where their pages are added.
        let _ = self.add(&text);
    }

    /// The page as text.
    pub fn text(&self) -> String {
        let families = self.names.iter().filter_map(|name| self.families.get(name));
        let mut text = String::new();
        for family in families.filter(|family| !family.samples.is_empty()) {
            for line in family.head.iter().chain(&family.samples) {
                text += line;
                text.push('\n');
            }
        }
        if self.ended {
            text += "# EOF\n";
        }
        text
    }
}

/// A value of a label.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(disk: &str) -> String {
        format!(
            "# HELP z_reads Reads.\n# TYPE z_reads counter\nz_reads_total{{disk=\"{disk}\"}} 3\n\
             # HELP z_lat_seconds Time.\n# TYPE z_lat_seconds histogram\n# UNIT z_lat_seconds seconds\n\
             z_lat_seconds_bucket{{disk=\"{disk}\",le=\"+Inf\"}} 1\nz_lat_seconds_sum{{disk=\"{disk}\"}} 0.5\n\
             # EOF\n"
        )
    }

    #[test]
    fn families_of_all_daemons_are_together_and_described_once() {
        let mut all = Page::default();
        all.add(&page("a")).unwrap();
        all.add(&page("b")).unwrap();
        all.add_answers([("a", true), ("c\"", false)]);
        let expected = "\
# HELP z_reads Reads.
# TYPE z_reads counter
z_reads_total{disk=\"a\"} 3
z_reads_total{disk=\"b\"} 3
# HELP z_lat_seconds Time.
# TYPE z_lat_seconds histogram
# UNIT z_lat_seconds seconds
z_lat_seconds_bucket{disk=\"a\",le=\"+Inf\"} 1
z_lat_seconds_sum{disk=\"a\"} 0.5
z_lat_seconds_bucket{disk=\"b\",le=\"+Inf\"} 1
z_lat_seconds_sum{disk=\"b\"} 0.5
# HELP vhost_user_zram_answering_daemons Whether the daemon answered: 1 or 0.
# TYPE vhost_user_zram_answering_daemons gauge
vhost_user_zram_answering_daemons{disk=\"a\"} 1
vhost_user_zram_answering_daemons{disk=\"c\\\"\"} 0
# EOF
";
        assert_eq!(all.text(), expected);
    }

    #[test]
    fn a_family_that_only_one_daemon_has_keeps_its_description() {
        let mut all = Page::default();
        all.add("# TYPE a gauge\na 1\n").unwrap();
        all.add("# TYPE b gauge\nb{disk=\"x\"} 1\n# comment\nc{x=\"}\"} NaN\n").unwrap();
        assert_eq!(
            all.text(),
            "# TYPE a gauge\na 1\n# TYPE b gauge\nb{disk=\"x\"} 1\nc{x=\"}\"} NaN\n"
        );
    }

    #[test]
    fn what_would_make_the_page_invalid_is_refused_as_a_whole() {
        let mut all = Page::default();
        all.add(&page("a")).unwrap();
        let text = all.text();
        assert!(matches!(all.add(&page("a")), Err(PageError::Twice(_))));
        assert!(matches!(all.add("x 1\nx 2\n"), Err(PageError::Twice(_))));
        for bad in ["<html>", "x", "x y", "1 2", "y 1\n{} 3"] {
            assert!(matches!(all.add(bad), Err(PageError::Line(_))), "{bad}");
        }
        assert_eq!(all.text(), text);
    }
}
