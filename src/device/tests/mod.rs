mod ages;
mod codecs;
mod compact;
mod contention;
mod damage;
mod engine;
mod grow;
mod host;
mod recompress;
mod refused;
mod reopen;
mod sleepers;
mod slots;
mod table;
mod worst;

use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use vhost_user_zram_frontend::Random;

use super::*;
use crate::engine::Policy;
use crate::failpoint;
use crate::slot::Content;
use crate::sync;
use crate::units::SECTORS_PER_PAGE;

const SECTOR: usize = SECTOR_SIZE as usize;

fn device_with(pages: u64, codec: &str, mem_limit: u64) -> Device {
    let size = pages * PAGE_SIZE as u64;
    let codec = codec.parse().unwrap();
    let memory = MemoryKind::default();
    // Whatever the codec costs here and now, the thread that polls does the work.
    let engine = EngineConfig { policy: Policy::Inline, ..EngineConfig::default() };
    let block_size = BlockChoice::default();
    let access_times = false;
    let config = DeviceConfig { size, block_size, codec, mem_limit, memory, access_times, engine };
    Device::new(&config).unwrap()
}

fn device(pages: u64) -> Device {
    device_with(pages, "lz4", 0)
}

/// Bytes of a request in private memory; fetched once each, which is checked.
struct Buffer {
    bytes: Vec<u8>,
    fetched: Vec<bool>,
}

impl Buffer {
    fn new(bytes: Vec<u8>) -> Self {
        let fetched = vec![false; bytes.len()];
        Self { bytes, fetched }
    }
}

