//! The moments at which things are killed: a sequence that can be had again.

/// Numbers by SplitMix64.
pub struct Random(u64);

impl Random {
    /// One sequence for each test, whatever the order of the tests is.
    pub fn new(seed: u64, name: &str) -> Self {
        Self(name.bytes().fold(seed, |state, byte| mix(state ^ u64::from(byte))))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % limit.max(1)
    }
}

fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_name_make_one_sequence() {
        let take = |seed, name| {
            let mut random = Random::new(seed, name);
            [0; 8].map(|_: i32| random.below(900))
        };
        assert_eq!(take(1, "kills"), take(1, "kills"));
        assert_ne!(take(1, "kills"), take(2, "kills"));
        assert_ne!(take(1, "kills"), take(1, "terms"));
        assert!(take(1, "kills").iter().all(|n| *n < 900));
    }
}
