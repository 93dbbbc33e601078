//! The links to slaves: a master serves them its own spec and its own directory, and relays what goes up and down.
//!
//! A machine without a certificate may send one message, a join, which is relayed. Of a node of this cluster only the newest certificate
//! is accepted, which its spec names. A member that is no node of this cluster (any
//! more) is told so, gets nothing of the directory, and is sent to where this master itself gets its orders: the panel.

use super::up::read_ahead;
use super::{watch_over, wire};
use crate::identity::server_of;
use crate::node::{Adopted, Node};
use anyhow::{Context, bail};
use phalanx_host::directory::{ChangesRead, SnapshotReader};
use phalanx_model::{Name, Position};
use phalanx_plan::session::{DownMessage, JoinReply, UpMessage, Upstream, UpstreamEffect};
use phalanx_plan::spec::{CertificateDigest, ClusterSpec, port};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at a time, of slaves and of machines that join.
const CONNECTIONS_MAX: usize = 512;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const JOIN_LIMIT: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(2);
/// How long a peer that is sent on may take to close.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a member that is no node of this cluster may wait here: the panel may have sent it before it told us.
const STRANGER_LIMIT: Duration = Duration::from_secs(5);

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
            let certificate = CertificateDigest::of(certificate);
            serve_slave(node, peer, certificate, stream).await
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

/// Why a node with this certificate is not served: its machine has joined anew, or another one has in its place.
fn outdated(adopted: &Adopted, peer: &Name, certificate: &CertificateDigest) -> Option<String> {
    let spec = adopted.spec.as_ref().filter(|spec| spec.nodes.contains_key(peer))?;
    let why = || format!("this certificate of {peer} is not the newest: join again with a new token");
    (!spec.is_current(peer, certificate)).then(why)
}

/// Waits until the spec that names a certificate which was made a moment ago has come; says why not where it does not come.
async fn until_current(node: &Node, peer: &Name, certificate: &CertificateDigest) -> Option<String> {
    let mut adopted = node.adopted.subscribe();
    let named = adopted.wait_for(|adopted| outdated(adopted, peer, certificate).is_none());
    match tokio::time::timeout(STRANGER_LIMIT, named).await.map(drop) {
        Ok(()) => None,
        Err(_) => outdated(&node.adopted.borrow(), peer, certificate),
    }
}

/// Where the directory stands for `peer`: nowhere for a machine that is no node of this cluster.
fn head_for(node: &Node, peer: &Name) -> Position {
    if is_node(node, peer) { *node.directory.head.borrow() } else { Position::default() }
}

fn is_node(node: &Node, peer: &Name) -> bool {
    node.adopted.borrow().spec.as_ref().is_some_and(|spec| spec.nodes.contains_key(peer))
}

/// One slave's connection, as its driver sees it.
struct Serving<'n> {
    node: &'n Arc<Node>,
    peer: Name,
    writer: WriteHalf<TlsStream<TcpStream>>,
    upstream: Upstream,
    snapshot: Option<SnapshotReader>,
    /// When a member that is no node of this cluster is sent on.
    stranger_until: Instant,
}

