//! The command line of the tool. Parsing only: nothing here touches the system.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Sees and controls the daemons of vhost-user-zram on this host.
///
/// A daemon is found by the socket of its API: NAME/api.sock in the run directory is that of the daemon
/// NAME. Where one daemon is meant, -d names it; a daemon that is alone needs no name.
///
/// The exit status is 0 if all went well, 1 if a daemon could not be asked or refused, or if `doctor` found
/// something, and 2 for a mistake in the command line.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-zramctl", version, max_term_width = 100)]
pub struct Cli {
    /// Directory with one directory for each daemon, in which its API is the socket `api.sock`.
    #[arg(long, value_name = "DIR", global = true, default_value = "/run/vhost-user-zram")]
    pub run_dir: PathBuf,

    /// The API of a daemon, by the path of its socket, in place of those in the run directory. May be given
    /// several times.
    #[arg(long = "api", value_name = "PATH", global = true)]
    pub apis: Vec<PathBuf>,

    /// Name of the daemon that is meant.
    #[arg(short, long, value_name = "NAME", global = true)]
    pub disk: Option<String>,

    /// Longest wait for a daemon's answer, in seconds.
    #[arg(long, value_name = "SECONDS", global = true, default_value = "5", value_parser = parse_seconds)]
    pub timeout: Duration,

