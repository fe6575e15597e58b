//! What the codecs cost and save on 4 KiB pages: nanoseconds a page in both directions, ratio.
//!
//! `cargo bench --bench codec -- [--pages N] [--rounds N] [--label TEXT] [--csv FILE] [SPEC...]`
//!
//! Prints a table of medians; `--csv` takes one row a round. The corpora, N pages each, are what
//! the machine has, sampled evenly, without same-filled pages (those never reach a codec):
//!
//! * `files`: all of `/usr/bin`, `/usr/lib` and `/usr/share`
//! * `heap`: this process's own anonymous memory, after building and half tearing down an index of
//!   those files (maps, strings, lists, vectors of numbers)
//! * `text`: pages of those files that are nearly all printable ASCII
//! * `noise`: incompressible
//! * `mix`: 8 heap, 7 files, 3 text and 2 noise in each 20
//!
//! Objects are limited to 3616 bytes, as a pool would; `noise/4608` is noise without a limit that
//! matters. A page that does not fit counts as 4096 bytes in the ratio and is not decompressed.
//! Without `--bench`, which cargo passes, it is a smoke test: few pages, one round.
#![allow(clippy::print_stdout)] // its purpose

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fs::{self, File},
    hint::black_box,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

use vhost_user_zram::internals::{Codec, CodecSpec, PAGE_SIZE, Page, Workspace};

/// Bytes of an object at most; a longer one is stored raw.
const LIMIT: usize = 3616;
/// No limit: more than any codec makes of a page.
const AMPLE: usize = 4608;

const SPECS: &[&str] = &["lz4", "lz4-flex", "zstd(level=1)", "zstd(level=3)"];

struct Options {
    pages: usize,
    rounds: usize,
    label: String,
    csv: Option<PathBuf>,
    specs: Vec<CodecSpec>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let mut corpora = corpora(options.pages)?;
    corpora.push(Corpus { name: "noise/4608", limit: AMPLE, pages: noise(options.pages) });

    let mut rows = Vec::new();
    for corpus in &corpora {
        let mut subjects = Vec::new();
        for &spec in &options.specs {
            subjects.push(Subject::new(spec, corpus)?);
        }
        // Rounds outside, specs inside: what drifts in the machine meets them all alike.
        for round in 0..options.rounds {
            for subject in &mut subjects {
                rows.push(subject.round(corpus, round)?);
            }
        }
    }
    print_table(&rows);
    if let Some(path) = &options.csv {
        write_csv(path, &options.label, &rows)?;
    }
    Ok(())
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options =
        Options { pages: 64, rounds: 1, label: "default".to_owned(), csv: None, specs: Vec::new() };
    let mut args: Vec<_> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--bench") {
        (options.pages, options.rounds) = (2048, 15);
        args.retain(|arg| arg != "--bench");
    }
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--pages" => options.pages = value()?.parse()?,
            "--rounds" => options.rounds = value()?.parse()?,
            "--label" => options.label = value()?,
            "--csv" => options.csv = Some(value()?.into()),
            spec => options.specs.push(spec.parse()?),
        }
    }
    if options.specs.is_empty() {
        options.specs = SPECS.iter().map(|spec| spec.parse()).collect::<Result<_, _>>()?;
    }
    Ok(options)
}

// Measuring

/// One codec at work on one corpus.
struct Subject {
    codec: Codec,
    workspace: Workspace,
    /// The objects of one round, one behind the other, and where each lies; `None` is a raw page.
    arena: Vec<u8>,
    objects: Vec<Option<(usize, usize)>>,
}

struct Row {
    corpus: &'static str,
    spec: CodecSpec,
    round: usize,
    pages: usize,
    raw: usize,
    stored: usize,
    compress_ns: f64,
    /// `None` if every page was raw.
    decompress_ns: Option<f64>,
}

impl Subject {
    fn new(spec: CodecSpec, corpus: &Corpus) -> Result<Self, Box<dyn Error>> {
        let codec = Codec::new(spec)?;
        let workspace = codec.workspace()?;
        let arena = vec![0; corpus.pages.len() * corpus.limit + AMPLE];
        Ok(Self { codec, workspace, arena, objects: Vec::with_capacity(corpus.pages.len()) })
    }

