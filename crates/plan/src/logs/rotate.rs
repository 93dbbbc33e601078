//! When a merged log is moved aside, under which name, and which of those that were go.
//!
//! Log `access.log` becomes `access.log-20261128`, by the day of its last line, before the first line of a later day is written, or when it has
//! [`LEN_MAX`]; `access.log-20261128.2` is the second one of a day.

use super::date::Day;
use std::collections::HashSet;

/// A log so long is moved aside also within a day.
pub const LEN_MAX: u64 = 256 << 20;
/// So many that were moved aside are kept.
pub const KEPT_MAX: usize = 31;

/// What is found of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its length; 0 where there is none.
    pub len: u64,
    /// When it was last written to, in microseconds since 1970.
    pub written_us: u64,
}

/// Whether it is moved aside before more is written to it.
pub fn is_due(seen: Seen, now_us: u64) -> bool {
    seen.len > 0 && (seen.len >= LEN_MAX || Day::of_us(seen.written_us) < Day::of_us(now_us))
}

/// The name that the log called `log` gets; `others` are those in its directory.
pub fn name(log: &str, seen: Seen, others: &[String]) -> String {
    let first = format!("{log}-{}", Day::of_us(seen.written_us).digits());
    // One more than there are names, so that one is free.
    let later = (2..others.len() + 3).map(|number| format!("{first}.{number}"));
    let taken: HashSet<&str> = others.iter().map(String::as_str).collect();
    std::iter::once(first.clone()).chain(later).find(|name| !taken.contains(name.as_str())).unwrap_or(first)
}

/// Which of `others` go, once one more of the log called `log` was moved aside.
pub fn outdated(log: &str, others: &[String]) -> Vec<String> {
    let ours = aside(log, others);
    let gone = ours.len().saturating_sub(KEPT_MAX - 1);
    ours.into_iter().take(gone).map(|(_, _, name)| name).collect()
}

/// The log called `log` and those of the last `days` days that were moved aside, oldest first.
pub fn recent(log: &str, others: &[String], days: usize) -> Vec<String> {
    let ours = aside(log, others);
    let mut all_days: Vec<&String> = ours.iter().map(|(day, _, _)| day).collect();
    all_days.dedup();
    let first = all_days.len().saturating_sub(days);
    let wanted = &all_days[first..];
    let mut names: Vec<String> =
        ours.iter().filter(|(day, _, _)| wanted.contains(&day)).map(|(_, _, name)| name.clone()).collect();
    names.extend(others.iter().find(|name| *name == log).cloned());
    names
}

/// Those that were moved aside: day, number, name, in their order.
fn aside(log: &str, others: &[String]) -> Vec<(String, u32, String)> {
    let key = |name: &String| {
        let rest = name.strip_prefix(log)?.strip_prefix('-')?;
        let (day, number) = rest.split_once('.').unwrap_or((rest, "1"));
        let is_day = day.len() == 8 && day.bytes().all(|digit| digit.is_ascii_digit());
        is_day.then_some(())?;
        Some((day.to_owned(), number.parse::<u32>().ok()?, name.clone()))
    };
    let mut ours: Vec<_> = others.iter().filter_map(key).collect();
    ours.sort();
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: u64 = 86_400_000_000;

    #[test]
    fn a_log_is_of_one_day_and_of_a_size() {
        let seen = Seen { len: 10, written_us: 100 * DAY_US + 5 };
        assert!(!is_due(seen, 100 * DAY_US + 6) && is_due(seen, 101 * DAY_US));
        assert!(!is_due(Seen { len: 0, ..seen }, 101 * DAY_US));
        assert!(is_due(Seen { len: LEN_MAX, ..seen }, 100 * DAY_US + 6));
        assert!(!is_due(seen, 99 * DAY_US), "a clock that went back moves nothing");
    }

    #[test]
    fn a_name_is_free_and_the_oldest_go() {
        let seen = Seen { len: 10, written_us: 0 };
        assert_eq!(name("access.log", seen, &[]), "access.log-19700101");
        let taken = ["access.log-19700101".to_owned(), "access.log-19700101.2".to_owned(), "x".to_owned()];
        assert_eq!(name("access.log", seen, &taken), "access.log-19700101.3");
        let mut all: Vec<String> = (1..=40).map(|day| format!("access.log-{}", Day(day).digits())).collect();
        all.extend(["access.log".to_owned(), "access.log-mine".to_owned(), "access.log-19700102.10".to_owned()]);
        let gone = outdated("access.log", &all);
        assert_eq!(gone.len(), 11);
        assert_eq!(&gone[..2], ["access.log-19700102", "access.log-19700102.10"]);
        assert!(outdated("access.log", &taken).is_empty());
        assert_eq!(recent("access.log", &all, 1), ["access.log-19700210", "access.log"]);
        assert_eq!(recent("access.log", &all, 0), ["access.log"]);
        assert_eq!(recent("access.log", &taken, 7), &taken[..2]);
    }
}