    /// What to do [default: list].
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the daemons of the run directory, with the columns and options of zramctl(8).
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all figures of one disk.
    Show {
        /// Print them as JSON, as the daemon has them.
        #[arg(short = 'J', long)]
        json: bool,
    },
    /// Read an attribute of a disk, in the form that the kernel has for zram's.
    Get {
        /// Its name, such as mm_stat. Without a name all attributes are listed.
        attribute: Option<String>,
    },
    /// Write an attribute of a disk. What takes long, compact and recompress, is waited for as `compact` does it.
    Set {
        /// Its name, such as mem_limit.
        attribute: String,
        /// Its value, in the form that the kernel takes.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Grow a disk, while its guest runs.
    Resize {
        /// Its new size in bytes, or with a suffix K, M, G or T (powers of 1024).
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Drop the contents of a disk and set its figures to 0. No guest may be connected.
    Reset,
    /// Move objects out of sparse pages, and give the memory back to the host.
    Compact {
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// List what runs in the background of a disk, or end it.
    Jobs {
        /// End the job of this number.
        #[arg(long, value_name = "ID")]
        cancel: Option<u64>,
        /// Print them as JSON.
        #[arg(short = 'J', long)]
        json: bool,
    },
    /// Make a disk and start its daemon by systemd's unit vhost-user-zram@NAME.service. Without systemd
    /// print the command that starts it. If there is a file /etc/vhost-user-zram/NAME.toml, it is the daemon's
    /// --config.
    Add(Add),
    /// End a disk, and what is in it: stop its unit, and remove the settings that `add` made. A NAME.toml
    /// stays.
    Remove {
        /// Its name.
        name: String,
        /// End it even if a guest is connected, or the daemon does not answer.
        #[arg(long)]
        force: bool,
    },
    /// Show all disks as they change: ratio, memory, requests, latency, engine, jobs.
    Top(Top),
    /// Print the metrics of all daemons as one page in Prometheus' text format.
    Metrics,
    /// Look for misconfigurations of daemons, host and guests, and say what to do about each.
    Doctor(Doctor),
}

/// Options of `list`; names are those of zramctl(8).
#[derive(Debug, Default, Args)]
pub struct List {
    /// Print sizes in bytes.
    #[arg(short, long)]
    pub bytes: bool,

    /// Do not print the headings.
    #[arg(short, long)]
    pub noheadings: bool,

    /// Columns to print, separated by commas. With a plus in front they come after the usual ones.
    #[arg(short, long, value_name = "LIST", conflicts_with = "output_all")]
    pub output: Option<String>,

    /// Print all columns.
    #[arg(long)]
    pub output_all: bool,

    /// Print columns with one blank between them and without alignment; `-` is what has no value.
    #[arg(long)]
    pub raw: bool,

    /// Print JSON, with sizes in bytes.
    #[arg(short = 'J', long, conflicts_with_all = ["raw", "noheadings"])]
    pub json: bool,
}

/// Options of `add`.
#[derive(Debug, Args)]
pub struct Add {
    /// Its name: up to 64 letters, digits, '.', '_' and '-'.
    #[arg(value_parser = parse_name)]
    pub name: String,

    /// Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024) [default: that in
    /// /etc/vhost-user-zram/NAME.toml].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,

    /// Start the daemon at each boot, too.
    #[arg(long)]
    pub enable: bool,

    /// More options of the daemon, after `--`, such as --algorithm zstd.
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Options of `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Time between two looks, in seconds.
    #[arg(short = 'i', long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub interval: Duration,

    /// Column by which disks are sorted.
    #[arg(short, long, value_name = "COLUMN", default_value = "name")]
    pub sort: Sort,

    /// Take some looks, print one frame as text, and exit. The terminal is not needed.
    #[arg(long)]
    pub once: bool,

    /// Looks before the frame of --once.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "once",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub looks: u16,

    /// Print the frame of --once as an SVG picture.
    #[arg(long, requires = "once")]
    pub svg: bool,

    /// Columns of the frame of --once.
    #[arg(long, value_name = "N", default_value_t = 110, requires = "once",
          value_parser = clap::value_parser!(u16).range(40..=400))]
    pub width: u16,

    /// Lines of the frame of --once.
    #[arg(long, value_name = "N", default_value_t = 30, requires = "once",
          value_parser = clap::value_parser!(u16).range(8..=400))]
    pub height: u16,
}

/// What disks are sorted by in `top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Name, from the first.
    Name,
    /// Memory, from the most.
    Memory,
    /// Ratio of stored bytes to memory, from the least.
    Ratio,
    /// Requests a second, from the most.
    Ops,
    /// Bytes of pages, from the most.
    Data,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Look at this system as a guest with such disks, not as their host.
    #[arg(long)]
    pub guest: bool,

    /// Print the findings as JSON.
    #[arg(short = 'J', long)]
    pub json: bool,

    /// Directory that holds proc, sys, etc and run, in place of /.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// A size as the daemon takes it, which is not 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_uppercase();
    let shift = match suffix.as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(format!("the suffix `{suffix}` is not K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is not a number of bytes"))?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("the size of a disk cannot be 0".into()),
        Some(bytes) => Ok(bytes),
        None => Err("more than 64 bits".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.05..=3600.0).contains(seconds));
    let seconds = seconds.ok_or("not a number of seconds from 0.05 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_name(text: &str) -> Result<String, String> {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    // A name that is a path of its own, or an option, is a name of something else elsewhere.
    if text.is_empty()
        || text.len() > 64
        || text.starts_with(['.', '-'])
        || !text.chars().all(known)
    {
        return Err(
            "not up to 64 letters, digits, '.', '_' and '-', with one of the first at its start"
                .into(),
        );
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        assert_eq!(parse_size("3kib"), Ok(3 << 10));
        for bad in ["0", "", "G", "1KB", "-1", "99999999999T"] {
            parse_size(bad).unwrap_err();
        }
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "inf", "NaN", "1e9"] {
            parse_seconds(bad).unwrap_err();
        }
        assert_eq!(parse_name("vm-1.a_B"), Ok("vm-1.a_B".into()));
        for bad in ["", ".", "..", "-x", "a/b", "a b", "vm@1", &"x".repeat(65)] {
            parse_name(bad).unwrap_err();
        }
    }

    #[test]
    fn one_daemon_is_named_before_or_after_the_command() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for line in ["ctl -d vm1 get mm_stat", "ctl get mm_stat --disk vm1"] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.disk.as_deref(), Some("vm1"), "{line}");
            assert!(
                matches!(cli.command, Some(Command::Get { attribute: Some(name) }) if name == "mm_stat")
            );
        }
        assert!(parse("ctl").unwrap().command.is_none());
        let cli = parse("ctl add vm1 --size 1G -- --algorithm zstd").unwrap();
        let Some(Command::Add(add)) = cli.command else { panic!("not add") };
        assert_eq!(add.size, Some(1 << 30));
        assert_eq!(add.options, ["--algorithm", "zstd"]);
        for bad in
            ["ctl list -J --raw", "ctl top --svg", "ctl add a/b --size 1", "ctl resize 0", "ctl x"]
        {
            parse(bad).unwrap_err();
        }
    }
}
