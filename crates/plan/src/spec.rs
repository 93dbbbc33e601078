//! What each node should be: the small part of its desired state, made from the fleet.

mod certificate;
pub mod mail;

pub use certificate::CertificateDigest;

use crate::mail::probe::Probe;
use crate::rights::{Held, KeptRight};
use phalanx_model::cluster::{ClusterKind, Role};
use phalanx_model::mail::MailProtocol;
use phalanx_model::server::InternalNet;
use phalanx_model::share::{Marker, SharePath, mount_point};
use phalanx_model::{Fleet, Grant, Name, Right, Row, Share, ShareKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// The ports that Phalanx itself listens on.
///
/// On machines with accounts they are below 1,024, which no account may bind: otherwise one could take an agent's port while the agent
/// starts anew. They are also below 512, where neither NFS nor other clients of RPC look for a port to speak from, and unassigned by
/// IANA. Accounts can't connect to them ([`crate::account::accounts_nft`]).
pub mod port {
    /// The panel's, for masters: mTLS, the protocol of [`crate::session`].
    pub const PANEL: u16 = 7400;
    /// An agent's, for its slaves: mTLS, the same protocol. Joining machines come here too.
    pub const AGENT: u16 = 341;
    /// An agent's load score for balancers: HAProxy's agent-check line.
    pub const SCORE: u16 = 342;
    /// The panel's API and pages.
    pub const API: u16 = 8080;
}

/// A cluster's desired state as its master gets it: a spec for each node. A slave gets it reduced to its own node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// The cluster's name.
    pub cluster: Name,
    /// The server that is master.
    pub master: Name,
    /// A spec for each node, the master included.
    pub nodes: BTreeMap<Name, NodeSpec>,
}

impl ClusterSpec {
    /// What the master hands on to `server`: the same cluster with that node alone.
    pub fn for_slave(&self, server: &Name) -> Option<ClusterSpec> {
        let node = self.nodes.get(server)?.clone();
        Some(ClusterSpec { nodes: BTreeMap::from([(server.clone(), node)]), ..self.clone() })
    }

    /// Whether this is the newest certificate of `server`, a node of this cluster. A node whose machine never joined has none.
    pub fn is_current(&self, server: &Name, certificate: &CertificateDigest) -> bool {
        self.nodes.get(server).is_some_and(|node| node.certificate.as_ref() == Some(certificate))
    }
}

/// The small part of one node's desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The server.
    pub server: Name,
    /// Master or slave.
    pub role: Role,
    /// Its main internal address.
    pub address: InternalNet,
    /// Its newest certificate, the only one that its master accepts; none where no machine has joined as this server.
    pub certificate: Option<CertificateDigest>,
    /// Addresses of the machines that it works with, by name: the nodes of its cluster, and the masters of its NAS and balancers.
    pub peers: BTreeMap<Name, Ipv4Addr>,
    /// What it does.
    pub work: Work,
}

/// What a node does, by the kind of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Serves web sites.
    Web(WebSpec),
    /// Keeps shares.
    Nas(NasSpec),
    /// Takes external addresses.
    Balancer(BalancerSpec),
    /// Serves mail; nothing is known of how where the panel has made no secrets for the cluster yet.
    Mail(Option<Box<mail::MailSpec>>),
}

/// A web node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebSpec {
    /// The share with its sites' content.
    pub share: Option<MountSpec>,
    /// Where phalanx-proxy listens, for HTTP.
    pub listen: BTreeSet<SocketAddrV4>,
    /// Internal addresses beside the main one that this node must have.
    pub extra_addresses: BTreeSet<InternalNet>,
    /// Replies from these addresses go through this balancer address, so that the client's own address can be kept.
    pub reply_routes: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The addresses of balancers: who asks for health.
    pub balancers: BTreeSet<Ipv4Addr>,
    /// Directives put at the end of every account's httpd configuration.
    pub httpd_directives: Vec<String>,
    /// What becomes of access logs.
    #[serde(default)]
    pub logs: LogsSpec,
}

/// What becomes of the logs of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsSpec {
    /// The number of the grant to merge them, on its holder.
    pub merges_under: Option<u64>,
    /// The nodes of the cluster.
    pub nodes: BTreeSet<Name>,
}

