//! The engine alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Queue, TakeResult};
use super::*;
use crate::codec::{Codec, CodecError, CodecTable};
use crate::sync;
use crate::units::PAGE_SIZE;

fn codecs() -> CodecTable {
    Codec::new("lz4".parse().unwrap()).unwrap().into()
}

fn engine(change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config =
        EngineConfig { policy: Policy::Offload, workers: Some(2), ..Default::default() };
    change(&mut config);
    Engine::start(&codecs().into(), &config).unwrap()
}

fn page(seed: u8) -> [u8; PAGE_SIZE] {
    std::array::from_fn(|at| seed ^ (at / 32) as u8)
}

fn compress(seed: u8, limit: usize) -> Arc<Job> {
    Job::compress(Box::new(page(seed)), 0, limit, &mut Spares::default())
}

fn decompress(object: &[u8]) -> Arc<Job> {
    Job::decompress(object, 0, &mut Spares::default())
}

/// Submits one job and waits for it.
fn run(engine: &Engine, job: &Arc<Job>) -> Result<Output, JobError> {
    let mut pending = Engine::pending(job);
    let mut jobs = VecDeque::from([Arc::clone(job)]);
    engine.submit(&mut jobs);
    assert!(jobs.is_empty());
    sync::block_on(|cx| pending.poll(cx))
}

#[test]
fn there_and_back() {
    let engine = engine(|_| ());
    for seed in 0..50 {
        let object = run(&engine, &compress(seed, PAGE_SIZE)).unwrap();
        let length = object.length.unwrap();
        assert!(length < 1000);
        let back = run(&engine, &decompress(&object.bytes[..length])).unwrap();
        assert_eq!(back.bytes[..], page(seed));
    }
    let report = engine.report();
    assert_eq!((report.jobs, report.completed, report.fallbacks), (100, 100, 0));
}

#[test]
fn a_job_is_done_by_the_codec_it_names() {
    let spec = |text: &str| text.parse().unwrap();
    let codecs = CodecTable::new(2, spec("lz4"), [(7, spec("zstd"))]).unwrap().into();
    let config = EngineConfig { policy: Policy::Offload, workers: Some(2), ..Default::default() };
    let engine = Engine::start(&codecs, &config).unwrap();
    let spares = &mut Spares::default();
    for number in [7, 2, 7] {
        let object = run(&engine, &Job::compress(Box::new(page(9)), number, PAGE_SIZE, spares));
        let object = object.unwrap();
        let object = &object.bytes[..object.length.unwrap()];
        let codec = codecs.get(number).unwrap();
        let mut out = [0; PAGE_SIZE];
        let length = codec.compress(&mut codec.workspace().unwrap(), &page(9), &mut out).unwrap();
        assert!(*object == out[..length.unwrap()], "codec {number}");
        let back = run(&engine, &Job::decompress(object, number, spares)).unwrap();
        assert_eq!(back.bytes[..], page(9));
        let wrong = run(&engine, &Job::decompress(object, 9 - number, spares));
        assert!(matches!(wrong, Err(JobError::Codec(_))), "{wrong:?}");
    }
    let none = run(&engine, &Job::decompress(&[0; 9], 0, spares));
    assert!(matches!(none, Err(JobError::Codec(CodecError::NoEntry { number: 0 }))), "{none:?}");
}

#[test]
fn what_the_codec_refuses_comes_back_as_its_error() {
    let engine = engine(|_| ());
    let garbage = run(&engine, &decompress(&[0xff; 64]));
    assert!(matches!(garbage, Err(JobError::Codec(_))));
    let too_long = run(&engine, &compress(1, 8)).unwrap();
    assert_eq!(too_long.length, None);
}

#[test]
fn a_model_decides_how_a_job_comes_back() {
    let result = |model: &str| {
        let engine = engine(|config| config.model = Some(model.parse().unwrap()));
        let result = run(&engine, &compress(1, PAGE_SIZE)).map(|_| ());
        (result, engine.report())
    };
    assert_eq!(result("fail=1").0, Err(JobError::Failed));
    assert_eq!(result("corrupt=1").0, Err(JobError::Corrupt));
    let (late, report) = result("hang=1,timeout=20ms");
    assert_eq!((late, report.timeouts), (Err(JobError::TimedOut), 1));
    let (dead, report) = result("die=1");
    assert_eq!((dead, report.deaths), (Err(JobError::Lost), 1));
    assert_eq!(result("latency=1ms,reorder=8").0, Ok(()));
}

#[test]
fn a_refusal_leaves_the_jobs_where_they_are() {
    let engine = engine(|config| config.model = Some("refuse=1".parse().unwrap()));
    let mut jobs = VecDeque::from([compress(1, PAGE_SIZE)]);
    engine.submit(&mut jobs);
    assert_eq!((jobs.len(), engine.report().refusals), (1, 1));
}

