//! Reading a request's head, strictly.

use super::HeadLimits;
use super::head::{BadBytes, BadFraming, Fields, Framing, Version, announced_framing};

/// A request that is refused: the status for the client and why. The connection closes after the answer, since what follows on it
/// can't be trusted to be a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Reject {
    /// The status code.
    pub status: u16,
    /// One sentence.
    pub why: &'static str,
}

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method as given; a token.
    pub method: String,
    /// The target in origin form (`/path?query`), or `*`.
    pub target: String,
    /// The version.
    pub version: Version,
    /// Host and port as given by the target or the Host field; empty where an HTTP/1.0 client gave none.
    pub authority: String,
    /// The host in lower case, without port and final dot.
    pub host: String,
    /// All fields, hop-by-hop ones included.
    pub fields: Fields,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the client is willing to use the connection again.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client asks to switch to WebSocket (RFC 6455); other protocols are not offered on.
    pub upgrade: bool,
    /// Bytes of the head on the wire.
    pub wire_bytes: usize,
}

impl Request {
    /// Whether sending it twice is as good as once (RFC 9110, 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }
}

/// Reads the request whose head is `bytes`, complete with its empty line.
///
/// # Errors
/// The request is malformed, ambiguous, or asks for what is not offered.
pub fn parse(bytes: &[u8], limits: HeadLimits) -> Result<Request, Reject> {
    let mut room = vec![httparse::EMPTY_HEADER; limits.fields_max];
    let mut parsed = httparse::Request::new(&mut room);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return bad("the head ends in the wrong place"),
        Err(httparse::Error::TooManyHeaders) => return reject(431, "there are too many header fields"),
        Err(httparse::Error::Version) if words_in_first_line(bytes) == 3 => {
            return reject(505, "this HTTP version is not offered; use HTTP/1.1");
        }
        Err(httparse::Error::Version) => return bad("the request line is malformed"),
        Err(httparse::Error::Token) => return bad("the request line is malformed"),
        Err(_) => return bad("a header field is malformed"),
    }
    let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let method = parsed.method.unwrap_or_default().to_owned();
    let fields = Fields::copy(parsed.headers);
    if method == "CONNECT" {
        return reject(405, "this server is not a proxy for other hosts");
    }
    let (target, authority) = target_and_authority(parsed.path.unwrap_or_default(), &method, &fields, version)?;
    let host = host_of(&authority).ok_or(Reject { status: 400, why: "the host is malformed" })?;
    let framing = announced_framing(&fields, version).map_err(reject_framing)?.unwrap_or(Framing::Empty);
    let expects_continue = match fields.list("expect").next() {
        None => false,
        Some(expected) if expected.eq_ignore_ascii_case(b"100-continue") => version == Version::Http11,
        Some(_) => return reject(417, "this expectation can't be met"),
    };
    let close = fields.list_holds("connection", "close");
    let keep_alive = match version {
        Version::Http11 => !close,
        Version::Http10 => !close && fields.list_holds("connection", "keep-alive"),
    };
    let upgrade = version == Version::Http11
        && method == "GET"
        && framing == Framing::Empty
        && fields.list_holds("connection", "upgrade")
        && fields.list_holds("upgrade", "websocket");
    let wire_bytes = bytes.len();
    let expects_continue = expects_continue && framing != Framing::Empty;
    Ok(Request {
        method,
        target,
        version,
        authority,
        host,
        fields,
        framing,
        keep_alive,
        expects_continue,
        upgrade,
        wire_bytes,
    })
}

fn words_in_first_line(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\r').next().unwrap_or_default().split(|byte| *byte == b' ').count()
}

/// The refusal for bytes that can't be a head.
pub fn reject_bytes(bad: BadBytes) -> Reject {
    let (status, why) = match bad {
        BadBytes::BareLineEnd => (400, "a line does not end with CRLF"),
        BadBytes::NotHttp => (400, "this is not HTTP"),
        BadBytes::TooLong { in_first_line: true } => (414, "the address is too long"),
        BadBytes::TooLong { in_first_line: false } => (431, "the header fields are too long"),
    };
    Reject { status, why }
}

fn reject_framing(bad: BadFraming) -> Reject {
    let (status, why) = match bad {
        BadFraming::Both => (400, "Content-Length and Transfer-Encoding exclude each other"),
        BadFraming::Length => (400, "Content-Length must be one plain number"),
        BadFraming::Coding => (501, "the only transfer coding offered is chunked"),
        BadFraming::CodingInHttp10 => (400, "HTTP/1.0 has no Transfer-Encoding"),
    };
    Reject { status, why }
}

