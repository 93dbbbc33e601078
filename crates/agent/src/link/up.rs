//! The link to the upstream: dial, follow, report; when it breaks, dial again.

use super::{watch_over, wire};
use crate::node::{Deed, Node, Order};
use crate::{keep, logs, queue, traffic};
use anyhow::{Context, bail};
use phalanx_plan::session::{Command, DownMessage, Follower, FollowerEffect, Place, UpMessage};
use rustls_pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Reports go out this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Events that nobody acknowledged are sent again this often.
const EVENTS_INTERVAL: Duration = Duration::from_secs(10);
/// What was counted of sites goes out this often, what waits for its acknowledgement again.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(5);
/// The waits between attempts: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// A link that lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// Messages that were read and wait to be handled.
const READ_AHEAD: usize = 8;
/// Results of commands that are remembered, so that a command is done once.
const RESULTS_KEPT: usize = 50;
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Follows the upstream until the process ends.
pub async fn run(node: Arc<Node>, mut upwards: mpsc::Receiver<UpMessage>) {
    let mut wait = RETRY_FIRST;
    loop {
        let place = node.upstream();
        match connect(&node, &place).await {
            Ok(stream) => {
                tracing::info!(upstream = place.address, "connected");
                let began = Instant::now();
                if let Err(error) = follow(&node, &place, stream, &mut upwards).await {
                    tracing::warn!(upstream = place.address, error = format!("{error:#}"), "the link ended");
                }
                // An upstream that takes the connection and then refuses us is not asked ten times a second.
                if began.elapsed() >= STEADY {
                    wait = RETRY_FIRST;
                }
            }
            Err(error) => tracing::debug!(upstream = place.address, error = format!("{error:#}"), "no connection"),
        }
        node.not_served_by(&place);
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(RETRY_LONGEST);
    }
}

/// Between half and the whole of `wait`, so that slaves whose master came back do not all dial at once.
fn jittered(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    wait / 2 + wait.mul_f64(f64::from(nanos % 1_000) / 2_000.0)
}

async fn connect(node: &Node, place: &Place) -> anyhow::Result<TlsStream<TcpStream>> {
    let dial = async {
        let tcp =
            TcpStream::connect(&place.address).await.with_context(|| format!("{} can't be reached", place.address))?;
        watch_over(&tcp)?;
        let name = ServerName::try_from(place.name.clone())?;
        let connector = TlsConnector::from(node.identity.client.clone());
        connector.connect(name, tcp).await.with_context(|| format!("{} is not {}", place.address, place.name))
    };
    tokio::time::timeout(CONNECT_LIMIT, dial).await.context("the upstream does not answer")?
}

/// One connection, as its driver sees it.
struct Connection<'n> {
    node: &'n Arc<Node>,
    follower: Follower,
    writer: WriteHalf<TlsStream<TcpStream>>,
    events_sent: u64,
    results: mpsc::Sender<UpMessage>,
}

async fn follow(
    node: &Arc<Node>,
    place: &Place,
    stream: TlsStream<TcpStream>,
    upwards: &mut mpsc::Receiver<UpMessage>,
) -> anyhow::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let position = node.adopted.borrow().position;
    let directory = *node.directory.head.borrow();
    let follower = Follower::new(node.identity.server.clone(), position, node.spec_digest(), directory);
    let (results, mut done) = mpsc::channel(READ_AHEAD);
    let mut connection = Connection { node, follower, writer, events_sent: 0, results };
    let hello = connection.follower.hello();
    connection.send(&hello).await?;
    let (mut incoming, _reading) = read_ahead::<DownMessage>(reader);
    let mut reports = tokio::time::interval(REPORT_INTERVAL);
    let mut events = tokio::time::interval(EVENTS_INTERVAL);
    let mut counts = tokio::time::interval(TRAFFIC_INTERVAL);
    let mut report_changed = node.report.subscribe();
    loop {
        tokio::select! {
            message = incoming.recv() => {
                connection.take(message.context("the reader ended")??).await?;
                node.served_by(place)?;
                if *place != node.upstream() {
                    bail!("the upstream is another one now");
                }
                if connection.is_stale() {
                    bail!("the cluster is another one now; beginning anew");
                }
            }
            _ = reports.tick() => connection.send(&UpMessage::Reports { reports: node.reports() }).await?,
            Ok(()) = report_changed.changed() => {
                report_changed.mark_unchanged();
                connection.send(&UpMessage::Reports { reports: node.reports() }).await?;
            }
            _ = counts.tick() => match traffic::next() {
                Ok(messages) => {
                    for message in messages {
                        connection.send(&message).await?;
                    }
                }
                // Everything else goes on.
                Err(error) => tracing::error!("counts of traffic can't be sent: {error:#}"),
            },
            _ = events.tick() => {
                connection.events_sent = 0;
                connection.send_events().await?;
            }
            () = node.events.added.notified() => connection.send_events().await?,
            Some(message) = upwards.recv() => connection.send(&message).await?,
            Some(message) = done.recv() => connection.send(&message).await?,
        }
    }
}

