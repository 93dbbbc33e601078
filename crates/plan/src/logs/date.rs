//! Dates of the civil calendar, in UTC, as logs write them.

use std::fmt::Write as _;

const DAY_S: u64 = 86_400;

/// A day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

impl Day {
    /// The day of a time in microseconds since 1970.
    pub fn of_us(unix_us: u64) -> Self {
        Self(u32::try_from(unix_us / 1_000_000 / DAY_S).unwrap_or(u32::MAX))
    }

    /// Year, month and day of the month. After Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    pub fn civil(self) -> (u32, u32, u32) {
        let shifted = u64::from(self.0) + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        (year as u32, month as u32, day as u32)
    }

    /// As `20261128`.
    pub fn digits(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}{month:02}{day:02}")
    }

    /// As `2026-11-28`.
    pub fn iso(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}-{month:02}-{day:02}")
    }
}

/// Appends a time as the Common Log Format has it: `28/Nov/2026:12:24:14 +0000`.
pub fn write_clf(text: &mut String, unix_s: u64) {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = Day::of_us(unix_s.saturating_mul(1_000_000)).civil();
    let (hour, minute, second) = (unix_s / 3_600 % 24, unix_s / 60 % 60, unix_s % 60);
    let month = MONTHS[(month as usize - 1) % 12];
    write!(text, "{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
        .expect("a String takes all that is written");
}

/// A time as RFC 3339 has it, with microseconds.
pub fn rfc3339(unix_us: u64) -> String {
    let seconds = unix_us / 1_000_000;
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}.{:06}Z", Day::of_us(unix_us).iso(), unix_us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // What `date -u -d @N` says.
        for (unix_s, clf, iso) in [
            (0, "01/Jan/1970:00:00:00 +0000", "1970-01-01"),
            (951_782_399, "28/Feb/2000:23:59:59 +0000", "2000-02-28"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000", "2000-02-29"),
            (1_700_000_000, "14/Nov/2023:22:13:20 +0000", "2023-11-14"),
            (4_107_542_399, "28/Feb/2100:23:59:59 +0000", "2100-02-28"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000", "2100-03-01"),
        ] {
            let mut text = String::new();
            write_clf(&mut text, unix_s);
            assert_eq!((text.as_str(), Day::of_us(unix_s * 1_000_000).iso().as_str()), (clf, iso));
        }
        assert_eq!(rfc3339(1_700_000_000_000_042), "2023-11-14T22:13:20.000042Z");
    }
}
