//! Following a body: which bytes belong to it and where it ends, without holding any of it.
//!
//! Chunks are passed on as they are, so their grammar is checked to the letter (RFC 9112, 7.1): a size of at most 15 hexadecimal
//! digits, no line end but CRLF, extensions and trailers bounded and of visible characters.

use super::head::{Framing, is_token_byte};

/// The longest chunk extension.
const EXTENSION_BYTES_MAX: u32 = 256;
/// The longest trailer section.
const TRAILER_BYTES_MAX: u32 = 8 * 1024;
/// Hexadecimal digits of a chunk's size: sums of such sizes never overflow.
const SIZE_DIGITS_MAX: u8 = 15;

/// A body that does not follow its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not well chunked: {0}")]
pub struct BadChunk(&'static str);

/// A body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    Size { digits: u8, size: u64 },
    Extension { size: u64, bytes: u32 },
    SizeLineFeed { size: u64 },
    Data(u64),
    DataReturn,
    DataLineFeed,
    TrailerName { bytes: u32, line: u32 },
    TrailerValue { bytes: u32 },
    TrailerLineFeed { bytes: u32 },
    EndLineFeed,
}

impl Body {
    /// A body of which nothing was seen yet.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Whether its end was seen.
    pub fn is_done(self) -> bool {
        self.0 == State::Done
    }

    /// Whether the connection's end is this body's proper end.
    pub fn ends_with_connection(self) -> bool {
        self.0 == State::UntilClose
    }

    /// How many of `bytes`, from the first, belong to this body and may be passed on.
    ///
    /// # Errors
    /// The chunks are malformed; nothing more may be passed on.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let fits = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            match self.0 {
                State::Done => break,
                State::UntilClose => return Ok(bytes.len()),
                State::Length(left) => {
                    let count = fits(left);
                    taken += count;
                    let left = left - count as u64;
                    self.0 = if left == 0 { State::Done } else { State::Length(left) };
                }
                State::Data(left) => {
                    let count = fits(left);
                    taken += count;
                    let left = left - count as u64;
                    self.0 = if left == 0 { State::DataReturn } else { State::Data(left) };
                }
                state => {
                    self.0 = step(state, rest[0]).map_err(BadChunk)?;
                    taken += 1;
                }
            }
        }
        Ok(taken)
    }
}

/// One byte of what stands around the chunks' data.
fn step(state: State, byte: u8) -> Result<State, &'static str> {
    Ok(match (state, byte) {
        (State::Size { digits: SIZE_DIGITS_MAX, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            return Err("a chunk's size is too large");
        }
        (State::Size { digits, size }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            State::Size { digits: digits + 1, size: size * 16 + u64::from(digit) }
        }
        (State::Size { digits: 0, .. }, _) => return Err("a chunk's size is missing"),
        (State::Size { size, .. } | State::Extension { size, .. }, b'\r') => State::SizeLineFeed { size },
        (State::Size { size, .. }, b';') => State::Extension { size, bytes: 1 },
        (State::Size { .. }, _) => return Err("a chunk's size is not a hexadecimal number"),
        (State::Extension { bytes: EXTENSION_BYTES_MAX, .. }, _) => return Err("a chunk's extension is too long"),
        (State::Extension { size, bytes }, b'\t' | b' '..=b'~') => State::Extension { size, bytes: bytes + 1 },
        (State::Extension { .. }, _) => return Err("a chunk's extension holds a control character"),
        (State::SizeLineFeed { size: 0 }, b'\n') => State::TrailerName { bytes: 0, line: 0 },
        (State::SizeLineFeed { size }, b'\n') => State::Data(size),
        (State::DataReturn, b'\r') => State::DataLineFeed,
        (State::DataLineFeed, b'\n') => State::Size { digits: 0, size: 0 },
        (State::DataReturn | State::DataLineFeed, _) => return Err("a chunk is longer than its size"),
        (State::TrailerName { line: 0, .. }, b'\r') => State::EndLineFeed,
        (State::EndLineFeed, b'\n') => State::Done,
        (State::TrailerName { bytes: TRAILER_BYTES_MAX, .. } | State::TrailerValue { bytes: TRAILER_BYTES_MAX }, _) => {
            return Err("the trailers are too long");
        }
        (State::TrailerName { bytes, line: 1.. }, b':') => State::TrailerValue { bytes: bytes + 1 },
        (State::TrailerName { bytes, line }, byte) if is_token_byte(byte) => {
            State::TrailerName { bytes: bytes + 1, line: line + 1 }
        }
        (State::TrailerName { .. }, _) => return Err("a trailer's name is malformed"),
        (State::TrailerValue { bytes }, b'\r') => State::TrailerLineFeed { bytes },
        (State::TrailerValue { bytes }, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue { bytes: bytes + 1 },
        (State::TrailerValue { .. }, _) => return Err("a trailer holds a control character"),
        (State::TrailerLineFeed { bytes }, b'\n') => State::TrailerName { bytes, line: 0 },
        (State::SizeLineFeed { .. } | State::TrailerLineFeed { .. } | State::EndLineFeed, _) => {
            return Err("a carriage return without its line feed");
        }
        (State::Done | State::Length(_) | State::UntilClose | State::Data(_), _) => state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut body = Body::new(Framing::Chunked);
        let taken = body.take(bytes)?;
        Ok((taken, body.is_done()))
    }

    #[test]
    fn chunks_end_where_they_say() {
        assert_eq!(chunked(b"0\r\n\r\nGET"), Ok((5, true)));
        assert_eq!(chunked(b"5\r\nhello\r\n0\r\n\r\nGET"), Ok((15, true)));
        assert_eq!(chunked(b"A;x=\"y\"\r\n0123456789\r\n000\r\nX-Sum: 1\r\n\r\n!"), Ok((38, true)));
        assert_eq!(chunked(b"5\r\nhel"), Ok((6, false)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"0x5\r\n",
            b"+5\r\n",
            b"-1\r\n",
            b" 5\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\n0\n\n",
            b"5\r\nhello!\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\rhello",
            b"5;a\nb\r\nhello\r\n",
            b"1234567890abcdef\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nname\r\n\r\n",
            b"0\r\n: x\r\n\r\n",
            b"0\r\na: b\nc: d\r\n\r\n",
            b"0\r\na: \x00\r\n\r\n",
            b"0\r\n\rX",
            &[&b"5;"[..], &[b'a'; 300]].concat(),
            &[&b"0\r\na: "[..], &[b'a'; 9000]].concat(),
        ] {
            assert!(chunked(bad).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6),
            cuts in prop::collection::vec(1usize..20, 1..60),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let length = wire.len();
            wire.extend_from_slice(&rest);
            let mut body = Body::new(Framing::Chunked);
            let (mut at, mut cuts) = (0, cuts.iter().cycle());
            while !body.is_done() {
                let piece = &wire[at..(at + cuts.next().unwrap_or(&1)).min(wire.len())];
                prop_assert!(!piece.is_empty());
                at += body.take(piece).expect("well chunked");
            }
            prop_assert_eq!(at, length);
        }

        #[test]
        fn no_bytes_make_it_panic_or_take_more_than_there_is(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((taken, _)) = chunked(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }
}
