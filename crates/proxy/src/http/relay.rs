//! One client connection and the upstream connection of its present request, as a state machine.
//!
//! The driver moves bytes: it reads into [`Relay::space`] and says [`Relay::received`], writes what [`Relay::pending`] shows and
//! says [`Relay::sent`]. Between exchanges it asks for the next request, and either forwards it or answers it.
//!
//! Invariants: requests of one connection are served one after the other, in order; body bytes go from one side's buffer to the
//! other side's socket without being copied or kept; a side whose peer does not read is not read either; what an upstream sends past
//! its response is never sent on.

use super::HeadLimits;
use super::body::{BadChunk, Body};
use super::buffer::Buffer;
use super::forward::{self, Origin};
use super::head::{self, Framing, Version};
use super::request::{self, Reject, Request};
use super::response::{self, Asked, BadResponse};

/// The most interim responses (1xx) before a final one.
const INTERIM_MAX: u32 = 16;

/// One of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Who asks.
    Client,
    /// Who answers.
    Upstream,
}

/// Whom the exchange waits for; the driver chooses a bound by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The first byte of a request.
    ForRequest,
    /// The rest of a request's head.
    ForHead,
    /// The client: for body bytes, or to take what is there for it.
    ForClient,
    /// The upstream: for its response, or to take what is there for it.
    ForUpstream,
    /// Either, after a switch of protocols.
    InTunnel,
}

/// Why an exchange can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The client's body is malformed.
    #[error(transparent)]
    BadRequestBody(BadChunk),
    /// The client closed the connection within its request.
    #[error("the client left within its request")]
    ClientLeft,
    /// The upstream closed the connection before any byte of a response.
    #[error("the site's server closed the connection without a response")]
    NoResponse,
    /// The upstream closed the connection within its response.
    #[error("the site's server closed the connection within its response")]
    Truncated,
    /// The upstream's response is malformed.
    #[error(transparent)]
    BadResponse(BadResponse),
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    /// The body's type.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a str,
}

/// What an exchange came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The final status; 0 when there was none.
    pub status: u16,
    /// Bytes that the client sent: head and body.
    pub received_bytes: u64,
    /// Bytes that the client was sent: heads and body.
    pub sent_bytes: u64,
    /// The client's connection may carry another request.
    pub keep_client: bool,
    /// The upstream's connection may carry another request.
    pub keep_upstream: bool,
}

/// The state machine.
#[derive(Debug)]
pub struct Relay {
    limits: HeadLimits,
    client: Side,
    upstream: Side,
    stage: Stage,
    outcome: Outcome,
}

#[derive(Debug)]
struct Side {
    /// What this side sent and nobody has taken yet.
    input: Buffer,
    /// How many bytes at the front of `input` may be written to the other side.
    ready: usize,
    /// Bytes of `input` that were searched for a head's end.
    scanned: usize,
    /// Nothing more comes.
    ended: bool,
    /// Heads to write to this side, before the other side's ready bytes.
    out: Vec<u8>,
    out_sent: usize,
}

#[derive(Debug)]
enum Stage {
    /// Between exchanges: a head is awaited.
    Idle,
    /// A request was handed out; the driver decides.
    Deciding,
    Exchange(Exchange),
    /// The proxy's own answer is on its way.
    Answering,
    /// The protocol was switched: bytes go both ways until both sides have ended.
    Tunnel,
}

#[derive(Debug)]
struct Exchange {
    asked: Asked,
    keep_client: bool,
    request_body: Body,
    /// Whether body bytes have left for the upstream, so that the request can't be sent again.
    body_has_left: bool,
    awaits_continue: bool,
    interims: u32,
    /// None while the head is awaited.
    response_body: Option<Body>,
    upstream_keeps: bool,
}

