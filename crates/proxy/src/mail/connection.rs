//! One connection: it waits for the next hop, names its client there, and then bytes flow until both sides have ended or it is cut.
//!
//! Its sockets end with a reset unless both sides have ended in order: whoever is cut knows at once that bytes are missing.

use super::door::Passage;
use super::proxy_header;
use super::refusal::{self, Reason};
use super::splice::{Broken, splice};
use super::tally::{Seat, Tally};
use crate::socket;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// Between the first attempts to reach the next hop; each pause is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between later ones.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A client, where it is at.
pub struct Connection {
    /// Its socket.
    pub client: TcpStream,
    /// Its address.
    pub peer: SocketAddrV4,
    /// What it speaks.
    pub protocol: Arc<str>,
    /// Where its door leads; the sender is dropped when the door is closed.
    pub passage: watch::Receiver<Arc<Passage>>,
    /// Its place.
    pub seat: Seat,
}

/// What came of waiting for the next hop.
enum Found {
    Upstream(TcpStream, SocketAddrV4),
    /// Nobody could be reached in time.
    Nobody,
    /// The client left, or the door was closed.
    Over,
}

impl Connection {
    /// Serves it to its end.
    pub async fn serve(mut self) {
        socket::reset(&self.client);
        if let Err(error) = self.client.set_nodelay(true) {
            tracing::debug!("{} left at once: {error}", self.peer);
            return;
        }
        let waiting = Waiting::begin(&self.seat.tally);
        let found = self.find().await;
        drop(waiting);
        match found {
            Found::Upstream(upstream, to) => self.lead(upstream, to).await,
            Found::Nobody => {
                self.seat.tally.given_up.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("{} ({}) waited in vain", self.peer, self.protocol);
                refuse(self.client, &self.protocol, Reason::Unavailable).await;
            }
            Found::Over => {}
        }
    }

    async fn find(&mut self) -> Found {
        let limits = self.passage.borrow().limits;
        let deadline = Instant::now() + Duration::from_millis(limits.wait_timeout_ms);
        let mut pause = PAUSE_MIN;
        loop {
            let passage = self.passage.borrow_and_update().clone();
            if !passage.admits(*self.peer.ip()) {
                return Found::Over;
            }
            if let Some(to) = passage.to {
                let limit = Duration::from_millis(limits.connect_timeout_ms);
                match timeout(limit, self.connect(to, passage.names_client)).await {
                    Ok(Ok(upstream)) => return Found::Upstream(upstream, to),
                    Ok(Err(error)) => tracing::debug!("{to} can't be reached for {}: {error}", self.peer),
                    Err(_) => tracing::debug!("{to} does not answer {} within {} ms", self.peer, limit.as_millis()),
                }
            }
            if !refusal::is_worth_waiting(&self.protocol) || Instant::now() >= deadline {
                return Found::Nobody;
            }
            if socket::has_ended(&self.client) {
                return Found::Over;
            }
            tokio::select! {
                changed = self.passage.changed() => match changed {
                    Ok(()) => pause = PAUSE_MIN,
                    Err(_) => return Found::Over,
                },
                () = sleep_until(deadline.min(Instant::now() + pause)) => pause = PAUSE_MAX.min(pause * 2),
            }
        }
    }

    async fn connect(&self, to: SocketAddrV4, names_client: bool) -> io::Result<TcpStream> {
        let mut upstream = TcpStream::connect(to).await?;
        upstream.set_nodelay(true)?;
        socket::reset(&upstream);
        if names_client && let SocketAddr::V4(destination) = self.client.local_addr()? {
            upstream.write_all(&proxy_header::header(self.peer, destination)).await?;
        }
        Ok(upstream)
    }

    async fn lead(&mut self, mut upstream: TcpStream, to: SocketAddrV4) {
        let limits = self.passage.borrow().limits;
        let idle_timeout = Duration::from_millis(limits.idle_timeout_ms);
        let Self { client, peer, protocol, passage, seat } = self;
        let mut flow = Box::pin(splice(client, &mut upstream, &seat.tally, idle_timeout));
        let ended = tokio::select! {
            biased;
            () = leads_elsewhere(passage, *peer, to) => {
                let may_finish = refusal::may_finish(protocol) && passage.borrow().admits(*peer.ip());
                match may_finish {
                    true => timeout(Duration::from_millis(limits.finish_timeout_ms), &mut flow).await.ok(),
                    false => None,
                }
            }
            ended = &mut flow => Some(ended),
        };
        drop(flow);
        match ended {
            Some(Ok(())) => {
                socket::close_in_order(client);
                socket::close_in_order(&upstream);
            }
            Some(Err(Broken::Socket(error))) => tracing::debug!("{peer} or {to} left: {error}"),
            Some(Err(silent @ Broken::Silent(_))) => tracing::debug!("{peer} and {to} are parted: {silent}"),
            None => {
                seat.tally.cut.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("{peer} is cut from {to}");
            }
        }
    }
}

/// Comes back when `peer` is not to be led to `to` any more.
async fn leads_elsewhere(passage: &mut watch::Receiver<Arc<Passage>>, peer: SocketAddrV4, to: SocketAddrV4) {
    let leads_there = |passage: &Arc<Passage>| passage.to == Some(to) && passage.admits(*peer.ip());
    // An error means that the door is closed, which is an end as well.
    drop(passage.wait_for(|passage| !leads_there(passage)).await);
}

/// Closes a connection with the words of its protocol.
pub async fn refuse(client: TcpStream, protocol: &str, reason: Reason) {
    socket::close_in_order(&client);
    let Some(greeting) = refusal::greeting(protocol, reason) else { return };
    match client.try_write(greeting) {
        Ok(_) => socket::linger(client).await,
        Err(error) => tracing::debug!("a client was refused without a word: {error}"),
    }
}

/// Counts a connection as waiting while it is kept.
struct Waiting(Arc<Tally>);

impl Waiting {
    fn begin(tally: &Arc<Tally>) -> Self {
        tally.waiting.fetch_add(1, Ordering::Relaxed);
        Self(tally.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiting: &AtomicU64 = &self.0.waiting;
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