/// A share, or a part of it that has a mount of its own, as a node mounts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The share's name.
    pub share: Name,
    /// The server whose mail queue this is; none where it is the share itself.
    #[serde(default)]
    pub queue_of: Option<Name>,
    /// What its marker file must hold.
    pub marker: Marker,
    /// Where from.
    pub source: MountSource,
    /// Whether this node's agent makes the homes in it (no nas cluster does).
    pub keeps_homes: bool,
}

impl MountSpec {
    /// Where it is mounted. A server's queue has a place of its own, of a name that no share has.
    pub fn mount_point(&self) -> String {
        match &self.queue_of {
            None => mount_point(&self.share),
            Some(server) => queue_mount_point(server),
        }
    }
}

/// Where the queue that a server filled is mounted.
pub fn queue_mount_point(server: &Name) -> String {
    format!("{}queue@{server}", crate::steps::shares::MOUNTS)
}

/// Where a share is mounted from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A directory of this machine, bind-mounted.
    Local(SharePath),
    /// NFS 4.2 from the nas cluster's master.
    Nfs {
        /// The master's address.
        server: Ipv4Addr,
        /// The exported path.
        path: SharePath,
    },
}

/// A node of a nas cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NasSpec {
    /// The shares it keeps.
    pub shares: Vec<KeptShare>,
}

/// A share on the machine that keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptShare {
    /// The share's name.
    pub share: Name,
    /// What tells it from others.
    pub marker: Marker,
    /// Where it lies.
    pub path: SharePath,
    /// The nodes that may mount it over NFS; none for a `local` share.
    pub nfs_clients: BTreeSet<Ipv4Addr>,
    /// What only one node of a cluster may do with it, as the share tells its nodes.
    #[serde(default)]
    pub rights: Vec<KeptRight>,
}

/// A node of a balancer cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerSpec {
    /// What it balances, by external address.
    pub services: Vec<ServiceSpec>,
    /// The internal networks: from there to an external address, the source is masqueraded (hairpin).
    pub internal_networks: BTreeSet<InternalNet>,
    /// What it logs in with, to see that a mail cluster lets people in.
    #[serde(default)]
    pub probes: BTreeMap<Name, Probe>,
}

/// One external address and port and the nodes behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// What the world connects to.
    pub external: SocketAddrV4,
    /// The cluster that serves it.
    pub cluster: Name,
    /// How its nodes are checked.
    #[serde(default)]
    pub check: CheckKind,
    /// The nodes.
    pub backends: Vec<BackendSpec>,
}

/// What a balancer speaks with a node to see whether it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// HTTP: the health page.
    #[default]
    Http,
    /// A protocol of mail, as far as a login.
    #[serde(untagged)]
    Mail(MailProtocol),
}

impl CheckKind {
    /// For a service of a cluster of `kind` whose nodes listen on `port`.
    pub fn of(kind: ClusterKind, port: u16) -> Self {
        match kind {
            ClusterKind::Mail => MailProtocol::of_port(port).map_or(Self::Http, Self::Mail),
            ClusterKind::Web | ClusterKind::Nas | ClusterKind::Balancer => Self::Http,
        }
    }
}

/// One node behind an external address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// The node.
    pub server: Name,
    /// Its internal address and port for this service; it is checked here.
    pub target: SocketAddrV4,
    /// Where its agent serves the load score.
    pub score: SocketAddrV4,
    /// Its weight, 1 to 100.
    pub weight: u8,
    /// Whether it takes no new connections.
    pub drained: bool,
}

/// What every node of `cluster` should be; `certificates` has the newest of each server that has joined, `secrets` those of each mail
/// cluster.
///
/// Returns nothing where the fleet has no such cluster.
pub fn cluster_spec(
    fleet: &Fleet,
    certificates: &BTreeMap<Name, CertificateDigest>,
    secrets: &BTreeMap<Name, mail::MailSecrets>,
    cluster: &Name,
) -> Option<ClusterSpec> {
    let found = fleet.clusters.get(cluster)?;
    let peers = peers(fleet, found);
    let nodes = found.nodes().map(|(server, role, _)| {
        let address = fleet.servers[server].address;
        let mut peers = peers.clone();
        peers.remove(server);
        let work = match found.kind {
            ClusterKind::Web => Work::Web(web_spec(fleet, found, server, role)),
            ClusterKind::Nas => Work::Nas(nas_spec(fleet, cluster)),
            ClusterKind::Balancer => Work::Balancer(balancer_spec(fleet, secrets, cluster)),
            ClusterKind::Mail => {
                Work::Mail(mail::mail_spec(fleet, found, server, role, secrets.get(cluster)).map(Box::new))
            }
        };
        let certificate = certificates.get(server).copied();
        (server.clone(), NodeSpec { server: server.clone(), role, address, certificate, peers, work })
    });
    Some(ClusterSpec { cluster: cluster.clone(), master: found.master.clone(), nodes: nodes.collect() })
}

