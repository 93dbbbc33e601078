//! An exact interleaving of nodes by weight, short enough for an nftables map.

use std::cmp::Reverse;

/// The most slots of one service: an nftables map of this size is written in well under 10 ms.
pub const SLOTS_MAX: u64 = 128;

/// The sequence in which `weights` take turns, as indices into it: smooth weighted round robin.
///
/// Each index appears in proportion to its weight: exactly where the weights' reduced sum is at most [`SLOTS_MAX`], else within one slot, but
/// at least once, at the cost of the others. Turns of one index are spread as evenly as can be. A weight of 0 gets no turn.
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
    let reduced: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let sum: i64 = reduced.iter().sum();
    if sum <= SLOTS_MAX as i64 {
        return reduced;
    }
    apportion(&reduced, sum)
}

/// [`SLOTS_MAX`] slots by the largest remainders: rounding all down would leave slots to nobody, and the parts of all too large.
fn apportion(weights: &[i64], sum: i64) -> Vec<i64> {
    let slots = SLOTS_MAX as i64;
    let least = |weight: i64| i64::from(weight > 0);
    let mut turns: Vec<i64> = weights.iter().map(|weight| (weight * slots / sum).max(least(*weight))).collect();
    // What an index lacks of its part, in parts of a slot.
    let lacks = |turns: &[i64], index: usize| weights[index] * slots - turns[index] * sum;
    while turns.iter().sum::<i64>() < slots {
        let Some(poorest) = (0..turns.len()).max_by_key(|index| (lacks(&turns, *index), Reverse(*index))) else {
            break;
        };
        turns[poorest] += 1;
    }
    // Those who got a slot for less than one took it from the others.
    while turns.iter().sum::<i64>() > slots {
        let has_more = (0..turns.len()).filter(|index| turns[*index] > 1);
        let Some(richest) = has_more.min_by_key(|index| (lacks(&turns, *index), *index)) else { break };
        turns[richest] -= 1;
    }
    turns
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

    #[test]
    fn no_slot_is_left_to_nobody_and_there_are_no_more_than_may_be() {
        let turns = |weights: &[u32]| {
            let sequence = interleave(weights);
            (0..weights.len()).map(|index| sequence.iter().filter(|turn| **turn == index).count()).collect::<Vec<_>>()
        };
        assert_eq!(turns(&[20, 130, 149, 982]), [2, 13, 15, 98]);
        let mut unequal = vec![1; 11];
        unequal.push(999);
        assert_eq!(turns(&unequal).iter().sum::<usize>() as u64, SLOTS_MAX);
        assert_eq!(interleave(&vec![1_000; 200]).len(), 200, "all the same reduce to one each");
    }

    proptest! {
        #[test]
        fn each_gets_its_part(weights in prop::collection::vec(0u32..1_000, 0..12)) {
            let sequence = interleave(&weights);
            let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assert!(sequence.len() as u64 <= SLOTS_MAX);
            prop_assert_eq!(sequence.is_empty(), sum == 0);
            let due = |weight: u32| f64::from(weight) * sequence.len() as f64 / (sum.max(1)) as f64;
            // Whoever is due less than one slot gets one, which the others lack.
            let lifted = weights.iter().filter(|weight| **weight > 0 && due(**weight) < 1.0).count() as f64;
            for (index, weight) in weights.iter().enumerate() {
                let got = sequence.iter().filter(|turn| **turn == index).count() as f64;
                prop_assert_eq!(*weight == 0, got == 0.0);
                let is_near = (got - due(*weight)).abs() <= 1.0 + lifted;
                prop_assert!(is_near, "{} of {:?} got {} for {}", index, weights, got, due(*weight));
                prop_assert!(lifted > 0.0 || (got - due(*weight)).abs() <= 1.0);
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
