//! A line of a segment.
//!
//! It is `TIME SUBJECT SENT RECEIVED MERGED`: the time of completion in seconds since 1970 with six decimals, whose it is and what it counts for ([`Counts`]), bytes sent and
//! received, and then what the site's own log gets of it, as it is. That part begins in the combined format
//! (`CLIENT - - [DATE] "REQUEST" STATUS SENT "REFERER" "USER AGENT"`) and goes on with bytes received, duration in microseconds, time and
//! node. So merging need not look into what clients wrote, and copies rather than formats.
//!
//! A line that begins with `#` is a note of the proxy's.

/// The longest line that is looked for: a head may have 32 KiB, each byte of which becomes four characters at most.
pub const LEN_MAX: usize = 256 * 1024;

/// What a line counts for, besides its bytes: the subject is the name of a site or a mail domain with a sign before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Counts {
    /// A request: no sign.
    #[default]
    Request,
    /// A message that a mailbox got or handed in: `@`. It goes to the cluster's log.
    Message,
    /// Nothing more than bytes between a mailbox and whoever reads it: `=`. It goes to the cluster's log.
    Bytes,
    /// Nothing at all: `!`.
    Nothing,
}

/// A line of a segment, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'l> {
    /// When the request was completed, in microseconds since 1970 by the node's clock.
    pub at_us: u64,
    /// What it counts for.
    pub counts: Counts,
    /// The site's or domain's name; `-` for none.
    pub site: &'l [u8],
    /// Where in the line that begins.
    pub site_from: usize,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// What the site's log gets, without the end of the line.
    pub merged: &'l [u8],
}

/// The time at the beginning of a line and how long it is, with the space after it. None where there is no time.
#[inline]
pub fn time(line: &[u8]) -> Option<(u64, usize)> {
    if let Some(at_us) = line.first_chunk().and_then(time_of_our_days) {
        return Some((at_us, TIME_LEN));
    }
    let (seconds, rest) = number(line, b'.')?;
    let decimals = line.get(rest..rest + 7)?;
    let micros = decimals[..6].iter().try_fold(0_u64, |sum, digit| Some(sum * 10 + u64::from(digit_of(*digit)?)))?;
    (decimals[6] == b' ').then_some((seconds.checked_mul(1_000_000)?.checked_add(micros)?, rest + 7))
}

/// How long a time is, with the space after it, between the years 2001 and 2286.
const TIME_LEN: usize = 18;

/// `SSSSSSSSSS.UUUUUU `, eight digits at a time: each line of each node goes through here.
#[inline]
fn time_of_our_days(head: &[u8; TIME_LEN]) -> Option<u64> {
    let [a, b, c, d, e, f, g, h, i, j, b'.', u, v, w, x, y, z, b' '] = *head else { return None };
    let seconds =
        eight_digits([a, b, c, d, e, f, g, h])? * 100 + u64::from(digit_of(i)?) * 10 + u64::from(digit_of(j)?);
    Some(seconds * 1_000_000 + eight_digits([b'0', b'0', u, v, w, x, y, z])?)
}

/// The number that eight digits are, in three multiplications. After Daniel Lemire, "Quickly parsing eight digits".
#[inline]
fn eight_digits(digits: [u8; 8]) -> Option<u64> {
    const HIGH: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    const DIGITS: u64 = 0x3030_3030_3030_3030;
    let bytes = u64::from_le_bytes(digits);
    // All have the high half of a digit, also once 6 is added, which takes those above `9` into the next one.
    if (bytes & HIGH) | ((bytes.wrapping_add(0x0606_0606_0606_0606) & HIGH) >> 4) != DIGITS | DIGITS >> 4 {
        return None;
    }
    let pairs = (bytes & 0x0F0F_0F0F_0F0F_0F0F).wrapping_mul(2_561) >> 8;
    let fours = (pairs & 0x00FF_00FF_00FF_00FF).wrapping_mul(6_553_601) >> 16;
    Some((fours & 0x0000_FFFF_0000_FFFF).wrapping_mul(42_949_672_960_001) >> 32)
}

