use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn pool(bytes: u64, limit: u64) -> Pool {
    Pool::new(Arena::new(bytes).unwrap(), limit)
}

#[test]
fn every_length_has_a_class_it_fits_in() {
    for length in 1..=PAGE_SIZE {
        let class = class_of(length);
        assert!(class < CLASSES);
        assert!((class + 1) * 32 >= length && class * 32 < length);
    }
}

#[test]
fn memory_comes_with_objects_and_goes_with_them() {
    let pool = pool(64 * MIB, 0);
    let places: Vec<_> = (0..1000).map(|_| pool.store(&[7; 1500]).unwrap()).collect();
    let full = pool.usage().arena_bytes;
    assert!(full >= 1000 * 1500);
    assert!(full <= 1000 * 1600, "{full} bytes for 1000 objects of 1500");
    for place in places {
        pool.free(place, 1500);
    }
    assert_eq!(pool.usage().arena_bytes, 0);
    assert_eq!(pool.objects(), 0);
    assert!(pool.usage().arena_bytes_max >= full);
}

#[test]
fn the_limit_holds_and_a_refused_object_leaves_nothing_behind() {
    let pool = pool(64 * MIB, MIB);
    let mut places = Vec::new();
    let refused = loop {
        match pool.store(&[1; 3000]) {
            Ok(place) => places.push(place),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PoolError::Limit { limit: MIB }));
    assert!(pool.usage().arena_bytes <= MIB);
    assert_eq!(pool.objects(), places.len() as u64);
    // Other classes are refused too, and one freed span is enough to go on.
    assert!(pool.store(&[2; 100]).is_err());
    for place in places.drain(..) {
        pool.free(place, 3000);
    }
    assert!(pool.store(&[2; 100]).is_ok());
}

#[test]
fn writers_together_do_not_overshoot_the_limit() {
    let pool = pool(64 * MIB, MIB);
    std::thread::scope(|scope| {
        for length in [100, 700, 1500, 4000] {
            let pool = &pool;
            scope.spawn(move || while pool.store(&vec![9; length]).is_ok() {});
        }
    });
    assert!(pool.usage().arena_bytes <= MIB);
    assert!(pool.usage().arena_bytes_max <= MIB);
}

#[test]
fn address_space_is_an_error_when_used_up() {
    let pool = pool(2 * SPAN_BYTES, 0);
    let stored = (0..).take_while(|_| pool.store(&[3; PAGE_SIZE]).is_ok()).count();
    assert_eq!(stored, 32);
    let error = pool.store(&[3; PAGE_SIZE]).unwrap_err();
    assert!(matches!(error, PoolError::AddressSpace { .. }));
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_caught() {
    let pool = pool(MIB, 0);
    let kept = pool.store(&[0; 64]).unwrap();
    let place = pool.store(&[0; 64]).unwrap();
    assert_ne!(kept, place);
    pool.free(place, 64);
    pool.free(place, 64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A random walk against a model: all live objects keep their bytes.
    #[test]
    fn objects_keep_their_bytes(
        steps in prop::collection::vec((any::<u16>(), 1..=PAGE_SIZE, any::<u8>()), 1..400)
    ) {
        let pool = pool(16 * MIB, 0);
        let mut model: HashMap<u64, (Place, Vec<u8>)> = HashMap::new();
        for (key, length, fill) in steps {
            let key = u64::from(key % 64);
            if let Some((place, bytes)) = model.remove(&key) {
                prop_assert_eq!(pool.read(place, bytes.len()), &bytes[..]);
                pool.free(place, bytes.len());
            } else {
                let bytes: Vec<u8> = (0..length).map(|i| fill.wrapping_add(i as u8)).collect();
                let place = pool.store(&bytes).unwrap();
                model.insert(key, (place, bytes));
            }
        }
        prop_assert_eq!(pool.objects(), model.len() as u64);
        for (place, bytes) in model.into_values() {
            prop_assert_eq!(pool.read(place, bytes.len()), &bytes[..]);
            pool.free(place, bytes.len());
        }
        prop_assert_eq!(pool.usage().arena_bytes, 0);
    }
}
