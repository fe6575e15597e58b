//! Command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use crate::{
    corpus::Kind,
    plan::Pattern,
    sizes::{parse_seconds, parse_size},
    target::Wait,
};

/// Load generator for vhost-user-blk sockets and, with the same operations and data, block devices.
///
/// Processor time of the server: with --vhost that of each --server-pid, all its threads; with --null that of
/// the null back end's process; with --block the system time of this process, which is where the kernel
/// does the work of a zram device and of io_uring (its worker threads included), system calls and all.
/// A server's time is read from its processor clock, in nanoseconds; where the kernel takes its samples of
/// user and system time by ticks, this process's sum is exact and only its halves are an estimate.
/// "Whole machine" is all time of all processors that was not idle, divided by the operations, in ticks.
#[derive(Debug, Parser)]
#[command(name = "zram-load", args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Other things to do than a run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Other things to do than a run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a vhost-user-blk socket on which every request succeeds and no data moves.
    Null {
        /// Socket to make.
        #[arg(long)]
        socket_path: PathBuf,
        /// Queues, each with a thread.
        #[arg(long, default_value_t = 1)]
        queues: usize,
        /// Size of the disk it pretends to be, in bytes, or with suffix K, M, G or T.
        #[arg(long, default_value = "1G", value_parser = parse_size)]
        size: u64,
    },
    /// Discards the whole disk behind a vhost-user-blk socket.
    Discard {
        /// The socket.
        #[arg(long, value_name = "SOCKET")]
        vhost: PathBuf,
    },
    /// Writes a corpus to a file, for --corpus-file.
    Corpus {
        /// Kind of data.
        #[arg(long, default_value = "mix")]
        corpus: Kind,
        /// Bytes, or with suffix K, M, G or T.
        #[arg(long, default_value = "64M", value_parser = parse_size)]
        corpus_size: u64,
        /// Start of the random sequences.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// File to write.
        #[arg(long)]
        output: PathBuf,
    },
}

/// A run.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// vhost-user-blk socket to drive.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["block", "null"])]
    pub vhost: Option<PathBuf>,
    /// Block device to drive through io_uring with O_DIRECT. ITS CONTENTS ARE OVERWRITTEN.
    #[arg(long, value_name = "DEVICE", conflicts_with = "null")]
    pub block: Option<PathBuf>,
    /// Drive a null back end: the generator's own ceiling. It needs a processor of its own: it looks
    /// at its rings for a while before it sleeps.
    #[arg(long)]
    pub null: bool,
    /// After a run on --vhost, run the same against a null back end and print that too.
    #[arg(long, requires = "vhost")]
    pub ceiling: bool,
    /// Pattern.
    #[arg(long, default_value = "randread")]
    pub op: Pattern,
    /// Share of reads in the pattern mix, in percent.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub read_percent: u64,
    /// Bytes of an operation, or with suffix K or M; a multiple of 512.
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    pub bs: u64,
    /// Operations in flight on each queue.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,
    /// Queues, each driven by a thread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,
    /// Longest descriptor in bytes, or with suffix K or M (a guest's page-cache pages are 4K apart).
    #[arg(long, default_value = "1M", value_parser = parse_size)]
    pub segment: u64,
    /// With --vhost: do without in-flight tracking, as front ends that do not know it.
    #[arg(long)]
    pub no_inflight: bool,
    /// Keep this many writes of the same size in flight beside, on each queue, in the second half of the
    /// disk; the pattern then has the first half. They are counted as beside, and not in the latencies.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "verify",
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub beside_writes: u16,
    /// How to wait for completions.
    #[arg(long, default_value = "irq")]
    pub wait: Wait,
    /// Seconds to measure.
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    pub runtime: Duration,
    /// Seconds to run before that.
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub warmup: Duration,
    /// Measure this many operations instead of a time.
    #[arg(long)]
    pub ops: Option<u64>,
    /// Write the whole disk first, in 128 KiB operations; a row of its own.
    #[arg(long)]
    pub fill: bool,
    /// Write the whole disk and do nothing else.
    #[arg(long)]
    pub fill_only: bool,
    /// Compare what is read with what this run has written; each queue keeps to its part of the disk.
    #[arg(long)]
    pub verify: bool,
    /// Data to write.
    #[arg(long, default_value = "mix")]
    pub corpus: Kind,
    /// Bytes of the corpus, or with suffix K, M or G.
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    pub corpus_size: u64,
    /// Take the corpus from a file that the subcommand corpus wrote.
    #[arg(long, value_name = "FILE")]
    pub corpus_file: Option<PathBuf>,
    /// Use only the first bytes of the disk, with suffix K, M or G.
    #[arg(long, value_parser = parse_size)]
    pub span: Option<u64>,
    /// Leave the first bytes of the disk alone (a fill does not), with suffix K, M or G.
    #[arg(long, default_value = "0", value_parser = parse_size, conflicts_with = "beside_writes")]
    pub skip: u64,
    /// Start of the random sequences.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Process whose processor time is the server's; several where the server is several processes.
    #[arg(long, value_name = "PID")]
    pub server_pid: Vec<u32>,
    /// Name for the run in rows.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Print rows of comma-separated values, with a line of names before the first.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Leave out the line of names.
    #[arg(long, requires = "csv")]
    pub no_header: bool,
    /// Print one JSON object a row.
    #[arg(long)]
    pub json: bool,
}