/// Takes a line apart; `line` is without its end. None where it is not one that a proxy writes.
#[inline]
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (at_us, site_from) = time(line)?;
    let line = &line[site_from..];
    let (counts, sign_len) = match line.first()? {
        b'@' => (Counts::Message, 1),
        b'=' => (Counts::Bytes, 1),
        b'!' => (Counts::Nothing, 1),
        _ => (Counts::Request, 0),
    };
    let (line, site_from) = (&line[sign_len..], site_from + sign_len);
    let site_len = memchr::memchr(b' ', line).filter(|len| (1..=253).contains(len))?;
    let (site, line) = (&line[..site_len], &line[site_len + 1..]);
    let (sent, rest) = number(line, b' ')?;
    let line = &line[rest..];
    let (received, rest) = number(line, b' ')?;
    Some(Line { at_us, counts, site, site_from, sent, received, merged: &line[rest..] })
}

/// Digits up to `end`: the number and how many bytes both take.
#[inline]
fn number(bytes: &[u8], end: u8) -> Option<(u64, usize)> {
    // So many digits fit whatever they are.
    const SURE: usize = 19;
    let mut sum = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(SURE + 2) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (*byte == end && index > 0).then_some((sum, index + 1));
        }
        sum = match index < SURE {
            true => sum * 10 + u64::from(digit),
            false => sum.checked_mul(10)?.checked_add(u64::from(digit))?,
        };
    }
    None
}

fn digit_of(byte: u8) -> Option<u8> {
    byte.is_ascii_digit().then(|| byte - b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = b"1700000000.000042 www.example.org 512 80 198.51.100.7 - - [x] \"GET / HTTP/1.1\" 200";
        let found = parse(line).unwrap();
        assert_eq!((found.at_us, found.sent, found.received), (1_700_000_000_000_042, 512, 80));
        assert_eq!(found.site, b"www.example.org");
        assert!(found.merged.starts_with(b"198.51.100.7 - - ["));
        let line = b"1700000000.000042 @example.org 0 80 x";
        let found = parse(line).unwrap();
        assert_eq!(
            (found.counts, found.site, found.merged),
            (Counts::Message, b"example.org".as_slice(), b"x".as_slice())
        );
        assert_eq!(&line[found.site_from..][..11], b"example.org");
        for bad in [
            "1700000000.000042 @ 1 1 x",
            "",
            "#",
            "1700000000 a 1 1 x",
            "1700000000.00004 a 1 1 x",
            "1700000000.0000421 a 1 1 x",
            "x.000042 a 1 1 x",
            "1700000000.000042  1 1 x",
            "1700000000.00004: a 1 1 x",
            "17000000/0.000042 a 1 1 x",
            "170000000:.000042 a 1 1 x",
            "1700000000.000042 a 18446744073709551616 1 x",
            "1700000000.000042 a -1 1 x",
            "1700000000.000042 a 1 ",
            "99999999999999999999999.000042 a 1 1 x",
            "1700000000.000042 a 99999999999999999999 1 x",
            "\0\0\0\0",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        /// Short ones and long ones are as those of ten digits.
        #[test]
        fn a_time_is_what_was_written(seconds in prop_oneof![0..100_u64, 0..20_000_000_000_u64], micros in 0..1_000_000_u64) {
            let text = format!("{seconds}.{micros:06} x");
            prop_assert_eq!(time(text.as_bytes()), Some((seconds * 1_000_000 + micros, text.len() - 1)));
            let with_letter: String = text.replacen(|c: char| c.is_ascii_digit(), "x", 1);
            prop_assert_eq!(time(with_letter.as_bytes()), None);
        }

        #[test]
        fn any_bytes_are_a_line_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(line) = parse(&bytes) {
                prop_assert_eq!(time(&bytes).map(|(at, _)| at), Some(line.at_us));
            }
        }
    }
}
