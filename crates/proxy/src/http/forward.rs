//! The heads that go on: to the upstream and to the client.
//!
//! Fields that speak of one connection stay behind (RFC 9110, 7.6.1), with those that Connection names; framing and Host are always
//! written anew, from what was understood, so that nothing a client nominates or repeats can change them.

use super::head::{Fields, Framing, Version};
use super::request::Request;
use super::response::Response;
use std::net::Ipv4Addr;

/// What the upstream is told of where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The connection's other end.
    pub peer: Ipv4Addr,
    /// Whether that is a proxy of ours, whose X-Forwarded fields are believed.
    pub is_forwarder: bool,
}

/// Fields that never go on, in either direction.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length"];

/// Fields that a client may not set: they are written here, or name the request a proxy's.
const OURS: [&str; 8] = [
    "host",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "x-real-ip",
    "proxy",
    "proxy-authorization",
];

/// Writes the head for the upstream to the end of `out`.
pub fn write_request(request: &Request, origin: Origin, out: &mut Vec<u8>) {
    let version = match request.version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    };
    for part in [&request.method, " ", &request.target, " ", version, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if !request.authority.is_empty() {
        field(out, "Host", request.authority.as_bytes());
    }
    for (name, value) in request.fields.iter() {
        if !stays_behind(&request.fields, name) && !is_ours(name) {
            field(out, name, value);
        }
    }
    write_framing(out, Some(request.framing));
    if request.framing == Framing::Empty && request.fields.all("content-length").next().is_some() {
        field(out, "Content-Length", b"0");
    }
    write_origin(request, origin, out);
    if request.upgrade {
        field(out, "Connection", b"Upgrade");
        field(out, "Upgrade", b"websocket");
    } else if request.version == Version::Http10 {
        field(out, "Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

/// The client's own address: the connection's other end, or, where that is a proxy of ours, the last address it names.
pub fn client_address(fields: &Fields, origin: Origin) -> Ipv4Addr {
    let named = || std::str::from_utf8(fields.list("x-forwarded-for").last()?).ok()?.parse().ok();
    if origin.is_forwarder { named().unwrap_or(origin.peer) } else { origin.peer }
}

fn write_origin(request: &Request, origin: Origin, out: &mut Vec<u8>) {
    let client = client_address(&request.fields, origin).to_string();
    let believed = |name: &'static str| request.fields.all(name).last().filter(|_| origin.is_forwarder);
    field(out, "X-Forwarded-For", client.as_bytes());
    let https = believed("x-forwarded-proto").is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"));
    field(out, "X-Forwarded-Proto", if https { b"https" } else { b"http" });
    let host = believed("x-forwarded-host").unwrap_or(request.authority.as_bytes());
    if !host.is_empty() {
        field(out, "X-Forwarded-Host", host);
    }
}

/// Writes an upstream's response head for the client to the end of `out`. `keep_alive` says whether the client's connection will
/// be used again.
pub fn write_response(response: &Response, client: Version, keep_alive: bool, out: &mut Vec<u8>) {
    let interim = response.status < 200;
    out.extend_from_slice(format!("HTTP/1.1 {} ", response.status).as_bytes());
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.fields.iter() {
        if !stays_behind(&response.fields, name) {
            field(out, name, value);
        }
    }
    if response.status == 101 {
        field(out, "Connection", b"Upgrade");
        for protocol in response.fields.all("upgrade") {
            field(out, "Upgrade", protocol);
        }
    } else if !interim {
        let said = if response.framing == Framing::Empty { response.announced } else { Some(response.framing) };
        write_framing(out, said.filter(|_| response.status != 204));
        if response.framing == Framing::Empty && response.announced == Some(Framing::Empty) && response.status != 204 {
            field(out, "Content-Length", b"0");
        }
        write_connection(out, client, keep_alive);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the Connection field where the client's version does not imply it.
pub fn write_connection(out: &mut Vec<u8>, client: Version, keep_alive: bool) {
    match (client, keep_alive) {
        (Version::Http11, true) | (Version::Http10, false) => {}
        (Version::Http11, false) => field(out, "Connection", b"close"),
        (Version::Http10, true) => field(out, "Connection", b"keep-alive"),
    }
}

fn write_framing(out: &mut Vec<u8>, framing: Option<Framing>) {
    match framing {
        Some(Framing::Length(length)) => field(out, "Content-Length", length.to_string().as_bytes()),
        Some(Framing::Chunked) => field(out, "Transfer-Encoding", b"chunked"),
        Some(Framing::Empty | Framing::UntilClose) | None => {}
    }
}

/// Whether a field speaks of the connection it came over alone.
fn stays_behind(fields: &Fields, name: &str) -> bool {
    HOP_BY_HOP.iter().any(|hop| name.eq_ignore_ascii_case(hop)) || fields.list_holds("connection", name)
}

/// Whether a field's name is one of [`OURS`], also where an underscore stands for a hyphen: CGI makes the same variable of both.
fn is_ours(name: &str) -> bool {
    let same = |ours: &str| {
        let letters = || name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() });
        name.len() == ours.len() && letters().eq(ours.bytes())
    };
    OURS.iter().any(|ours| same(ours))
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, request, response};

    fn forwarded(head: &str, is_forwarder: bool) -> String {
        let request = request::parse(head.as_bytes(), HeadLimits::default()).expect(head);
        let mut out = Vec::new();
        write_request(&request, Origin { peer: Ipv4Addr::new(198, 51, 100, 7), is_forwarder }, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn what_speaks_of_the_connection_stays_behind() {
        let out = forwarded(
            "POST /a HTTP/1.1\r\nHost: a.b:80\r\nConnection: close, X-Secret, Host, Content-Length\r\nX-Secret: 1\r\n\
             Keep-Alive: 5\r\nTE: gzip\r\nUpgrade: h2c\r\nContent-Length: 3\r\nProxy: evil\r\nAccept: */*\r\n\r\n",
            false,
        );
        assert_eq!(
            out,
            "POST /a HTTP/1.1\r\nHost: a.b:80\r\nAccept: */*\r\nContent-Length: 3\r\n\
             X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.b:80\r\n\r\n"
        );
    }

    #[test]
    fn only_proxies_of_ours_are_believed() {
        let head = "GET / HTTP/1.1\r\nHost: a.b\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
                    X_Forwarded_For: 9.9.9.9\r\nX-Real-IP: 8.8.8.8\r\nForwarded: for=7.7.7.7\r\n\r\n";
        assert!(forwarded(head, false).ends_with(
            "Host: a.b\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.b\r\n\r\n"
        ));
        assert!(forwarded(head, true).ends_with(
            "Host: a.b\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a.b\r\n\r\n"
        ));
    }

    #[test]
    fn responses_keep_their_words() {
        let answered = |head: &str, head_asked: bool, keep_alive: bool| {
            let asked = response::Asked { head: head_asked, upgrade: true, version: Version::Http11 };
            let response = response::parse(head.as_bytes(), HeadLimits::default(), asked).expect(head);
            let mut out = Vec::new();
            write_response(&response, Version::Http11, keep_alive, &mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(
            answered(
                "HTTP/1.1 200 Fine\r\nKeep-Alive: timeout=5\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\nA: b\r\n\r\n",
                false,
                true
            ),
            "HTTP/1.1 200 Fine\r\nA: b\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(
            answered("HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", true, false),
            "HTTP/1.1 200 OK\r\nContent-Length: 77\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            answered(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
                false,
                false
            ),
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        assert_eq!(answered("HTTP/1.1 304 \r\nETag: x\r\n\r\n", false, true), "HTTP/1.1 304 \r\nETag: x\r\n\r\n");
        assert_eq!(
            answered("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false, false),
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        );
    }
}