#[test]
fn a_full_queue_takes_what_fits_and_the_next_when_there_is_room() {
    let queue = Queue::new(3);
    let mut jobs: VecDeque<_> = (0..5).map(|seed| compress(seed, PAGE_SIZE)).collect();
    let all: Vec<_> = jobs.iter().map(Arc::clone).collect();
    assert_eq!(queue.put(&mut jobs), 3);
    assert_eq!(queue.put(&mut jobs), 0);
    assert!(jobs.iter().zip(&all[3..]).all(|(left, last)| Arc::ptr_eq(left, last)));
    let mut taken = Vec::new();
    assert_eq!(queue.take(3, true, &mut taken), TakeResult::Jobs);
    assert!(taken.len() == 1 && Arc::ptr_eq(&taken[0], &all[0]), "the oldest first");
    assert_eq!(queue.put(&mut jobs), 1);
    assert_eq!((queue.depths(), jobs.len()), ((3, 3), 1));
    queue.close();
    assert_eq!(queue.put(&mut jobs), 0);
}

#[test]
fn an_engine_that_ends_leaves_no_job_without_an_answer() {
    let engine = engine(|config| config.model = Some("latency=5ms".parse().unwrap()));
    let mut jobs: VecDeque<_> = (0..50).map(|seed| compress(seed, PAGE_SIZE)).collect();
    let all: Vec<_> = jobs.iter().map(Engine::pending).collect();
    engine.submit(&mut jobs);
    drop(engine);
    for mut pending in all {
        let _ = sync::block_on(|cx| pending.poll(cx));
    }
}

#[test]
fn an_engine_without_workers_takes_nothing_and_keeps_nothing() {
    let engine = engine(|config| {
        config.model = Some("latency=30ms".parse().unwrap());
        config.workers = Some(1);
    });
    let mut jobs: VecDeque<_> = (0..40).map(|seed| compress(seed, PAGE_SIZE)).collect();
    let all: Vec<_> = jobs.iter().map(Engine::pending).collect();
    engine.submit(&mut jobs);
    assert!(jobs.is_empty());
    engine.lose_workers();
    let lost =
        all.into_iter().filter_map(|mut pending| sync::block_on(|cx| pending.poll(cx)).err());
    assert!(lost.filter(|error| *error == JobError::Lost).count() >= 30);
    assert_eq!(engine.share(Work::Decompress { codec: 0 }, 100), 0);
    let mut jobs = VecDeque::from([compress(1, PAGE_SIZE)]);
    engine.submit(&mut jobs);
    assert_eq!(jobs.len(), 1);
}

#[test]
fn a_result_that_no_caller_takes_is_abandoned_and_makes_room() {
    let queue = Queue::new(2);
    let mut jobs: VecDeque<_> = (0..3).map(|seed| compress(seed, PAGE_SIZE)).collect();
    assert_eq!(queue.put(&mut jobs), 2);
    assert!(queue.expire(Duration::from_secs(60)).is_empty());
    assert_eq!(queue.expire(Duration::ZERO).len(), 2);
    assert_eq!(queue.queued(), 0);
    assert_eq!(queue.put(&mut jobs), 1);
}

#[test]
fn nothing_is_handed_over_inline_and_no_thread_is_there() {
    let none = engine(|config| config.policy = Policy::Inline);
    assert_eq!(none.share(Work::Decompress { codec: 0 }, 100), 0);
    let mut jobs = VecDeque::from([compress(1, PAGE_SIZE)]);
    none.submit(&mut jobs);
    assert_eq!(jobs.len(), 1);
    // What the codec is said to cost decides, and not how fast this machine is.
    let costing = |each: u64| {
        engine(|config| {
            config.policy = Policy::Auto;
            config.assumed_cost = Some(Duration::from_micros(each));
        })
    };
    for (each, handed) in [(5, 0), (11, 0), (12, 1), (2000, 1)] {
        assert_eq!(
            costing(each).share(Work::Compress { codec: 0, limit: 4096 }, 1),
            handed,
            "{each} us"
        );
        assert_eq!(costing(each).compress_cost(), Duration::from_micros(each));
    }
}

#[test]
fn pages_are_shared_with_workers_only_where_a_trial_says_that_it_pays() {
    let mut engine = engine(|config| {
        config.policy = Policy::Auto;
        config.assumed_cost = Some(Duration::from_micros(5));
        // What is submitted stays with the workers.
        config.model = Some("hang=1".parse().unwrap());
        config.timeout = Duration::from_secs(3600);
    });
    let work = Work::Compress { codec: 0, limit: 4096 };
    engine.pretend_many_processors(true);
    assert_eq!(engine.share(work, 32), 0, "it was not tried yet");
    engine.pretend_many_processors(false);
    assert_eq!(engine.share(work, 32), 24, "two workers and the queue's thread");
    assert_eq!(engine.share(work, 7), 0, "too few pages");
    engine.submit(&mut (0..30).map(|seed| compress(seed, PAGE_SIZE)).collect());
    assert_eq!(engine.share(work, 32), 17, "30 of 47 are with the workers");
}
