//! From what daemons write to their own files, or to the machine's journal, to a segment, so that each line is in a segment once, whenever the
//! process ends.
//!
//! Before anything is written to a segment, an [`Intent`] is made to last: the bytes, their place, and where sources were read up to. Whoever finds
//! one writes it, again or for the first time: the same bytes at the same place. Sources are not asked again; they may have changed by then.
//!
//! Deliberately absent: what lines mean, which is the reader's of each source ([`Take`]).

use super::date::rfc3339;
use super::segment::SegmentName;
use phalanx_model::Name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

/// A source is read in parts of so many bytes at most.
pub const PART_LEN_MAX: u64 = 1 << 20;
/// A segment that is so long is closed.
pub const SEGMENT_LEN_MAX: u64 = 64 << 20;
/// A line is cut after so many bytes.
const TEXT_LEN_MAX: usize = 16 << 10;

/// Where a source was read up to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// Nowhere yet.
    #[default]
    Start,
    /// In a file. One that is moved aside and made anew is another file.
    File {
        /// Which.
        id: u64,
        /// So many bytes of it.
        offset: u64,
    },
    /// In the machine's journal, after the entry with this cursor.
    Entry {
        /// As journalctl(1) writes it.
        cursor: String,
    },
}

/// What is about to be written, and by that where a collector is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The segment.
    pub segment: SegmentName,
    /// Its length before.
    pub base: u64,
    /// What is written there.
    pub bytes: String,
    /// The time of its last line after that.
    pub last_us: u64,
    /// Where sources were read up to, by name.
    pub at: BTreeMap<String, At>,
    /// What the reader of lines remembers.
    pub memory: Memory,
}

/// Messages whose size is not known yet, by queue id: the domain that hands them in. The oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory(VecDeque<(String, String)>);

impl Memory {
    /// More than ever wait between two lines of one message.
    const LEN_MAX: usize = 10_000;

    /// Remembers a message of a domain.
    pub fn begin(&mut self, queue_id: &str, domain: &str) {
        if self.0.len() >= Self::LEN_MAX {
            self.0.pop_front();
        }
        self.0.push_back((queue_id.to_owned(), domain.to_owned()));
    }

    /// Takes out whose message that is.
    pub fn end(&mut self, queue_id: &str) -> Option<String> {
        let at = self.0.iter().position(|(id, _)| id == queue_id)?;
        self.0.remove(at).map(|(_, domain)| domain)
    }
}

/// What a reader makes of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Take {
    /// When it was written, in microseconds since 1970; none where the line does not say.
    pub at_us: Option<u64>,
    /// Whose it is and what it counts for, as [`super::line`] has it; empty for nobody's.
    pub subject: String,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// What the log gets.
    pub text: String,
}

/// Reads a line of a source, without its end.
pub trait Reader {
    /// What it is; none where it is not worth a place.
    fn take(&self, source: &str, line: &str, now_us: u64, memory: &mut Memory) -> Option<Take>;
}

/// What is new in a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Where it ends.
    pub to: At,
    /// Whole lines.
    pub text: Vec<u8>,
    /// A file was lost before it was read to its end: lines are missing before these.
    pub is_after_loss: bool,
}

impl Intent {
    /// Where a collector begins: a segment without a byte.
    pub fn first(segment: SegmentName) -> Self {
        let (at, memory) = (BTreeMap::new(), Memory::default());
        Self { segment, base: 0, bytes: String::new(), last_us: 0, at, memory }
    }

    /// The segment's length once it is written.
    pub fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Goes on in another segment. What was once said to be later than now is not believed any longer.
    #[must_use]
    pub fn in_segment(self, segment: SegmentName, now_us: u64) -> Self {
        Self { segment, base: 0, bytes: String::new(), last_us: self.last_us.min(now_us), ..self }
    }

    /// What is written next, once this is.
    #[must_use]
    pub fn next(&self, node: &Name, reader: &impl Reader, parts: BTreeMap<String, Part>, now_us: u64) -> Self {
        let mut next = Self { base: self.end(), bytes: String::new(), ..self.clone() };
        if next.base == 0 {
            next.bytes = format!("# segment {} of {node}, begun {}\n", self.segment.stem(), rfc3339(now_us));
        }
        let mut takes = Vec::new();
        for (source, Part { to, text, is_after_loss }) in parts {
            if is_after_loss {
                let note = format!("# {source} was replaced before it was read to its end; lines of it are missing\n");
                next.bytes.push_str(&note);
            }
            let mut at_us = 0;
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line = String::from_utf8_lossy(line);
                let Some(take) = reader.take(&source, &line, now_us, &mut next.memory) else { continue };
                // A source's lines stay in their order, and none is waited for that says it is of the future.
                at_us = take.at_us.unwrap_or(0).min(now_us).max(at_us);
                takes.push((at_us, take));
            }
            next.at.insert(source, to);
        }
        takes.sort_by_key(|(at_us, _)| *at_us);
        for (at_us, take) in takes {
            // A segment's lines are in order.
            next.last_us = next.last_us.max(at_us);
            push(&mut next.bytes, node, next.last_us, &take);
        }
        next
    }
}

