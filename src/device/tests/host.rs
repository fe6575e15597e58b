use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::reopen::Home;
use super::*;

const MIB: u64 = 1 << 20;

/// Disks in a control group that can spare so much for all of them.
struct Group(Vec<Arc<Device>>);

impl Group {
    fn new(disks: usize, spare: u64) -> Self {
        let all: Arc<Mutex<Vec<Weak<Device>>>> = Arc::default();
        let disk = |_| {
            let device = Arc::new(Device::new(&Home::new(16 * MIB / 4096, "lz4").config).unwrap());
            all.lock().unwrap().push(Arc::downgrade(&device));
            device
        };
        let disks: Vec<_> = (0..disks).map(disk).collect();
        for device in &disks {
            let all = Arc::clone(&all);
            device.watch_host(move || {
                let all = all.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = all.iter().filter_map(Weak::upgrade).map(|disk| disk.pool.committed());
                Some(spare.saturating_sub(taken.sum()))
            });
        }
        Self(disks)
    }

    fn taken(&self) -> u64 {
        self.0.iter().map(|disk| disk.pool.committed()).sum()
    }
}

fn is_stored(device: &Device, context: &mut WorkerContext, page: u64) -> bool {
    run(device, context, Op::Write, page * 8, noise(page, PAGE_SIZE)).is_ok()
}

/// A reading of the host shows what all have taken, and not what the others may take as well.
#[test]
fn disks_that_fill_one_group_leave_it_its_reserve() {
    for (disks, spare) in [(1, 12 * MIB), (4, 40 * MIB), (24, 40 * MIB)] {
        let group = Group::new(disks, spare);
        let mut contexts: Vec<_> =
            group.0.iter().map(|disk| disk.worker_context().unwrap()).collect();
        let mut going = vec![true; disks];
        for page in 0.. {
            for (number, (disk, context)) in group.0.iter().zip(&mut contexts).enumerate() {
                going[number] &= is_stored(disk, context, page);
            }
            let taken = group.taken();
            assert!(taken <= spare, "{disks} disks have {taken} of {spare}");
            if !going.contains(&true) {
                break;
            }
        }
        // A 64th of the last MiB is too little to be shared.
        let taken = group.taken();
        assert!(taken + 2 * MIB >= spare, "{disks} disks have no more than {taken} of {spare}");
    }
}

#[test]
fn a_disk_at_rest_keeps_no_share_of_what_others_may_take_meanwhile() {
    let stored = |rest: bool| {
        let device = Device::new(&Home::new(1024, "lz4").config).unwrap();
        let left = Arc::new(Mutex::new(1 << 30));
        let theirs = Arc::clone(&left);
        device.watch_host(move || Some(*theirs.lock().unwrap()));
        if rest {
            device.rest();
        }
        *left.lock().unwrap() = 0;
        let mut context = device.worker_context().unwrap();
        (0..512).filter(|page| is_stored(&device, &mut context, *page)).count()
    };
    // As long as it is in use, it takes what it was told that it may.
    assert_eq!(stored(false), 512);
    assert!((8..16).contains(&stored(true)));
    // Where the host is not watched, no share is to be given back.
    let device = device(64);
    device.rest();
    let mut context = device.worker_context().unwrap();
    assert!((0..64).all(|page| is_stored(&device, &mut context, page)));
}
