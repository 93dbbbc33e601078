//! When a merged log is moved aside, under which name, and which of those that were go.
//!
//! `access.log` becomes `access.log-20261128`, by the day of its last line, before the first line of a later day is written, or when it has
//! [`LEN_MAX`]; `access.log-20261128.2` is the second one of a day.

use super::date::Day;

/// The log's name.
pub const NAME: &str = "access.log";
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

/// The name that it gets; `others` are those in its directory.
pub fn name(seen: Seen, others: &[String]) -> String {
    let first = format!("{NAME}-{}", Day::of_us(seen.written_us).digits());
    // One more than there are names, so that one is free.
    let later = (2..others.len() + 3).map(|number| format!("{first}.{number}"));
    std::iter::once(first.clone()).chain(later).find(|name| !others.contains(name)).unwrap_or(first)
}

/// Which of `others` go, once one more was moved aside.
pub fn outdated(others: &[String]) -> Vec<String> {
    let key = |name: &String| {
        let rest = name.strip_prefix(NAME)?.strip_prefix('-')?;
        let (day, number) = rest.split_once('.').unwrap_or((rest, "1"));
        let is_day = day.len() == 8 && day.bytes().all(|digit| digit.is_ascii_digit());
        is_day.then_some(())?;
        Some((day.to_owned(), number.parse::<u32>().ok()?, name.clone()))
    };
    let mut ours: Vec<_> = others.iter().filter_map(key).collect();
    ours.sort();
    let gone = ours.len().saturating_sub(KEPT_MAX - 1);
    ours.into_iter().take(gone).map(|(_, _, name)| name).collect()
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
        assert_eq!(name(seen, &[]), "access.log-19700101");
        let taken = ["access.log-19700101".to_owned(), "access.log-19700101.2".to_owned(), "x".to_owned()];
        assert_eq!(name(seen, &taken), "access.log-19700101.3");
        let mut all: Vec<String> = (1..=40).map(|day| format!("access.log-{}", Day(day).digits())).collect();
        all.extend(["access.log".to_owned(), "access.log-mine".to_owned(), "access.log-19700102.10".to_owned()]);
        let gone = outdated(&all);
        assert_eq!(gone.len(), 11);
        assert_eq!(&gone[..2], ["access.log-19700102", "access.log-19700102.10"]);
        assert!(outdated(&taken).is_empty());
    }
}