impl Payload for Buffer {
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
        let range = offset as usize..offset as usize + into.len();
        for once in &mut self.fetched[range.clone()] {
            assert!(!std::mem::replace(once, true), "a byte was read twice");
        }
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault> {
        self.bytes[offset as usize..offset as usize + from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// A payload whose memory is gone.
struct Gone;

impl Payload for Gone {
    fn fetch(&mut self, _: u64, _: &mut [u8]) -> Result<(), PayloadFault> {
        Err(PayloadFault)
    }

    fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
        Err(PayloadFault)
    }
}

fn run(
    device: &Device,
    context: &mut WorkerContext,
    op: Op,
    sector: u64,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, IoError> {
    let length = bytes.len() as u64;
    let mut io = device.request(op, sector, length, Buffer::new(bytes))?;
    sync::block_on(|cx| io.poll(context, cx))?;
    Ok(io.into_payload().bytes)
}

fn free(device: &Device, context: &mut WorkerContext, op: Op, sector: u64, sectors: u64) {
    let mut io = device.request(op, sector, sectors * SECTOR_SIZE, Gone).unwrap();
    sync::block_on(|cx| io.poll(context, cx)).unwrap();
}

/// Gives back all memory that can be had.
fn compact(device: &Device) {
    device.compact(&mut Compactor::default(), Effort::Full, |_| true);
}

fn read(device: &Device, context: &mut WorkerContext, sector: u64, sectors: usize) -> Vec<u8> {
    run(device, context, Op::Read, sector, vec![0xee; sectors * SECTOR]).unwrap()
}

/// Bytes that compress about two to one, different for each seed.
fn text(seed: u64, length: usize) -> Vec<u8> {
    noise(seed, length).iter().map(|byte| b'a' + (byte & 7)).collect()
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(seed).fill(&mut bytes);
    bytes
}

#[test]
fn a_fresh_disk_reads_as_zeroes_and_takes_no_memory() {
    let device = device(1 << 20);
    let mut context = device.worker_context().unwrap();
    let before = device.report();
    for page in (0..1 << 20).step_by(1009) {
        assert_eq!(read(&device, &mut context, page * SECTORS_PER_PAGE, 8), vec![0; PAGE_SIZE]);
    }
    let after = device.report();
    assert_eq!(after.metadata_bytes, before.metadata_bytes);
    assert_eq!((after.orig_data_size, after.mem_used_total), (0, 0));
}

#[test]
fn each_kind_of_page_is_read_back_and_counted_by_its_kind() {
    for codec in ["lz4", "lz4-flex", "zstd"] {
        let device = device_with(64, codec, 0);
        let mut context = device.worker_context().unwrap();
        let pages = [
            vec![0; PAGE_SIZE],
            vec![0xa5; PAGE_SIZE],
            b"12345678".repeat(PAGE_SIZE / 8),
            text(1, PAGE_SIZE),
            noise(2, PAGE_SIZE),
        ];
        for (page, bytes) in (0..).zip(&pages) {
            run(&device, &mut context, Op::Write, page * 8, bytes.clone()).unwrap();
        }
        for (page, bytes) in (0..).zip(&pages) {
            assert_eq!(&read(&device, &mut context, page * 8, 8), bytes, "{codec}, page {page}");
        }
        let report = device.report();
        assert_eq!(report.orig_data_size, 5 * PAGE_SIZE as u64);
        assert_eq!((report.same_pages, report.huge_pages, report.huge_pages_since), (3, 1, 1));
        assert!(report.compr_data_size < 2 * PAGE_SIZE as u64);
        assert!(report.mem_used_total >= report.compr_data_size);
        device.check().unwrap();
    }
}

#[test]
fn a_read_covers_parts_of_pages() {
    let device = device(8);
    let mut context = device.worker_context().unwrap();
    let bytes = text(7, 3 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 8, bytes.clone()).unwrap();
    for (sector, count) in [(8, 1), (11, 3), (15, 2), (13, 19), (8, 24)] {
        let from = (sector as usize - 8) * SECTOR;
        assert_eq!(
            read(&device, &mut context, sector, count),
            &bytes[from..from + count * SECTOR],
            "{count} sectors from {sector}"
        );
    }
}

#[test]
fn a_partial_write_keeps_its_neighbours() {
    let device = device(8);
    let mut context = device.worker_context().unwrap();
    let mut expected = text(3, 4 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, expected.clone()).unwrap();
    for (sector, count) in [(1_u64, 1_usize), (7, 2), (6, 12), (31, 1)] {
        let part = noise(sector, count * SECTOR);
        run(&device, &mut context, Op::Write, sector, part.clone()).unwrap();
        let from = sector as usize * SECTOR;
        expected[from..from + part.len()].copy_from_slice(&part);
        assert_eq!(read(&device, &mut context, 0, 32), expected);
    }
    device.check().unwrap();
}

#[test]
fn discard_frees_whole_pages_and_leaves_ragged_edges() {
    let device = device(8);
    let mut context = device.worker_context().unwrap();
    let bytes = text(4, 4 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, bytes.clone()).unwrap();
    // Half of page 0, pages 1 and 2, a quarter of page 3.
    free(&device, &mut context, Op::Discard, 4, 4 + 16 + 2);
    let after = read(&device, &mut context, 0, 32);
    assert_eq!(after[..PAGE_SIZE], bytes[..PAGE_SIZE]);
    assert_eq!(after[PAGE_SIZE..3 * PAGE_SIZE], vec![0; 2 * PAGE_SIZE]);
    assert_eq!(after[3 * PAGE_SIZE..], bytes[3 * PAGE_SIZE..]);
    assert_eq!(device.report().notify_free, 2);
    assert_eq!(device.report().orig_data_size, 2 * PAGE_SIZE as u64);
    device.check().unwrap();
}

#[test]
fn write_zeroes_zeroes_exactly_its_range() {
    let device = device(8);
    let mut context = device.worker_context().unwrap();
    let mut expected = text(5, 4 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, expected.clone()).unwrap();
    free(&device, &mut context, Op::WriteZeroes, 5, 20);
    expected[5 * SECTOR..25 * SECTOR].fill(0);
    assert_eq!(read(&device, &mut context, 0, 32), expected);
    // Within one page, on an empty one too.
    free(&device, &mut context, Op::WriteZeroes, 2, 1);
    free(&device, &mut context, Op::WriteZeroes, 42, 3);
    expected[2 * SECTOR..3 * SECTOR].fill(0);
    assert_eq!(read(&device, &mut context, 0, 32), expected);
    device.check().unwrap();
}

#[test]
fn freeing_everything_gives_all_memory_back() {
    let device = device(4096);
    let mut context = device.worker_context().unwrap();
    for page in 0..4096 {
        run(&device, &mut context, Op::Write, page * 8, text(page, PAGE_SIZE)).unwrap();
    }
    assert!(device.report().mem_used_total > 4 << 20);
    free(&device, &mut context, Op::Discard, 0, 4096 * 8);
    let report = device.report();
    assert_eq!((report.orig_data_size, report.compr_data_size), (0, 0));
    compact(&device);
    assert_eq!(device.report().mem_used_total, 0);
    device.check().unwrap();
}

#[test]
fn ranges_outside_of_the_disk_are_refused_whole() {
    let device = device(2);
    let mut context = device.worker_context().unwrap();
    let last = text(6, SECTOR);
    run(&device, &mut context, Op::Write, 15, last.clone()).unwrap();
    for (sector, sectors) in [(16, 1), (15, 2), (0, 17), (u64::MAX, 1), (u64::MAX / 512, 8)] {
        for op in [Op::Read, Op::Write, Op::Discard, Op::WriteZeroes] {
            let refused = device.request(op, sector, sectors * SECTOR_SIZE, Gone);
            assert!(matches!(refused, Err(IoError::OutOfRange { .. })), "{op:?} {sector}");
        }
    }
    assert!(matches!(device.request(Op::Read, 0, 100, Gone), Err(IoError::Unaligned { .. })));
    assert!(device.request(Op::Read, 16, 0, Gone).is_ok(), "nothing, at the end");
    assert_eq!(read(&device, &mut context, 15, 1), last);
    assert_eq!((device.report().failed_reads, device.report().failed_writes), (6, 15));
}

#[test]
fn a_write_that_fails_leaves_the_old_data_and_no_object() {
    let device = device_with(256, "lz4", 128 * 1024);
    let mut context = device.worker_context().unwrap();
    let old = text(1, PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, old.clone()).unwrap();
    let mut page = 1;
    while run(&device, &mut context, Op::Write, page * 8, noise(page, PAGE_SIZE)).is_ok() {
        page += 1;
        assert!(page < 256, "the limit does not hold");
    }
    // No room for a new object: whole pages and parts fail, and change nothing.
    let used = device.report();
    assert!(used.mem_used_total <= 128 * 1024);
    run(&device, &mut context, Op::Write, 0, noise(99, PAGE_SIZE)).unwrap_err();
    run(&device, &mut context, Op::Write, 1, noise(99, SECTOR)).unwrap_err();
    assert_eq!(read(&device, &mut context, 0, 8), old);
    device.check().unwrap();
    assert_eq!(device.report().compr_data_size, used.compr_data_size);
    assert_eq!(device.report().failed_writes, 3);
    // A same-filled page needs no room; freeing makes some.
    run(&device, &mut context, Op::Write, 0, vec![1; PAGE_SIZE]).unwrap();
    free(&device, &mut context, Op::Discard, 8, 255 * 8);
    run(&device, &mut context, Op::Write, 0, old.clone()).unwrap();
    assert_eq!(read(&device, &mut context, 0, 8), old);
}

#[test]
fn a_request_whose_memory_is_gone_changes_nothing() {
    let device = device(4);
    let mut context = device.worker_context().unwrap();
    let old = text(1, 2 * PAGE_SIZE);
    run(&device, &mut context, Op::Write, 0, old.clone()).unwrap();
    for (op, sector, bytes) in [(Op::Write, 0, 8192), (Op::Write, 3, 512), (Op::Read, 0, 4096)] {
        let mut io = device.request(op, sector, bytes, Gone).unwrap();
        let failed = sync::block_on(|cx| io.poll(&mut context, cx));
        assert!(matches!(failed, Err(IoError::Payload(_))));
    }
    assert_eq!(read(&device, &mut context, 0, 16), old);
    assert!(device.table.try_lock(0).is_some(), "the slot is free again");
    device.check().unwrap();
}

#[test]
fn a_damaged_object_is_an_error_and_not_other_data() {
    let device = device(4);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    let object = device.pool.store(&[0xff; 100], 0).unwrap();
    let damaged = device.content_of(object, |object| Content::Object(0, object));
    device.replace(device.hold(0).unwrap(), damaged, failpoint::WRITE);
    let failed = run(&device, &mut context, Op::Read, 0, vec![0; PAGE_SIZE]);
    assert!(matches!(failed, Err(IoError::Decompress { index: 0, .. })));
    assert_eq!(device.report().failed_reads, 1);
    // Rewriting the page heals it.
    run(&device, &mut context, Op::Write, 0, text(2, PAGE_SIZE)).unwrap();
    assert_eq!(read(&device, &mut context, 0, 8), text(2, PAGE_SIZE));
}

#[test]
fn a_request_sleeps_on_a_held_slot_and_blocks_no_other() {
    let device = device(4);
    let mut context = device.worker_context().unwrap();
    let (old, new) = (text(1, PAGE_SIZE), text(2, PAGE_SIZE));
    run(&device, &mut context, Op::Write, 0, old.clone()).unwrap();
    run(&device, &mut context, Op::Write, 8, old.clone()).unwrap();
    let held = device.table.try_lock(0).unwrap();
    let cx = Context::from_waker(Waker::noop());
    for op in [Op::Read, Op::Discard, Op::WriteZeroes] {
        let mut io = device.request(op, 0, 4096, Buffer::new(vec![0; PAGE_SIZE])).unwrap();
        assert!(io.poll(&mut context, &cx).is_pending(), "{op:?}");
    }
    let mut write = device.request(Op::Write, 0, 4096, Buffer::new(new.clone())).unwrap();
    let mut part = device.request(Op::Write, 1, 512, Buffer::new(vec![1; 512])).unwrap();
    assert!(write.poll(&mut context, &cx).is_pending());
    assert!(part.poll(&mut context, &cx).is_pending());
    assert_eq!(read(&device, &mut context, 8, 8), old, "other slots are free");
    drop(held);
    assert!(matches!(write.poll(&mut context, &cx), Poll::Ready(Ok(()))));
    assert!(matches!(part.poll(&mut context, &cx), Poll::Ready(Ok(()))));
    let mut expected = new;
    expected[SECTOR..2 * SECTOR].fill(1);
    assert_eq!(read(&device, &mut context, 0, 8), expected);
    device.check().unwrap();
}

#[test]
fn a_write_that_is_dropped_while_it_waits_leaves_no_object() {
    let device = device(4);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    let before = device.report().mem_used_total;
    let held = device.table.try_lock(0).unwrap();
    let cx = Context::from_waker(Waker::noop());
    let mut write = device.request(Op::Write, 0, 4096, Buffer::new(noise(2, PAGE_SIZE))).unwrap();
    assert!(write.poll(&mut context, &cx).is_pending());
    assert!(device.report().mem_used_total > before);
    drop(write);
    compact(&device);
    assert_eq!(device.report().mem_used_total, before);
    drop(held);
    assert_eq!(read(&device, &mut context, 0, 8), text(1, PAGE_SIZE));
}

#[test]
fn a_long_request_gives_the_thread_back_in_between() {
    let device = device(10_000);
    let mut context = device.worker_context().unwrap();
    for page in 0..1000 {
        run(&device, &mut context, Op::Write, page * 80, vec![3; PAGE_SIZE]).unwrap();
    }
    let cx = Context::from_waker(Waker::noop());
    let mut io = device.request(Op::Discard, 0, device.size(), Gone).unwrap();
    let mut polls = 1;
    while io.poll(&mut context, &cx).is_pending() {
        polls += 1;
    }
    assert!(polls > 3, "{polls} polls");
    assert_eq!(device.report().orig_data_size, 0);
}

#[test]
fn partial_writes_of_one_page_by_many_threads_all_arrive() {
    let device = device(1);
    std::thread::scope(|scope| {
        for sector in 0..8 {
            let device = &device;
            scope.spawn(move || {
                let mut context = device.worker_context().unwrap();
                for round in 0..500_u64 {
                    let bytes = noise(sector * 1000 + round, SECTOR);
                    run(device, &mut context, Op::Write, sector, bytes).unwrap();
                }
            });
        }
    });
    let mut context = device.worker_context().unwrap();
    let expected: Vec<u8> = (0..8).flat_map(|s| noise(s * 1000 + 499, SECTOR)).collect();
    assert_eq!(read(&device, &mut context, 0, 8), expected);
    device.check().unwrap();
}

#[test]
fn impossible_sizes_are_errors() {
    for size in [0, u64::MAX, 64 << 40] {
        let config = DeviceConfig {
            size,
            block_size: BlockChoice::default(),
            codec: CodecSpec::default(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine: EngineConfig::default(),
        };
        assert!(matches!(Device::new(&config), Err(DeviceError::Size { .. })));
    }
    assert_eq!(device_with(1, "lz4", 0).size(), 4096);
    let odd = DeviceConfig {
        size: 4097,
        block_size: BlockChoice::default(),
        codec: CodecSpec::default(),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: false,
        engine: EngineConfig::default(),
    };
    assert_eq!(Device::new(&odd).unwrap().size(), 8192);
}

/// Changes the range of `model`, which lies at `sector` of the disk, and the disk likewise. The step
/// is an operation, 0..=6, a kind of data and a seed.
fn change(
    device: &Device,
    context: &mut WorkerContext,
    sector: u64,
    model: &mut [u8],
    (op, kind, seed): (u8, u8, u64),
) {
    let sectors = model.len() / SECTOR;
    match op {
        0..=4 => {
            let bytes = match kind {
                0 => vec![seed as u8; model.len()],
                1 => seed.to_le_bytes().repeat(model.len() / 8),
                2 => text(seed, model.len()),
                _ => noise(seed, model.len()),
            };
            model.copy_from_slice(&bytes);
            run(device, context, Op::Write, sector, bytes).unwrap();
        }
        5 => {
            free(device, context, Op::WriteZeroes, sector, sectors as u64);
            model.fill(0);
        }
        _ => {
            free(device, context, Op::Discard, sector, sectors as u64);
            // Whole pages of the disk; the ragged ends stay.
            let start = sector as usize * SECTOR;
            let first = start.next_multiple_of(PAGE_SIZE) - start;
            let last = ((start + model.len()) / PAGE_SIZE * PAGE_SIZE).saturating_sub(start);
            if first < last {
                model[first..last].fill(0);
            }
        }
    }
}

/// A step of the random walk: operation, first sector, sectors, kind of data, seed.
fn any_step() -> impl Strategy<Value = (u8, u64, usize, u8, u64)> {
    (0..10_u8, 0..32 * 8_u64, 1..40_usize, 0..4_u8, any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The device against a plain vector of bytes, by sectors.
    #[test]
    fn a_random_walk_agrees_with_a_plain_model(
        codec in prop_oneof![Just("lz4"), Just("zstd"), Just("lz4-flex")],
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let device = device_with(32, codec, 0);
        let mut context = device.worker_context().unwrap();
        let mut model = vec![0; 32 * PAGE_SIZE];
        for (op, sector, sectors, kind, seed) in steps {
            let sectors = sectors.min(256 - sector as usize);
            let range = sector as usize * SECTOR..(sector as usize + sectors) * SECTOR;
            match op {
                0..=6 => change(&device, &mut context, sector, &mut model[range], (op, kind, seed)),
                _ => prop_assert_eq!(
                    read(&device, &mut context, sector, sectors), &model[range]
                ),
            }
            prop_assert_eq!(device.check(), Ok(()));
        }
        prop_assert_eq!(read(&device, &mut context, 0, 256), model);
    }
}