/// The target in origin form and the authority that the request is for: the target's own where it has one (RFC 9112, 3.2).
fn target_and_authority(
    target: &str,
    method: &str,
    fields: &Fields,
    version: Version,
) -> Result<(String, String), Reject> {
    let mut hosts = fields.all("host");
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            std::str::from_utf8(host).ok().ok_or(Reject { status: 400, why: "the host is malformed" })?
        }
        (None, _) if version == Version::Http10 => "",
        (None, _) => return bad("the Host field is missing"),
        (Some(_), Some(_)) => return bad("there are several Host fields"),
    };
    if !target.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
        return bad("the address holds characters that must be percent-encoded");
    }
    if target.starts_with('/') {
        return Ok((without_fragment(target), host.to_owned()));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((target.to_owned(), host.to_owned()));
    }
    let absolute = match target.split_at_checked("http://".len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => rest,
        _ => return bad("the address must begin with a slash"),
    };
    let end = absolute.find(['/', '?', '#']).unwrap_or(absolute.len());
    let (authority, path) = absolute.split_at(end);
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((without_fragment(&format!("{slash}{path}")), authority.to_owned()))
}

/// Fragments are for the client alone; one that arrives is dropped, as it would be by what serves the request.
fn without_fragment(target: &str) -> String {
    target.split('#').next().unwrap_or_default().to_owned()
}

/// The host of an authority in lower case, without port and final dot; none where it is malformed.
fn host_of(authority: &str) -> Option<String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let _: std::net::Ipv6Addr = address.parse().ok()?;
            (authority.get(..address.len() + 2)?, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port_is_fine = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()),
    };
    let name_is_fine = host.starts_with('[')
        || host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    let host = host.strip_suffix('.').unwrap_or(host);
    (port_is_fine && name_is_fine && host.len() <= 253).then(|| host.to_ascii_lowercase())
}

fn reject<T>(status: u16, why: &'static str) -> Result<T, Reject> {
    Err(Reject { status, why })
}

fn bad<T>(why: &'static str) -> Result<T, Reject> {
    reject(400, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Request, Reject> {
        parse(head.as_bytes(), HeadLimits::default())
    }

    fn status(head: &str) -> u16 {
        read(head).expect_err(head).status
    }

    #[test]
    fn an_ordinary_request() {
        let request = read("GET /a?b HTTP/1.1\r\nHost: WWW.Example.ORG.:8080\r\nAccept: */*\r\n\r\n").expect("fine");
        assert_eq!((request.target.as_str(), request.host.as_str()), ("/a?b", "www.example.org"));
        assert_eq!(request.authority, "WWW.Example.ORG.:8080");
        assert!(request.keep_alive && !request.upgrade && request.framing == Framing::Empty);
        assert!(!read("GET / HTTP/1.1\r\nHost: a.b\r\nConnection: foo, Close\r\n\r\n").expect("fine").keep_alive);
        assert!(!read("GET / HTTP/1.0\r\n\r\n").expect("fine").keep_alive);
        assert!(read("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("fine").keep_alive);
    }

    #[test]
    fn the_targets_own_authority_wins() {
        let request = read("GET http://a.org?x HTTP/1.1\r\nHost: b.org\r\n\r\n").expect("fine");
        assert_eq!((request.target.as_str(), request.host.as_str()), ("/?x", "a.org"));
        let request = read("OPTIONS * HTTP/1.1\r\nHost: b.org\r\n\r\n").expect("fine");
        assert_eq!((request.target.as_str(), request.host.as_str()), ("*", "b.org"));
        assert_eq!(read("GET /a#b HTTP/1.1\r\nHost: b.org\r\n\r\n").expect("fine").target, "/a");
    }

    #[test]
    fn only_websocket_upgrades_are_offered_on() {
        let with = |upgrade: &str, more: &str| {
            read(&format!("GET / HTTP/1.1\r\nHost: a.b\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n{more}\r\n"))
        };
        assert!(with("websocket", "").expect("fine").upgrade);
        assert!(!with("h2c", "").expect("fine").upgrade);
        assert!(!with("websocket", "Content-Length: 3\r\n").expect("fine").upgrade);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a.b/c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a.b:80:80\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a.b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a.b\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n Host: a.b\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET /\u{e9} HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET https://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a.b\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("CONNECT a.b:80 HTTP/1.1\r\nHost: a.b:80\r\n\r\n", 405),
            ("GET / HTTP/2.0\r\nHost: a.b\r\n\r\n", 505),
            ("POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a.b\r\nExpect: tea\r\nContent-Length: 1\r\n\r\n", 417),
            ("GET / HTTP/1.1\r\nHost: a.b\r\nA\u{0}: b\r\n\r\n", 400),
        ] {
            assert_eq!(status(head), expected, "{head:?}");
        }
        let many = (0..101).fold("GET / HTTP/1.1\r\nHost: a.b\r\n".to_owned(), |head, n| format!("{head}A{n}: b\r\n"));
        assert_eq!(status(&format!("{many}\r\n")), 431);
    }
}
