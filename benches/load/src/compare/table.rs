//! The page of tables, in Markdown.

use std::fmt::Write;

use crate::{
    figures::{BASE, Figure, Figures, Section},
    plot::Plot,
    rows::Memory,
    stats::Spread,
};

const HEAD: &str = "\
Each cell is the median of the rounds, with least and greatest in brackets; `x` is the ratio to kernel zram (`zram`),
taken round by round, and its median. All rivals run in each round, and another begins each time; the speed of such machines
varies, so ratios say more than figures. `^`: the generator is the limit (at least 85 % of the most that it does against
a back end that does nothing, `null`), so the figure is not counted and has no ratio. An empty cell was not measured.
Points are pattern, bytes, depth of each queue; `-poll` is a client that polls, the others sleep until they are interrupted.
`fill-128K` writes an empty disk once, `discard-4K` gives one half of it back page by page, `discard-16M` the
rest in large pieces.

* `ours` this daemon; `zram` the kernel's, by io_uring with O_DIRECT; `zram-qsd` the same, exported by qemu-storage-daemon;
  `tmpfs-qsd` qemu-storage-daemon on a file on a tmpfs, which compresses nothing.
* `nbdkit-zstd` is nbdkit's memory plugin, behind qemu-storage-daemon's NBD client, as a guest's disk would be: the same
  generator and data then drive it. It has blocks of 32 KiB, and compresses one anew for each write to it.
* Server CPU is the time of all threads of all processes of the server. That of `zram` is the generator's system time,
  so its system calls are in it. Server and generator share the machine's processors.
";

/// The whole page.
pub fn page(about: &str, figures: &Figures<'_>, plots: &[Plot]) -> String {
    let mut page = format!("# The disk beside its rivals\n\n{}\n\n{HEAD}\n", about.trim_end());
    page += &verdict(figures);
    for section in figures.sections() {
        let queues = match section.queues {
            1 => "one queue".to_owned(),
            n => format!("{n} queues, each with a client"),
        };
        let title = format!("{}, {queues}", corpus_name(&section.corpus));
        // Writing to a String cannot fail.
        let _ = writeln!(page, "\n## {title}\n\nOperations a second:\n");
        page += &grid(figures, &section, |point, rival| ops_cell(figures, &section, point, rival));
        page += "\nServer CPU, us for each 4 KiB:\n\n";
        page += &grid(figures, &section, |point, rival| cpu_cell(figures, &section, point, rival));
        page += "\nLatency, p50 / p99 in us:\n\n";
        page += &grid(figures, &section, |point, rival| latency(figures, &section, point, rival));
    }
    page += &memory(figures.memory);
    page += "\n## Plots\n\n";
    for plot in plots {
        let _ = writeln!(page, "![{}]({})", plot.title, plot.file);
    }
    page
}

/// A corpus in words.
pub fn corpus_name(name: &str) -> &str {
    match name {
        "mix" => "Mix",
        "anon" => "Anonymous memory",
        "files" => "Files",
        "random" => "Incompressible",
        "same" => "Same-filled pages",
        other => other,
    }
}

