//! One client connection: request after request, each routed, then forwarded or answered, and logged.

use super::Node;
use super::access_log::Entry;
use super::pages::Page;
use super::pump::{self, Broken};
use super::route::{self, Reply, Route};
use super::upstream;
use super::worker::Worker;
use crate::http::HeadLimits;
use crate::http::forward::{Origin, client_address};
use crate::http::relay::{Answer, Failure, Outcome, Peer, Relay, Waiting};
use crate::http::request::{Reject, Request};
use crate::patience::Patience;
use crate::socket;
use phalanx_host::directory::HostEntry;
use phalanx_model::Uid;
use phalanx_plan::proxy_config::{ProxyConfig, ProxyLimits};
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// Serves a client until it leaves, errs, or the service stops.
pub async fn serve(
    stream: TcpStream,
    peer: Ipv4Addr,
    node: &Arc<Node>,
    worker: &Arc<Worker>,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("{peer} left at once: {error}");
        return;
    }
    let limits = node.config().limits;
    let heads = HeadLimits { bytes_max: limits.head_bytes_max, fields_max: limits.headers_max };
    let patience = Patience::until(Instant::now() + Duration::from_millis(limits.head_timeout_ms));
    let (node, worker) = (node.clone(), worker.clone());
    let mut connection = Connection { stream, peer, relay: Relay::new(heads), patience, node, worker };
    let mut stopping = pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
    let mut first = true;
    loop {
        let next = connection.next_request(first, &limits, stopping.as_mut()).await;
        first = false;
        let keep = match next {
            Next::Request(request) => connection.serve(&request).await,
            Next::Refused(reject) => connection.refuse(reject).await,
            Next::Over => return,
        };
        if keep == Keep::No {
            break;
        }
        if keep == Keep::Broken {
            // A truncated response must not look like a complete one.
            socket::reset(&connection.stream);
            return;
        }
    }
    socket::linger(connection.stream).await;
}

struct Connection {
    stream: TcpStream,
    peer: Ipv4Addr,
    relay: Relay,
    patience: Patience,
    node: Arc<Node>,
    worker: Arc<Worker>,
}

enum Next {
    Request(Box<Request>),
    Refused(Reject),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
    Broken,
}

impl Connection {
    /// Waits for the next request. `stopping` ends when the service stops; it is not asked again after that.
    async fn next_request(
        &mut self,
        first: bool,
        limits: &ProxyLimits,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Next {
        let began = Instant::now();
        let head_timeout = Duration::from_millis(limits.head_timeout_ms);
        let idle_timeout = if first { head_timeout } else { Duration::from_millis(limits.idle_timeout_ms) };
        let mut head_began = None;
        let Self { stream, relay, patience, .. } = self;
        loop {
            match relay.next_request() {
                Ok(Some(request)) => return Next::Request(Box::new(request)),
                Ok(None) if relay.client_is_gone() => return Next::Over,
                Ok(None) => {}
                Err(reject) => return Next::Refused(reject),
            }
            let between = relay.waiting() == Waiting::ForRequest;
            let deadline = match (between, head_began) {
                (true, _) => began + idle_timeout,
                (false, at) => *head_began.insert(at.unwrap_or_else(Instant::now)) + head_timeout,
            };
            tokio::select! {
                biased;
                read = poll_fn(|context| pump::poll_read(relay, Peer::Client, stream, context)) => {
                    // No exchange is under way, so that nothing but the socket can fail.
                    if !read.is_ok_and(|count| relay.received(Peer::Client, count).is_ok()) {
                        return Next::Over;
                    }
                }
                () = poll_fn(|context| patience.poll_end(deadline, context)) => {
                    let late = Reject { status: 408, why: "the request did not arrive in time" };
                    return if between { Next::Over } else { Next::Refused(late) };
                }
                () = stopping.as_mut(), if between => return Next::Over,
            }
        }
    }

    async fn refuse(&mut self, reject: Reject) -> Keep {
        let config = self.node.config();
        let page = Page::BadRequest(reject.status, reject.why);
        let outcome = self.reply(&Reply::Page(page), None, &config.limits).await;
        self.log(None, None, &outcome, Instant::now(), &config);
        Keep::No
    }

    async fn serve(&mut self, request: &Request) -> Keep {
        let began = Instant::now();
        let config = self.node.config();
        let (entry, outcome) = match route::find(request, self.peer, &self.node, &config).await {
            Route::Reply { entry, reply } => (entry, self.reply(&reply, Some(request), &config.limits).await),
            Route::Health(reply) => {
                // Checks are many and say nothing about traffic: they are not logged.
                let outcome = self.reply(&reply, Some(request), &config.limits).await;
                return if outcome.keep_client { Keep::Yes } else { Keep::No };
            }
            Route::Forward { entry, under_way } => {
                let ended = self.forward(request, entry.uid, &config).await;
                drop(under_way);
                match ended {
                    Ok(outcome) => (Some(entry), outcome),
                    Err(Failed::Reply(page)) => {
                        let outcome = self.reply(&Reply::Page(page), Some(request), &config.limits).await;
                        (Some(entry), outcome)
                    }
                    Err(Failed::Cut) => {
                        let outcome = self.relay.give_up();
                        self.log(Some(&entry), Some(request), &outcome, began, &config);
                        return Keep::Broken;
                    }
                }
            }
        };
        self.log(entry.as_deref(), Some(request), &outcome, began, &config);
        if outcome.keep_client { Keep::Yes } else { Keep::No }
    }

    /// Forwards a request; one that had no answer is sent once more over a new connection, if that is as good as once.
    async fn forward(&mut self, request: &Request, uid: Uid, config: &ProxyConfig) -> Result<Outcome, Failed> {
        let (origin, limits) = (self.origin(config), &config.limits);
        let (node, worker) = (self.node.clone(), self.worker.clone());
        node.launcher.used(uid);
        // A kept connection may close just when a request is sent on it. Only what can be sent twice takes that risk.
        let mut kept = if request.is_idempotent() { worker.pool.take(uid, limits) } else { None };
        let mut may_retry = request.is_idempotent();
        loop {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => upstream::connect(uid, &node.launcher, limits).await.map_err(|error| {
                    tracing::warn!("account {uid}: {error}");
                    Failed::Reply(Page::Unreachable)
                })?,
            };
            self.relay.forward(request, origin);
            match self.exchange(Some(&mut stream), limits).await {
                Ok(outcome) => {
                    if outcome.keep_upstream {
                        worker.pool.keep(uid, stream, limits);
                    }
                    return Ok(outcome);
                }
                Err(Broken::Exchange(Failure::NoResponse)) if may_retry && self.relay.can_replay() => may_retry = false,
                Err(broken) => return Err(self.judge(&broken, uid)),
            }
        }
    }