fn peers(fleet: &Fleet, cluster: &phalanx_model::Cluster) -> BTreeMap<Name, Ipv4Addr> {
    let nas = cluster.share.iter().filter_map(|share| fleet.shares.get(share)?.nas.as_ref());
    let balancers = fleet.addresses.values().filter(|a| a.cluster == cluster.name).map(|a| &a.balancer);
    let masters = nas.chain(balancers).filter_map(|name| fleet.clusters.get(name)).map(|c| &c.master);
    let nodes = cluster.nodes().map(|(node, _, _)| node);
    masters.chain(nodes).map(|server| (server.clone(), fleet.servers[server].address.ip)).collect()
}

/// The clusters whose rows an account of `cluster` belongs to: the cluster itself and the nas that keeps its share.
pub fn directory_audience(fleet: &Fleet, cluster: &Name) -> Vec<Name> {
    let nas = (fleet.clusters.get(cluster))
        .and_then(|c| c.share.as_ref())
        .and_then(|s| fleet.shares.get(s))
        .and_then(|s| s.nas.clone());
    std::iter::once(cluster.clone()).chain(nas).collect()
}

/// What clusters of a kind hear of a row. Who keeps the share makes directories and needs no more than their owners: neither proofs of
/// logins nor keys.
pub fn row_for(kind: ClusterKind, row: &Row) -> Option<Row> {
    match (kind, row) {
        (ClusterKind::Nas, Row::Mailbox(_) | Row::MailAlias(_)) => None,
        (ClusterKind::Nas, Row::MailDomain { domain, uid, share, dkim: _ }) => {
            Some(Row::MailDomain { domain: domain.clone(), uid: *uid, share: share.clone(), dkim: None })
        }
        _ => Some(row.clone()),
    }
}

fn web_spec(fleet: &Fleet, cluster: &phalanx_model::Cluster, server: &Name, role: Role) -> WebSpec {
    let main = fleet.servers[server].address;
    let mut spec = WebSpec {
        share: cluster
            .share
            .as_ref()
            .and_then(|name| fleet.shares.get(name))
            .map(|share| mount_spec(fleet, share, role)),
        listen: BTreeSet::new(),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::new(),
        balancers: BTreeSet::new(),
        httpd_directives: cluster.httpd_directives.clone(),
        logs: logs_spec(cluster, server),
    };
    for address in fleet.addresses.values().filter(|a| a.cluster == cluster.name) {
        let ip = address.internal.get(server).copied().unwrap_or(main.ip);
        spec.listen.insert(SocketAddrV4::new(ip, address.port));
        if ip != main.ip {
            spec.extra_addresses.insert(InternalNet { ip, ..main });
        }
        let balancer = &fleet.clusters[&address.balancer];
        spec.reply_routes.insert(ip, fleet.servers[&balancer.master].address.ip);
        spec.balancers.extend(balancer.nodes().map(|(node, _, _)| fleet.servers[node].address.ip));
    }
    if spec.listen.is_empty() {
        spec.listen.insert(SocketAddrV4::new(main.ip, 80));
    }
    spec
}

fn logs_spec(cluster: &phalanx_model::Cluster, server: &Name) -> LogsSpec {
    // A cluster from before there was this grant has it with its master, who cannot have passed it on.
    let first = Grant::first(cluster.master.clone());
    let grant = cluster.grants.get(&Right::Logs).unwrap_or(&first);
    let merges_under = grant.is_usable_by(server).then_some(grant.number);
    LogsSpec { merges_under, nodes: cluster.nodes().map(|(node, _, _)| node.clone()).collect() }
}

