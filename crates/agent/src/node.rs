//! What the agent's tasks share: the adopted spec, reports, and who wants to hear what.

use crate::directory::DirectoryHandle;
use crate::events::Events;
use crate::identity::Identity;
use crate::keep;
use crate::paths::Paths;
use anyhow::Context;
use phalanx_host::facts;
use phalanx_model::cluster::Role;
use phalanx_model::{Name, Position};
use phalanx_plan::report::{QueueState, Report};
use phalanx_plan::session::follower::SpecDigest;
use phalanx_plan::session::route::node_name;
use phalanx_plan::session::{DownMessage, JoinReply, Place, Route, UpMessage};
use phalanx_plan::spec::{ClusterSpec, NodeSpec, port};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// A slave that said nothing for so long is not reported any more: three of its reports were missed.
const REPORT_AGE_MAX: Duration = Duration::from_secs(6);
/// Messages that wait for the upstream, or for one slave.
pub const QUEUE_LEN: usize = 256;

/// The spec that was adopted last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// Its position.
    pub position: Position,
    /// The spec; none while the machine belongs to no cluster.
    pub spec: Option<Box<ClusterSpec>>,
    /// Whether any spec was ever adopted.
    pub known: bool,
}

/// What the loop on this host is told to do.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    /// Go back to this generation.
    RollBack(u64),
    /// Observe and plan now.
    Reconcile,
}

/// Something for the loop to do, and where the answer goes.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub deed: Deed,
    /// The answer.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// What the tasks share.
pub struct Node {
    /// Who this machine is.
    pub identity: Identity,
    /// Where it keeps what.
    pub paths: Paths,
    /// The directory's thread.
    pub directory: DirectoryHandle,
    /// What happened here.
    pub events: Arc<Events>,
    /// The adopted spec.
    pub adopted: watch::Sender<Adopted>,
    /// This node's own report.
    pub report: watch::Sender<Report>,
    /// What waits in the mail queues that this node runs.
    pub queues: watch::Sender<Vec<QueueState>>,
    /// Wakes the reconciler.
    pub wake: Notify,
    /// Commands for the reconciler.
    pub orders: mpsc::Sender<Order>,
    /// Messages of slaves and joining machines for the upstream.
    pub upwards: mpsc::Sender<UpMessage>,
    slaves: Mutex<BTreeMap<Name, mpsc::Sender<DownMessage>>>,
    slave_reports: Mutex<BTreeMap<Name, (Report, Instant)>>,
    joins: Mutex<BTreeMap<u64, oneshot::Sender<JoinReply>>>,
    join_number: AtomicU64,
    route: Mutex<Route>,
    /// Whether this node's own upstream serves it now.
    pub is_served: AtomicBool,
}

impl Node {
    /// A node with what is on disk.
    pub fn new(
        identity: Identity,
        paths: Paths,
        directory: DirectoryHandle,
        events: Arc<Events>,
        orders: mpsc::Sender<Order>,
        upwards: mpsc::Sender<UpMessage>,
    ) -> anyhow::Result<Self> {
        let adopted: Adopted = keep::load(&paths.agent("spec.json"))?.unwrap_or_default();
        Ok(Self {
            route: Mutex::new(Route::new(identity.home.clone())),
            is_served: AtomicBool::new(false),
            identity,
            directory,
            events,
            adopted: watch::Sender::new(adopted),
            report: watch::Sender::new(Report::default()),
            queues: watch::Sender::default(),
            wake: Notify::new(),
            orders,
            upwards,
            slaves: Mutex::default(),
            slave_reports: Mutex::default(),
            joins: Mutex::default(),
            join_number: AtomicU64::new(1),
            paths,
        })
    }

    /// This node's part of the adopted spec.
    pub fn spec(&self) -> Option<NodeSpec> {
        self.adopted.borrow().spec.as_ref()?.nodes.get(&self.identity.server).cloned()
    }

    /// Keeps a spec on disk and wakes whoever follows it. A machine that leaves its cluster forgets that cluster's directory.
    pub async fn adopt(&self, position: Position, spec: Option<Box<ClusterSpec>>) -> anyhow::Result<()> {
        let before = self.adopted.borrow().spec.as_ref().map(|spec| spec.cluster.clone());
        let after = spec.as_ref().map(|spec| spec.cluster.clone());
        if before.is_some() && before != after {
            self.directory.forget().await.context("the directory of the former cluster can't be emptied")?;
        }
        let adopted = Adopted { position, spec, known: true };
        keep::store(&self.paths.agent("spec.json"), &adopted)?;
        self.directory.serve(adopted.spec.as_ref().and_then(|s| s.nodes.get(&self.identity.server)).cloned()).await?;
        self.adopted.send_replace(adopted);
        self.wake.notify_one();
        Ok(())
    }

