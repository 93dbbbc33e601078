//! How much of its weight a node gets, from the load score that its agent serves.
//!
//! The score is damped, so that a ruleset does not change with every breath of a machine: the level moves in tenths, only when the
//! score is more than 8 points away from it, and at most once a second. An overloaded node (score 0) comes back at 20 or more.

/// Points between score and level that are borne without a change.
const BORNE_POINTS: u8 = 8;
/// A node that was at 0 gets something again from this score on.
const RETURN_PERCENT: u8 = 20;
/// The shortest time between two changes of the level.
const STAY_MS: u64 = 1_000;

/// A node's damped load score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    level_percent: u8,
    changed_ms: Option<u64>,
    read_ms: Option<u64>,
}

impl Default for Load {
    /// Idle: a score that nobody serves counts as 100.
    fn default() -> Self {
        Self { level_percent: 100, changed_ms: None, read_ms: None }
    }
}

impl Load {
    /// Takes a score that was read at `now_ms`.
    pub fn observe(&mut self, score_percent: u8, now_ms: u64) {
        self.read_ms = Some(now_ms);
        self.move_to(score_percent.min(100), now_ms);
    }

    /// Forgets a score that was read more than `lifetime_ms` ago: no answer is not an error, and not an overload either.
    pub fn expire(&mut self, now_ms: u64, lifetime_ms: u64) {
        if self.read_ms.is_some_and(|read| now_ms.saturating_sub(read) > lifetime_ms) {
            *self = Self::default();
        }
    }

    /// The part of its weight that the node gets: 0, 10, … 100 percent.
    pub fn level_percent(self) -> u8 {
        self.level_percent
    }

    fn move_to(&mut self, score: u8, now_ms: u64) {
        let wanted = match score {
            0 => 0,
            _ if self.level_percent == 0 && score < RETURN_PERCENT => 0,
            _ => (score.saturating_add(5) / 10 * 10).clamp(10, 100),
        };
        let worth_it = score.abs_diff(self.level_percent) > BORNE_POINTS || score == 0 || score == 100;
        let stayed = self.changed_ms.is_none_or(|changed| now_ms.saturating_sub(changed) >= STAY_MS);
        if wanted != self.level_percent && worth_it && stayed {
            self.level_percent = wanted;
            self.changed_ms = Some(now_ms);
        }
    }
}

/// Reads a line of HAProxy's agent-check protocol: `up 63%`, `weight:63%`, `drain`, `down`. Words it does not know are passed
/// over; a line without any score or state gives nothing.
pub fn parse_agent_check(line: &str) -> Option<u8> {
    let mut found = None;
    for word in line.split(|c: char| c.is_ascii_whitespace() || c == ',').filter(|word| !word.is_empty()) {
        let word = word.strip_prefix("weight:").unwrap_or(word);
        match word {
            "drain" | "down" | "maint" | "stopped" | "fail" | "failed" => return Some(0),
            "up" | "ready" => found = found.or(Some(100)),
            _ => {
                if let Some(percent) = word.strip_suffix('%').and_then(|number| number.parse::<u16>().ok()) {
                    found = Some(percent.min(100) as u8);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_moves_are_borne_and_large_ones_followed() {
        let mut load = Load::default();
        for (at, score, level) in [
            (0, 95, 100),
            (1_000, 92, 100),
            (2_000, 91, 90),
            (2_500, 20, 90), // too soon after the last change
            (3_000, 20, 20),
            (4_000, 27, 20),
            (5_000, 0, 0),
            (6_000, 15, 0),
            (7_000, 20, 20),
            (8_000, 100, 100),
        ] {
            load.observe(score, at);
            assert_eq!(load.level_percent(), level, "score {score} at {at} ms");
        }
    }

    #[test]
    fn a_score_that_is_no_longer_served_counts_as_idle() {
        let mut load = Load::default();
        load.observe(0, 0);
        load.expire(5_000, 5_000);
        assert_eq!(load.level_percent(), 0);
        load.expire(5_001, 5_000);
        assert_eq!(load.level_percent(), 100);
    }

    #[test]
    fn agent_check_lines() {
        for (line, score) in [
            ("up 63%\n", Some(63)),
            ("63%", Some(63)),
            ("up weight:60% maxconn:40\r\n", Some(60)),
            ("up", Some(100)),
            ("drain 80%", Some(0)),
            ("ready,120%", Some(100)),
            ("", None),
            ("hello", None),
            ("-3%", None),
        ] {
            assert_eq!(parse_agent_check(line), score, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn the_level_is_never_far_from_a_steady_score(scores in prop::collection::vec(0u8..=100, 0..20), last in 0u8..=100) {
            let mut load = Load::default();
            let mut now = 0;
            for score in scores.into_iter().chain([last; 3]) {
                load.observe(score, now);
                now += 1_000;
            }
            let level = load.level_percent();
            prop_assert_eq!(level == 0, last == 0 || (level == 0 && last < RETURN_PERCENT));
            prop_assert!(level == 0 || level.abs_diff(last) <= 10, "level {} for score {}", level, last);
        }
    }
}
