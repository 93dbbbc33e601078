//! Up to which time lines can be merged: until every node that speaks has shipped its lines of before, or for [`WINDOW_US`].
//!
//! The one clock that counts is the merging node's. A node whose clock is behind by more than the window is not waited for, and its lines
//! come late; one whose clock is ahead has its lines wait until that time has come. So a wrong clock harms its own node's lines alone.

/// How long a node that says nothing new is waited for, in microseconds.
pub const WINDOW_US: u64 = 20_000_000;

/// What is known of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// All its lines that were completed before this are shipped: microseconds since 1970, by its own clock.
    pub complete_to_us: u64,
}

/// Up to which time lines are merged, given what nodes said last; `now_us` is the merging node's clock.
pub fn closes(nodes: impl IntoIterator<Item = Spoken>, now_us: u64) -> u64 {
    let earliest = now_us.saturating_sub(WINDOW_US);
    let spoken = nodes.into_iter().map(|node| node.complete_to_us).filter(|time| *time >= earliest);
    // Who is alone, or alone among silent ones, waits for the others as long.
    spoken.min().map_or(earliest, |least| least.min(now_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(times: &[u64], now_us: u64) -> u64 {
        closes(times.iter().map(|time| Spoken { complete_to_us: *time }), now_us)
    }

    #[test]
    fn the_slowest_is_waited_for_and_a_silent_one_for_the_window_alone() {
        let now = 1_000_000_000;
        assert_eq!(at(&[now - 10, now - 7_000_000], now), now - 7_000_000);
        assert_eq!(at(&[now - 10, now - WINDOW_US - 1], now), now - 10);
        assert_eq!(at(&[now - WINDOW_US - 1], now), now - WINDOW_US);
        assert_eq!(at(&[], now), now - WINDOW_US);
        assert_eq!(at(&[now + 3_600_000_000, now - 5], now), now - 5);
        assert_eq!(at(&[now + 3_600_000_000], now), now);
    }

    proptest! {
        #[test]
        fn never_ahead_of_the_clock_and_never_behind_the_window(times in prop::collection::vec(0..3_000_000_000_u64, 0..5), now in 0..3_000_000_000_u64) {
            let closes = at(&times, now);
            prop_assert!(closes <= now && closes >= now.saturating_sub(WINDOW_US));
        }
    }
}
