//! What a mail node should be.

use super::{LogsSpec, MountSource, MountSpec, kept_rights, logs_spec, mount_spec};
use crate::rights::{KeptRight, queue_directory};
use phalanx_model::cluster::{ClusterKind, Role};
use phalanx_model::mail::MailProtocol;
use phalanx_model::server::InternalNet;
use phalanx_model::share::SharePath;
use phalanx_model::{Cluster, Fleet, HostName, Name, Right};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A mail node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailSpec {
    /// The cluster.
    pub cluster: Name,
    /// The name under which the cluster greets the world.
    pub host_name: HostName,
    /// The share with its mailboxes.
    pub share: Option<MountSpec>,
    /// Where it listens, for what.
    pub listen: BTreeMap<SocketAddrV4, MailProtocol>,
    /// Internal addresses beside the main one that this node must have.
    pub extra_addresses: BTreeSet<InternalNet>,
    /// Replies from these addresses go through this balancer address, so that the client's own address can be kept.
    pub reply_routes: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The address that mail to the world is sent from.
    pub send_from: Ipv4Addr,
    /// The addresses of balancers: who asks for health.
    pub balancers: BTreeSet<Ipv4Addr>,
    /// The nodes of the cluster: who may speak to the mailboxes of the one that holds them.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// Who holds the mailboxes.
    pub mailboxes: MailboxesSpec,
    /// The queues that this node runs, by the server that filled them: its own, unless another node has it, and those it has adopted.
    pub queues: BTreeMap<Name, QueueSpec>,
    /// The servers that have a queue in this cluster, whoever runs it.
    pub all_queues: BTreeSet<Name>,
    /// What this node tells the others by the share, where it is the one that keeps it.
    pub kept_rights: Vec<KeptRight>,
    /// What becomes of its daemons' logs.
    #[serde(default)]
    pub logs: LogsSpec,
    /// The master's address: what filters share is kept there.
    pub master: Ipv4Addr,
    /// What only the nodes of this cluster know.
    pub secrets: MailSecrets,
}

/// Which node alone opens the cluster's mailboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxesSpec {
    /// The node that opens them; none while they move.
    pub holder: Option<HolderSpec>,
    /// The grant's number.
    pub number: u64,
}

/// A mail queue that this node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// The grant's number.
    pub number: u64,
    /// Where it lies; on this node's own disk, where the cluster has no share. No other node can have it then.
    pub mount: Option<MountSpec>,
}

impl QueueSpec {
    /// Where Postfix finds it.
    pub fn directory(&self) -> String {
        self.mount.as_ref().map_or_else(|| crate::mail::postfix::QUEUE.to_owned(), MountSpec::mount_point)
    }
}

/// The node that opens mailboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderSpec {
    /// The node.
    pub server: Name,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What only the nodes of one mail cluster know, and all of them the same.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailSecrets {
    /// 32 random bytes in hexadecimal digits; secrets for single uses are made from it.
    pub seed: String,
    /// The certificate that the cluster shows its clients, and those that vouch for it, in PEM.
    pub tls_chain_pem: String,
    /// Its private key: PKCS #8 in PEM.
    pub tls_key_pem: String,
}

impl MailSecrets {
    /// The secret for one use, 64 hexadecimal digits.
    pub fn for_use(&self, what: &str) -> String {
        crate::steps::generations::sha256_hex(format!("{}\n{what}", self.seed).as_bytes())
    }
}

/// Not shown.
impl fmt::Debug for MailSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What tells them from others, since desired states are compared by what they show.
        f.debug_tuple("MailSecrets").field(&self.for_use("digest")).field(&self.tls_chain_pem.len()).finish()
    }
}