    fn round(&mut self, corpus: &Corpus, round: usize) -> Result<Row, Box<dyn Error>> {
        self.objects.clear();
        let mut at = 0;
        let start = Instant::now();
        for page in &corpus.pages {
            let out = &mut self.arena[at..at + corpus.limit];
            let len = self.codec.compress(&mut self.workspace, page, out)?;
            self.objects.push(len.map(|len| (at, len)));
            at += len.unwrap_or(0).next_multiple_of(16);
        }
        let compress_ns = start.elapsed().as_nanos() as f64 / corpus.pages.len() as f64;

        let mut back: Page = [0; PAGE_SIZE];
        let start = Instant::now();
        for &(at, len) in self.objects.iter().flatten() {
            self.codec.decompress(&mut self.workspace, &self.arena[at..at + len], &mut back)?;
            black_box(&back);
        }
        let decompressed = self.objects.iter().flatten().count();
        let decompress_ns = start.elapsed().as_nanos() as f64 / decompressed.max(1) as f64;

        Ok(Row {
            corpus: corpus.name,
            spec: self.codec.spec(),
            round,
            pages: corpus.pages.len(),
            raw: corpus.pages.len() - decompressed,
            stored: self
                .objects
                .iter()
                .map(|object| object.map_or(PAGE_SIZE, |(_, len)| len))
                .sum(),
            compress_ns,
            decompress_ns: (decompressed > 0).then_some(decompress_ns),
        })
    }
}

