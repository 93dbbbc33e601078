//! A door: a listener and the connections that came through it.
//!
//! A door that is closed is closed for good: first it listens no more, then all its connections are cut, and [`Door::close`] comes back when
//! none is left. That is what makes it safe to open mailboxes elsewhere.

use super::connection::{Connection, refuse};
use super::refusal::Reason;
use super::tally::{Comer, Side, Tallies, Tally};
use crate::socket;
use phalanx_plan::mail::router::MailLimits;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// After an error that would come again at once, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts to bind an address.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// Refused connections of one door that are being closed in order at a time; more are closed at once.
const REFUSALS_MAX: usize = 64;

/// What can't change of a door without making it another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Way or hop.
    pub side: Side,
    /// Where it listens.
    pub listen: SocketAddrV4,
    /// What is spoken.
    pub protocol: Arc<str>,
}

/// Where a door leads, for whom; it may change while the door is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The next hop; none while mailboxes move.
    pub to: Option<SocketAddrV4>,
    /// Whether a PROXY header is sent there.
    pub names_client: bool,
    /// Who may come; none for everybody.
    pub only: Option<BTreeSet<Ipv4Addr>>,
    /// Balancers' addresses.
    pub balancers: BTreeSet<Ipv4Addr>,
    /// Bounds.
    pub limits: MailLimits,
}

impl Passage {
    /// Whether who comes from `peer` is let in.
    pub fn admits(&self, peer: Ipv4Addr) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&peer))
    }

    fn comer(&self, peer: Ipv4Addr) -> Comer {
        if self.only.is_some() || peer == Ipv4Addr::LOCALHOST {
            Comer::Own
        } else if self.balancers.contains(&peer) {
            Comer::Balancer(peer)
        } else {
            Comer::Client(peer)
        }
    }
}

/// An open door.
#[derive(Debug)]
pub struct Door {
    /// What it is.
    pub frame: Frame,
    passage: watch::Sender<Arc<Passage>>,
    bound: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Door {
    /// Opens a door. An address that can't be bound is tried again each second.
    pub fn open(frame: Frame, passage: Passage, tallies: &Tallies, stop: &watch::Receiver<bool>) -> Self {
        let (sender, receiver) = watch::channel(Arc::new(passage));
        let first = socket::bind(frame.listen);
        let bound = Arc::new(AtomicBool::new(first.is_ok()));
        let tally = tallies.of(frame.side, &frame.protocol);
        let keeper = Keeper {
            frame: frame.clone(),
            passage: receiver,
            tallies: tallies.clone(),
            tally,
            bound: bound.clone(),
            connections: JoinSet::new(),
            refusals: JoinSet::new(),
        };
        let task = tokio::spawn(keeper.keep(first, stop.clone()));
        Self { frame, passage: sender, bound, task }
    }

    /// Leads elsewhere from now on. Connections that were led to another place are cut, waiting ones try the new one.
    pub fn lead(&self, passage: Passage) {
        self.passage.send_if_modified(|old| {
            let differs = **old != passage;
            *old = Arc::new(passage);
            differs
        });
    }

    /// Whether it listens.
    pub fn is_bound(&self) -> bool {
        self.bound.load(Ordering::Relaxed)
    }

    /// Where it leads now.
    pub fn to(&self) -> Option<SocketAddrV4> {
        self.passage.borrow().to
    }

    /// Closes it: comes back when it listens no more and has no connection any more.
    pub async fn close(self) {
        let Self { frame, passage, bound: _, task } = self;
        drop(passage);
        if let Err(error) = task.await {
            tracing::error!("the door {} ended in disorder: {error}", frame.listen);
        }
        tracing::info!("{} leads nowhere any more", frame.listen);
    }
}

/// What a door's task owns.
struct Keeper {
    frame: Frame,
    passage: watch::Receiver<Arc<Passage>>,
    tallies: Tallies,
    tally: Arc<Tally>,
    bound: Arc<AtomicBool>,
    connections: JoinSet<()>,
    refusals: JoinSet<()>,
}

impl Keeper {
    /// Listens until the door is closed or the service stops, then waits for the connections to end.
    async fn keep(mut self, first: io::Result<TcpListener>, mut stop: watch::Receiver<bool>) {
        let mut closed = self.passage.clone();
        tokio::select! {
            biased;
            // Errors mean the same: nobody holds the other end any more.
            _ = closed.wait_for(|_| false) => {}
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.listen(first) => {}
        }
        // The listener is gone; connections end by themselves, or see that the door is closed.
        self.refusals.shutdown().await;
        while let Some(ended) = self.connections.join_next().await {
            told(ended);
        }
    }

    async fn listen(&mut self, mut listener: io::Result<TcpListener>) {
        let at = self.frame.listen;
        let mut is_told = false;
        let listener = loop {
            match listener {
                Ok(listener) => break listener,
                Err(error) if !is_told => tracing::warn!("{at} can't be listened on: {error}; trying each second"),
                Err(_) => {}
            }
            is_told = true;
            sleep(BIND_AGAIN).await;
            listener = socket::bind(at);
        };
        self.bound.store(true, Ordering::Relaxed);
        tracing::info!("listening on {at} for {}", self.frame.protocol);
        loop {
            tokio::select! {
                Some(ended) = self.connections.join_next() => told(ended),
                Some(ended) = self.refusals.join_next() => told(ended),
                accepted = listener.accept() => match accepted {
                    Ok((client, SocketAddr::V4(peer))) => self.admit(client, peer),
                    Ok((_, SocketAddr::V6(_))) => {}
                    Err(error) => {
                        tracing::warn!("a connection to {at} can't be accepted: {error}");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(&mut self, client: TcpStream, peer: SocketAddrV4) {
        let passage = self.passage.borrow().clone();
        if !passage.admits(*peer.ip()) {
            self.tally.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("{peer} is no node of this cluster: {} is not for it", self.frame.listen);
            socket::reset(&client);
            return;
        }
        let Frame { side, listen: _, protocol } = &self.frame;
        match self.tallies.seat(*side, passage.comer(*peer.ip()), &passage.limits, &self.tally) {
            Some(seat) => {
                let (protocol, passage) = (protocol.clone(), self.passage.clone());
                self.connections.spawn(Connection { client, peer, protocol, passage, seat }.serve());
            }
            None if self.refusals.len() < REFUSALS_MAX => {
                let protocol = protocol.clone();
                self.refusals.spawn(async move { refuse(client, &protocol, Reason::TooMany).await });
            }
            None => {}
        }
    }
}

fn told(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a connection ended in disorder: {error}");
    }
}
