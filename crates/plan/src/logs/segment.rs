//! Segments: the files that a node's proxy writes its lines into.
//!
//! A new one is begun at each start of the proxy and when one is large or old. It is named `BOOT-NUMBER.log`, begins with a line that says
//! whose it is and when it was begun, and ends with [`END`] when it was closed; one without was cut off, and lines that the proxy had not
//! written yet are lost.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The last line of a segment that was closed.
pub const END: &str = "# end";

/// A segment's name. Those of one boot are ordered by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SegmentName {
    /// The boot's id, without hyphens.
    boot: String,
    /// Counts from 1 within the boot.
    number: u64,
}

impl SegmentName {
    /// The first segment of a boot, whose id is as the kernel writes it.
    pub fn first(boot_id: &str) -> Option<Self> {
        let boot: String = boot_id.trim().chars().filter(|c| *c != '-').collect();
        format!("{boot}-1.log").parse().ok()
    }

    /// The one after it in the same boot.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { boot: self.boot.clone(), number: self.number + 1 }
    }

    /// Whether `other` is of the same boot.
    pub fn is_of_boot_of(&self, other: &Self) -> bool {
        self.boot == other.boot
    }

    /// The boot's id, 32 hexadecimal digits.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Its number within the boot.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name without its ending, as a merged line has it.
    pub fn stem(&self) -> String {
        format!("{}-{}", self.boot, self.number)
    }
}

impl Ord for SegmentName {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.boot, self.number).cmp(&(&other.boot, other.number))
    }
}

impl PartialOrd for SegmentName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.log", self.boot, self.number)
    }
}

/// The text is no segment's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a segment")]
pub struct NotASegment;

impl FromStr for SegmentName {
    type Err = NotASegment;

    fn from_str(text: &str) -> Result<Self, NotASegment> {
        let (boot, number) = text.strip_suffix(".log").and_then(|stem| stem.split_once('-')).ok_or(NotASegment)?;
        let is_boot = boot.len() == 32 && boot.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let parsed: u64 = number.parse().map_err(|_| NotASegment)?;
        if is_boot && parsed > 0 && parsed.to_string() == number {
            Ok(Self { boot: boot.to_owned(), number: parsed })
        } else {
            Err(NotASegment)
        }
    }
}

impl serde::Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The first line of a segment, with its end.
pub fn header(node: &str, name: &SegmentName, begun_unix_us: u64) -> String {
    format!("# segment {name} of {node}, begun {}\n", super::date::rfc3339(begun_unix_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_known_by_its_name() {
        let first = SegmentName::first("9f1c2a00-0000-4000-8000-00000000000a\n").unwrap();
        assert_eq!(first.to_string(), "9f1c2a000000400080000000".to_owned() + "0000000a-1.log");
        assert!(first.next() > first && first.next().is_of_boot_of(&first));
        assert_eq!(first.next().to_string().parse(), Ok(first.next()));
        let ten = (0..9).fold(first.clone(), |name, _| name.next());
        assert!(ten > first.next(), "by number, not by digit");
        for bad in
            ["", "a-1.log", "../9f1c2a0000004000800000000000000a-1.log", "9f1c2a0000004000800000000000000a-01.log"]
        {
            assert_eq!(bad.parse::<SegmentName>(), Err(NotASegment), "{bad:?}");
        }
        assert_eq!(SegmentName::first("none"), None);
    }
}