impl Relay {
    /// For a new client connection.
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            client: Side::new(limits.bytes_max),
            upstream: Side::new(limits.bytes_max),
            stage: Stage::Idle,
            outcome: Outcome::nothing(),
        }
    }

    /// The next request, if its head is complete. Only between exchanges.
    ///
    /// # Errors
    /// The head is refused; answer it and close.
    pub fn next_request(&mut self) -> Result<Option<Request>, Reject> {
        debug_assert!(matches!(self.stage, Stage::Idle), "requests are served one after the other");
        let input = &mut self.client.input;
        // Empty lines before a request are passed over (RFC 9112, 2.2).
        while self.client.scanned == 0 && input.filled().starts_with(b"\r\n") {
            input.consume(2);
        }
        if self.client.scanned == 0 && input.filled() == b"\r" {
            return Ok(None);
        }
        let end =
            head::find_end(input.filled(), &mut self.client.scanned, self.limits).map_err(request::reject_bytes)?;
        let Some(end) = end else {
            input.release();
            return Ok(None);
        };
        let request = request::parse(&input.filled()[..end], self.limits)?;
        input.consume(end);
        self.client.scanned = 0;
        self.stage = Stage::Deciding;
        self.outcome = Outcome { received_bytes: request.wire_bytes as u64, ..Outcome::nothing() };
        Ok(Some(request))
    }

    /// Sends `request` to a newly made or kept upstream connection. May be called again for the same request on another one, where
    /// [`Relay::can_replay`] says so.
    pub fn forward(&mut self, request: &Request, origin: Origin) {
        self.upstream = Side::new(self.limits.bytes_max);
        forward::write_request(request, origin, &mut self.upstream.out);
        self.outcome.received_bytes = request.wire_bytes as u64;
        // Body bytes that were found but have not left are found again.
        self.client.ready = 0;
        self.stage = Stage::Exchange(Exchange {
            asked: Asked { head: request.method == "HEAD", upgrade: request.upgrade, version: request.version },
            keep_client: request.keep_alive,
            request_body: Body::new(request.framing),
            body_has_left: false,
            awaits_continue: request.expects_continue,
            interims: 0,
            response_body: None,
            upstream_keeps: false,
        });
    }

    /// Answers the request itself. `request` is none where the head was refused. A connection whose request has a body is closed
    /// afterwards, since the body is not read.
    pub fn answer(&mut self, answer: Answer<'_>, request: Option<&Request>) {
        let keep = request.is_some_and(|request| request.keep_alive && request.framing == Framing::Empty);
        let version = request.map_or(Version::Http11, |request| request.version);
        let Answer { status, content_type, body } = answer;
        let out = &mut self.client.out;
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n",
            reason(status),
            body.len()
        );
        out.extend_from_slice(head.as_bytes());
        forward::write_connection(out, version, keep);
        out.extend_from_slice(b"\r\n");
        if request.is_none_or(|request| request.method != "HEAD") {
            out.extend_from_slice(body.as_bytes());
        }
        self.outcome = Outcome { status, keep_client: keep, keep_upstream: false, ..self.outcome };
        self.client.ready = 0;
        self.upstream.ready = 0;
        self.stage = Stage::Answering;
    }

    /// Whether bytes of a final response may have reached the client already, so that nothing else can be answered.
    pub fn response_has_begun(&self) -> bool {
        self.outcome.status != 0 || self.client.out_sent > 0
    }

    /// Whether the same request may be sent to another upstream connection: no byte of its body has left, and no byte of a
    /// response has come.
    pub fn can_replay(&self) -> bool {
        match &self.stage {
            Stage::Exchange(exchange) => {
                !exchange.body_has_left
                    && exchange.interims == 0
                    && exchange.response_body.is_none()
                    && self.upstream.input.filled().is_empty()
            }
            Stage::Deciding => true,
            Stage::Idle | Stage::Answering | Stage::Tunnel => false,
        }
    }

    /// Where bytes from `peer` go; empty when there is no room.
    pub fn space(&mut self, peer: Peer) -> &mut [u8] {
        self.side_mut(peer).input.space()
    }

    /// `count` bytes from `peer` were put into [`Relay::space`]; 0 says that it ended its side.
    ///
    /// # Errors
    /// The exchange can't go on.
    pub fn received(&mut self, peer: Peer, count: usize) -> Result<(), Failure> {
        let side = self.side_mut(peer);
        if count == 0 {
            side.ended = true;
        }
        side.input.received(count);
        self.process()
    }

    /// What is there to be written to `peer`, in two parts.
    pub fn pending(&self, peer: Peer) -> [&[u8]; 2] {
        let (to, from) = match peer {
            Peer::Client => (&self.client, &self.upstream),
            Peer::Upstream => (&self.upstream, &self.client),
        };
        [&to.out[to.out_sent..], &from.input.filled()[..from.ready]]
    }

    /// The first `count` bytes of [`Relay::pending`] were written.
    ///
    /// # Errors
    /// The exchange can't go on.
    pub fn sent(&mut self, peer: Peer, count: usize) -> Result<(), Failure> {
        let (to, from) = match peer {
            Peer::Client => (&mut self.client, &mut self.upstream),
            Peer::Upstream => (&mut self.upstream, &mut self.client),
        };
        let of_head = count.min(to.out.len() - to.out_sent);
        let of_body = count - of_head;
        to.out_sent += of_head;
        from.input.consume(of_body);
        from.ready -= of_body;
        match (&mut self.stage, peer) {
            (_, Peer::Client) => self.outcome.sent_bytes += count as u64,
            (Stage::Exchange(exchange), Peer::Upstream) => exchange.body_has_left |= of_body > 0,
            (_, Peer::Upstream) => {}
        }
        self.process()
    }

    /// Whether bytes from `peer` are wanted now.
    pub fn wants(&self, peer: Peer) -> bool {
        let side = self.side(peer);
        let room = !side.ended && !side.input.is_full();
        match (&self.stage, peer) {
            (Stage::Idle, Peer::Client) | (Stage::Tunnel, _) | (Stage::Exchange(_), Peer::Upstream) => room,
            // After the request's end, one look ahead shows whether the client is still there.
            (Stage::Exchange(exchange), Peer::Client) => {
                room && (!exchange.request_body.is_done() || side.input.filled().is_empty())
            }
            (Stage::Idle, Peer::Upstream) | (Stage::Deciding | Stage::Answering, _) => false,
        }
    }

    /// Whether `peer` should be told now that nothing more comes: the other end of a tunnel has ended.
    pub fn should_end(&self, peer: Peer) -> bool {
        let from = match peer {
            Peer::Client => &self.upstream,
            Peer::Upstream => &self.client,
        };
        matches!(self.stage, Stage::Tunnel) && from.ended && self.pending(peer).iter().all(|part| part.is_empty())
    }

    /// Whether the client has ended its side and left nothing to read.
    pub fn client_is_gone(&self) -> bool {
        self.client.ended
    }

    /// Whether nothing of a request's head has come yet.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.stage, Stage::Idle) && self.client.input.filled().is_empty()
    }

    /// Whom the exchange waits for.
    pub fn waiting(&self) -> Waiting {
        let exchange = match &self.stage {
            Stage::Idle if self.client.input.filled().is_empty() => return Waiting::ForRequest,
            Stage::Idle | Stage::Deciding => return Waiting::ForHead,
            Stage::Tunnel => return Waiting::InTunnel,
            Stage::Answering => return Waiting::ForClient,
            Stage::Exchange(exchange) => exchange,
        };
        let to_send = |peer| self.pending(peer).iter().any(|part| !part.is_empty());
        let client_owes_body = !exchange.request_body.is_done() && !exchange.awaits_continue;
        if to_send(Peer::Client) || (!to_send(Peer::Upstream) && client_owes_body) {
            Waiting::ForClient
        } else {
            Waiting::ForUpstream
        }
    }

    /// What the exchange came to, once all of it has been written. The machine is then ready for the next request, if the
    /// connection may carry one.
    pub fn finish(&mut self) -> Option<Outcome> {
        let drained = self.pending(Peer::Client).iter().all(|part| part.is_empty());
        let over = match &self.stage {
            Stage::Exchange(exchange) => exchange.response_body.is_some_and(Body::is_done),
            Stage::Answering => true,
            Stage::Tunnel => self.client.ended && self.upstream.ended && self.should_end(Peer::Upstream),
            Stage::Idle | Stage::Deciding => false,
        };
        if !(over && drained) {
            return None;
        }
        let mut outcome = self.outcome;
        if let Stage::Exchange(exchange) = &self.stage {
            let request_is_over = exchange.request_body.is_done() && self.client.ready == 0;
            outcome.keep_client &= request_is_over;
            let clean = self.upstream.input.filled().is_empty() && !self.upstream.ended;
            outcome.keep_upstream = exchange.upstream_keeps && request_is_over && clean;
        }
        self.client.out.clear();
        self.client.out_sent = 0;
        self.upstream = Side::new(self.limits.bytes_max);
        self.stage = Stage::Idle;
        Some(outcome)
    }

    /// What the exchange has come to when it is given up.
    pub fn give_up(&self) -> Outcome {
        Outcome { keep_client: false, keep_upstream: false, ..self.outcome }
    }

    /// Takes what has come as far as it goes.
    fn process(&mut self) -> Result<(), Failure> {
        match &mut self.stage {
            Stage::Exchange(exchange) => {
                take_request_body(exchange, &mut self.client, &mut self.outcome)?;
                let switched =
                    take_response(exchange, self.limits, &mut self.client, &mut self.upstream, &mut self.outcome)?;
                if switched {
                    self.stage = Stage::Tunnel;
                    return self.process();
                }
            }
            Stage::Tunnel => {
                let before = self.client.ready;
                self.client.ready = self.client.input.filled().len();
                self.upstream.ready = self.upstream.input.filled().len();
                self.outcome.received_bytes += (self.client.ready - before) as u64;
            }
            Stage::Idle | Stage::Deciding | Stage::Answering => {}
        }
        Ok(())
    }

    fn side(&self, peer: Peer) -> &Side {
        match peer {
            Peer::Client => &self.client,
            Peer::Upstream => &self.upstream,
        }
    }

    fn side_mut(&mut self, peer: Peer) -> &mut Side {
        match peer {
            Peer::Client => &mut self.client,
            Peer::Upstream => &mut self.upstream,
        }
    }
}

