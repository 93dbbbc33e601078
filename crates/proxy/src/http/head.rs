//! What heads of requests and responses have in common: finding their end, their fields, and the framing they announce.

use super::HeadLimits;
use std::ops::Range;

/// How a message's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes; more than 0.
    Length(u64),
    /// Chunks (RFC 9112, 7.1).
    Chunked,
    /// All until the connection closes; only in responses.
    UntilClose,
}

/// A message's version. Others are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl Version {
    /// As a request line has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// What is wrong with a head's bytes before its fields are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadBytes {
    /// A line feed without a carriage return before it, or the other way round.
    BareLineEnd,
    /// It can't be the beginning of a message.
    NotHttp,
    /// It is longer than the limit; the first line alone, or all of it.
    TooLong {
        /// Whether not even the first line has ended.
        in_first_line: bool,
    },
}

/// Where the head at the front of `bytes` ends: the index after its empty line. None when more bytes are needed. `scanned` says how
/// many bytes were looked at before, and is moved on, so that a head that arrives byte by byte costs no more than its length.
pub fn find_end(bytes: &[u8], scanned: &mut usize, limits: HeadLimits) -> Result<Option<usize>, BadBytes> {
    if bytes.first().is_some_and(|first| !is_token_byte(*first)) {
        return Err(BadBytes::NotHttp);
    }
    while *scanned < bytes.len().min(limits.bytes_max) {
        let index = *scanned;
        *scanned += 1;
        match bytes[index] {
            b'\n' if index == 0 || bytes[index - 1] != b'\r' => return Err(BadBytes::BareLineEnd),
            b'\n' if bytes[..index].ends_with(b"\r\n\r") => return Ok(Some(index + 1)),
            b'\n' => {}
            _ if index > 0 && bytes[index - 1] == b'\r' => return Err(BadBytes::BareLineEnd),
            0 => return Err(BadBytes::NotHttp),
            _ => {}
        }
    }
    if bytes.len() >= limits.bytes_max {
        let in_first_line = !bytes[..limits.bytes_max].contains(&b'\n');
        return Err(BadBytes::TooLong { in_first_line });
    }
    Ok(None)
}

/// A head's fields over a copy of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    places: Vec<(Range<u32>, Range<u32>)>,
}

impl Fields {
    /// Copies what the parser found.
    pub fn copy(parsed: &[httparse::Header<'_>]) -> Self {
        let size = parsed.iter().map(|field| field.name.len() + field.value.len()).sum();
        let mut fields = Self { bytes: Vec::with_capacity(size), places: Vec::with_capacity(parsed.len()) };
        for field in parsed {
            let name = fields.store(field.name.as_bytes());
            let value = fields.store(trim(field.value));
            fields.places.push((name, value));
        }
        fields
    }

    /// All fields in their order: name as given, value without surrounding blanks.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.places.iter().map(|(name, value)| {
            let name = std::str::from_utf8(self.slice(name)).unwrap_or_default();
            (name, self.slice(value))
        })
    }

    /// The values of every field of this name, given in any case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = move |place: &Range<u32>| self.slice(place).eq_ignore_ascii_case(name.as_bytes());
        self.places.iter().filter(move |(found, _)| named(found)).map(|(_, value)| self.slice(value))
    }

    /// The members of a comma-separated list that may be spread over several fields (RFC 9110, 5.6.1), without empty ones.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(trim).filter(|member| !member.is_empty())
    }

    /// Whether a comma-separated list holds `member`, in any case.
    pub fn list_holds(&self, name: &str, member: &str) -> bool {
        self.list(name).any(|found| found.eq_ignore_ascii_case(member.as_bytes()))
    }

    fn store(&mut self, bytes: &[u8]) -> Range<u32> {
        // A head is at most 1 MiB, so that its places fit 32 bits.
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len() as u32
    }

    fn slice(&self, place: &Range<u32>) -> &[u8] {
        &self.bytes[place.start as usize..place.end as usize]
    }
}

/// Why a head's framing is refused. Each could be read in two ways, and so be used to smuggle a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFraming {
    /// Content-Length beside Transfer-Encoding.
    Both,
    /// More than one Content-Length, or one that is not a plain number.
    Length,
    /// A transfer coding other than a single `chunked`.
    Coding,
    /// Transfer-Encoding in HTTP/1.0.
    CodingInHttp10,
}