impl Connection<'_> {
    async fn send(&mut self, message: &UpMessage) -> anyhow::Result<()> {
        wire::write(&mut self.writer, message).await
    }

    async fn send_events(&mut self) -> anyhow::Result<()> {
        let events = self.node.events.after(self.events_sent);
        let Some(last) = events.last() else { return Ok(()) };
        self.events_sent = last.number;
        self.send(&UpMessage::Events { server: self.node.identity.server.clone(), events }).await
    }

    /// Whether the directory was emptied under this connection, because the machine changed clusters.
    fn is_stale(&self) -> bool {
        self.node.directory.take_forgotten()
    }

    /// Waits for work on this machine, which a disk may hold up. Reports go on meanwhile: that a node is behind must be seen.
    async fn meanwhile(&mut self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(REPORT_INTERVAL, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.send(&UpMessage::Reports { reports: self.node.reports() }).await?,
            }
        }
    }

    async fn take(&mut self, message: DownMessage) -> anyhow::Result<()> {
        let node = self.node;
        for effect in self.follower.on_message(message) {
            match effect {
                FollowerEffect::Send(message) => self.send(&message).await?,
                FollowerEffect::AdoptSpec { position, spec } => {
                    tracing::info!(%position, cluster = ?spec.as_ref().map(|spec| spec.cluster.as_str()), "a spec is adopted");
                    self.meanwhile(node.adopt(position, spec)).await?;
                }
                FollowerEffect::Apply(batch) => self.meanwhile(node.directory.apply(batch)).await?,
                FollowerEffect::Collect(piece) => self.meanwhile(node.directory.collect(piece)).await?,
                FollowerEffect::EventsKept { number, .. } => self.node.events.kept_upstream(number),
                FollowerEffect::TrafficKept { source, stream, upto } => traffic::kept(&source, stream, upto)?,
                FollowerEffect::Do { number, command } => self.carry_out(number, command),
                FollowerEffect::Relay { server, message } => self.node.to_slave(&server, message),
                FollowerEffect::Joined(reply) => self.node.joined(reply),
                FollowerEffect::GoTo { place, why } => {
                    let address = place.address.clone();
                    anyhow::ensure!(self.node.told(place), "{address} was named as the upstream, which it can't be");
                    bail!("handed over to {address}: {why}");
                }
                FollowerEffect::Close { why } => bail!("{why}"),
            }
        }
        Ok(())
    }

    /// Carries out a command aside, once for each number; one that was done before is answered as it was then.
    fn carry_out(&self, number: u64, command: Command) {
        let (node, results) = (self.node.clone(), self.results.clone());
        tokio::spawn(async move {
            let result = match command {
                // Asked twice, these do no harm, and what they answer may be long.
                Command::Queue { of, act } => queue::act(node.spec().as_ref(), &of, &act).await,
                Command::ReadLog(part) => logs::read_aside(&part).await,
                Command::TraceMail(ask) => logs::trace_aside(&ask).await,
                Command::Rollback { generation } => once(&node, number, Deed::RollBack(generation)).await,
                Command::Reconcile => once(&node, number, Deed::Reconcile).await,
            };
            let message = UpMessage::CommandDone { number, server: node.identity.server.clone(), result };
            if results.send(message).await.is_err() {
                tracing::debug!(
                    number,
                    "the link ended before the answer to a command was sent; it will be asked for again"
                );
            }
        });
    }
}

async fn once(node: &Node, number: u64, deed: Deed) -> Result<String, String> {
    let path = node.paths.agent("commands.json");
    let failed = |error: anyhow::Error| format!("{error:#}");
    let mut results: BTreeMap<u64, Result<String, String>> = keep::load(&path).map_err(failed)?.unwrap_or_default();
    if let Some(result) = results.get(&number) {
        return result.clone();
    }
    let (answer, answered) = oneshot::channel();
    let order = Order { deed, answer };
    let busy = || "the agent is busy; try again".to_owned();
    node.orders.try_send(order).map_err(|_| busy())?;
    let result = match tokio::time::timeout(COMMAND_LIMIT, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => return Err(busy()),
    };
    results.insert(number, result.clone());
    while results.len() > RESULTS_KEPT {
        results.pop_first();
    }
    keep::store(&path, &results).map_err(failed)?;
    result
}

/// Ends the reading task with the connection.
pub(super) struct Reading(tokio::task::JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads messages in a task of its own, a few ahead, since reading a frame must not be cancelled.
pub(super) fn read_ahead<T: serde::de::DeserializeOwned + Send + 'static>(
    mut reader: impl AsyncRead + Unpin + Send + 'static,
) -> (mpsc::Receiver<anyhow::Result<T>>, Reading) {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let task = tokio::spawn(async move {
        loop {
            let message = wire::read(&mut reader).await;
            let is_last = message.is_err();
            if sender.send(message).await.is_err() || is_last {
                return;
            }
        }
    });
    (receiver, Reading(task))
}