impl Row {
    fn ratio(&self) -> f64 {
        (self.pages * PAGE_SIZE) as f64 / self.stored as f64
    }
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<12} {:<16} {:>12} {:>12} {:>7} {:>6}",
        "corpus", "codec", "compress ns", "decompr. ns", "ratio", "raw %"
    );
    for first in rows.iter().filter(|row| row.round == 0) {
        let same =
            || rows.iter().filter(|row| (row.corpus, row.spec) == (first.corpus, first.spec));
        let decompress = median(same().filter_map(|row| row.decompress_ns).collect());
        println!(
            "{:<12} {:<16} {:>12.0} {:>12} {:>7.3} {:>6.1}",
            first.corpus,
            first.spec.to_string(),
            median(same().map(|row| row.compress_ns).collect()).unwrap_or(f64::NAN),
            decompress.map_or("-".to_owned(), |ns| format!("{ns:.0}")),
            first.ratio(),
            100.0 * first.raw as f64 / first.pages as f64,
        );
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn write_csv(path: &Path, label: &str, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let mut csv = fs::OpenOptions::new().append(true).create(true).open(path)?;
    if csv.metadata()?.len() == 0 {
        writeln!(csv, "label,corpus,codec,round,pages,raw,ratio,compress_ns,decompress_ns")?;
    }
    for row in rows {
        writeln!(
            csv,
            "{label},{},{},{},{},{},{:.4},{:.1},{}",
            row.corpus,
            row.spec,
            row.round,
            row.pages,
            row.raw,
            row.ratio(),
            row.compress_ns,
            row.decompress_ns.map_or(String::new(), |ns| format!("{ns:.1}")),
        )?;
    }
    Ok(())
}

// Corpora

struct Corpus {
    name: &'static str,
    limit: usize,
    pages: Vec<Page>,
}

fn corpora(count: usize) -> Result<Vec<Corpus>, Box<dyn Error>> {
    let files = listing(&["/usr/bin", "/usr/lib", "/usr/share"]);
    // First, while nothing else lies in this process's memory.
    let heap = heap_pages(&files, count)?;
    let plain = file_pages(&files, count, |_| true);
    let readable: Vec<_> = files.iter().filter(|file| reads_as_text(&file.path)).cloned().collect();
    let text = file_pages(&readable, count, is_text);
    let noise = noise(count);
    let mix = (0..count)
        .map(|i| match i % 20 {
            0..8 => heap[i % heap.len()],
            8..15 => plain[i % plain.len()],
            15..18 => text[i % text.len()],
            _ => noise[i],
        })
        .collect();
    let corpus = |name, pages| Corpus { name, limit: LIMIT, pages };
    Ok(vec![
        corpus("files", plain),
        corpus("heap", heap),
        corpus("text", text),
        corpus("noise", noise),
        corpus("mix", mix),
    ])
}

#[derive(Clone)]
struct Listed {
    path: PathBuf,
    pages: u64,
}

/// The regular files under some directories, in the order of their names, once each.
fn listing(roots: &[&str]) -> Vec<Listed> {
    let mut files = Vec::new();
    let mut pending: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && metadata.len() >= PAGE_SIZE as u64 {
                files.push(Listed { path: entry.path(), pages: metadata.len() / PAGE_SIZE as u64 });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// `count` pages of all that `files` hold, evenly spread, that are not same-filled and that `fit`.
fn file_pages(files: &[Listed], count: usize, fit: fn(&Page) -> bool) -> Vec<Page> {
    let total: u64 = files.iter().map(|file| file.pages).sum();
    // Half as many again, for those passed over.
    let step = (total * 2 / (count as u64 * 3)).max(1);
    let (mut pages, mut skip) = (Vec::new(), 0);
    for file in files {
        let wanted = (skip..file.pages).step_by(step as usize);
        skip = (wanted.clone().last().map_or(skip, |last| last + step)) - file.pages;
        let Ok(opened) = File::open(&file.path) else { continue };
        for number in wanted {
            let mut page = [0; PAGE_SIZE];
            let read = opened.read_exact_at(&mut page, number * PAGE_SIZE as u64);
            if read.is_ok() && !same_filled(&page) && fit(&page) {
                pages.push(page);
            }
        }
    }
    thinned(pages, count)
}

/// `count` of the pages, evenly spread; all of them if there are fewer.
fn thinned(pages: Vec<Page>, count: usize) -> Vec<Page> {
    let have = pages.len();
    (0..count.min(have)).map(|i| pages[i * have / count.min(have)]).collect()
}

fn same_filled(page: &Page) -> bool {
    page[8..] == page[..PAGE_SIZE - 8]
}

fn reads_as_text(path: &Path) -> bool {
    const TEXT: &[&str] = &[
        "c", "conf", "css", "csv", "h", "hpp", "html", "js", "json", "md", "pl", "pm", "py", "rst",
        "sh", "tcl", "txt", "xml",
    ];
    path.extension().is_none_or(|extension| TEXT.iter().any(|&text| extension == text))
}

fn is_text(page: &Page) -> bool {
    let printable = page.iter().filter(|b| b.is_ascii_graphic() || b" \n\t\r".contains(b)).count();
    printable * 100 >= PAGE_SIZE * 97
}

fn noise(count: usize) -> Vec<Page> {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    };
    (0..count).map(|_| std::array::from_fn(|_| next())).collect()
}

/// A list node, as a program that loves pointers has them.
struct Node {
    name: Box<str>,
    seen: u32,
    weight: f64,
    next: Option<Box<Self>>,
}

/// Pages of this process's anonymous memory, filled by working with the names and the text of
/// `files` as an index would.
fn heap_pages(files: &[Listed], count: usize) -> Result<Vec<Page>, Box<dyn Error>> {
    let mut by_path: HashMap<String, (u64, Vec<u32>)> = HashMap::new();
    let mut by_size: BTreeMap<(u64, usize), PathBuf> = BTreeMap::new();
    let mut words: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut list: Option<Box<Node>> = None;
    let mut series: Vec<Vec<f64>> = Vec::new();
    let mut budget = 64_u64;
    for (i, file) in files.iter().enumerate() {
        let path = file.path.to_string_lossy().into_owned();
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into();
        let numbers = (0..file.pages.min(64)).map(|n| (n * n) as u32 % 1000).collect();
        let weight = (file.pages as f64).sqrt();
        list = Some(Box::new(Node { name, seen: i as u32, weight, next: list.take() }));
        by_path.insert(path, (file.pages, numbers));
        by_size.insert((file.pages, i), file.path.clone());
        if i % 50 == 0 {
            series.push((0..200).map(|n| f64::from(n) * weight).collect());
        }
        if i % 100 == 0
            && budget > 0
            && reads_as_text(&file.path)
            && file.pages < 64
            && let Ok(text) = fs::read_to_string(&file.path)
        {
            budget -= 1;
            for (at, word) in text.split_whitespace().enumerate() {
                words.entry(word.to_owned()).or_default().push(at as u32);
            }
        }
    }
    // What lives long has holes.
    by_path.retain(|path, _| path.len() % 3 != 0);
    words.retain(|_, places| places.len() % 4 != 0);

    let memory = File::open("/proc/self/mem")?;
    let mut pages = Vec::new();
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let anonymous = fields.len() == 5 || fields[5] == "[heap]";
        if fields[1] != "rw-p" || !anonymous {
            continue;
        }
        let (from, to) = fields[0].split_once('-').ok_or("an address range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        for address in (from..to).step_by(PAGE_SIZE).take(1 << 15) {
            let mut page = [0; PAGE_SIZE];
            if memory.read_exact_at(&mut page, address).is_ok() && !same_filled(&page) {
                pages.push(page);
            }
        }
    }
    let mut length = 0_u64;
    while let Some(node) = list {
        length += u64::from(node.seen) + node.name.len() as u64 + node.weight as u64;
        list = node.next;
    }
    black_box((length, &by_path, &by_size, &words, &series));
    Ok(thinned(pages, count))
}
