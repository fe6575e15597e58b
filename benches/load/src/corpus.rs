//! What is written: pages that are the same on every run, made from what a Debian machine has.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use vhost_user_zram_frontend::Random;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages taken in one piece from files and memory.
const RUN: usize = 8;
/// The mix in percent: what memory under pressure looks like, leaning to anonymous pages.
pub const MIX: [(Kind, u32); 5] =
    [(Kind::Anon, 45), (Kind::Files, 35), (Kind::Zeroes, 10), (Kind::Same, 3), (Kind::Random, 7)];

/// A kind of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Zeroes.
    Zeroes,
    /// Each page one repeated 4-byte word.
    Same,
    /// Pages of a live perl process's heap: hashes, arrays, strings, numbers; always the same ones but for
    /// a few bytes.
    Anon,
    /// Pages of the files under /usr/bin, /usr/lib and /usr/share, put together in order of path, taken
    /// at even distances.
    Files,
    /// Random bytes.
    Random,
    /// 45 % anon, 35 % files, 10 % zeroes, 3 % same, 7 % random, page by page.
    Mix,
}

/// What can go wrong while a corpus is made.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A file or directory could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// perl could not be run or read.
    #[error("anonymous memory comes from perl's heap: {0}")]
    Perl(io::Error),
    /// There is less data than asked for.
    #[error("only {got} bytes of {what} on this machine")]
    Short {
        /// Data of what kind.
        what: &'static str,
        /// Bytes found.
        got: u64,
    },
}

/// Makes `len` bytes (a multiple of a page) of a kind.
pub fn make(kind: Kind, len: usize, seed: u64) -> Result<Vec<u8>, CorpusError> {
    let mut random = Random::new(seed ^ 0x636f_7270_7573);
    match kind {
        Kind::Zeroes => Ok(vec![0; len]),
        Kind::Same => Ok(same(len, &mut random)),
        Kind::Random => {
            let mut data = vec![0; len];
            random.fill(&mut data);
            Ok(data)
        }
        Kind::Files => files(&["/usr/bin", "/usr/lib", "/usr/share"], len),
        Kind::Anon => anon(len),
        Kind::Mix => mix(len, seed, &mut random),
    }
}

fn same(len: usize, random: &mut Random) -> Vec<u8> {
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let word = (random.next_u64() as u32).to_le_bytes();
        for _ in 0..PAGE / 4 {
            data.extend_from_slice(&word);
        }
    }
    data
}

