//! One input of a batch, line by line.

use super::{Input, Medium};
use crate::logs::line::{self, Counts, LEN_MAX};
use crate::logs::segment::END;
use std::ops::Range;

/// So much of a segment is read at once: little enough for those of a few nodes to be in the processor's cache until their lines are taken.
const CHUNK_LEN: usize = 64 * 1024;

/// One input, with its next line at hand.
pub(super) struct Source<'i> {
    input: &'i Input,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins, and the same in the segment.
    start: usize,
    offset: u64,
    pub head: Head,
    ended: bool,
    /// What tells its lines from others, but for the offset.
    identity: Vec<u8>,
}

/// A line that was looked at; ranges are relative to its beginning.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub at_us: u64,
    /// With its end.
    pub len: usize,
    pub counts: Counts,
    site: Range<usize>,
    pub sent: u64,
    pub received: u64,
    merged: Range<usize>,
}

impl<'i> Source<'i> {
    pub fn new(input: &'i Input) -> Self {
        let identity = format!(" {} ", input.segment.stem()).into_bytes();
        Self { input, buffer: Vec::new(), start: 0, offset: input.from, head: Head::default(), ended: false, identity }
    }

    /// Finds the next line of a request; notes on the way go to `notes`. False at the end of what there is.
    pub fn advance<M: Medium>(&mut self, medium: &mut M, notes: &mut Vec<u8>) -> Result<bool, M::Error> {
        let mut looked_at = 0;
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(found) = memchr::memchr(b'\n', &rest[looked_at..]) {
                let len = looked_at + found + 1;
                if let Some(head) = head_of(&rest[..len - 1]) {
                    self.head = head;
                    self.ended = false;
                    return Ok(true);
                }
                self.note(len, notes);
                looked_at = 0;
                continue;
            }
            let (rest_len, end) = (rest.len(), self.offset + rest.len() as u64);
            if rest_len >= LEN_MAX || (end >= self.input.until && self.input.is_closed && rest_len > 0) {
                self.note(rest_len, notes);
                looked_at = 0;
                continue;
            }
            if end >= self.input.until {
                return Ok(false);
            }
            looked_at = rest_len;
            self.buffer.drain(..self.start);
            self.start = 0;
            let wanted = usize::try_from(self.input.until - end).unwrap_or(usize::MAX).min(CHUNK_LEN);
            medium.read(self.input, end, wanted, &mut self.buffer)?;
            if self.buffer.len() <= looked_at {
                return Ok(false);
            }
        }
    }

    /// Whose it is.
    pub fn input(&self) -> &'i Input {
        self.input
    }

    /// Where the next line stands in the segment.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the last line was the one that ends a segment.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The site of the line at hand.
    pub fn site(&self) -> &[u8] {
        &self.buffer[self.start..][self.head.site.clone()]
    }

    /// Appends what the site's log gets of the line at hand.
    pub fn append_to(&self, text: &mut Vec<u8>) {
        let merged = &self.buffer[self.start..][self.head.merged.clone()];
        text.reserve(merged.len() + self.identity.len() + NUMBER_LEN_MAX + 1);
        text.extend_from_slice(merged);
        text.extend_from_slice(&self.identity);
        push_number(text, self.offset);
        text.push(b'\n');
    }

    /// Goes on to the next line.
    pub fn pass(&mut self) {
        self.start += self.head.len;
        self.offset += self.head.len as u64;
    }

    /// Notes what is no line of a request, and goes on.
    fn note(&mut self, len: usize, notes: &mut Vec<u8>) {
        const SHOWN_MAX: usize = 200;
        let bytes = &self.buffer[self.start..][..len];
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        self.ended = text == END.as_bytes();
        if !self.ended && !text.starts_with(b"# segment ") {
            let what = if text.starts_with(b"#") { "" } else { "not a line: " };
            let shown: String =
                text.iter().take(SHOWN_MAX).flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
            let Input { node, segment, .. } = self.input;
            let note = format!("# {node} {} {}: {what}{shown}\n", segment.stem(), self.offset);
            notes.extend_from_slice(note.as_bytes());
        }
        self.start += len;
        self.offset += len as u64;
    }
}

#[inline]
fn head_of(line: &[u8]) -> Option<Head> {
    let found = line::parse(line)?;
    Some(Head {
        at_us: found.at_us,
        len: line.len() + 1,
        counts: found.counts,
        site: found.site_from..found.site_from + found.site.len(),
        sent: found.sent,
        received: found.received,
        merged: line.len() - found.merged.len()..line.len(),
    })
}

/// The digits of the highest number.
const NUMBER_LEN_MAX: usize = 20;

fn push_number(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; NUMBER_LEN_MAX];
    let mut at = digits.len();
    while number >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    if number > 0 || at == digits.len() {
        at -= 1;
        digits[at] = b'0' + number as u8;
    }
    text.extend_from_slice(&digits[at..]);
}

/// The digits of the numbers below 100.
const PAIRS: [[u8; 2]; 100] = {
    let (mut pairs, mut number) = ([[0; 2]; 100], 0);
    while number < 100 {
        pairs[number] = [b'0' + number as u8 / 10, b'0' + number as u8 % 10];
        number += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_digits() {
        for number in [0, 1, 9, 10, 11, 99, 100, 101, 999, 1_000, 1_234_567, u64::MAX - 1, u64::MAX] {
            let mut text = Vec::new();
            push_number(&mut text, number);
            assert_eq!(text, number.to_string().into_bytes());
        }
    }
}
