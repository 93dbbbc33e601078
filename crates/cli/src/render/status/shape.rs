//! The panel's status document, as far as the picture needs it. Unknown fields are ignored and absent ones are empty, so that a
//! command and a panel of neighbouring versions understand each other.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Everything at one moment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// All clusters.
    pub clusters: Vec<ClusterStatus>,
    /// The balancer clusters with what they balance.
    pub balancers: Vec<BalancerStatus>,
    /// All shares.
    pub shares: Vec<ShareStatus>,
    /// Servers that are in no cluster.
    pub free_servers: Vec<FreeServer>,
    /// How much there is.
    pub counts: Counts,
}

/// A cluster and its nodes, the master first.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// web, mail, nas or balancer.
    pub kind: String,
    /// Its master.
    pub master: String,
    /// What customers can be placed on here.
    pub logical_servers: Vec<String>,
    /// The share that its nodes mount.
    pub share: Option<String>,
    /// Which node alone may do what, by right.
    pub grants: BTreeMap<String, Grant>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
}

/// Who alone may do something.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// Grows by one with each move.
    pub number: u64,
    /// Who has it, or has not been seen to be at an end with it.
    pub holder: String,
    /// Who gets it next, where it moves.
    pub moving_to: Option<String>,
}

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The server.
    pub server: String,
    /// master or slave.
    pub role: String,
    /// How it stands.
    pub state: State,
    /// Why it is in this state.
    pub why: Option<String>,
    /// Whether it has ever joined.
    pub joined: bool,
    /// Whether its reports arrive.
    pub connected: bool,
    /// When the last one came.
    pub last_seen: Option<String>,
    /// Whether it is as it should be, by its own report.
    pub converged: bool,
    /// What stands in the way, in words; null without a report.
    pub problems: Option<Vec<String>>,
    /// Its load; null without a report of now.
    pub load: Option<Load>,
    /// What waits in the mail queues that it runs; null without a report of now.
    pub queues: Option<Vec<QueueState>>,
    /// Its part of new connections, in percent; null where no balancer sees it.
    pub share_percent: Option<f64>,
    /// Its established flows; null where they can't be counted.
    pub flows: Option<u32>,
    /// Set while the node leaves its cluster.
    pub leaving: Option<Leaving>,
}

/// How far a node is that leaves its cluster.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Leaving {
    /// How long its connections still may take to end, in seconds.
    pub left_s: u64,
}

/// A mail queue that a node runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct QueueState {
    /// How much it holds; null where that can't be told now.
    pub count: Option<QueueCount>,
}

/// How many messages a queue holds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct QueueCount {
    /// All of them.
    pub messages: u64,
    /// Of these, how many are held.
    pub held: u64,
}

/// The part of a node's load that is drawn.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Load {
    /// How much of its weight the node should get, in percent: 100 is idle.
    pub score_percent: u8,
    /// Requests a second, over the last two seconds or so.
    pub requests_per_second: f64,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Serves.
    Up,
    /// Does not serve.
    Down,
    /// Takes nothing new because an administrator said so.
    Drained,
    /// Takes nothing new because it has too much to do.
    Overloaded,
    /// Nothing is known of it.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A balancer cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct BalancerStatus {
    /// Its name.
    pub name: String,
    /// What it balances.
    pub services: Vec<ServiceStatus>,
}

/// An external address and the nodes behind it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    /// Address and port.
    pub external: String,
    /// The cluster that serves it.
    pub cluster: String,
    /// The port of the nodes.
    pub port: u16,
    /// How the balancer sees each node behind it.
    pub backends: Vec<Backend>,
}

/// A node behind one external address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// The node.
    pub server: String,
    /// How its check goes.
    pub state: State,
}

/// A share.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ShareStatus {
    /// Its name.
    pub name: String,
    /// local or nfs-managed.
    pub kind: String,
    /// The nas cluster that keeps it.
    pub nas: Option<String>,
    /// Where its content lies.
    pub path: String,
}

/// A server that is in no cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FreeServer {
    /// Its name.
    pub server: String,
    /// Its kind.
    pub kind: String,
    /// Whether it has ever joined.
    pub joined: bool,
    /// Whether its agent has a link to the panel.
    pub connected: bool,
}

/// How much there is of each noun.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Physical servers.
    pub servers: u64,
    /// Clusters.
    pub clusters: u64,
    /// Accounts.
    pub accounts: u64,
    /// Sites.
    pub sites: u64,
}

impl ClusterStatus {
    /// Whether clients come to it.
    pub fn serves(&self) -> bool {
        matches!(self.kind.as_str(), "web" | "mail")
    }
}