/// Where ours is faster, and where it is slower: with its default arguments, and the others' rows of ours.
fn verdict(figures: &Figures<'_>) -> String {
    let mut text = String::from(
        "## Wins and losses\n\nCounted in operations a second, at all points of all corpora.\n\n",
    );
    let mut ours: Vec<&str> = Vec::new();
    for section in figures.sections() {
        for rival in figures.rivals(&section) {
            if rival.starts_with("ours") && !rival.contains("zstd") && !ours.contains(&rival) {
                ours.push(rival);
            }
        }
    }
    for ours in ours {
        for base in ["zram", "zram-qsd", "tmpfs-qsd", "nbdkit-zstd"] {
            let (mut wins, mut losses, mut bound) = (0, Vec::new(), 0);
            for section in figures.sections() {
                for point in figures.points(&section) {
                    let cell = |rival| figures.cell(&section, point, rival, Figure::Ops);
                    let (Some(mine), Some(theirs)) = (cell(ours), cell(base)) else { continue };
                    match figures.ratio(&section, point, (ours, base), Figure::Ops) {
                        Some(ratio) if ratio.median >= 1.0 => wins += 1,
                        Some(ratio) => losses.push(format!(
                            "{point} {} x{} ({:.2})",
                            section.corpus, section.queues, ratio.median
                        )),
                        None => bound += usize::from(mine.bound || theirs.bound),
                    }
                }
            }
            if wins + losses.len() + bound == 0 {
                continue;
            }
            let total = wins + losses.len();
            let _ = write!(text, "* `{ours}` beside `{base}`: faster at {wins} of {total} points");
            if bound > 0 {
                let _ = write!(text, " ({bound} more are not counted)");
            }
            if !losses.is_empty() {
                let _ = write!(text, "; slower at {}", losses.join(", "));
            }
            text += ".\n";
        }
    }
    text
}

/// A table with a line for each point and a column for each rival.
fn grid(figures: &Figures<'_>, section: &Section, cell: impl Fn(&str, &str) -> String) -> String {
    let rivals = figures.rivals(section);
    let mut text =
        format!("| point | {} |\n|---|{}\n", rivals.join(" | "), "---|".repeat(rivals.len()));
    for point in figures.points(section) {
        let cells: Vec<_> = rivals.iter().map(|rival| cell(point, rival)).collect();
        let _ = writeln!(text, "| {point} | {} |", cells.join(" | "));
    }
    text
}

fn ops_cell(figures: &Figures<'_>, section: &Section, point: &str, rival: &str) -> String {
    let figure = Figure::Ops;
    let Some(cell) = figures.cell(section, point, rival, figure) else { return String::new() };
    let ratio = figures.ratio(section, point, (rival, BASE), figure).filter(|_| rival != BASE);
    with_spread(cell.spread, count, cell.bound, ratio)
}

fn cpu_cell(figures: &Figures<'_>, section: &Section, point: &str, rival: &str) -> String {
    let figure = Figure::Cpu;
    let Some(cell) = figures.cell(section, point, rival, figure) else { return String::new() };
    let ratio = figures.ratio(section, point, (rival, BASE), figure).filter(|_| rival != BASE);
    with_spread(cell.spread, decimal, cell.bound, ratio)
}

fn latency(figures: &Figures<'_>, section: &Section, point: &str, rival: &str) -> String {
    let cell = |figure| figures.cell(section, point, rival, figure);
    let (Some(p50), Some(p99)) = (cell(Figure::P50), cell(Figure::P99)) else {
        return String::new();
    };
    let mark = if p50.bound { "^" } else { "" };
    format!("{} / {}{mark}", decimal(p50.spread.median), decimal(p99.spread.median))
}

fn with_spread(
    spread: Spread,
    text: impl Fn(f64) -> String,
    bound: bool,
    ratio: Option<Spread>,
) -> String {
    let mark = if bound { "^" } else { "" };
    let ratio = ratio.map_or(String::new(), |ratio| format!(" {:.2}x", ratio.median));
    let Spread { median, min, max } = spread;
    format!("{}{mark} ({}-{}){ratio}", text(median), text(min), text(max))
}