fn push(bytes: &mut String, node: &Name, at_us: u64, take: &Take) {
    let Take { at_us: said_us, subject, sent, received, text } = take;
    let subject = if subject.is_empty() { "-" } else { subject };
    let said = rfc3339(said_us.unwrap_or(at_us));
    let (seconds, micros) = (at_us / 1_000_000, at_us % 1_000_000);
    write!(bytes, "{seconds}.{micros:06} {subject} {sent} {received} {said} {node} ")
        .expect("a String takes everything");
    let end = (0..=text.len().min(TEXT_LEN_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    bytes.extend(text[..end].chars().map(|c| if c.is_control() { '?' } else { c }));
    bytes.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::line;
    use super::*;
    use proptest::prelude::*;

    /// Lines are `SECONDS TEXT`.
    struct Plain;

    impl Reader for Plain {
        fn take(&self, source: &str, line: &str, _: u64, _: &mut Memory) -> Option<Take> {
            let (at, text) = line.split_once(' ').unwrap_or(("", line));
            let at_us = at.parse::<u64>().ok().map(|at| at * 1_000_000);
            Some(Take { at_us, text: format!("{source}: {text}"), ..Take::default() })
        }
    }

    fn intent(base: u64, last_us: u64) -> Intent {
        let segment = format!("{:032x}-1.log", 7).parse().unwrap();
        Intent { base, last_us, ..Intent::first(segment) }
    }

    fn next(intent: &Intent, texts: &[(&str, &[u8])]) -> Intent {
        let part = |text: &[u8]| Part { text: text.to_vec(), ..Part::default() };
        let parts = texts.iter().map(|(source, text)| ((*source).to_owned(), part(text))).collect();
        intent.next(&"mail1".parse().unwrap(), &Plain, parts, 9_000_000)
    }

    #[test]
    fn lines_of_several_sources_are_in_order() {
        let texts = [("a", &b"1 early\n3 three\n"[..]), ("b", &b"2 two\nodd\n\x07 bell\n99 later than now\n"[..])];
        let written = next(&intent(5, 2_000_000), &texts);
        let expected = "2.000000 - 0 0 1970-01-01T00:00:01.000000Z mail1 a: early\n\
                        2.000000 - 0 0 1970-01-01T00:00:02.000000Z mail1 b: two\n\
                        2.000000 - 0 0 1970-01-01T00:00:02.000000Z mail1 b: odd\n\
                        2.000000 - 0 0 1970-01-01T00:00:02.000000Z mail1 b: bell\n\
                        3.000000 - 0 0 1970-01-01T00:00:03.000000Z mail1 a: three\n\
                        9.000000 - 0 0 1970-01-01T00:01:39.000000Z mail1 b: later than now\n";
        assert_eq!(written.bytes, expected);
        assert_eq!((written.base, written.end(), written.last_us), (5, 5 + expected.len() as u64, 9_000_000));
    }

    #[test]
    fn a_segment_begins_with_its_name_and_says_what_is_missing() {
        let part = Part { text: b"1 x\n".to_vec(), is_after_loss: true, ..Part::default() };
        let written = intent(0, 0).next(&"mail1".parse().unwrap(), &Plain, [("a".to_owned(), part)].into(), 9_000_000);
        let begin = "# segment 00000000000000000000000000000007-1 of mail1, begun 1970-01-01T00:00:09";
        assert!(written.bytes.starts_with(begin));
        assert!(written.bytes.contains("\n# a was replaced before it was read to its end"));
        let later = written.clone().in_segment(written.segment.next(), 5);
        assert_eq!((later.end(), later.last_us, &later.at), (0, 5, &written.at));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        for number in 0..=Memory::LEN_MAX {
            memory.begin(&number.to_string(), "example.org");
        }
        assert_eq!((memory.end("0"), memory.end("1")), (None, Some("example.org".to_owned())));
        assert_eq!(memory.end("1"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_become_lines_of_a_segment(bytes in prop::collection::vec(any::<u8>(), 0..200), base in 1_u64..9) {
            let written = next(&intent(base, 0), &[("a", &bytes)]);
            let mut last = 0;
            for line in written.bytes.split_inclusive('\n') {
                let found = line::parse(line.strip_suffix('\n').expect("whole lines").as_bytes()).expect("a line");
                prop_assert!(found.at_us >= last);
                last = found.at_us;
            }
        }
    }
}
