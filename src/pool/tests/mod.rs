//! Walks of the pool against a plain model: every object's bytes, every limit, every rebuild.

mod threads;

use proptest::prelude::*;

use vhost_user_zram_frontend::Random;

use super::*;
use crate::store::{Arena, HOST_PAGE, MemoryKind, Place};
use crate::units::PAGE_SIZE;

const REGION: u64 = 16 << 20;

fn arena(bytes: u64) -> Arena {
    Arena::new(bytes, &MemoryKind::default()).unwrap()
}

fn pool(pages: u64, limit: u64) -> Pool {
    Pool::new(arena(Pool::address_space_for(pages * PAGE_SIZE as u64)), pages, limit).unwrap()
}

/// Bytes that only this object has.
fn content(seed: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(u64::from(seed) << 20 | length as u64).fill(&mut bytes);
    bytes
}

/// Objects by the number of their owner, as a table would name them.
#[derive(Default)]
struct Model {
    /// Added to the owners' numbers.
    base: u32,
    objects: Vec<Option<(Place, usize)>>,
}

impl Model {
    fn store(&mut self, pool: &Pool, length: usize) -> Result<(), PoolError> {
        let owner = self.base + self.objects.len() as u32;
        let place = pool.put(&content(owner, length), owner)?;
        self.objects.push(Some((place, length)));
        Ok(())
    }

    /// Frees the object that `choice` falls on.
    fn free(&mut self, pool: &Pool, choice: usize) {
        let count = self.objects.len().max(1);
        for at in (0..count).map(|step| (choice + step) % count) {
            if let Some((place, length)) = self.objects.get_mut(at).and_then(Option::take) {
                drop(pool.take(place, length));
                return;
            }
        }
    }

    /// Compacts, refusing every `busy`-th candidate.
    fn compact(&mut self, pool: &Pool, effort: Effort, busy: usize) -> Compaction {
        let mut seen = 0;
        let relocate = |owner, from| {
            seen += 1;
            let object = self.objects.get_mut(owner as usize).and_then(Option::as_mut);
            let Some((place, length)) = object.filter(|object| object.0 == from) else {
                return Move::Busy;
            };
            if busy > 0 && seen % busy == 0 {
                return Move::Busy;
            }
            let bytes = pool.get(from, *length);
            let Some(copy) = pool.copy_below(from, &bytes, owner) else { return Move::NoPlace };
            let to = copy.into_place();
            assert!(to != from);
            *place = to;
            pool.take(from, *length).free_at_once();
            Move::Moved
        };
        pool.compact(effort, &mut LastRound::default(), relocate, |_| true)
    }

    fn visit(&self, visit: &mut dyn FnMut(Named)) {
        for (place, length) in self.objects.iter().flatten().copied() {
            visit(Named { place, length });
        }
    }

    fn check(&self, pool: &Pool) {
        pool.check().unwrap();
        assert_eq!(pool.objects(), self.check_bytes(pool));
    }

    /// Checks the bytes of all objects, and counts them.
    fn check_bytes(&self, pool: &Pool) -> u64 {
        let mut live = 0;
        for (owner, object) in (self.base..).zip(&self.objects) {
            if let Some((place, length)) = *object {
                assert_eq!(pool.get(place, length), content(owner, length));
                live += 1;
            }
        }
        live
    }
}

#[derive(Debug, Clone)]
enum Step {
    Store { length: usize, count: usize },
    Free { choice: usize, count: usize },
    Compact { effort: Effort, busy: usize },
    Drain,
    Rebuild,
}

fn any_step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![1..=PAGE_SIZE, Just(PAGE_SIZE), Just(8), 1000..1100_usize];
    let effort = prop_oneof![
        Just(Effort::Upkeep),
        Just(Effort::Full),
        (1..200_000_u64, 0..200_u64).prop_map(|(bytes, moves)| Effort::Enough { bytes, moves }),
    ];
    prop_oneof![
        4 => (length, 1..300_usize).prop_map(|(length, count)| Step::Store { length, count }),
        4 => (any::<usize>(), 1..300_usize)
            .prop_map(|(choice, count)| Step::Free { choice: choice / 2, count }),
        2 => (effort, 0..4_usize).prop_map(|(effort, busy)| Step::Compact { effort, busy }),
        1 => Just(Step::Drain),
        1 => Just(Step::Rebuild),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn like_a_plain_list_of_objects(
        pages in prop_oneof![Just(64_u64), Just(4096), Just(1 << 20)],
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let (mut pool, mut model) = (pool(pages, 0), Model::default());
        for step in steps {
            match step {
                Step::Store { length, count } => {
                    for _ in 0..count {
                        model.store(&pool, length).unwrap();
                    }
                }
                Step::Free { choice, count } => {
                    for number in 0..count {
                        model.free(&pool, choice.wrapping_add(number * 17));
                    }
                }
                Step::Compact { effort, busy } => {
                    model.compact(&pool, effort, busy);
                    if (effort, busy) == (Effort::Full, 0) {
                        prop_assert!(pool.loads().all(|load| load.excess == 0), "not dense");
                    }
                }
                Step::Drain => pool.drain_caches(),
                Step::Rebuild => {
                    let before = pool.objects();
                    let Pool { arena, .. } = pool;
                    pool = Pool::rebuild(arena, pages, 0, |visit| model.visit(visit)).unwrap();
                    prop_assert_eq!(pool.objects(), before);
                }
            }
            model.check(&pool);
        }
        for choice in 0..model.objects.len() {
            model.free(&pool, choice);
        }
        model.compact(&pool, Effort::Full, 0);
        prop_assert_eq!(pool.usage().arena_bytes, 0);
    }
}

