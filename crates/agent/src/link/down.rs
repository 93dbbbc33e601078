//! The links to slaves: a master serves them its own spec and its own directory, and relays what goes up and down.
//!
//! A machine without a certificate may send one message, a join, which is relayed. A member that is no node of this cluster (any
//! more) is told so and gets nothing of the directory.

use super::up::read_ahead;
use super::{watch_over, wire};
use crate::identity::server_of;
use crate::node::{Adopted, Node};
use anyhow::{Context, bail};
use phalanx_host::directory::{ChangesRead, SnapshotReader};
use phalanx_model::{Name, Position};
use phalanx_plan::session::{DownMessage, JoinReply, UpMessage, Upstream, UpstreamEffect};
use phalanx_plan::spec::{ClusterSpec, port};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::WriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at a time, of slaves and of machines that join.
const CONNECTIONS_MAX: usize = 512;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const JOIN_LIMIT: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(2);

/// Serves slaves whenever this node is a master.
pub async fn run(node: Arc<Node>) {
    let mut adopted = node.adopted.subscribe();
    loop {
        let Some(address) = master_address(&adopted.borrow_and_update(), &node.identity.server) else {
            if adopted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let place = SocketAddrV4::new(address, port::AGENT);
        match TcpListener::bind(place).await {
            Ok(listener) => {
                tracing::info!(%place, "slaves are served");
                tokio::select! {
                    () = accept(&node, listener) => {}
                    () = until_no_master_at(&mut adopted, &node.identity.server, address) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%place, %error, "slaves can't be served");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn master_address(adopted: &Adopted, server: &Name) -> Option<Ipv4Addr> {
    let spec = adopted.spec.as_ref().filter(|spec| spec.master == *server)?;
    Some(spec.nodes.get(server)?.address.ip)
}

async fn until_no_master_at(adopted: &mut tokio::sync::watch::Receiver<Adopted>, server: &Name, address: Ipv4Addr) {
    while adopted.changed().await.is_ok() {
        if master_address(&adopted.borrow_and_update(), server) != Some(address) {
            return;
        }
    }
}

async fn accept(node: &Arc<Node>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = node.clone();
        connections.spawn(async move {
            if let Err(error) = serve(&node, tcp).await {
                tracing::info!(%from, error = format!("{error:#}"), "a slave's link ended");
            }
            drop(permit);
        });
    }
}

async fn serve(node: &Arc<Node>, tcp: TcpStream) -> anyhow::Result<()> {
    watch_over(&tcp)?;
    let acceptor = TlsAcceptor::from(node.identity.acceptor.clone());
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp));
    let stream = handshake.await.context("no handshake came")?.context("the handshake failed")?;
    match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => {
            let peer = server_of(certificate)?;
            serve_slave(node, peer, stream).await
        }
        None => relay_join(node, stream).await,
    }
}

async fn relay_join(node: &Node, mut stream: TlsStream<TcpStream>) -> anyhow::Result<()> {
    let message = tokio::time::timeout(HANDSHAKE_LIMIT, wire::read(&mut stream)).await.context("no join came")??;
    let UpMessage::Join(mut request) = message else { bail!("a machine without a certificate may only join") };
    let asked = request.number;
    let (number, answered) = node.expect_join();
    request.number = number;
    node.send_up(UpMessage::Join(request)).await;
    let result = match tokio::time::timeout(JOIN_LIMIT, answered).await {
        Ok(Ok(reply)) => reply.result,
        Ok(Err(_)) | Err(_) => Err("the panel did not answer; is this master connected to it?".to_owned()),
    };
    wire::write(&mut stream, &DownMessage::Joined(JoinReply { number: asked, result })).await
}

/// What a node of this cluster gets: its own part. Another machine gets "belongs to no cluster".
fn spec_for(adopted: &Adopted, peer: &Name) -> Option<(Position, Option<Box<ClusterSpec>>)> {
    let reduced = adopted.spec.as_ref().and_then(|spec| spec.for_slave(peer)).map(Box::new);
    adopted.known.then_some((adopted.position, reduced))
}

/// Where the directory stands for `peer`: nowhere for a machine that is no node of this cluster.
fn head_for(node: &Node, peer: &Name) -> Position {
    let is_node = node.adopted.borrow().spec.as_ref().is_some_and(|spec| spec.nodes.contains_key(peer));
    if is_node { *node.directory.head.borrow() } else { Position::default() }
}

/// One slave's connection, as its driver sees it.
struct Serving<'n> {
    node: &'n Arc<Node>,
    peer: Name,
    writer: WriteHalf<TlsStream<TcpStream>>,
    upstream: Upstream,
    snapshot: Option<SnapshotReader>,
}