impl Side {
    fn new(capacity: usize) -> Self {
        Self { input: Buffer::new(capacity), ready: 0, scanned: 0, ended: false, out: Vec::new(), out_sent: 0 }
    }
}

impl Outcome {
    fn nothing() -> Self {
        Self { status: 0, received_bytes: 0, sent_bytes: 0, keep_client: false, keep_upstream: false }
    }
}

fn take_request_body(exchange: &mut Exchange, client: &mut Side, outcome: &mut Outcome) -> Result<(), Failure> {
    if exchange.request_body.is_done() {
        return Ok(());
    }
    let fresh = &client.input.filled()[client.ready..];
    let taken = exchange.request_body.take(fresh).map_err(Failure::BadRequestBody)?;
    client.ready += taken;
    outcome.received_bytes += taken as u64;
    if taken > 0 {
        exchange.awaits_continue = false;
    }
    if client.ended && !exchange.request_body.is_done() { Err(Failure::ClientLeft) } else { Ok(()) }
}

/// Takes what has come of the response; says whether the protocol was switched.
fn take_response(
    exchange: &mut Exchange,
    limits: HeadLimits,
    client: &mut Side,
    upstream: &mut Side,
    outcome: &mut Outcome,
) -> Result<bool, Failure> {
    while exchange.response_body.is_none() {
        let end = head::find_end(upstream.input.filled(), &mut upstream.scanned, limits)
            .map_err(|_| Failure::BadResponse(BadResponse("its head is too long or not HTTP")))?;
        let Some(end) = end else {
            return match (upstream.ended, upstream.input.filled().is_empty() && exchange.interims == 0) {
                (false, _) => Ok(false),
                (true, true) => Err(Failure::NoResponse),
                (true, false) => Err(Failure::Truncated),
            };
        };
        let response =
            response::parse(&upstream.input.filled()[..end], limits, exchange.asked).map_err(Failure::BadResponse)?;
        upstream.input.consume(end);
        upstream.scanned = 0;
        exchange.awaits_continue = false;
        let version = exchange.asked.version;
        if response.status == 101 {
            outcome.status = 101;
            forward::write_response(&response, version, false, &mut client.out);
            return Ok(true);
        }
        if response.status < 200 {
            exchange.interims += 1;
            if exchange.interims > INTERIM_MAX {
                return Err(Failure::BadResponse(BadResponse("it has too many interim responses")));
            }
            forward::write_response(&response, version, true, &mut client.out);
            continue;
        }
        let keep = exchange.keep_client && response.framing != Framing::UntilClose && exchange.request_body.is_done();
        forward::write_response(&response, version, keep, &mut client.out);
        outcome.status = response.status;
        outcome.keep_client = keep;
        exchange.upstream_keeps = response.keep_alive && version == Version::Http11;
        exchange.response_body = Some(Body::new(response.framing));
    }
    let Some(body) = &mut exchange.response_body else { return Ok(false) };
    let fresh = &upstream.input.filled()[upstream.ready..];
    let bad = |_| Failure::BadResponse(BadResponse("its chunks are malformed"));
    upstream.ready += body.take(fresh).map_err(bad)?;
    if upstream.ended && !body.is_done() {
        if !body.ends_with_connection() {
            return Err(Failure::Truncated);
        }
        *body = Body::new(Framing::Empty);
    }
    Ok(false)
}

/// The words that go with the statuses that the proxy answers itself.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests;
