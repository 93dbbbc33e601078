//! The panel's REST API over HTTP: one blocking request at a time.
//!
//! Invariants: the token never leaves but in the Authorization header, to the panel alone (no redirects, no proxy); every
//! request is bounded in time and its answer in size; a request is sent again only where that can do no harm: reads, and
//! creations, which carry an Idempotency-Key.
//!
//! Deliberately absent: TLS. The panel speaks HTTP on loopback; from elsewhere one goes through an SSH tunnel.

use crate::failure::{Failure, Problem};
use serde_json::Value;
use std::io::Read;
use std::time::Duration;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

/// What the panel listens on unless told otherwise.
pub const PANEL_DEFAULT: &str = "http://127.0.0.1:8080";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Long enough for the slowest: a rollback waits up to 10 s for its node.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// More than a program that fences may take, with all its looks.
const SLOW_REQUEST_TIMEOUT: Duration = Duration::from_secs(150);
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Waits before a request is sent again after its connection was lost.
const RETRY_WAITS: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// What the type of the problem ends with that the panel answers while the first request of an Idempotency-Key is at work.
const STILL_AT_WORK: &str = "/idempotency-key-running";

/// A panel and the right to talk to it.
pub struct Client {
    agent: Agent,
    panel: String,
    token: Option<String>,
}

/// A successful answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status, 200 to 299.
    pub status: u16,
    /// The version of the resource, if the panel gave one.
    pub etag: Option<String>,
    /// The body; null where there is none.
    pub body: Value,
}

/// A request, before it is sent.
#[derive(Debug, Clone)]
struct Call<'a> {
    method: Method,
    path: &'a str,
    body: Option<&'a Value>,
    header: Option<(&'static str, &'a str)>,
    timeout: Duration,
}

/// Why no answer came.
struct Lost {
    why: String,
    /// Whether the request may have reached the panel.
    may_have_arrived: bool,
}

impl Client {
    /// A client for the panel at `panel`, such as `http://127.0.0.1:8080`. Connects only when a request is made.
    ///
    /// # Errors
    /// When `panel` is not an `http://` address.
    pub fn new(panel: &str, token: Option<String>) -> Result<Self, Failure> {
        let base = panel.trim_end_matches('/');
        let host = base.strip_prefix("http://").filter(|host| !host.is_empty() && !host.contains(['@', '?', '#', ' ']));
        if host.is_none() {
            return Err(Failure::usage(
                format!("{panel:?} is not the address of a panel"),
                format!(
                    "give it as {PANEL_DEFAULT}; a panel on another machine is reached through \
                     `ssh -L 8080:127.0.0.1:8080 PANEL-MACHINE`"
                ),
            ));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("phalanx/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, panel: base.to_owned(), token })
    }

    /// What is to be said where the token goes over a network in the clear; None where it stays on this machine.
    pub fn warning(&self) -> Option<String> {
        let _token = self.token.as_ref()?;
        let authority = self.panel.strip_prefix("http://")?.split('/').next().unwrap_or_default();
        let host =
            authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        (!is_here).then(|| {
            format!(
                "warning: the API token goes to {authority} in the clear, and whoever listens on the way can use it; \
                 go through a tunnel: `ssh -L 8080:127.0.0.1:8080 {host}`, then --panel {PANEL_DEFAULT}"
            )
        })
    }

    /// Reads `path`, which begins below `/api/v1`.
    ///
    /// # Errors
    /// As all of these: a refusal, a panel out of reach, or an answer that is no JSON.
    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.answer(
            &Call { method: Method::GET, path, body: None, header: None, timeout: REQUEST_TIMEOUT },
            &RETRY_WAITS,
        )
    }

    /// Creates something. The key makes sure that it is created once, though the request may be sent several times.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.post_within(REQUEST_TIMEOUT, path, body)
    }

    /// As [`Self::post`], for what takes its time: a machine is switched off.
    pub fn post_slowly(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.post_within(SLOW_REQUEST_TIMEOUT, path, body)
    }

    fn post_within(&self, timeout: Duration, path: &str, body: &Value) -> Result<Answer, Failure> {
        let key = format!("{:032x}", rand::random::<u128>());
        let header = Some(("idempotency-key", key.as_str()));
        self.answer(&Call { method: Method::POST, path, body: Some(body), header, timeout }, &RETRY_WAITS)
    }

    /// Changes `path`, provided that it still is the version `etag`.
    pub fn patch(&self, path: &str, etag: Option<&str>, body: &Value) -> Result<Answer, Failure> {
        let header = etag.map(|etag| ("if-match", etag));
        self.answer(&Call { method: Method::PATCH, path, body: Some(body), header, timeout: REQUEST_TIMEOUT }, &[])
    }

