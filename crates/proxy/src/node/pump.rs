//! Moving bytes between sockets and a [`Relay`], with a bound on every wait.

use crate::http::relay::{Failure, Outcome, Peer, Relay, Waiting};
use phalanx_plan::proxy_config::ProxyLimits;
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a closed connection is read on, so that its last answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// How much is read on.
const LINGER_BYTES_MAX: usize = 256 * 1024;

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
    client: &TcpStream,
    upstream: Option<&TcpStream>,
    limits: &ProxyLimits,
) -> Result<Outcome, Broken> {
    let mut pump = Pump { relay, client, upstream, upstream_is_deaf: false, ended: [false; 2] };
    let mut moved_at = Instant::now();
    let mut timer = std::pin::pin!(sleep_until(moved_at + patience(pump.relay.waiting(), limits)));
    loop {
        tokio::task::coop::consume_budget().await;
        let moved = pump.write(Peer::Upstream)? | pump.write(Peer::Client)?;
        if let Some(outcome) = pump.relay.finish() {
            return Ok(outcome);
        }
        let moved = moved | pump.read(Peer::Upstream)? | pump.read(Peer::Client)?;
        if moved {
            moved_at = Instant::now();
            continue;
        }
        let waiting = pump.relay.waiting();
        let deadline = moved_at + patience(waiting, limits);
        // The timer is moved only when it matters: when it fires too early, or when the patience became less.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        tokio::select! {
            () = pump.ready() => {}
            () = &mut timer => {
                if Instant::now() >= deadline {
                    return Err(Broken::TimedOut(waiting));
                }
                timer.as_mut().reset(deadline);
            }
        }
    }
}

struct Pump<'a> {
    relay: &'a mut Relay,
    client: &'a TcpStream,
    upstream: Option<&'a TcpStream>,
    /// It closed its reading side: its response may still come.
    upstream_is_deaf: bool,
    /// Sides (client, upstream) that were told that nothing more comes.
    ended: [bool; 2],
}

impl Pump<'_> {
    fn stream(&self, peer: Peer) -> Option<&TcpStream> {
        match peer {
            Peer::Client => Some(self.client),
            Peer::Upstream => self.upstream,
        }
    }

    fn writes(&self, peer: Peer) -> bool {
        let deaf = peer == Peer::Upstream && self.upstream_is_deaf;
        !deaf && self.relay.pending(peer).iter().any(|part| !part.is_empty())
    }

    fn write(&mut self, peer: Peer) -> Result<bool, Broken> {
        let mut moved = false;
        while self.writes(peer) {
            let Some(stream) = self.stream(peer) else { break };
            let [head, body] = self.relay.pending(peer);
            match stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(count) => {
                    self.relay.sent(peer, count)?;
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) if peer == Peer::Client => return Err(Broken::Client),
                Err(_) => self.upstream_is_deaf = true,
            }
        }
        let index = peer as usize;
        if self.relay.should_end(peer) && !self.ended[index] {
            self.ended[index] = true;
            moved = true;
            if let Some(stream) = self.stream(peer) {
                end_writing(stream);
            }
        }
        Ok(moved)
    }

    fn read(&mut self, peer: Peer) -> Result<bool, Broken> {
        let stream = match peer {
            Peer::Client => Some(self.client),
            Peer::Upstream => self.upstream,
        };
        let (Some(stream), true) = (stream, self.relay.wants(peer)) else { return Ok(false) };
        let count = match stream.try_read(self.relay.space(peer)) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(_) if peer == Peer::Client => return Err(Broken::Client),
            // A reset upstream has ended as well; the relay knows what that means for the response.
            Err(_) => 0,
        };
        self.relay.received(peer, count)?;
        Ok(true)
    }

    /// Waits until something can be read that is wanted or written that is there.
    async fn ready(&self) {
        // Errors show when the socket is used.
        tokio::select! {
            _ = self.client.readable(), if self.relay.wants(Peer::Client) => {}
            _ = self.client.writable(), if self.writes(Peer::Client) => {}
            () = readable(self.upstream), if self.relay.wants(Peer::Upstream) => {}
            () = writable(self.upstream), if self.writes(Peer::Upstream) => {}
            else => std::future::pending().await,
        }
    }
}

async fn readable(stream: Option<&TcpStream>) {
    match stream {
        Some(stream) => drop(stream.readable().await),
        None => std::future::pending().await,
    }
}

async fn writable(stream: Option<&TcpStream>) {
    match stream {
        Some(stream) => drop(stream.writable().await),
        None => std::future::pending().await,
    }
}

fn patience(waiting: Waiting, limits: &ProxyLimits) -> Duration {
    Duration::from_millis(match waiting {
        Waiting::ForRequest | Waiting::ForClient => limits.idle_timeout_ms,
        Waiting::ForHead => limits.head_timeout_ms,
        Waiting::ForUpstream => limits.response_timeout_ms,
        Waiting::InTunnel => limits.tunnel_idle_timeout_ms,
    })
}

/// Closes a connection such that the client can read the last answer: writing ends, and what still comes is dropped, for a while.
pub async fn linger(stream: TcpStream) {
    end_writing(&stream);
    let drain = async {
        let mut dropped = 0;
        let mut room = [0; 4_096];
        while dropped < LINGER_BYTES_MAX && stream.readable().await.is_ok() {
            match stream.try_read(&mut room) {
                Ok(0) => return,
                Ok(count) => dropped += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    if timeout(LINGER, drain).await.is_err() {
        tracing::debug!("a client kept its connection open after its last answer");
    }
}

/// Makes the connection end with a reset instead of an orderly close.
pub fn reset(stream: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!("a broken connection is closed in order: {error}");
    }
}

fn end_writing(stream: &TcpStream) {
    // A peer that is gone needs not be told.
    if let Err(error) = rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        tracing::debug!("a connection was gone before it was closed: {error}");
    }
}
