//! Clusters: one master and any number of slaves, regarded as a single server.

use crate::{Grant, HostName, Name, Right};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a cluster does for a living; also the group that a physical server belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterKind {
    /// Serves web sites.
    Web,
    /// Serves mail.
    Mail,
    /// Keeps the shares.
    Nas,
    /// Takes the external addresses.
    Balancer,
}

impl ClusterKind {
    /// The kind as the API and the CLI write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Mail => "mail",
            Self::Nas => "nas",
            Self::Balancer => "balancer",
        }
    }

    /// Whether customers can be placed on clusters of this kind.
    pub fn holds_logical_servers(self) -> bool {
        matches!(self, Self::Web | Self::Mail)
    }
}

impl std::fmt::Display for ClusterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A physical server's part in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one that the panel talks to and that relays to the others.
    Master,
    /// Gets everything from its master and holds no logical server.
    Slave,
}

/// One master and its slaves. A master alone is a cluster of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's name.
    pub name: Name,
    /// What it serves.
    pub kind: ClusterKind,
    /// The server that the panel talks to.
    pub master: Name,
    /// The other nodes, each with what an administrator set for it.
    #[serde(default)]
    pub slaves: BTreeMap<Name, NodeSettings>,
    /// What an administrator set for the master as a node.
    #[serde(default)]
    pub master_settings: NodeSettings,
    /// The share that all nodes mount (web and mail clusters).
    #[serde(default)]
    pub share: Option<Name>,
    /// Directives put at the end of every account's httpd configuration, checked by httpd itself before they go live.
    #[serde(default)]
    pub httpd_directives: Vec<String>,
    /// What mail clusters have, and only they.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<MailService>,
    /// Which of its nodes alone may do what.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<Right, Grant>,
}

/// What a mail cluster is to the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailService {
    /// The name under which its servers greet and are found: what MX records name. Its own mail (bounces, rewritten senders of forwarded
    /// mail) comes from addresses of this name.
    pub host_name: HostName,
}

/// What an administrator sets for one node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Its part of the traffic relative to the other nodes, 1 to 100.
    #[serde(default = "NodeSettings::weight_default")]
    pub weight: u8,
    /// Whether it takes no new connections.
    #[serde(default)]
    pub drained: bool,
}

impl NodeSettings {
    const fn weight_default() -> u8 {
        10
    }
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self { weight: Self::weight_default(), drained: false }
    }
}

impl Cluster {
    /// The most bytes that a cluster's httpd directives may have together, line ends included: each node's part of the spec holds them.
    pub const DIRECTIVES_LEN_MAX: usize = 16 << 10;

    /// A cluster of one.
    pub fn new(name: Name, kind: ClusterKind, master: Name) -> Self {
        Self {
            name,
            kind,
            master,
            slaves: BTreeMap::new(),
            master_settings: NodeSettings::default(),
            share: None,
            httpd_directives: vec![],
            mail: None,
            grants: BTreeMap::new(),
        }
    }

    /// All nodes with their settings, the master first.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, Role, NodeSettings)> {
        std::iter::once((&self.master, Role::Master, self.master_settings))
            .chain(self.slaves.iter().map(|(name, settings)| (name, Role::Slave, *settings)))
    }

    /// The part that `server` has in this cluster, if any.
    pub fn role_of(&self, server: &Name) -> Option<Role> {
        self.nodes().find(|(name, _, _)| *name == server).map(|(_, role, _)| role)
    }
}
