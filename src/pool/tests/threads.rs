//! Random walks of two threads on one pool, which compact it for each other.

use std::sync::Mutex;

use super::*;
use crate::sync;

/// Owners of the second thread's objects have this bit.
const SECOND: u32 = 1 << 31;

/// What two threads have in a pool. A thread holds its own model while it changes an object, as a
/// request holds its slot; compaction only tries.
struct Two {
    models: [Mutex<Model>; 2],
}

impl Two {
    fn new() -> Self {
        let second = Model { base: SECOND, ..Model::default() };
        Self { models: [Mutex::new(Model::default()), Mutex::new(second)] }
    }

    fn compact(&self, pool: &Pool, effort: Effort) -> Compaction {
        let relocate = |owner: u32, from: Place| {
            let model = &self.models[usize::from(owner & SECOND != 0)];
            let Ok(mut model) = model.try_lock() else { return Move::Busy };
            let object = model.objects.get_mut((owner & !SECOND) as usize);
            let Some((place, length)) = object.and_then(Option::as_mut).filter(|o| o.0 == from)
            else {
                return Move::Busy;
            };
            let bytes = pool.get(from, *length);
            let Some(copy) = pool.copy_below(from, &bytes, owner) else { return Move::NoPlace };
            *place = copy.into_place();
            let length = *length;
            drop(model);
            pool.take(from, length).free_at_once();
            Move::Moved
        };
        pool.compact(effort, &mut LastRound::default(), relocate, |_| true)
    }

    fn walk(&self, thread: usize, steps: &[Step], pool: &Pool) {
        for step in steps {
            match *step {
                Step::Store { length, count } => {
                    for _ in 0..count {
                        sync::lock(&self.models[thread]).store(pool, length).unwrap();
                    }
                }
                Step::Free { choice, count } => {
                    for number in 0..count {
                        let choice = choice.wrapping_add(number * 17);
                        sync::lock(&self.models[thread]).free(pool, choice);
                    }
                }
                Step::Compact { effort, .. } => {
                    self.compact(pool, effort);
                }
                // No thread may use a pool that is rebuilt; that is done when both are quiet.
                Step::Drain | Step::Rebuild => pool.drain_caches(),
            }
            // All bytes of all that is its own, while the other one continues.
            sync::lock(&self.models[thread]).check_bytes(pool);
        }
    }

    fn check(&self, pool: &Pool) {
        pool.check().unwrap();
        let live: u64 = self.models.iter().map(|m| sync::lock(m).check_bytes(pool)).sum();
        assert_eq!(pool.objects(), live);
    }

    fn visit(&self, visit: &mut dyn FnMut(Named)) {
        for model in &self.models {
            sync::lock(model).visit(visit);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_threads_and_their_compactions_disturb_nothing(
        first in prop::collection::vec(any_step(), 5..25),
        second in prop::collection::vec(any_step(), 5..25),
    ) {
        const PAGES: u64 = 1 << 18;
        let (mut pool, two) = (pool(PAGES, 0), Two::new());
        for _ in 0..2 {
            std::thread::scope(|scope| {
                scope.spawn(|| two.walk(0, &first, &pool));
                scope.spawn(|| two.walk(1, &second, &pool));
            });
            two.check(&pool);
            let Pool { arena, .. } = pool;
            pool = Pool::rebuild(arena, PAGES, 0, |visit| two.visit(visit)).unwrap();
            two.check(&pool);
        }
        let done = two.compact(&pool, Effort::Full);
        prop_assert!(!done.more);
        two.check(&pool);
        prop_assert!(pool.loads().all(|load| load.excess == 0));
    }
}
