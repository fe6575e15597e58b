//! Requests that sleep, and what changes meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::Wake;
use std::time::Duration;

use super::*;
use crate::device::content::NewContent;
use crate::engine::{EngineModel, Policy};

/// Pages of the disks: more than the requests of the test with most of them reach.
const PAGES: u64 = 40_000;

/// Longest time that a request may sleep here.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn offloading(pages: u64, depth: usize, workers: usize, model: &str) -> Device {
    let model: EngineModel = model.parse().unwrap();
    let engine = EngineConfig {
        policy: Policy::Offload,
        workers: Some(workers),
        depth,
        model: Some(model),
        ..EngineConfig::default()
    };
    Device::new(&DeviceConfig {
        size: pages << 12,
        block_size: BlockChoice::default(),
        codec: "lz4".parse().unwrap(),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: false,
        engine,
    })
    .unwrap()
}

/// Puts its number on a list.
struct Listed(usize, Sender<usize>);

impl Wake for Listed {
    fn wake(self: Arc<Self>) {
        // No thread receives any more when the last request is done.
        let _ = self.1.send(self.0);
    }
}

/// The slot that a request sleeps for becomes one that needs no lock; the next page is another slot.
#[test]
fn a_place_in_one_slots_queue_is_not_taken_for_the_next_slot() {
    let cx = Context::from_waker(Waker::noop());
    for op in [Op::Read, Op::WriteZeroes, Op::Discard] {
        let device = device(4);
        let mut context = device.worker_context().unwrap();
        run(&device, &mut context, Op::Write, 0, text(1, 2 * PAGE_SIZE)).unwrap();
        let held = device.hold(0).unwrap();
        let mut io = device.request(op, 0, 8192, Buffer::new(vec![0xee; 8192])).unwrap();
        assert!(io.poll(&mut context, &cx).is_pending());
        device.replace(held, NewContent::EMPTY, failpoint::DISCARD);
        assert!(io.poll(&mut context, &cx).is_ready());
        if op == Op::Read {
            assert!(io.into_payload().bytes[4096..] == text(1, 2 * PAGE_SIZE)[4096..]);
        } else {
            assert_eq!(read(&device, &mut context, 8, 8), vec![0; 4096], "{op:?}");
        }
        assert!(device.hold(0).is_some(), "slot 0 is free");
        device.check().unwrap();
    }
}

#[test]
fn a_write_that_was_acknowledged_outlives_zeroes_that_came_before() {
    let device = device(4);
    let mut context = device.worker_context().unwrap();
    let cx = Context::from_waker(Waker::noop());
    run(&device, &mut context, Op::Write, 0, text(1, 2 * PAGE_SIZE)).unwrap();
    let held = device.hold(0).unwrap();
    let mut zeroes = device.request(Op::WriteZeroes, 4, 12 * 512, Gone).unwrap();
    assert!(zeroes.poll(&mut context, &cx).is_pending());
    device.replace(held, NewContent::EMPTY, failpoint::DISCARD);
    let held = device.hold(0).unwrap();
    let _ = zeroes.poll(&mut context, &cx);
    drop(held);
    run(&device, &mut context, Op::Write, 0, text(5, 4 * 512)).unwrap();
    assert!(zeroes.poll(&mut context, &cx).is_ready());
    assert_eq!(read(&device, &mut context, 0, 4), text(5, 4 * 512));
    assert_eq!(read(&device, &mut context, 8, 8), vec![0; 4096]);
}

/// Part of a page becomes what the rest is, by the engine, while a read of both pages waits.
#[test]
fn a_read_behind_a_change_that_leaves_a_same_filled_page() {
    let device = offloading(PAGES, 256, 2, "latency=10ms");
    let mut context = device.worker_context().unwrap();
    let mut first = vec![0x55; 4096];
    first[..512].copy_from_slice(&text(1, 512));
    run(&device, &mut context, Op::Write, 0, first).unwrap();
    run(&device, &mut context, Op::Write, 8, text(9, 4096)).unwrap();
    let cx = Context::from_waker(Waker::noop());
    let mut change = device.request(Op::Write, 0, 512, Buffer::new(vec![0x55; 512])).unwrap();
    assert!(change.poll(&mut context, &cx).is_pending());
    let bytes = Buffer::new(vec![0xee; 15 * 512]);
    let mut both = device.request(Op::Read, 1, 15 * 512, bytes).unwrap();
    assert!(both.poll(&mut context, &cx).is_pending());
    sync::block_on(|cx| change.poll(&mut context, cx)).unwrap();
    sync::block_on(|cx| both.poll(&mut context, cx)).unwrap();
    assert!(both.into_payload().bytes[7 * 512..] == text(9, 4096));
}

/// Requests of many pages and of one, each polled only when it was woken: all of them end.
#[test]
fn no_request_is_left_asleep_at_a_small_queue() {
    for (depth, requests, pages) in [(1, 8, 6), (4, 16, 16), (16, 64, 32)] {
        let device = offloading(PAGES, depth, 2, "latency=20us,reorder=2");
        let mut context = device.worker_context().unwrap();
        for round in 0..12 {
            let (says, woken) = channel();
            let begin = |number: u64| {
                let pages = if number.is_multiple_of(2) { pages } else { 1 };
                let bytes = text(round * 100 + number, pages << 12);
                let length = bytes.len() as u64;
                device.request(Op::Write, number * 512, length, Buffer::new(bytes)).unwrap()
            };
            let mut ios: Vec<_> = (0..requests).map(|number| Some(begin(number))).collect();
            let wakers: Vec<_> = (0..ios.len())
                .map(|number| Waker::from(Arc::new(Listed(number, says.clone()))))
                .collect();
            wakers.iter().for_each(Waker::wake_by_ref);
            let mut left = ios.len();
            while left > 0 {
                let number = woken.recv_timeout(LIMIT).unwrap_or_else(|_| {
                    panic!("depth {depth}: {left} sleep for ever; {:?}", device.report().engine)
                });
                let Some(io) = &mut ios[number] else { continue };
                let cx = Context::from_waker(&wakers[number]);
                if let Poll::Ready(done) = io.poll(&mut context, &cx) {
                    done.unwrap();
                    ios[number] = None;
                    left -= 1;
                } else if round == 5 && number == 2 {
                    // Given up, with a place and maybe a turn.
                    ios[number] = None;
                    left -= 1;
                }
            }
        }
        device.check().unwrap();
    }
}

#[test]
fn a_job_that_hangs_on_an_idle_engine_is_given_up() {
    for _ in 0..20 {
        let device = offloading(PAGES, 256, 1, "hang=1,timeout=10ms");
        let mut context = device.worker_context().unwrap();
        let (says, woken) = channel();
        let waker = Waker::from(Arc::new(Listed(0, says)));
        let mut io = device.request(Op::Write, 0, 4096, Buffer::new(text(1, 4096))).unwrap();
        let cx = Context::from_waker(&waker);
        assert!(io.poll(&mut context, &cx).is_pending());
        woken.recv_timeout(LIMIT).expect("a hung job is abandoned");
        assert!(io.poll(&mut context, &cx).is_ready());
    }
}
