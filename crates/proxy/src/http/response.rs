//! Reading a response's head. The upstream runs a customer's code: its words are no more trusted than a client's.

use super::HeadLimits;
use super::head::{Fields, Framing, Version, announced_framing};

/// An upstream's response that can't be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the response is not valid: {0}")]
pub struct BadResponse(pub &'static str);

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The reason phrase, which may be empty.
    pub reason: String,
    /// All fields, hop-by-hop ones included.
    pub fields: Fields,
    /// How the body is delimited.
    pub framing: Framing,
    /// What the head says of a body that is not sent (HEAD, 304): passed on in words alone.
    pub announced: Option<Framing>,
    /// Whether the upstream is willing to use the connection again.
    pub keep_alive: bool,
}

/// What of the request decides how its response is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The method was HEAD.
    pub head: bool,
    /// The request asked to switch protocols.
    pub upgrade: bool,
    /// The request's version: nothing newer than it knows may come back.
    pub version: Version,
}

/// Reads the response whose head is `bytes`, complete with its empty line.
///
/// # Errors
/// The head is malformed or ambiguous.
pub fn parse(bytes: &[u8], limits: HeadLimits, asked: Asked) -> Result<Response, BadResponse> {
    let mut room = vec![httparse::EMPTY_HEADER; limits.fields_max];
    let mut parsed = httparse::Response::new(&mut room);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("it has too many header fields")),
        Ok(_) | Err(_) => return Err(BadResponse("its head is malformed")),
    }
    let status = parsed.code.filter(|code| *code >= 100).ok_or(BadResponse("its status is malformed"))?;
    let reason = parsed.reason.unwrap_or_default().to_owned();
    let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let fields = Fields::copy(parsed.headers);
    let announced = announced_framing(&fields, version).map_err(|_| BadResponse("where its body ends is not clear"))?;
    let framing = match (status, announced) {
        (101, _) if !asked.upgrade => return Err(BadResponse("it switches protocols unasked")),
        (100..=199, _) if asked.version == Version::Http10 => return Err(BadResponse("it is interim, for HTTP/1.0")),
        (100..=199 | 204 | 304, _) => Framing::Empty,
        _ if asked.head => Framing::Empty,
        (_, Some(Framing::Chunked)) if asked.version == Version::Http10 => {
            return Err(BadResponse("it is chunked, for HTTP/1.0"));
        }
        (_, Some(framing)) => framing,
        (_, None) => Framing::UntilClose,
    };
    let close = fields.list_holds("connection", "close");
    let keep_alive = framing != Framing::UntilClose && version == Version::Http11 && !close;
    Ok(Response { status, reason, fields, framing, announced, keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Asked = Asked { head: false, upgrade: false, version: Version::Http11 };

    fn read(head: &str, asked: Asked) -> Result<Response, BadResponse> {
        parse(head.as_bytes(), HeadLimits::default(), asked)
    }

    #[test]
    fn where_the_body_ends() {
        for (head, asked, framing, keep_alive) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", GET, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Asked { head: true, ..GET }, Framing::Empty, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", GET, Framing::Chunked, true),
            ("HTTP/1.1 200 OK\r\n\r\n", GET, Framing::UntilClose, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", GET, Framing::Length(5), false),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", GET, Framing::Empty, true),
            ("HTTP/1.1 204 \r\nConnection: close\r\n\r\n", GET, Framing::Empty, false),
            ("HTTP/1.1 101 Switching\r\n\r\n", Asked { upgrade: true, ..GET }, Framing::Empty, true),
        ] {
            let response = read(head, asked).expect(head);
            assert_eq!((response.framing, response.keep_alive), (framing, keep_alive), "{head:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_not_passed_on() {
        let old = Asked { version: Version::Http10, ..GET };
        for (head, asked) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", GET),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", GET),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", GET),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", old),
            ("HTTP/1.1 101 Switching\r\n\r\n", GET),
            ("HTTP/1.1 100 Continue\r\n\r\n", old),
            ("HTTP/1.1 099 Odd\r\n\r\n", GET),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", GET),
            ("HTP/1.1 200 OK\r\n\r\n", GET),
        ] {
            assert!(read(head, asked).is_err(), "{head:?}");
        }
    }
}