async fn serve_slave(node: &Arc<Node>, peer: Name, stream: TlsStream<TcpStream>) -> anyhow::Result<()> {
    let mut relayed = node.slave_connected(peer.clone());
    let mut adopted = node.adopted.subscribe();
    let mut head = node.directory.head.subscribe();
    let spec = spec_for(&adopted.borrow_and_update(), &peer);
    let upstream = Upstream::new(peer.clone(), spec, head_for(node, &peer));
    let (reader, writer) = tokio::io::split(stream);
    let (mut incoming, _reading) = read_ahead::<UpMessage>(reader);
    let mut serving = Serving { node, peer: peer.clone(), writer, upstream, snapshot: None };
    tracing::info!(%peer, "a slave is connected");
    loop {
        let effects = tokio::select! {
            message = incoming.recv() => {
                let message = message.context("the reader ended")??;
                serving.upstream.on_message(message)
            }
            changed = adopted.changed() => {
                changed.context("the agent ends")?;
                let spec = spec_for(&adopted.borrow_and_update(), &peer);
                let mut effects = spec.map_or(vec![], |(position, spec)| serving.upstream.on_spec(position, spec));
                effects.extend(serving.upstream.on_head(head_for(node, &peer)));
                effects
            }
            changed = head.changed() => {
                changed.context("the directory's thread ended")?;
                head.mark_unchanged();
                serving.upstream.on_head(head_for(node, &peer))
            }
            message = relayed.recv() => {
                vec![UpstreamEffect::Send(message.context("the slave has connected anew")?)]
            }
        };
        serving.carry_out(effects).await?;
    }
}

impl Serving<'_> {
    /// Carries out effects and those that follow from them, in order.
    async fn carry_out(&mut self, effects: Vec<UpstreamEffect>) -> anyhow::Result<()> {
        let mut waiting = std::collections::VecDeque::from(effects);
        while let Some(effect) = waiting.pop_front() {
            let more = match effect {
                UpstreamEffect::Send(message) => {
                    wire::write(&mut self.writer, &message).await?;
                    vec![]
                }
                UpstreamEffect::ReadChanges { after } => match self.node.directory.changes_after(after).await? {
                    ChangesRead::Batch(batch) => self.upstream.on_changes(batch),
                    ChangesRead::TooShort => self.upstream.on_log_too_short(),
                },
                UpstreamEffect::ReadSnapshot { piece } => self.read_snapshot(piece).await?,
                UpstreamEffect::Deliver(message) => {
                    self.node.take_from_slave(&self.peer, message).await;
                    vec![]
                }
                UpstreamEffect::Close { why } => {
                    wire::write(&mut self.writer, &DownMessage::Refused { why: why.clone() }).await?;
                    bail!("{why}");
                }
            };
            waiting.extend(more);
        }
        Ok(())
    }

    async fn read_snapshot(&mut self, piece: u64) -> anyhow::Result<Vec<UpstreamEffect>> {
        let path = self.node.paths.directory();
        let opened = self.snapshot.take().filter(|_| piece > 0);
        let read = move || -> anyhow::Result<_> {
            let mut reader = opened.map_or_else(|| SnapshotReader::open(&path), Ok)?;
            let piece = reader.next_piece()?;
            Ok((reader, piece))
        };
        let (reader, piece) = tokio::task::spawn_blocking(read).await??;
        self.snapshot = (!piece.last).then_some(reader);
        Ok(self.upstream.on_snapshot_piece(piece))
    }
}
