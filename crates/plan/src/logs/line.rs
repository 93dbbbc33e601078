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
pub fn time(line: &[u8]) -> Option<(u64, usize)> {
    let (seconds, rest) = number(line, b'.')?;
    let decimals = line.get(rest..rest + 7)?;
    let micros = decimals[..6].iter().try_fold(0_u64, |sum, digit| Some(sum * 10 + u64::from(digit_of(*digit)?)))?;
    (decimals[6] == b' ').then_some((seconds.checked_mul(1_000_000)?.checked_add(micros)?, rest + 7))
}

/// Takes a line apart; `line` is without its end. None where it is not one that a proxy writes.
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
fn number(bytes: &[u8], end: u8) -> Option<(u64, usize)> {
    let mut sum = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(21) {
        if *byte == end {
            return (index > 0).then_some((sum, index + 1));
        }
        sum = sum.checked_mul(10)?.checked_add(u64::from(digit_of(*byte)?))?;
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
        #[test]
        fn any_bytes_are_a_line_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(line) = parse(&bytes) {
                prop_assert_eq!(time(&bytes).map(|(at, _)| at), Some(line.at_us));
            }
        }
    }
}