#[test]
fn writers_together_never_exceed_the_limit() {
    const LIMIT: u64 = 1 << 20;
    let pool = pool(1 << 20, LIMIT);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for seed in 0..2000 {
                    let length = 500 + (seed * 37 + thread * 911) % 3500;
                    let _ = pool.put(&vec![7; length as usize], 0);
                    assert!(pool.arena.allocated_bytes() <= LIMIT);
                }
            });
        }
    });
    assert!(matches!(pool.store(&[7; 4096], 0), Err(PoolError::Limit { limit: LIMIT })));
    let usage = pool.usage();
    assert!(usage.arena_bytes_max <= LIMIT && usage.arena_bytes_max > LIMIT / 2);
    pool.drain_caches();
    pool.check().unwrap();
}

#[test]
fn what_the_host_can_bear_is_a_limit_that_moves() {
    let pool = pool(1 << 10, 0);
    pool.allow_more(8 * HOST_PAGE);
    let stored = (0..20).map_while(|seed| pool.put(&content(seed, 4000), seed).ok()).count();
    assert!((7..=8).contains(&stored), "{stored}");
    assert!(matches!(pool.store(&[1; 4000], 0), Err(PoolError::HostShort)));
    pool.allow_more(2 * HOST_PAGE);
    pool.put(&[1; 4000], 0).unwrap();
    pool.check().unwrap();
}

#[test]
fn address_space_ends_with_an_error_and_goes_round() {
    let pool = Pool::new(arena(2 * REGION), 1 << 20, 0).unwrap();
    let mut model = Model::default();
    model.store(&pool, 100).unwrap();
    model.store(&pool, 200).unwrap();
    let refused = model.store(&pool, 300);
    assert!(matches!(refused, Err(PoolError::AddressSpace { bytes }) if bytes == 2 * REGION));
    model.check(&pool);
    model.free(&pool, 0);
    model.compact(&pool, Effort::Full, 0);
    model.store(&pool, 300).unwrap();
    model.check(&pool);
}

#[test]
fn compaction_gives_back_what_was_freed_and_leaves_one_page_a_class_at_most() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for number in 0..20_000 {
        model.store(&pool, 1000 + number % 64).unwrap();
    }
    model.compact(&pool, Effort::Full, 0);
    let before = pool.usage();
    let full = before.arena_bytes;
    for owner in (0..model.objects.len()).filter(|owner| owner % 2 == 0) {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let done = model.compact(&pool, Effort::Full, 0);
    let left = pool.usage();
    assert_eq!(left.pages_compacted - before.pages_compacted, done.vacated);
    // Every second object went, so hardly a page was bare before.
    assert!(done.vacated > done.pages * 9 / 10, "{done:?}");
    // Five classes, the cut ends of which may differ by a page each.
    assert!(left.arena_bytes.abs_diff(full / 2) <= 10 * HOST_PAGE, "{full} {left:?}");
    assert!(done.moves > 0 && !done.more);
    model.check(&pool);
    assert_eq!(model.compact(&pool, Effort::Full, 0).pages, 0);
}

#[test]
fn a_class_in_use_keeps_a_margin_and_one_at_rest_does_not() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for _ in 0..10_000 {
        model.store(&pool, 1500).unwrap();
    }
    let pages = pool.loads().map(|load| load.pages).sum::<u64>();
    // One page in a hundred, which is less than twice the margin of a 64th.
    for choice in 0..100 {
        model.free(&pool, choice * 97);
    }
    let mut last = LastRound::default();
    let round =
        |last: &mut LastRound| pool.compact(Effort::Upkeep, last, |_, _| Move::Busy, |_| true);
    let first = round(&mut last);
    assert_eq!((first.pages, first.moves, first.more), (0, 0, true), "{first:?}");
    assert_eq!(pool.loads().map(|load| load.pages).sum::<u64>(), pages);
    // Nothing happened since: the pages that are bare go, and the objects are asked for.
    let rested = round(&mut last);
    assert!(rested.more, "all candidates were busy");
    assert!(rested.pages > 0);
    model.check(&pool);
}

