//! External addresses and the logical servers that customers are placed on.

use crate::{ClusterKind, Name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

/// One external address and port, the balancer that takes it and the cluster that serves it. It has one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAddress {
    /// What the world connects to.
    pub external: SocketAddrV4,
    /// The balancer cluster that takes it.
    pub balancer: Name,
    /// The web or mail cluster that serves it.
    pub cluster: Name,
    /// The port that the nodes listen on.
    pub port: u16,
    /// The internal address of each node for this external one; a node that is not named serves on its own main address.
    #[serde(default)]
    pub internal: BTreeMap<Name, Ipv4Addr>,
}

/// A web or mail service that customers are placed on. It exists on the master only; a slave holds none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogicalServer {
    /// Its name.
    pub name: Name,
    /// Web or mail: the kind of the cluster it lives on.
    pub kind: ClusterKind,
    /// The cluster it lives on.
    pub cluster: Name,
}