/// The framing that a head's fields announce; none where they announce nothing (RFC 9112, 6.3, more strictly).
pub fn announced_framing(fields: &Fields, version: Version) -> Result<Option<Framing>, BadFraming> {
    let mut lengths = fields.all("content-length");
    let mut codings = fields.all("transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(BadFraming::Both),
        (Some(length), None) => match (parse_length(length), lengths.next()) {
            (Some(0), None) => Ok(Some(Framing::Empty)),
            (Some(length), None) => Ok(Some(Framing::Length(length))),
            _ => Err(BadFraming::Length),
        },
        (None, Some(_)) if version == Version::Http10 => Err(BadFraming::CodingInHttp10),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
            Ok(Some(Framing::Chunked))
        }
        (None, Some(_)) => Err(BadFraming::Coding),
    }
}

/// Digits alone, and not so many that a sum could overflow.
fn parse_length(text: &[u8]) -> Option<u64> {
    let plain = (1..=18).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| plain)?;
    text.parse().ok()
}

/// Without blanks (space, tab) at both ends.
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether a byte may be part of a token (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let parsed: Vec<httparse::Header<'_>> =
            pairs.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        Fields::copy(&parsed)
    }

    #[test]
    fn framing_that_could_be_read_in_two_ways_is_refused() {
        let framing = |pairs: &[(&str, &str)]| announced_framing(&fields(pairs), Version::Http11);
        assert_eq!(framing(&[]), Ok(None));
        assert_eq!(framing(&[("Content-Length", "0")]), Ok(Some(Framing::Empty)));
        assert_eq!(framing(&[("content-length", " 12 ")]), Ok(Some(Framing::Length(12))));
        assert_eq!(framing(&[("Transfer-Encoding", "Chunked")]), Ok(Some(Framing::Chunked)));
        for length in ["", "+5", "-1", "5, 5", "5,6", "0x5", "5 5", "1e1", "18446744073709551617", "５"] {
            assert_eq!(framing(&[("Content-Length", length)]), Err(BadFraming::Length), "{length:?}");
        }
        assert_eq!(framing(&[("Content-Length", "5"), ("Content-Length", "5")]), Err(BadFraming::Length));
        assert_eq!(framing(&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")]), Err(BadFraming::Both));
        for coding in
            ["gzip", "gzip, chunked", "chunked, chunked", "xchunked", "chunked;q=1", "identity", "", "\u{b}chunked"]
        {
            assert_eq!(framing(&[("Transfer-Encoding", coding)]), Err(BadFraming::Coding), "{coding:?}");
        }
        let twice = [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")];
        assert_eq!(framing(&twice), Err(BadFraming::Coding));
        let old = announced_framing(&fields(&[("Transfer-Encoding", "chunked")]), Version::Http10);
        assert_eq!(old, Err(BadFraming::CodingInHttp10));
    }

    #[test]
    fn a_heads_end_is_found_however_it_arrives() {
        let limits = HeadLimits { bytes_max: 64, fields_max: 10 };
        let head = b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\nGET";
        let mut scanned = 0;
        for end in 0..28 {
            assert_eq!(find_end(&head[..end], &mut scanned, limits), Ok(None), "after {end} bytes");
        }
        assert_eq!(find_end(head, &mut scanned, limits), Ok(Some(29)));
        for (bytes, bad) in [
            (&b"GET / HTTP/1.1\nHost"[..], BadBytes::BareLineEnd),
            (b"GET / HTTP/1.1\r\nHost: a\rb", BadBytes::BareLineEnd),
            (b"\x16\x03\x01", BadBytes::NotHttp),
            (b"GET /\0", BadBytes::NotHttp),
            (&[b'a'; 64], BadBytes::TooLong { in_first_line: true }),
            (&[&b"GET / HTTP/1.1\r\n"[..], &[b'a'; 48]].concat(), BadBytes::TooLong { in_first_line: false }),
        ] {
            assert_eq!(find_end(bytes, &mut 0, limits), Err(bad), "{}", bytes.escape_ascii());
        }
    }
}
