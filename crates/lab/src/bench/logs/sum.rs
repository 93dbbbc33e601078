//! Whether two outputs have the same lines, each as often, without keeping them: a sum over all lines, in whatever order they come.

use std::io::BufRead;

use anyhow::{Context, Result, ensure};

/// What a set of lines comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many there are.
    pub lines: u64,
    /// Their hashes together.
    hash: u64,
}

/// What was found of the order of lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    last_us: u64,
    /// Lines that came after one of a later microsecond.
    pub behind: u64,
    /// Lines that came after one of a later second.
    pub behind_second: u64,
}

impl Sum {
    /// Counts a line, which `parts` make up.
    pub fn add(&mut self, parts: &[&[u8]]) {
        let mut hasher = Hasher::default();
        parts.iter().for_each(|part| hasher.take(part));
        self.lines += 1;
        self.hash = self.hash.wrapping_add(hasher.finish());
    }
}

impl Order {
    /// Looks at the next line's time, `SECONDS.MICROSECONDS`.
    pub fn see(&mut self, time: &[u8]) -> Result<()> {
        let us = micros(time).with_context(|| format!("not a time: {:?}", String::from_utf8_lossy(time)))?;
        self.behind += u64::from(us < self.last_us);
        self.behind_second += u64::from(us / 1_000_000 < self.last_us / 1_000_000);
        self.last_us = self.last_us.max(us);
        Ok(())
    }
}

fn micros(time: &[u8]) -> Option<u64> {
    let (seconds, micros) = std::str::from_utf8(time).ok()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
}

/// Reads segments' lines as they are, `TIME SITE SENT RECEIVED REST`, passing over notes.
pub fn plain(mut from: impl BufRead, sum: &mut Sum, order: &mut Order) -> Result<()> {
    each(&mut from, |line| {
        if line.starts_with(b"#") {
            return Ok(());
        }
        let mut words = line.splitn(5, |byte| *byte == b' ');
        let (Some(time), Some(site), Some(_), Some(_), Some(rest)) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            anyhow::bail!("not a line: {:?}", String::from_utf8_lossy(line));
        };
        order.see(time)?;
        sum.add(&[site, rest]);
        Ok(())
    })
}

/// Reads a part of a site's merged log, `… TIME NODE SEGMENT OFFSET`; it must have lines alone.
pub fn merged(mut from: impl BufRead, site: &str, sum: &mut Sum, order: &mut Order) -> Result<()> {
    each(&mut from, |line| {
        ensure!(!line.starts_with(b"#"), "a note in the log of {site}: {:?}", String::from_utf8_lossy(line));
        let time = line.rsplitn(5, |byte| *byte == b' ').nth(3).context("a line without a time")?;
        order.see(time)?;
        let spaces = line.iter().enumerate().rev().filter(|(_, byte)| **byte == b' ');
        let (place, _) = spaces.take(2).last().context("a line without a place")?;
        sum.add(&[site.as_bytes(), &line[..place], &line[place..]]);
        Ok(())
    })
}

fn each(from: &mut impl BufRead, mut look: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        look(line.strip_suffix(b"\n").context("the last line has no end")?)?;
        line.clear();
    }
    Ok(())
}

/// Good enough to tell honest mistakes, and eight bytes at a time.
#[derive(Default)]
struct Hasher(u64);

impl Hasher {
    fn take(&mut self, part: &[u8]) {
        for piece in part.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            self.word(u64::from_le_bytes(bytes));
        }
        self.word(part.len() as u64);
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_lines_are_the_same_in_any_order_and_no_others() {
        let text = |lines: &[&str]| {
            let (mut sum, mut order) = (Sum::default(), Order::default());
            plain(lines.join("\n").as_bytes(), &mut sum, &mut order).map(|()| (sum, order.behind))
        };
        let (one, two) = ("1.000001 a.org 5 6 text one", "1.000002 b.org 5 6 text two");
        let (sum, behind) = text(&["# note", one, two, ""]).unwrap();
        assert_eq!((sum.lines, behind), (2, 0));
        assert_eq!(text(&[two, one, ""]).unwrap(), (sum, 1));
        for other in [&[one, ""][..], &[one, one, ""], &[one, &two.replace("two", "tvo"), ""], &[one, two, two, ""]] {
            assert_ne!(text(other).unwrap().0, sum, "{other:?}");
        }
        assert!(text(&[one, two]).is_err(), "the last line is torn");
    }

    #[test]
    fn a_merged_line_is_known_by_its_place() {
        let mut whole = Sum::default();
        whole.add(&[b"a.org", b"text 1.000001 web1", b" boot-1 77"]);
        let (mut sum, mut order) = (Sum::default(), Order::default());
        merged(&b"text 1.000001 web1 boot-1 77\n"[..], "a.org", &mut sum, &mut order).unwrap();
        assert_eq!(sum, whole);
        assert!(merged(&b"# gap\n"[..], "a.org", &mut sum, &mut order).is_err());
    }
}