/// What `server` should be in the mail cluster `cluster`; nothing where the panel has made no secrets for the cluster.
pub(super) fn mail_spec(
    fleet: &Fleet,
    cluster: &Cluster,
    server: &Name,
    role: Role,
    secrets: Option<&MailSecrets>,
) -> Option<MailSpec> {
    let ip_of = |server: &Name| fleet.servers[server].address.ip;
    let main = fleet.servers[server].address;
    let grant = cluster.grants.get(&Right::Mailboxes)?;
    let takes_part = |node: &&Name| grant.is_usable_by(node) && fleet.servers[*node].fenced.is_none();
    let holder = cluster.nodes().map(|(node, _, _)| node).find(takes_part);
    let mounted = cluster.share.as_ref().and_then(|name| fleet.shares.get(name));
    let share = mounted.map(|share| mount_spec(fleet, share, role));
    let mut spec = MailSpec {
        cluster: cluster.name.clone(),
        host_name: cluster.mail.as_ref()?.host_name.clone(),
        listen: BTreeMap::new(),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::new(),
        send_from: main.ip,
        balancers: BTreeSet::new(),
        nodes: cluster.nodes().map(|(node, _, _)| ip_of(node)).collect(),
        mailboxes: MailboxesSpec {
            holder: holder.map(|node| HolderSpec { server: node.clone(), address: ip_of(node) }),
            number: grant.number,
        },
        queues: queues(fleet, cluster, server, share.as_ref()),
        all_queues: (cluster.grants.keys())
            .filter_map(|right| match right {
                Right::Queue(of) => Some(of.clone()),
                Right::Mailboxes | Right::Logs => None,
            })
            .collect(),
        kept_rights: match (&share, mounted) {
            (Some(share), Some(mounted)) if share.keeps_homes => kept_rights(fleet, mounted),
            _ => vec![],
        },
        share,
        logs: logs_spec(cluster, server),
        master: ip_of(&cluster.master),
        secrets: secrets?.clone(),
    };
    debug_assert_eq!(cluster.kind, ClusterKind::Mail, "the caller chose by kind");
    for address in fleet.addresses.values().filter(|a| a.cluster == cluster.name) {
        let Some(protocol) = MailProtocol::of_port(address.port) else { continue };
        let ip = address.internal.get(server).copied().unwrap_or(main.ip);
        spec.listen.insert(SocketAddrV4::new(ip, address.port), protocol);
        if ip != main.ip {
            spec.extra_addresses.insert(InternalNet { ip, ..main });
        }
        if protocol == MailProtocol::Smtp {
            spec.send_from = ip;
        }
        let balancer = &fleet.clusters[&address.balancer];
        spec.reply_routes.insert(ip, ip_of(&balancer.master));
        spec.balancers.extend(balancer.nodes().map(|(node, _, _)| ip_of(node)));
    }
    if spec.listen.is_empty() {
        spec.listen = MailProtocol::ALL.map(|protocol| (SocketAddrV4::new(main.ip, protocol.port()), protocol)).into();
    }
    Some(spec)
}

/// The queues that `server` runs. A grant that moves is nobody's to use.
fn queues(fleet: &Fleet, cluster: &Cluster, server: &Name, share: Option<&MountSpec>) -> BTreeMap<Name, QueueSpec> {
    if fleet.servers[server].fenced.is_some() {
        return BTreeMap::new();
    }
    let queue = |(right, grant): (&Right, &phalanx_model::Grant)| {
        let Right::Queue(of) = right else { return None };
        let mount = share.map(|share| {
            let part = |path: &SharePath| path.join(&queue_directory(of));
            let source = match &share.source {
                MountSource::Local(path) => MountSource::Local(part(path)),
                MountSource::Nfs { server, path } => MountSource::Nfs { server: *server, path: part(path) },
            };
            MountSpec { queue_of: Some(of.clone()), source, keeps_homes: false, ..share.clone() }
        });
        grant.is_usable_by(server).then(|| (of.clone(), QueueSpec { number: grant.number, mount }))
    };
    cluster.grants.iter().filter_map(queue).collect()
}
