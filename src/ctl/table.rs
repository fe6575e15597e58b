//! Tables as util-linux prints them: columns of text without lines, aligned, or raw for scripts.

use comfy_table::{Cell, CellAlignment, Table, presets};

/// A heading, and the side on which the column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heading {
    /// Its text.
    pub name: &'static str,
    /// Numbers are at the right.
    pub right: bool,
}

/// The table as text that ends with a newline; empty without rows and headings.
pub fn aligned(headings: &[Heading], rows: &[Vec<String>], with_headings: bool) -> String {
    let cell = |(heading, text): (&Heading, &str)| {
        let side = if heading.right { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(plain(text)).set_alignment(side)
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    if with_headings {
        table.set_header(headings.iter().map(|heading| cell((heading, heading.name))));
    }
    for row in rows {
        table.add_row(headings.iter().zip(row.iter().map(String::as_str)).map(cell));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// The table with one blank between columns. Each cell is one word: blanks within it are escaped, and `-`
/// stands for none.
pub fn raw(headings: &[Heading], rows: &[Vec<String>], with_headings: bool) -> String {
    let mut text = String::new();
    if with_headings {
        text += &headings.iter().map(|heading| heading.name).collect::<Vec<_>>().join(" ");
        text.push('\n');
    }
    for row in rows {
        let words = row.iter().map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            cell => plain(cell).replace(' ', "\\x20"),
        });
        text += &words.collect::<Vec<_>>().join(" ");
        text.push('\n');
    }
    text
}

/// What a daemon says may hold bytes that a terminal acts on.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|letter| {
            let escaped = letter.is_control().then(|| letter.escape_default());
            let as_it_is = escaped.is_none().then_some(letter);
            escaped.into_iter().flatten().chain(as_it_is)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADINGS: [Heading; 3] = [
        Heading { name: "NAME", right: false },
        Heading { name: "SIZE", right: true },
        Heading { name: "STATE", right: false },
    ];

    fn rows() -> Vec<Vec<String>> {
        let row = |words: [&str; 3]| words.map(str::to_owned).to_vec();
        vec![row(["vm1", "4G", "ready"]), row(["longer", "", "stale socket"])]
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let text = aligned(&HEADINGS, &rows(), true);
        assert_eq!(text, "NAME   SIZE STATE\nvm1      4G ready\nlonger      stale socket\n");
        let text = aligned(&HEADINGS, &rows(), false);
        assert_eq!(text, "vm1    4G ready\nlonger    stale socket\n");
        assert_eq!(aligned(&HEADINGS, &[], true), "NAME SIZE STATE\n");
        assert_eq!(aligned(&HEADINGS, &[], false), "");
    }

    #[test]
    fn a_raw_row_has_as_many_words_as_there_are_columns() {
        let text = raw(&HEADINGS, &rows(), true);
        assert_eq!(text, "NAME SIZE STATE\nvm1 4G ready\nlonger - stale\\x20socket\n");
    }

    #[test]
    fn a_terminal_is_sent_no_commands() {
        assert_eq!(plain("a\x1b[2Jb\u{e4}\n"), "a\\u{1b}[2Jb\u{e4}\\n");
    }
}