fn mix(len: usize, seed: u64, random: &mut Random) -> Result<Vec<u8>, CorpusError> {
    let parts = MIX
        .iter()
        .map(|&(kind, percent)| {
            let pages = (len / PAGE * percent as usize).div_ceil(100) + 1;
            make(kind, pages * PAGE, seed)
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Dealt like a pack of cards: the shares are exact, the order is random.
    let pages = len / PAGE;
    let mut kinds = Vec::with_capacity(pages);
    let mut bound = 0;
    for (index, &(_, percent)) in MIX.iter().enumerate() {
        bound += percent as usize;
        kinds.resize(pages * bound / 100, index);
    }
    for i in (1..kinds.len()).rev() {
        kinds.swap(i, random.below(i as u64 + 1) as usize);
    }
    let mut taken = [0; MIX.len()];
    let mut data = Vec::with_capacity(len);
    for kind in kinds {
        let at = taken[kind] * PAGE;
        data.extend_from_slice(&parts[kind][at..at + PAGE]);
        taken[kind] += 1;
    }
    Ok(data)
}

fn files(roots: &[&str], len: usize) -> Result<Vec<u8>, CorpusError> {
    let mut found = Vec::new();
    for root in roots {
        walk(Path::new(root), &mut found)?;
    }
    found.sort();
    let total: u64 = found.iter().map(|(_, size)| size).sum();
    if total < len as u64 {
        return Err(CorpusError::Short { what: "files", got: total });
    }
    let mut data = vec![0; len];
    let runs = len.div_ceil(RUN * PAGE) as u64;
    let stride = (total - (RUN * PAGE) as u64) / runs.max(1);
    let mut file = 0;
    let mut start = 0;
    for (i, run) in data.chunks_mut(RUN * PAGE).enumerate() {
        let mut at = i as u64 * stride;
        let mut run = &mut run[..];
        while !run.is_empty() {
            while at >= start + found[file].1 {
                start += found[file].1;
                file += 1;
            }
            let (path, size) = &found[file];
            let n = run.len().min((start + size - at) as usize);
            let (now, rest) = run.split_at_mut(n);
            File::open(path)
                .and_then(|f| f.read_exact_at(now, at - start))
                .map_err(|source| CorpusError::Read { path: path.clone(), source })?;
            (run, at) = (rest, at + n as u64);
        }
        // The next run may begin in the file that this one ended in, but never before it.
    }
    Ok(data)
}

fn walk(dir: &Path, found: &mut Vec<(PathBuf, u64)>) -> Result<(), CorpusError> {
    let failed = |source| CorpusError::Read { path: dir.to_path_buf(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let meta = entry.metadata().map_err(failed)?;
        if meta.is_dir() {
            walk(&entry.path(), found)?;
        } else if meta.is_file() && meta.len() > 0 {
            found.push((entry.path(), meta.len()));
        }
    }
    Ok(())
}

/// Builds records as a service would keep them, then says how it stands and waits to be read. Numbers
/// come from a generator with a fixed start, so that the heap is the same every time.
const PERL: &str = r#"
$| = 1; my ($want, $s) = ($ARGV[0], 12345);
sub r { $s = ($s * 1103515245 + 12345) % 2147483648; return $s >> 8 }
my @words = qw(the of and to in page memory disk guest host queue lock slot word error value
  request session client server index table Content-Type application/json keep-alive GET POST
  user admin /var/lib /usr/share/doc 127.0.0.1 localhost true false null);
my (%users, @log, @cache); my $n = 0;
for (1 .. $want / 1024) {
  $n++;
  my $id = r();
  $users{"user$id"} = { id => $id, name => $words[r() % @words] . $n, score => r() / 977,
    tags => [ map { $words[r() % @words] } 0 .. r() % 6 ], seen => 1700000000 + $n };
  push @log, join ' ', 1700000000 + $n, map { $words[r() % @words] } 0 .. 4 + r() % 12;
  push @cache, pack('L*', map { r() % 5000 } 0 .. r() % 40) if $n % 3 == 0;
  $cache[r() % @cache] = undef if @cache && $n % 17 == 0;
}
print "ready\n"; <STDIN>;
"#;

struct Perl(Child);

impl Drop for Perl {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is lost either way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn anon(len: usize) -> Result<Vec<u8>, CorpusError> {
    let want = len + len / 4 + (16 << 20);
    // Without address randomization pointers are the same on every run.
    let child = Command::new("setarch")
        .args(["-R", "perl", "-e", PERL, &want.to_string()])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PERL_HASH_SEED", "0")
        .env("PERL_PERTURB_KEYS", "0")
        // Its keys in freed chunks are random numbers.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(CorpusError::Perl)?;
    let mut child = Perl(child);
    let mut line = String::new();
    if let Some(out) = child.0.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(CorpusError::Perl)?;
    }
    if line.trim() != "ready" {
        return Err(CorpusError::Perl(io::Error::other("it ended early")));
    }
    let heap = heap(child.0.id()).map_err(CorpusError::Perl)?;
    let pages: Vec<&[u8]> =
        heap.chunks_exact(PAGE).filter(|page| page.iter().any(|b| *b != 0)).collect();
    if pages.len() * PAGE < len {
        return Err(CorpusError::Short { what: "heap", got: (pages.len() * PAGE) as u64 });
    }
    let mut data = Vec::with_capacity(len);
    let runs = (len / PAGE).div_ceil(RUN);
    for i in 0..runs {
        let at = (pages.len() - RUN) * i / runs.max(1);
        data.extend(pages[at..at + RUN].iter().copied().flatten());
    }
    data.truncate(len);
    Ok(data)
}

/// All private writable anonymous memory of a process, in order of address.
fn heap(pid: u32) -> io::Result<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut mem = File::open(format!("/proc/{pid}/mem"))?;
    let mut data = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, flags) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let name = fields.nth(3).unwrap_or("");
        if flags != "rw-p" || !(name.is_empty() || name == "[heap]") {
            continue;
        }
        let (Some(start), Some(end)) = (
            range.split('-').next().and_then(|x| u64::from_str_radix(x, 16).ok()),
            range.split('-').nth(1).and_then(|x| u64::from_str_radix(x, 16).ok()),
        ) else {
            continue;
        };
        mem.seek(SeekFrom::Start(start))?;
        (&mut mem).take(end - start).read_to_end(&mut data)?;
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;

    #[test]
    fn every_kind_has_its_length_and_is_the_same_again() {
        for kind in [Kind::Zeroes, Kind::Same, Kind::Files, Kind::Random] {
            let data = make(kind, LEN, 1).unwrap();
            assert_eq!(data.len(), LEN, "{kind:?}");
            assert_eq!(data, make(kind, LEN, 1).unwrap(), "{kind:?}");
        }
    }

    #[test]
    fn same_filled_pages_repeat_a_word() {
        let data = make(Kind::Same, 4 * PAGE, 1).unwrap();
        for page in data.chunks(PAGE) {
            assert!(page.chunks(4).all(|word| word == &page[..4]));
        }
    }

    #[test]
    fn the_mix_has_its_share_of_zero_pages() {
        let data = match make(Kind::Mix, LEN, 1) {
            Ok(data) => data,
            // A machine without perl cannot make it, and says so.
            Err(CorpusError::Perl(_)) => return,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(data.len(), LEN);
        let zero = data.chunks(PAGE).filter(|p| p.iter().all(|b| *b == 0)).count();
        assert!((20..60).contains(&zero), "{zero} of 256");
    }
}
