//! What a node tells its upstream about itself, and the masters about their slaves.

use phalanx_model::queue::QueueCount;
use phalanx_model::{Name, PhpVersion, Position, Right};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The state of one node, as its agent sees it. Sent when it changes, and every two seconds while connected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The kernel's boot id: it changes when the machine was started anew.
    pub boot_id: String,
    /// The agent's version.
    pub version: String,
    /// The node spec that was adopted last.
    pub spec: Position,
    /// The directory's revision, committed locally.
    pub directory: Position,
    /// The generation of configuration files that is live.
    pub generation: u64,
    /// Whether the node is as its spec wants it.
    pub converged: bool,
    /// What stands in the way, in words for a person: what, where, how to mend it. At most 20.
    pub problems: Vec<String>,
    /// Whether the node offers itself to balancers (share there, proxy answering).
    pub in_service: bool,
    /// Load and traffic.
    pub load: Load,
    /// How a balancer sees the nodes behind each of its services: (service, server) → state. Empty on other nodes.
    pub backends: Vec<BackendReport>,
    /// Versions of what runs here: package → version.
    pub versions: BTreeMap<String, String>,
    /// What only one node may do, and this one was told not to do and was seen not to be doing: under which spec.
    pub released: BTreeMap<Right, Position>,
    /// What waits in the mail queues that this node runs.
    pub queues: Vec<QueueState>,
    /// Versions of PHP that accounts can have here. None where the node has not said.
    pub php: Option<BTreeSet<PhpVersion>>,
}

/// A mail queue that a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The server that filled it.
    pub of: Name,
    /// How much it holds; none where that can't be told now.
    pub count: Option<QueueCount>,
}

/// A node's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// How much of its weight the node should get, in percent: 100 is idle, 0 is "nothing new".
    pub score_percent: u8,
    /// PSI `some avg10` of CPU, in percent.
    pub cpu_pressure_percent: f32,
    /// PSI `some avg10` of memory, in percent.
    pub memory_pressure_percent: f32,
    /// PSI `some avg10` of I/O, in percent.
    pub io_pressure_percent: f32,
    /// Requests that phalanx-proxy answered since it started.
    pub requests_total: u64,
    /// Requests a second, over the last two seconds or so.
    pub requests_per_second: f32,
    /// Answers with status 5xx since the proxy started.
    pub errors_total: u64,
    /// Accounts awake.
    pub accounts_awake: u32,
    /// Open client connections.
    pub connections: u32,
}

/// How a balancer sees one node behind one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendReport {
    /// The external address and port.
    pub service: std::net::SocketAddrV4,
    /// The node.
    pub server: Name,
    /// up, down, drained …
    pub state: BackendState,
    /// Why it is in this state, in words for a person.
    pub why: String,
    /// Its part of new connections now, in percent.
    pub share_percent: f32,
    /// Established flows, where they can be counted.
    pub flows: Option<u32>,
}

/// A backend's state as its balancer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Gets new connections by its weight and load.
    Up,
    /// Its checks fail.
    Down,
    /// An administrator drained it.
    Drained,
    /// Its load score is 0: nothing new, unless all are overloaded.
    Overloaded,
}

/// Something that happened on a node and that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// Numbered by the node, from 1, kept until its upstream has acknowledged it.
    pub number: u64,
    /// Seconds since 1970 on the node's clock, for display alone.
    pub at_unix_s: u64,
    /// How bad it is.
    pub severity: Severity,
    /// A word for what it is about: `drift`, `guard`, `generation`, `account`, `backend`, `agent`.
    pub topic: String,
    /// One sentence.
    pub text: String,
    /// More lines, such as a diff or a daemon's own words.
    #[serde(default)]
    pub detail: String,
}

/// How much a person should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For the record.
    Info,
    /// Something was wrong or mended.
    Warning,
    /// Something is wrong and stays so.
    Error,
}