    fn judge(&self, broken: &Broken, uid: Uid) -> Failed {
        let page = match broken {
            Broken::Client | Broken::Exchange(Failure::ClientLeft) => return Failed::Cut,
            Broken::Exchange(Failure::BadRequestBody(_)) => Page::BadRequest(400, "the request's body is malformed"),
            Broken::TimedOut(Waiting::ForUpstream) => Page::TooSlow,
            Broken::TimedOut(_) => Page::BadRequest(408, "the request did not arrive in time"),
            Broken::Exchange(failure) => {
                tracing::info!("account {uid}: {failure}");
                Page::BadAnswer
            }
        };
        if self.relay.response_has_begun() { Failed::Cut } else { Failed::Reply(page) }
    }

    async fn reply(&mut self, reply: &Reply, request: Option<&Request>, limits: &ProxyLimits) -> Outcome {
        let (status, content_type, body) = match reply {
            Reply::Page(page) => (page.status(), "text/html; charset=utf-8", page.html()),
            Reply::Line(status, line) => (*status, "text/plain; charset=utf-8", format!("{line}\n")),
        };
        self.relay.answer(Answer { status, content_type, body: &body }, request);
        match self.exchange(None, limits).await {
            Ok(outcome) => outcome,
            // The client did not take the answer: there is nobody to tell.
            Err(_) => self.relay.give_up(),
        }
    }

    async fn exchange(&mut self, upstream: Option<&mut TcpStream>, limits: &ProxyLimits) -> Result<Outcome, Broken> {
        pump::run(&mut self.relay, &mut self.stream, upstream, &mut self.patience, limits).await
    }

    fn origin(&self, config: &ProxyConfig) -> Origin {
        Origin { peer: self.peer, is_forwarder: config.forwarders.contains(&self.peer) }
    }

    fn log(
        &self,
        entry: Option<&HostEntry>,
        request: Option<&Request>,
        outcome: &Outcome,
        began: Instant,
        config: &ProxyConfig,
    ) {
        let origin = self.origin(config);
        let field =
            |name: &'static str| request.and_then(|request| request.fields.all(name).next()).unwrap_or_default();
        self.node.count(outcome.status);
        self.node.log.write(&Entry {
            site: entry.map(|entry| entry.site.as_str()),
            client: request.map_or(self.peer, |request| client_address(&request.fields, origin)),
            request: request
                .map(|request| (request.method.as_str(), request.target.as_str(), request.version.as_str())),
            status: outcome.status,
            sent_bytes: outcome.sent_bytes,
            received_bytes: outcome.received_bytes,
            duration: began.elapsed(),
            referer: field("referer"),
            user_agent: field("user-agent"),
        });
    }
}

enum Failed {
    /// The client can still be told.
    Reply(Page),
    /// It can't: its response has begun, or it is gone.
    Cut,
}
