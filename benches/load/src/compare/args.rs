//! Command line.

use std::path::PathBuf;

use clap::Parser;

use crate::sizes::{parse_seconds, parse_size};

/// Measures the daemon beside what else keeps a disk in memory: same operations, same data, in turn.
///
/// Rivals: ours (this daemon), zram (the kernel's, by io_uring with O_DIRECT), zram-qsd (the kernel's, exported
/// by qemu-storage-daemon as a vhost-user-blk disk), tmpfs-qsd (qemu-storage-daemon on a file on a tmpfs, no
/// compression), nbdkit-zstd (nbdkit's memory plugin with zstd, behind qemu-storage-daemon's NBD client; one queue),
/// ours-zstd1 and ours-zstd3 (this daemon with zstd, at a few points), and null (a back end that does nothing,
/// which is the generator's own ceiling). What cannot run here is left out with a line that says why.
///
/// In each round each point runs on all rivals, and another rival begins in each round. Writes raw.csv, memory.csv,
/// tables.md and plots to the directory of --out; tables.md says how to read it. Needs root for zram; makes zram
/// devices of its own, and removes them.
#[derive(Debug, Parser)]
#[command(name = "zram-compare")]
pub struct Args {
    /// Directory for the results.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Make tables and plots anew from the raw rows of a directory, and measure nothing. Several directories
    /// are put together: their rounds are counted on.
    #[arg(long, value_name = "DIR")]
    pub from: Vec<PathBuf>,
    /// Another row of this daemon, with arguments beside: --ours "ours-poll=--poll-us 50".
    #[arg(long, value_name = "NAME=ARGS", value_parser = parse_ours)]
    pub ours: Vec<(String, Vec<String>)>,
    /// Compression algorithm of this daemon and of kernel zram.
    #[arg(long, default_value = "lz4")]
    pub algorithm: String,
    /// Bytes of each disk, or with suffix K, M or G.
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    pub size: u64,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Seconds of a measurement.
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub runtime: std::time::Duration,
    /// Seconds before each measurement.
    #[arg(long, default_value = "0.1", value_parser = parse_seconds)]
    pub warmup: std::time::Duration,
    /// Two rounds of the few points that stand for all, on the mix: a try, and not a result.
    #[arg(long)]
    pub quick: bool,
    /// Only points whose name contains TEXT, such as randread or d32-poll; the fill and the discards stay.
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Only these rivals, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub rivals: Vec<String>,
    /// Only these corpora, separated by commas: mix, anon, files, random, same.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub corpora: Vec<String>,
    /// Directory of vhost-user-zram and zram-load; that of this program if it is not given.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The daemon, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub daemon: Option<PathBuf>,
    /// A few words on the daemon for the page, such as its revision.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Print what would be measured, and end.
    #[arg(long)]
    pub list: bool,
}

fn parse_ours(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, args) = text.split_once('=').ok_or("NAME=ARGS is needed")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("{name:?} is not a name of letters, digits, - and ."));
    }
    Ok((name.to_owned(), args.split_whitespace().map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_ours_has_a_name_and_arguments() {
        let (name, args) = parse_ours("ours-poll=--poll-us 50 --state-dir=/x").unwrap();
        assert_eq!(name, "ours-poll");
        assert_eq!(args, ["--poll-us", "50", "--state-dir=/x"]);
        assert!(parse_ours("no arguments").is_err());
        assert!(parse_ours("a/b=--x").is_err());
    }
}
