//! Whether a node is up, from the results of its checks.

use serde::{Deserialize, Serialize};

/// What one check of a node found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    /// The health page answered 200.
    Passed,
    /// It answered that the node should get nothing, in words for a person. The node lives.
    Refused(String),
    /// No answer in time, or no connection, in words for a person.
    Unreachable(String),
}

/// A node's health: it changes only after enough results in a row, except that the very first result counts at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    verdict: Verdict,
    /// Results in a row that speak against the verdict.
    against: u32,
    why: String,
}

/// What is believed of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Verdict {
    /// No check has ended yet.
    #[default]
    Unknown,
    /// It passes its checks.
    Up,
    /// It answers, but with a refusal: its flows may go on.
    Refusing,
    /// It does not answer: its flows are lost.
    Unreachable,
}

impl Health {
    /// Of something that is believed to be well until enough results in a row say otherwise, the first ones included.
    pub fn presumed_up() -> Self {
        Self { verdict: Verdict::Up, ..Self::default() }
    }

    /// Takes a check's result; says whether the verdict changed.
    pub fn observe(&mut self, result: CheckResult, rise: u32, fall: u32) -> bool {
        let (found, why, needed) = match result {
            CheckResult::Passed => (Verdict::Up, String::new(), rise),
            CheckResult::Refused(why) => (Verdict::Refusing, why, fall),
            CheckResult::Unreachable(why) => (Verdict::Unreachable, why, fall),
        };
        if found == self.verdict {
            self.against = 0;
            self.why = why;
            return false;
        }
        let already_down = matches!(self.verdict, Verdict::Refusing | Verdict::Unreachable);
        if already_down && found != Verdict::Up {
            // From one kind of down to the other: nothing to wait for.
            *self = Self { verdict: found, against: 0, why };
            return true;
        }
        self.against += 1;
        let changes = self.verdict == Verdict::Unknown || self.against >= needed;
        if changes {
            *self = Self { verdict: found, against: 0, why };
        }
        changes
    }

    /// What is believed now.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Why it is down, in words for a person; empty while it is up.
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// When the next check starts, counted from this one's start: the interval ± 10 %, so that many balancers do not check in step.
/// `random` is uniform in 0..=65535.
pub fn next_check_in_ms(interval_ms: u64, random: u16) -> u64 {
    let spread = interval_ms / 5;
    interval_ms - spread / 2 + spread * u64::from(random) / u64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn down() -> CheckResult {
        CheckResult::Unreachable("no answer within 1200 ms".into())
    }

    #[test]
    fn the_first_result_counts_at_once_and_later_ones_need_company() {
        let mut health = Health::default();
        assert!(health.observe(CheckResult::Passed, 2, 2));
        assert!(!health.observe(down(), 2, 2));
        assert!(!health.observe(CheckResult::Passed, 2, 2));
        assert!(!health.observe(down(), 2, 2), "the failures must be in a row");
        assert!(health.observe(down(), 2, 2));
        assert_eq!((health.verdict(), health.why()), (Verdict::Unreachable, "no answer within 1200 ms"));
        assert!(!health.observe(CheckResult::Passed, 2, 2));
        assert!(health.observe(CheckResult::Passed, 2, 2));
        assert_eq!((health.verdict(), health.why()), (Verdict::Up, ""));
    }

    #[test]
    fn failures_of_both_kinds_count_together() {
        let mut health = Health::default();
        health.observe(CheckResult::Passed, 2, 2);
        assert!(!health.observe(CheckResult::Refused("the share is absent".into()), 2, 2));
        assert!(health.observe(down(), 2, 2));
        assert!(health.observe(CheckResult::Refused("the share is absent".into()), 2, 2), "the kind follows at once");
        assert_eq!(health.verdict(), Verdict::Refusing);
    }

    #[test]
    fn what_is_presumed_well_needs_company_to_be_down_at_the_start_too() {
        let mut health = Health::presumed_up();
        assert!(!health.observe(down(), 2, 2));
        assert_eq!(health.verdict(), Verdict::Up);
        assert!(health.observe(down(), 2, 2));
    }

    proptest! {
        #[test]
        fn a_verdict_agrees_with_the_last_results(
            results in prop::collection::vec(any::<bool>(), 1..60), rise in 1u32..5, fall in 1u32..5,
        ) {
            let mut health = Health::default();
            for passed in &results {
                health.observe(if *passed { CheckResult::Passed } else { down() }, rise, fall);
            }
            let last = *results.last().unwrap_or(&true);
            let run = results.iter().rev().take_while(|passed| **passed == last).count() as u32;
            if run >= if last { rise } else { fall } {
                prop_assert_eq!(health.verdict() == Verdict::Up, last);
            }
        }

        #[test]
        fn checks_stay_within_a_tenth_of_their_interval(interval in 50u64..60_000, random: u16) {
            let next = next_check_in_ms(interval, random);
            prop_assert!(next * 10 >= interval * 9 && next * 10 <= interval * 11, "{} of {}", next, interval);
        }
    }
}