/// As in the kernel: `pages_compacted` is what compaction gained, not all that went back.
#[test]
fn pages_that_were_bare_do_not_count_as_compacted() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for _ in 0..2000 {
        model.store(&pool, 4096).unwrap();
    }
    // The upper half is bare, so nothing has to move.
    for owner in 1000..2000 {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let done = model.compact(&pool, Effort::Full, 0);
    assert!(done.pages >= 1000, "{done:?}");
    assert_eq!((done.moves, done.vacated, pool.usage().pages_compacted), (0, 0, 0));
    // Of the rest every second one goes: the pages of what moves are gained by that.
    for owner in (0..1000).step_by(2) {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let done = model.compact(&pool, Effort::Full, 0);
    assert!(done.moves > 200 && done.vacated > 200, "{done:?}");
    assert_eq!(pool.usage().pages_compacted, done.vacated);
}

/// At a limit, with the lowest places punched away: a hole higher up serves as well.
#[test]
fn a_class_at_the_limit_uses_the_memory_it_has() {
    let (pool, mut model) = (pool(1 << 18, 4 << 20), Model::default());
    while model.store(&pool, 1500).is_ok() {}
    let count = model.objects.len();
    for owner in (0..count).filter(|owner| *owner < 600 || owner % 2 == 0) {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    // The low pages go, and others take the memory.
    pool.compact(Effort::Full, &mut LastRound::default(), |_, _| Move::NoPlace, |_| true);
    while model.store(&pool, 4096).is_ok() {}
    for _ in 0..100 {
        model.store(&pool, 1500).unwrap();
    }
    model.check(&pool);
    let done = model.compact(&pool, Effort::Full, 0);
    assert!(done.moves > 100 && done.pages > 100, "{done:?}");
    model.check(&pool);
}

#[test]
fn an_object_that_is_busy_does_not_keep_the_others() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for _ in 0..2000 {
        model.store(&pool, 1500).unwrap();
    }
    for owner in 0..1000 {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let before = pool.usage().arena_bytes;
    let done = model.compact(&pool, Effort::Full, 5);
    assert!(done.more && done.moves >= 700, "{done:?}");
    assert!(pool.usage().arena_bytes < before);
    model.check(&pool);
}

#[test]
fn a_class_in_use_is_brought_down_to_its_margin() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for _ in 0..10_000 {
        model.store(&pool, 1500).unwrap();
    }
    let mut last = LastRound::default();
    pool.compact(Effort::Upkeep, &mut last, |_, _| Move::Busy, |_| true);
    for owner in 5_000..10_000 {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let done = pool.compact(Effort::Upkeep, &mut last, |_, _| Move::Busy, |_| true);
    assert!(done.more);
    let load = pool.loads().find(|load| load.objects > 0).unwrap();
    assert_eq!(load.excess, 3700 / 64 + 1, "{load:?}");
}

#[test]
fn enough_is_enough() {
    let (pool, mut model) = (pool(1 << 18, 0), Model::default());
    for length in [1500, 3000] {
        for _ in 0..5000 {
            model.store(&pool, length).unwrap();
        }
    }
    for owner in 0..10_000 {
        let (place, length) = model.objects[owner].take().unwrap();
        drop(pool.take(place, length));
    }
    let effort = Effort::Enough { bytes: 16 * HOST_PAGE, moves: 100 };
    assert_eq!(model.compact(&pool, effort, 0).pages, 16);
    let stopped =
        pool.compact(Effort::Full, &mut LastRound::default(), |_, _| Move::Busy, |_| false);
    assert!(stopped.pages > 16);
}

#[test]
fn whatever_changes_rings_for_upkeep() {
    let pool = pool(1 << 10, 0);
    assert!(!pool.answer());
    let object = pool.store(&[1; 100], 0).unwrap();
    assert!(pool.answer() && !pool.answer());
    drop(object);
    assert!(pool.answer());
}

#[test]
fn a_contradiction_in_the_table_is_an_error_of_the_rebuild() {
    let build = |change: fn(&mut Vec<Named>)| {
        let (pool, mut model) = (pool(1 << 18, 0), Model::default());
        for length in [100, 100, 3000] {
            model.store(&pool, length).unwrap();
        }
        let mut named = Vec::new();
        model.visit(&mut |object| named.push(object));
        change(&mut named);
        let Pool { arena, .. } = pool;
        let visit = |visit: &mut dyn FnMut(Named)| named.iter().copied().for_each(visit);
        Pool::rebuild(arena, 1 << 18, 0, visit).map(|pool| pool.check().unwrap()).err()
    };
    assert!(build(|_| ()).is_none());
    let twice = build(|named| named[1].place = named[0].place);
    assert!(matches!(twice, Some(RebuildError::Overlap { .. })));
    let class = build(|named| named[0].length = 2000);
    assert!(matches!(class, Some(RebuildError::Overlap { .. } | RebuildError::Place { .. })));
    let within = build(|named| named[2].place = Place::from_units(named[2].place.units() + 1));
    assert!(matches!(within, Some(RebuildError::Place { .. })));
    let outside = build(|named| named[2].place = Place::from_units((1 << 41) - 1));
    assert!(matches!(outside, Some(RebuildError::Place { .. })));
    let length = build(|named| named[2].length = 5000);
    assert!(matches!(length, Some(RebuildError::Place { length: 5000, .. })));
    // An object on a page that was never written.
    let hole =
        build(|named| named[2].place = Place::from_offset(named[2].place.offset() + 188 * 4096));
    assert!(matches!(hole, Some(RebuildError::Missing { len: 4096 | 8192, .. })), "{hole:?}");
}