    /// The digest of the adopted spec; none where none was ever adopted.
    pub fn spec_digest(&self) -> Option<SpecDigest> {
        let adopted = self.adopted.borrow();
        adopted.known.then(|| SpecDigest::of(adopted.spec.as_deref()))
    }

    /// Where this node dials.
    pub fn upstream(&self) -> Place {
        lock(&self.route).place(self.master())
    }

    /// This node's master by its spec, where it is a slave.
    fn master(&self) -> Option<Place> {
        let adopted = self.adopted.borrow();
        let spec = adopted.spec.as_ref()?;
        let own = spec.nodes.get(&self.identity.server).filter(|own| own.role == Role::Slave)?;
        let address = own.peers.get(&spec.master)?;
        Some(Place { address: format!("{address}:{}", port::AGENT), name: node_name(&spec.master) })
    }

    /// The upstream named another one.
    pub fn told(&self, place: Place) -> bool {
        lock(&self.route).on_told(place, facts::boottime_ms())
    }

    /// The upstream at `place` serves this node. Where that is the panel, a place that is new becomes the one that lasts.
    pub fn served_by(&self, place: &Place) -> anyhow::Result<()> {
        self.is_served.store(true, Ordering::Relaxed);
        let home = lock(&self.route).on_served(place, self.master().as_ref(), facts::boottime_ms());
        home.map_or(Ok(()), |home| keep::store(&self.paths.agent("upstream.json"), &home))
    }

    /// The upstream at `place` can't be reached, or does not serve this node any more.
    pub fn not_served_by(&self, place: &Place) {
        self.is_served.store(false, Ordering::Relaxed);
        lock(&self.route).on_failed(place, facts::boottime_ms());
    }

    /// Notes a slave that is connected; its former connection, if any, is dropped.
    pub fn slave_connected(&self, server: Name) -> mpsc::Receiver<DownMessage> {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        lock(&self.slaves).insert(server, sender);
        receiver
    }

    /// Hands a message on to a slave. One that is not connected or takes nothing does not get it: its sender asks again.
    pub fn to_slave(&self, server: &Name, message: DownMessage) {
        let sent = lock(&self.slaves).get(server).map(|slave| slave.try_send(message).is_ok());
        if sent != Some(true) {
            tracing::debug!(%server, "a message for a slave that is not connected was dropped");
        }
    }

    /// Takes a message that came from a slave.
    pub async fn take_from_slave(&self, peer: &Name, message: UpMessage) {
        match message {
            UpMessage::Reports { reports } => {
                let now = Instant::now();
                let own = reports.into_iter().filter(|(server, _)| server == peer);
                lock(&self.slave_reports).extend(own.map(|(server, report)| (server, (report, now))));
            }
            UpMessage::Events { ref server, .. } | UpMessage::CommandDone { ref server, .. } if server == peer => {
                self.send_up(message).await;
            }
            other => tracing::warn!(%peer, ?other, "a slave sent what is not its own to send"),
        }
    }

    /// Sends a message up, if there is room in the queue within a second. What is lost is sent again by whoever needs an answer.
    pub async fn send_up(&self, message: UpMessage) {
        if tokio::time::timeout(Duration::from_secs(1), self.upwards.send(message)).await.is_err() {
            tracing::warn!("the upstream takes nothing; a message for it was dropped");
        }
    }

    /// This node's report and those of its slaves.
    pub fn reports(&self) -> BTreeMap<Name, Report> {
        let mut slaves = lock(&self.slave_reports);
        slaves.retain(|_, (_, at)| at.elapsed() < REPORT_AGE_MAX);
        let slaves = slaves.iter().map(|(server, (report, _))| (server.clone(), report.clone()));
        slaves.chain([(self.identity.server.clone(), self.report.borrow().clone())]).collect()
    }

    /// A number for a join that is relayed, and where its answer comes.
    pub fn expect_join(&self) -> (u64, oneshot::Receiver<JoinReply>) {
        let number = self.join_number.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let mut joins = lock(&self.joins);
        joins.retain(|_, waiting| !waiting.is_closed());
        joins.insert(number, sender);
        (number, receiver)
    }

    /// Hands the answer to a relayed join to whoever waits for it.
    pub fn joined(&self, reply: JoinReply) {
        let waiting = lock(&self.joins).remove(&reply.number);
        if waiting.is_none_or(|waiting| waiting.send(reply).is_err()) {
            tracing::warn!("the answer to a join came when nobody waited for it any more");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
