//! An exact interleaving of nodes by weight, short enough for an nftables map.

/// The most slots of one service: an nftables map of this size is written in well under 10 ms.
pub const SLOTS_MAX: u64 = 128;

/// The sequence in which `weights` take turns, as indices into it: smooth weighted round robin.
///
/// Each index appears in proportion to its weight, exactly where the weights' reduced sum is at most [`SLOTS_MAX`], else within
/// one slot (but at least once); turns of one index are spread as evenly as can be. A weight of 0 gets no turn.
pub fn interleave(weights: &[u32]) -> Vec<usize> {
    let turns = reduce(weights);
    let total: i64 = turns.iter().sum();
    let mut credit = vec![0i64; turns.len()];
    let mut sequence = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, turn) in credit.iter_mut().zip(&turns) {
            *credit += turn;
        }
        // The first of the largest: ties go to the order of the nodes, so that equal input gives equal output.
        let mut best = 0;
        for index in 1..credit.len() {
            if credit[index] > credit[best] {
                best = index;
            }
        }
        credit[best] -= total;
        sequence.push(best);
    }
    sequence
}

/// The same proportions in small numbers whose sum is at most [`SLOTS_MAX`] (or one per weight, if those are more).
fn reduce(weights: &[u32]) -> Vec<i64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let reduced: Vec<u64> = weights.iter().map(|weight| u64::from(weight / divisor)).collect();
    let sum: u64 = reduced.iter().sum();
    let scaled = |weight: u64| match weight {
        0 => 0,
        _ if sum <= SLOTS_MAX => weight as i64,
        _ => (weight * SLOTS_MAX / sum).max(1) as i64,
    };
    reduced.into_iter().map(scaled).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn turns_are_exact_and_spread() {
        assert_eq!(interleave(&[10, 10]), [0, 1]);
        assert_eq!(interleave(&[30, 10]), [0, 0, 1, 0]);
        assert_eq!(interleave(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(interleave(&[0, 7]), [1]);
        assert!(interleave(&[]).is_empty() && interleave(&[0, 0]).is_empty());
    }

    proptest! {
        #[test]
        fn each_gets_its_part(weights in prop::collection::vec(0u32..1_000, 0..12)) {
            let sequence = interleave(&weights);
            let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assert!(sequence.len() as u64 <= SLOTS_MAX);
            prop_assert_eq!(sequence.is_empty(), sum == 0);
            for (index, weight) in weights.iter().enumerate() {
                let got = sequence.iter().filter(|turn| **turn == index).count() as f64;
                let due = f64::from(*weight) * sequence.len() as f64 / (sum.max(1)) as f64;
                prop_assert_eq!(*weight == 0, got == 0.0);
                // Rounding down and "at least one" each move a node's part by a slot, and the sum with it.
                prop_assert!((got - due).abs() <= 2.0, "{} of {:?} got {} for {}", index, weights, got, due);
            }
        }

        #[test]
        fn small_proportions_are_exact(weights in prop::collection::vec(1u32..20, 1..6)) {
            let sequence = interleave(&weights);
            let sum: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let got = sequence.iter().filter(|turn| **turn == index).count() as u32;
                prop_assert_eq!(got * sum, weight * sequence.len() as u32);
            }
        }
    }
}