    /// Removes `path`, provided that it still is the version `etag`.
    pub fn delete(&self, path: &str, etag: Option<&str>) -> Result<Answer, Failure> {
        let header = etag.map(|etag| ("if-match", etag));
        self.answer(&Call { method: Method::DELETE, path, body: None, header, timeout: REQUEST_TIMEOUT }, &[])
    }

    /// Opens a stream of events (`text/event-stream`), which has no end and so no timeout but the one for its beginning.
    pub fn stream(&self, path: &str) -> Result<impl Read + use<>, Failure> {
        let request = self.request(Method::GET, path).header("accept", "text/event-stream");
        let request = request.body(()).map_err(anyhow::Error::from)?;
        let request = self.agent.configure_request(request).timeout_recv_response(Some(REQUEST_TIMEOUT)).build();
        let response = self.agent.run(request).map_err(|error| self.unreachable(&lost(&error)))?;
        if !response.status().is_success() {
            return Err(self.read(response).map_or_else(|lost| self.unreachable(&lost), refused));
        }
        Ok(response.into_body().into_reader())
    }

    /// Sends a call, again after each of `waits` while the connection is lost or the call sent before is still at work, and sorts the
    /// answer into success and refusal.
    fn answer(&self, call: &Call<'_>, waits: &[Duration]) -> Result<Answer, Failure> {
        let mut waits = waits.iter();
        loop {
            let (failure, again) = match self.exchange(call)? {
                Ok(received) if (200..300).contains(&received.status) => return received.into_answer(),
                Ok(received) => {
                    let problem = Problem::from_answer(received.status, &received.text);
                    let at_work = problem.document["type"].as_str().is_some_and(|kind| kind.ends_with(STILL_AT_WORK));
                    (Failure::Problem(Box::new(problem)), at_work)
                }
                Err(lost) => (self.unreachable(&lost), lost.may_have_arrived),
            };
            match waits.next() {
                Some(wait) if again => std::thread::sleep(*wait),
                _ => return Err(failure),
            }
        }
    }

    /// One request and its answer, whatever its status.
    fn exchange(&self, call: &Call<'_>) -> Result<Result<Received, Lost>, Failure> {
        let mut request = self.request(call.method.clone(), call.path);
        if let Some((name, value)) = call.header {
            request = request.header(name, value);
        }
        let sent = match call.body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                let request = request.map_err(anyhow::Error::from)?;
                self.agent.run(self.agent.configure_request(request).timeout_global(Some(call.timeout)).build())
            }
            None => {
                let request = request.body(()).map_err(anyhow::Error::from)?;
                self.agent.run(self.agent.configure_request(request).timeout_global(Some(call.timeout)).build())
            }
        };
        Ok(match sent {
            Ok(response) => self.read(response),
            Err(error) => Err(lost(&error)),
        })
    }

    fn request(&self, method: Method, path: &str) -> ureq::http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}/api/v1{path}", self.panel));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn read(&self, response: Response<Body>) -> Result<Received, Lost> {
        let status = response.status().as_u16();
        let etag = response.headers().get("etag").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let read = response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        Ok(Received { status, etag, text: read.map_err(|error| lost(&error))? })
    }

    fn unreachable(&self, lost: &Lost) -> Failure {
        let hint = if lost.may_have_arrived {
            "the request may have been carried out: look with `list` or `show` before you repeat it".to_owned()
        } else {
            format!(
                "is it running (`systemctl status phalanx-panel`)? Another address is given by --panel or PHALANX_PANEL, \
                 such as {PANEL_DEFAULT}"
            )
        };
        Failure::Unreachable { panel: self.panel.clone(), why: lost.why.clone(), hint }
    }
}

/// An answer as it came.
struct Received {
    status: u16,
    etag: Option<String>,
    text: String,
}

impl Received {
    fn into_answer(self) -> Result<Answer, Failure> {
        let Self { status, etag, text } = self;
        if text.trim().is_empty() {
            return Ok(Answer { status, etag, body: Value::Null });
        }
        let body = serde_json::from_str(&text)
            .map_err(|error| anyhow::anyhow!("the panel answered {status} with what is not JSON: {error}"))?;
        Ok(Answer { status, etag, body })
    }
}

fn refused(received: Received) -> Failure {
    Failure::Problem(Box::new(Problem::from_answer(received.status, &received.text)))
}

/// What a failed exchange means: an error before the connection stood has changed nothing.
fn lost(error: &ureq::Error) -> Lost {
    use std::io::ErrorKind;
    let before_connection = match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => true,
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
        ureq::Error::Io(io) => matches!(
            io.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        ),
        _ => false,
    };
    let why = match error {
        ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        ureq::Error::HostNotFound => "its host name is not known".to_owned(),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        ureq::Error::Timeout(ureq::Timeout::Connect) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    };
    Lost { why, may_have_arrived: !before_connection }
}
