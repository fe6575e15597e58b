//! Medians, spreads and ratios of what several rounds measured.

/// What one figure was over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`, if there are any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The spread of the ratios that two have in each round that both have a value of. Both runs of a round
/// meet the same noise, so these ratios have less of it than two medians have.
pub fn ratios(ours: &[(u32, f64)], theirs: &[(u32, f64)]) -> Option<Spread> {
    Spread::of(ours.iter().filter_map(|(round, value)| {
        let (_, other) = theirs.iter().find(|(other, _)| other == round)?;
        (*other > 0.0).then(|| value / other)
    }))
}

/// Share of the null back end's operations from which on the generator, and not the server, is measured.
pub const CEILING: f64 = 0.85;

/// Whether the generator's own ceiling binds a row.
pub fn ceiling_binds(ops: f64, ceiling: Option<f64>) -> bool {
    ceiling.is_some_and(|ceiling| ops >= CEILING * ceiling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[7.0]), Some(Spread { median: 7.0, min: 7.0, max: 7.0 }));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[9.0, 1.0, 4.0, 2.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ours = [(0, 10.0), (1, 40.0), (2, 9.0), (3, 5.0)];
        // The second round was slow for the other alone; the last two have no pair.
        let theirs = [(1, 10.0), (0, 5.0), (4, 1.0), (3, 0.0)];
        assert_eq!(ratios(&ours, &theirs), Some(Spread { median: 3.0, min: 2.0, max: 4.0 }));
        assert_eq!(ratios(&ours, &[]), None);
    }

    #[test]
    fn the_ceiling_binds_near_the_null_back_end_and_never_without_it() {
        assert!(ceiling_binds(90.0, Some(100.0)));
        assert!(!ceiling_binds(80.0, Some(100.0)));
        assert!(!ceiling_binds(80.0, None));
    }
}
