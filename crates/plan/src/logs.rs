//! Access logs: from the segments that each node writes to one log for each site.
//!
//! A node's proxy writes segments ([`segment`]), which are never renamed and only grow. `phalanx logs` on each node copies them to the
//! share byte for byte ([`ship`]) and says in a heartbeat up to which time all of its lines are there. Where the grant to merge is held, it also
//! merges them by time of completion into the sites' own logs ([`merge`]), in batches that are written down before they are carried out
//! ([`batch`], [`round`]), so that each line is in one log once, whenever the process, the node or the share goes away.
//!
//! A line is known by node, boot, file and offset: the segment's name has the boot, and the merged line ends with all four.
//!
//! Deliberately absent: I/O and clocks. [`round::Storage`] stands for the share, times are arguments.

pub mod batch;
mod carry;
pub mod collect;
pub mod date;
pub mod errors;
pub mod line;
pub mod mail;
pub mod merge;
pub mod rotate;
pub mod round;
pub mod segment;
pub mod ship;
#[cfg(test)]
mod simulation;
pub mod stream;
pub mod trace;
pub mod watermark;

use self::stream::Stream;
use crate::spec::mail::MailSpec;
use crate::spec::{LogsSpec, MountSpec, WebSpec};
use phalanx_model::Name;
use phalanx_model::share::{Marker, mount_point};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The directory below a share's root that the logs on their way lie in; it belongs to [`OWNER`], who alone may look into it.
pub const DIRECTORY: &str = ".phalanx-logs";

/// Whose the files in [`DIRECTORY`] are: a number beside those of accounts, since an NFS server that squashes root lets no node's root do
/// anything, and the same on every node.
pub const OWNER: u32 = 1_900_000_000;

/// Where a node's proxy writes its segments.
pub const LOCAL: &str = "/var/log/phalanx/access";

/// `logs.json`: what `phalanx logs` of a node does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsConfig {
    /// This node.
    pub node: Name,
    /// What it ships and merges.
    #[serde(default)]
    pub streams: BTreeSet<Stream>,
    /// The share that logs go to; without one they stay where they are.
    #[serde(default)]
    pub share: Option<LogsShare>,
    /// The number of the grant to merge, on its holder.
    #[serde(default)]
    pub merges_under: Option<u64>,
    /// Balancers, whose checks are not worth a place in the log of mail.
    #[serde(default)]
    pub balancers: BTreeSet<Ipv4Addr>,
    /// The nodes of the cluster: whose heartbeats are waited for.
    pub nodes: BTreeSet<Name>,
}

/// The share that logs go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsShare {
    /// Its name.
    pub share: Name,
    /// What its marker file must hold.
    pub marker: Marker,
    /// Where it is mounted.
    pub mount_point: String,
}

impl LogsConfig {
    /// What `phalanx logs` of a web node does.
    pub fn of_web(node: Name, web: &WebSpec) -> Self {
        Self::new(node, [Stream::Access, Stream::Errors].into(), web.share.as_ref(), &web.logs)
    }

    /// What it does on a mail node.
    pub fn of_mail(node: Name, mail: &MailSpec) -> Self {
        let balancers = mail.balancers.clone();
        Self { balancers, ..Self::new(node, [Stream::Mail].into(), mail.share.as_ref(), &mail.logs) }
    }

    fn new(node: Name, streams: BTreeSet<Stream>, share: Option<&MountSpec>, logs: &LogsSpec) -> Self {
        let LogsSpec { merges_under, nodes } = logs.clone();
        Self { node, streams, share: share.map(LogsShare::new), merges_under, balancers: BTreeSet::new(), nodes }
    }
}

impl LogsShare {
    /// The share of a node that mounts this.
    pub fn new(mount: &MountSpec) -> Self {
        Self { share: mount.share.clone(), marker: mount.marker.clone(), mount_point: mount_point(&mount.share) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_owner_of_logs_is_no_account() {
        assert_eq!(super::OWNER, phalanx_model::Uid::FIRST.get() - 1);
    }
}