async fn serve_slave(
    node: &Arc<Node>,
    peer: Name,
    certificate: CertificateDigest,
    mut stream: TlsStream<TcpStream>,
) -> anyhow::Result<()> {
    if let Some(why) = until_current(node, &peer, &certificate).await {
        wire::write(&mut stream, &DownMessage::Refused { why: why.clone() }).await?;
        // The peer closes when it has read why; closing first could cost it that (RFC 1122, 4.2.2.13).
        stream.shutdown().await?;
        tokio::time::sleep(FAREWELL).await;
        bail!("{why}");
    }
    let mut relayed = node.slave_connected(peer.clone());
    let mut adopted = node.adopted.subscribe();
    let mut head = node.directory.head.subscribe();
    let spec = spec_for(&adopted.borrow_and_update(), &peer);
    let upstream = Upstream::new(peer.clone(), spec, head_for(node, &peer));
    let (reader, writer) = tokio::io::split(stream);
    let (mut incoming, _reading) = read_ahead::<UpMessage>(reader);
    let mut serving = Serving {
        node,
        peer: peer.clone(),
        writer,
        upstream,
        snapshot: None,
        stranger_until: Instant::now() + STRANGER_LIMIT,
    };
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    tracing::info!(%peer, "a slave is connected");
    loop {
        let effects = tokio::select! {
            message = incoming.recv() => {
                let message = message.context("the reader ended")??;
                serving.upstream.on_message(message)
            }
            changed = adopted.changed() => {
                changed.context("the agent ends")?;
                let (spec, outdated) = {
                    let now = adopted.borrow_and_update();
                    (spec_for(&now, &peer), outdated(&now, &peer, &certificate))
                };
                if let Some(why) = outdated {
                    serving.carry_out(vec![UpstreamEffect::Close { why }]).await?;
                }
                let mut effects = spec.map_or(vec![], |(position, spec)| serving.upstream.on_spec(position, spec));
                effects.extend(serving.upstream.on_head(head_for(node, &peer)));
                effects.extend(serving.send_on());
                effects
            }
            _ = looks.tick() => serving.send_on(),
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
    /// Sends a member on that is no node of this cluster: a slave of former days at once, one that came so after a while. Not while
    /// this master is without orders itself: then it may be the one who does not know.
    fn send_on(&mut self) -> Vec<UpstreamEffect> {
        let now = Instant::now();
        if is_node(self.node, &self.peer) {
            self.stranger_until = now;
            return vec![];
        }
        if now < self.stranger_until || !self.node.is_served.load(Ordering::Relaxed) {
            return vec![];
        }
        let why = format!("{} is no node of the cluster that {} leads", self.peer, self.node.identity.server);
        self.upstream.on_elsewhere(self.node.upstream(), why)
    }

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
                UpstreamEffect::HandedOver { why } => {
                    // The peer closes when it has read where to go; closing first could cost it that (RFC 1122, 4.2.2.13).
                    self.writer.shutdown().await?;
                    tokio::time::sleep(FAREWELL).await;
                    bail!("{why}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_model::cluster::Role;
    use phalanx_plan::spec::{NodeSpec, Work};
    use std::collections::BTreeMap;

    fn name(text: &str) -> Name {
        text.parse().expect("a valid name")
    }

    /// The state of web1, a master whose slave web2 has this certificate.
    fn adopted(certificate: Option<CertificateDigest>) -> Adopted {
        let node = NodeSpec {
            server: name("web2"),
            role: Role::Slave,
            address: "10.9.0.12/24".parse().expect("an address"),
            certificate,
            peers: BTreeMap::new(),
            work: Work::Mail(None),
        };
        let nodes = BTreeMap::from([(name("web2"), node)]);
        let spec = ClusterSpec { cluster: name("web"), master: name("web1"), nodes };
        Adopted { position: Position::default(), spec: Some(Box::new(spec)), known: true }
    }

    #[test]
    fn of_a_slave_only_the_newest_certificate_is_served() {
        let (old, new) = (CertificateDigest::of(b"old"), CertificateDigest::of(b"new"));
        let joined_anew = adopted(Some(new));
        assert_eq!(outdated(&joined_anew, &name("web2"), &new), None);
        let why = outdated(&joined_anew, &name("web2"), &old).expect("the machine was replaced");
        assert!(why.contains("web2 is not the newest") && why.contains("join again"), "{why}");
        assert!(
            outdated(&adopted(None), &name("web2"), &old).is_some(),
            "removed and added again, and not joined since"
        );
        assert_eq!(outdated(&joined_anew, &name("web3"), &old), None, "no node of ours: the panel looks at it");
        assert_eq!(outdated(&Adopted::default(), &name("web2"), &old), None);
    }
}
