//! Moving bytes between sockets and a [`Relay`], with a bound on every wait.

use crate::http::relay::{Failure, Outcome, Peer, Relay, Waiting};
use crate::patience::Patience;
use crate::socket::end_writing;
use phalanx_plan::proxy_config::ProxyLimits;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Why bytes can't be moved on.
#[derive(Debug)]
pub enum Broken {
    /// The relay says so.
    Exchange(Failure),
    /// The client's socket failed.
    Client,
    /// Nothing moved for too long.
    TimedOut(Waiting),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Broken::Exchange(failure)
    }
}

/// Moves bytes until the exchange is over.
///
/// # Errors
/// See [`Broken`].
pub async fn run(
    relay: &mut Relay,
    client: &mut TcpStream,
    upstream: Option<&mut TcpStream>,
    patience: &mut Patience,
    limits: &ProxyLimits,
) -> Result<Outcome, Broken> {
    let mut pump = Pump { relay, client, upstream, upstream_is_deaf: false, ended: [false; 2] };
    let mut moved_at = Instant::now();
    poll_fn(|context| {
        loop {
            let moved = pump.write(Peer::Upstream, context)? | pump.write(Peer::Client, context)?;
            if let Some(outcome) = pump.relay.finish() {
                return Poll::Ready(Ok(outcome));
            }
            let moved = moved | pump.read(Peer::Upstream, context)? | pump.read(Peer::Client, context)?;
            if !moved {
                break;
            }
            moved_at = Instant::now();
        }
        // The task is now woken when a socket is ready or time is over.
        let waiting = pump.relay.waiting();
        ready!(patience.poll_end(moved_at + bound(waiting, limits), context));
        Poll::Ready(Err(Broken::TimedOut(waiting)))
    })
    .await
}

/// Reads what is there from one side. Room is taken only when something is there; and a read that does not fill it has emptied the
/// socket (epoll(7)), so that the next one waits without asking the kernel.
pub fn poll_read(
    relay: &mut Relay,
    peer: Peer,
    stream: &mut TcpStream,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    ready!(stream.poll_read_ready(context))?;
    let mut space = ReadBuf::new(relay.space(peer));
    ready!(Pin::new(stream).poll_read(context, &mut space))?;
    Poll::Ready(Ok(space.filled().len()))
}

struct Pump<'a> {
    relay: &'a mut Relay,
    client: &'a mut TcpStream,
    upstream: Option<&'a mut TcpStream>,
    /// It closed its reading side: its response may still come.
    upstream_is_deaf: bool,
    /// Sides (client, upstream) that were told that nothing more comes.
    ended: [bool; 2],
}

impl Pump<'_> {
    /// Writes what can be written now; says whether anything was. If more is left, the task is woken when it can be.
    fn write(&mut self, peer: Peer, context: &mut Context<'_>) -> Result<bool, Broken> {
        let Self { relay, client, upstream, upstream_is_deaf, ended } = self;
        let stream = match (peer, upstream) {
            (Peer::Client, _) => client,
            (Peer::Upstream, Some(stream)) => stream,
            (Peer::Upstream, None) => return Ok(false),
        };
        let mut moved = false;
        while !(peer == Peer::Upstream && *upstream_is_deaf) {
            let [head, body] = relay.pending(peer);
            if head.is_empty() && body.is_empty() {
                break;
            }
            match Pin::new(&mut **stream).poll_write_vectored(context, &[IoSlice::new(head), IoSlice::new(body)]) {
                Poll::Ready(Ok(count)) => {
                    relay.sent(peer, count)?;
                    moved = true;
                }
                Poll::Ready(Err(_)) if peer == Peer::Client => return Err(Broken::Client),
                Poll::Ready(Err(_)) => *upstream_is_deaf = true,
                Poll::Pending => break,
            }
        }
        let told = &mut ended[peer as usize];
        if relay.should_end(peer) && !*told {
            *told = true;
            moved = true;
            end_writing(stream);
        }
        Ok(moved)
    }

    /// Reads what is there, if it is wanted; says whether anything was. If nothing was, the task is woken when something comes.
    fn read(&mut self, peer: Peer, context: &mut Context<'_>) -> Result<bool, Broken> {
        let stream = match (peer, &mut self.upstream) {
            _ if !self.relay.wants(peer) => return Ok(false),
            (Peer::Client, _) => &mut *self.client,
            (Peer::Upstream, Some(stream)) => stream,
            (Peer::Upstream, None) => return Ok(false),
        };
        let count = match poll_read(self.relay, peer, stream, context) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(_)) if peer == Peer::Client => return Err(Broken::Client),
            // A reset upstream has ended as well; the relay knows what that means for the response.
            Poll::Ready(Err(_)) => 0,
        };
        self.relay.received(peer, count)?;
        Ok(true)
    }
}

fn bound(waiting: Waiting, limits: &ProxyLimits) -> Duration {
    Duration::from_millis(match waiting {
        Waiting::ForRequest | Waiting::ForClient => limits.idle_timeout_ms,
        Waiting::ForHead => limits.head_timeout_ms,
        Waiting::ForUpstream => limits.response_timeout_ms,
        Waiting::InTunnel => limits.tunnel_idle_timeout_ms,
    })
}