/// A count in three digits or so.
pub fn count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e5 => format!("{:.0}k", v / 1e3),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v if v >= 1e3 => format!("{:.2}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// A number in three digits or so.
pub fn decimal(value: f64) -> String {
    match value {
        v if v >= 99.5 => format!("{v:.0}"),
        v if v >= 9.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn memory(all: &[Memory]) -> String {
    let mut text = String::from(
        "\n## Memory of a full disk\n\n\
         After the first fill and a rest. `processes` is the proportional set size of the server's processes, in which the\n\
         data of those is that keep it in their own memory; `idle` is the same before the fill; `kernel` is zram's pool, or the\n\
         file on the tmpfs. Kernel zram's table, 16 bytes a page, is not in what it tells.\n\n\
         | corpus | rival | written MiB | compressed MiB | idle MiB | processes MiB | kernel MiB | memory / written |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for row in all {
        // Servers with two queues have the same data; one line says it.
        if seen.contains(&(&row.corpus, &row.rival)) {
            continue;
        }
        seen.push((&row.corpus, &row.rival));
        let group = all.iter().filter(|other| {
            (&other.corpus, &other.rival, other.queues) == (&row.corpus, &row.rival, row.queues)
        });
        let group: Vec<_> = group.collect();
        let mib = |figure: fn(&Memory) -> f64| {
            let spread = Spread::of(group.iter().map(|row| figure(row) / f64::from(1 << 20)));
            spread.map_or(String::new(), |spread| format!("{:.1}", spread.median))
        };
        let compressed = group.iter().filter_map(|row| row.compressed);
        let compressed = Spread::of(compressed.map(|bytes| bytes / f64::from(1 << 20)));
        let per = Spread::of(group.iter().map(|row| row.per_written()));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            corpus_name(&row.corpus),
            row.rival,
            mib(|row| row.written),
            compressed.map_or(String::new(), |spread| format!("{:.1}", spread.median)),
            mib(|row| row.idle),
            mib(|row| row.processes),
            mib(|row| row.kernel),
            per.map_or(String::new(), |spread| format!("{:.3}", spread.median)),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    #[test]
    fn the_page_has_wins_losses_and_rows_that_do_not_count() {
        let samples = [
            sample(0, "ours", "mix", 300.0),
            sample(0, "zram", "mix", 100.0),
            sample(0, "ours", "anon", 50.0),
            sample(0, "zram", "anon", 100.0),
            sample(0, "null", "mix", 5000.0),
            sample(0, "ours", "files", 4500.0),
            sample(0, "zram", "files", 100.0),
        ];
        let page = page("A machine.", &Figures::new(&samples, &[]), &[]);
        assert!(page.contains("\n\nA machine.\n\nEach cell"), "paragraphs of their own");
        let line = page.lines().find(|line| line.contains("beside `zram`")).unwrap();
        assert_eq!(
            line,
            "* `ours` beside `zram`: faster at 1 of 2 points (1 more are not counted); slower at \
             write-128K-d8 anon x1 (0.50)."
        );
        assert!(page.contains(
            "| write-128K-d8 | 300 (300-300) 3.00x | 100 (100-100) | 5.00k (5.00k-5.00k) |"
        ));
        assert!(page.contains("| write-128K-d8 | 4.50k^ (4.50k-4.50k) | 100 (100-100) |"));
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let counts: Vec<_> = [7.4, 2950.0, 12_345.0, 243_003.0, 2.5e6].map(count).into();
        assert_eq!(counts, ["7", "2.95k", "12.3k", "243k", "2.50M"]);
        assert_eq!([0.314, 5.04, 9.96, 128.5].map(decimal), ["0.31", "5.04", "10.0", "128"]);
    }

    #[test]
    fn memory_has_a_line_for_each_corpus_and_rival() {
        let row = |queues, processes| Memory {
            rival: "ours".into(),
            corpus: "mix".into(),
            queues,
            written: 1048576.0,
            compressed: None,
            idle: 0.0,
            processes,
            kernel: 0.0,
        };
        // The servers with two queues have a line of their own only where there are no others.
        let text = memory(&[row(1, 524288.0), row(2, 1048576.0)]);
        let lines: Vec<_> = text.lines().filter(|line| line.contains("ours")).collect();
        assert_eq!(lines, ["| Mix | ours | 1.0 |  | 0.0 | 0.5 | 0.0 | 0.500 |"]);
    }
}
