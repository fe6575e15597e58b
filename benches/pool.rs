//! What the pool's own work costs: nanoseconds to allocate and free an object, by one thread and
//! by two on one class.
//!
//! `cargo bench --bench pool -- [--rounds N] [--csv FILE]`
//!
//! * `churn`: in a class of 8192 objects of 1.5 KiB, a working set of 64 for each thread; each step
//!   frees one of them at random and stores one. The object's bytes are copied in, so this takes at
//!   least as long as the memory does; the same with objects of 8 bytes is the allocator alone, to
//!   which the class does not matter.
//! * `grow`: objects stored into an empty pool and then freed in order: fresh memory.
//! * `shuffle`: all objects of 257 classes freed in random order, as a mass discard does.
//!
//! Two threads have a working set each, and count together. Without `--bench`, which cargo
//! passes, it is a smoke test.
#![allow(clippy::print_stdout)] // its purpose

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_zram::internals::{Arena, Effort, LastRound, MemoryKind, Move, Owned, Pool};

/// Pages of the disk that the pool is for: 1 GiB.
const PAGES: u64 = 1 << 18;

/// Objects in the class that stay, and those that each thread frees and stores.
const RESIDENT: usize = 8192;
const WORKING_SET: usize = 64;

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

fn pool() -> Result<Pool, Box<dyn Error>> {
    let arena = Arena::new(Pool::address_space_for(PAGES << 12), &MemoryKind::default())?;
    Ok(Pool::new(arena, PAGES, 0)?)
}

fn store<'p>(pool: &'p Pool, bytes: &[u8]) -> Owned<'p> {
    pool.store(bytes, 7).unwrap_or_else(|error| panic!("{error}"))
}

/// Time of `steps` pairs of free and store by each of `threads` threads.
fn churn(length: usize, threads: usize, steps: usize) -> Result<Duration, Box<dyn Error>> {
    let pool = pool()?;
    let barrier = Barrier::new(threads + 1);
    let mut residents = Vec::with_capacity(RESIDENT);
    for _ in 0..RESIDENT {
        residents.push(store(&pool, &vec![7; length]));
    }
    let elapsed = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (pool, barrier) = (&pool, &barrier);
                scope.spawn(move || {
                    let bytes = vec![7; length];
                    let mut random = Xorshift(thread as u64 + 1);
                    let mut objects: Vec<Option<Owned>> =
                        (0..WORKING_SET).map(|_| Some(store(pool, &bytes))).collect();
                    barrier.wait();
                    barrier.wait();
                    for _ in 0..steps {
                        let object = &mut objects[random.below(WORKING_SET)];
                        *object = None;
                        *object = Some(store(pool, black_box(&bytes)));
                    }
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        for worker in workers {
            if worker.join().is_err() {
                return Err("a worker panicked");
            }
        }
        Ok(start.elapsed())
    })?;
    Ok(elapsed)
}

/// Times to store `count` objects into an empty pool, to free them, and to give the memory back.
fn grow(
    lengths: impl Fn(usize) -> usize,
    count: usize,
    shuffle: bool,
) -> Result<[Duration; 3], Box<dyn Error>> {
    let pool = pool()?;
    let bytes = [7; 4096];
    let mut objects = Vec::with_capacity(count);
    let start = Instant::now();
    for number in 0..count {
        let length = lengths(number);
        objects.push(store(&pool, &bytes[..length]));
    }
    let stored = start.elapsed();
    if shuffle {
        let mut random = Xorshift(1);
        for at in (1..count).rev() {
            objects.swap(at, random.below(at + 1));
        }
    }
    let start = Instant::now();
    drop(objects);
    let freed = start.elapsed();
    let start = Instant::now();
    pool.compact(Effort::Full, &mut LastRound::default(), |_, _| Move::Busy, |_| true);
    Ok([stored, freed, start.elapsed()])
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut csv, mut real) = (3, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => real = true,
            "--rounds" => rounds = args.next().ok_or("--rounds needs a number")?.parse()?,
            "--csv" => csv = Some(args.next().ok_or("--csv needs a file")?),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let (steps, count) = if real { (4_000_000, 400_000) } else { (1000, 1000) };
    let rounds = if real { rounds } else { 1 };

    let mut rows = String::from("round,what,threads,ns_per_object\n");
    println!("| round | what | threads | ns an object |\n|---|---|---|---|");
    for round in 1..=rounds {
        let mut row = |what: &str, threads: usize, time: Duration, objects: usize| {
            let each = time.as_secs_f64() * 1e9 / objects as f64;
            println!("| {round} | {what} | {threads} | {each:.1} |");
            writeln!(rows, "{round},{what},{threads},{each:.2}")
        };
        for length in [8, 1536] {
            for threads in [1, 2] {
                let time = churn(length, threads, steps)?;
                row(&format!("churn {length}"), threads, time, steps * threads)?;
            }
        }
        let [stored, freed, given] = grow(|_| 1536, count, false)?;
        row("grow: store 1536", 1, stored, count)?;
        row("grow: free 1536", 1, freed, count)?;
        row("grow: give back", 1, given, count)?;
        let [_, freed, given] = grow(|number| number * 1009 % 4096 + 1, count, true)?;
        row("shuffle: free", 1, freed, count)?;
        row("shuffle: give back", 1, given, count)?;
    }
    if let Some(path) = csv {
        fs::write(path, rows)?;
    }
    Ok(())
}
