//! A disk as a whole.

use std::time::Duration;

use std::fs;
use std::sync::mpsc::channel;

use super::*;
use crate::blk::StallLimits;
use crate::device::{BlockChoice, MemoryKind};
use crate::engine::{EngineConfig, Policy};
use crate::rates::{Rate, Rates};
use crate::store::scratch::Scratch;
use crate::units::PAGE_SIZE;

fn config(name: &str) -> DiskConfig {
    DiskConfig {
        name: name.parse().unwrap(),
        device: DeviceConfig {
            size: 1 << 20,
            block_size: BlockChoice::default(),
            codec: "lz4".parse().unwrap(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine: EngineConfig { policy: Policy::Inline, ..EngineConfig::default() },
        },
        guest: GuestOptions {
            num_queues: 1,
            max_queue_size: 128,
            threads: 1,
            serial: "test".into(),
            read_only: false,
            stall_limits: StallLimits::default(),
            poll: Duration::ZERO,
            latency: false,
        },
        host_reserve: Some(0),
        rates: Rates::default(),
    }
}

/// What was loaded is what a later process opens, once the disk is complete.
#[test]
fn a_disk_is_made_filled_and_opened() {
    let scratch = Scratch::new();
    let (dir, image) = (scratch.path().join("disk"), scratch.path().join("image"));
    fs::write(&image, [7; 5 * PAGE_SIZE]).unwrap();
    let (config, stop) = (config("a"), Stop::new().unwrap());
    for round in 0..2 {
        // The first one is not completed, so nothing of it is kept.
        let disk = Disk::open(&config, config.state_in(&dir, true, None, &stop).unwrap()).unwrap();
        assert_eq!((disk.origin(), disk.report().orig_data_size), (Origin::New, 0));
        disk.load(&image, ImageFormat::Raw, &stop, || ()).unwrap();
        assert_eq!(disk.report().orig_data_size, 5 * PAGE_SIZE as u64);
        if round == 1 {
            disk.set_complete();
        }
        disk.stop();
    }
    let disk = Disk::open(&config, config.state_in(&dir, false, None, &stop).unwrap()).unwrap();
    let found = (disk.origin(), disk.report().orig_data_size);
    assert_eq!(found, (Origin::Opened, 5 * PAGE_SIZE as u64));
}

#[test]
fn a_disk_that_is_stopped_compacts_nothing() {
    let disk = Disk::create(&config("a")).unwrap();
    let (done, waits) = channel();
    let told = done.clone();
    disk.compact(move |_| told.send(true).unwrap());
    assert!(waits.recv().unwrap());
    disk.stop();
    disk.stop();
    // The sender is dropped unused.
    disk.compact(move |_| done.send(false).unwrap());
    waits.recv().unwrap_err();
    assert_eq!(disk.report().orig_data_size, 0);
}

#[test]
fn an_image_that_cannot_be_loaded_is_named() {
    let scratch = Scratch::new();
    let image = scratch.path().join("image");
    fs::write(&image, vec![1; (1 << 20) + 1]).unwrap();
    let (disk, stop) = (Disk::create(&config("a")).unwrap(), Stop::new().unwrap());
    let error = disk.load(&image, ImageFormat::Raw, &stop, || ()).unwrap_err();
    assert!(error.to_string().contains("image"), "{error}");
    stop.request();
    let stopped = disk.load(&image, ImageFormat::Raw, &stop, || ());
    assert!(matches!(stopped, Err(DiskError::Stopped(_))), "{stopped:?}");
}

#[test]
fn rate_limits_are_those_of_the_configuration_until_they_are_changed() {
    let write = Rate { operations_per_second: 5, bytes_per_second: 7, burst_ms: 9 };
    let rates = Rates { write, ..Rates::default() };
    let disk = Disk::create(&DiskConfig { rates, ..config("limited") }).unwrap();
    assert_eq!(disk.rates(), rates);
    disk.set_rates(Rates::default());
    assert_eq!(disk.rates(), Rates::default());
}