fn mount_spec(fleet: &Fleet, share: &Share, role: Role) -> MountSpec {
    let source = match (&share.kind, &share.nas) {
        (ShareKind::NfsManaged, Some(nas)) => {
            let master = &fleet.clusters[nas].master;
            MountSource::Nfs { server: fleet.servers[master].address.ip, path: share.path.clone() }
        }
        _ => MountSource::Local(share.path.clone()),
    };
    let keeps_homes = share.nas.is_none() && role == Role::Master;
    MountSpec { share: share.name.clone(), queue_of: None, marker: share.marker.clone(), source, keeps_homes }
}

fn nas_spec(fleet: &Fleet, nas: &Name) -> NasSpec {
    let kept = fleet.shares.values().filter(|share| share.nas.as_ref() == Some(nas)).map(|share| {
        let clients = fleet.clusters.values().filter(|c| c.share.as_ref() == Some(&share.name));
        let nfs_clients = match share.kind {
            ShareKind::Local => BTreeSet::new(),
            ShareKind::NfsManaged => {
                let nodes = clients.flat_map(|c| c.nodes()).map(|(node, _, _)| &fleet.servers[node]);
                nodes.filter(|server| server.fenced.is_none()).map(|server| server.address.ip).collect()
            }
        };
        KeptShare {
            share: share.name.clone(),
            marker: share.marker.clone(),
            path: share.path.clone(),
            nfs_clients,
            rights: kept_rights(fleet, share),
        }
    });
    NasSpec { shares: kept.collect() }
}

/// What a share tells the nodes of the clusters that mount it.
fn kept_rights(fleet: &Fleet, share: &Share) -> Vec<KeptRight> {
    let clusters = fleet.clusters.values().filter(|cluster| cluster.share.as_ref() == Some(&share.name));
    let grants = clusters.flat_map(|cluster| cluster.grants.iter().map(move |(right, grant)| (cluster, right, grant)));
    // The merging of logs stays with the master, whose journal on the share keeps the number.
    let told = grants.filter(|(_, right, _)| **right != Right::Logs);
    let kept = told.map(|(cluster, right, grant)| {
        let (cluster, right, holder) = (cluster.name.clone(), right.clone(), grant.holder.clone());
        // A holder that is to let go keeps its way to the queue until it has.
        let server = fleet.servers.get(&holder);
        let is_void = server.is_some_and(|server| server.fenced.is_some());
        let address =
            server.map(|server| server.address.ip).filter(|_| share.kind == ShareKind::NfsManaged && !is_void);
        KeptRight { held: Held { cluster, right, holder, number: grant.number, is_void }, address }
    });
    kept.collect()
}

/// What the balancer logs in to `cluster` with. While mailboxes move it is known under which grant they will be.
fn probe(fleet: &Fleet, secrets: &BTreeMap<Name, mail::MailSecrets>, cluster: &Name) -> Option<(Name, Probe)> {
    let found = fleet.clusters.get(cluster)?;
    // Mailboxes on a node's own disk have no place that is made for it.
    found.share.as_ref()?;
    let number = found.grants.get(&Right::Mailboxes)?.number;
    Some((cluster.clone(), Probe::new(secrets.get(cluster)?, number)))
}

fn balancer_spec(fleet: &Fleet, secrets: &BTreeMap<Name, mail::MailSecrets>, balancer: &Name) -> BalancerSpec {
    let services = fleet.addresses.values().filter(|a| a.balancer == *balancer).map(|address| {
        let cluster = &fleet.clusters[&address.cluster];
        let backends = cluster.nodes().map(|(server, _, settings)| {
            let main = fleet.servers[server].address.ip;
            let ip = address.internal.get(server).copied().unwrap_or(main);
            BackendSpec {
                server: server.clone(),
                target: SocketAddrV4::new(ip, address.port),
                score: SocketAddrV4::new(main, port::SCORE),
                weight: settings.weight,
                drained: settings.drained,
            }
        });
        ServiceSpec {
            external: address.external,
            cluster: cluster.name.clone(),
            check: CheckKind::of(cluster.kind, address.port),
            backends: backends.collect(),
        }
    });
    let networks = fleet.servers.values().map(|s| InternalNet { ip: s.address.network(), ..s.address });
    let served: BTreeSet<&Name> =
        fleet.addresses.values().filter(|a| a.balancer == *balancer).map(|a| &a.cluster).collect();
    let probes = served.into_iter().filter_map(|cluster| probe(fleet, secrets, cluster)).collect();
    BalancerSpec { services: services.collect(), internal_networks: networks.collect(), probes }
}
