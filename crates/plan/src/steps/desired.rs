//! What a node should be, reduced to what can be compared with what is seen on it.

use super::network::{RouteRule, Routing};
use super::units::Unit;
use super::{Proof, generations};
use crate::render::{self, Files};
use crate::rights::KeptRight;
use crate::spec::mail::MailSpec;
use crate::spec::{BalancerSpec, KeptShare, MountSource, MountSpec, NodeSpec, Work};
use phalanx_model::cluster::Role;
use phalanx_model::server::InternalNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The accounts' table in a web node's generation.
pub const TABLE_FILE: &str = "accounts.nft";
/// The part of their configuration that all accounts' httpds share.
pub const HTTPD_COMMON_FILE: &str = "httpd-common.conf";
/// A NAS's exports in its generation.
pub const EXPORTS_FILE: &str = "exports";
/// A NAS's settings of its NFS server in its generation.
pub const NFS_FILE: &str = "nfs.conf";
/// A balancer's kernel settings in its generation.
pub const SYSCTL_FILE: &str = "sysctl.conf";
/// The link through which daemons reach the live generation.
pub const LIVE: &str = "/var/lib/phalanx/live";

/// What a node should be. Made from its spec alone; all empty for a machine that belongs to no cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// The machine's own address, which some interface of it must have.
    pub main_address: Option<InternalNet>,
    /// The shares, and parts of them, that it mounts.
    pub mounts: Vec<MountSpec>,
    /// The shares that it keeps.
    pub kept_shares: Vec<KeptShare>,
    /// Addresses beside the main one.
    pub extra_addresses: BTreeSet<InternalNet>,
    /// What the world connects to, as far as this machine takes it.
    pub external_addresses: BTreeSet<Ipv4Addr>,
    /// Which replies go where.
    pub routing: Routing,
    /// Kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// The generation's files.
    pub files: Files,
    /// Links from places where daemons look to live files.
    pub links: BTreeMap<String, String>,
    /// Units that shall be active, in the order in which they start.
    pub units: BTreeSet<Unit>,
    /// What shows that the generation works.
    pub proof: Option<Proof>,
}

impl Desired {
    /// What `spec` asks for; `None` asks for nothing.
    pub fn of(spec: Option<&NodeSpec>) -> Self {
        let Some(spec) = spec else { return Self::default() };
        let base = Self { main_address: Some(spec.address), files: render::files(spec), ..Self::default() };
        match &spec.work {
            Work::Web(web) => {
                let at = web.listen.first().copied();
                let proof = at.map(|at| match &web.share {
                    Some(mount) => Proof::Health { at, share: mount.share.clone() },
                    None => Proof::Answer { at },
                });
                let kept = web.share.as_ref().and_then(|mount| kept_locally(mount, vec![]));
                Self {
                    mounts: web.share.iter().cloned().collect(),
                    kept_shares: kept.into_iter().collect(),
                    extra_addresses: web.extra_addresses.clone(),
                    routing: Routing::for_replies(spec.address, &web.reply_routes),
                    sysctls: render::web_sysctls(),
                    links: link("/etc/sysctl.d/60-phalanx.conf", SYSCTL_FILE),
                    units: BTreeSet::from([Unit::Launcher, Unit::Guard, Unit::Logs, Unit::Proxy]),
                    proof,
                    ..base
                }
            }
            Work::Nas(nas) => {
                let serves_nfs = nas.shares.iter().any(|share| !share.nfs_clients.is_empty());
                Self {
                    kept_shares: nas.shares.clone(),
                    links: [
                        link("/etc/exports.d/phalanx.exports", EXPORTS_FILE),
                        link("/etc/nfs.conf.d/phalanx.conf", NFS_FILE),
                    ]
                    .into_iter()
                    .flatten()
                    .collect(),
                    units: if serves_nfs { BTreeSet::from([Unit::NfsServer]) } else { BTreeSet::new() },
                    ..base
                }
            }
            Work::Balancer(balancer) => Self {
                external_addresses: taken_from_the_world(balancer, spec.role),
                sysctls: render::balancer_sysctls(),
                links: link("/etc/sysctl.d/60-phalanx.conf", SYSCTL_FILE),
                units: BTreeSet::from([Unit::Balancer]),
                proof: Some(Proof::Active { units: vec![Unit::Balancer] }),
                ..base
            },
            Work::Mail(mail) => match mail {
                Some(mail) => of_mail(base, spec, mail),
                None => base,
            },
        }
    }

    /// What tells this from everything else that could be desired.
    pub fn digest(&self) -> String {
        generations::sha256_hex(format!("{self:?}").as_bytes())
    }
}

fn of_mail(base: Desired, spec: &NodeSpec, mail: &MailSpec) -> Desired {
    let mut units =
        BTreeSet::from([Unit::Guard, Unit::Logs, Unit::Filter, Unit::Senders, Unit::Logins, Unit::MailRouter]);
    let mut proven = vec![Unit::Logins, Unit::MailRouter];
    // Without a queue of its own it takes no mail; it knows who may log in, and leads to the mailboxes.
    if mail.queues.contains_key(&spec.server) {
        units.insert(Unit::Postfix);
        proven.push(Unit::Postfix);
    }
    if mail.queues.keys().any(|of| *of != spec.server) {
        units.insert(Unit::AdoptedQueues);
    }
    if spec.role == Role::Master {
        units.insert(Unit::FilterMemory);
    }
    if mail.mailboxes.holder.as_ref().is_some_and(|holder| holder.server == spec.server) {
        units.insert(Unit::Mailboxes);
    }
    Desired {
        mounts: mail.share.iter().chain(mail.queues.values().filter_map(|q| q.mount.as_ref())).cloned().collect(),
        kept_shares: (mail.share.as_ref())
            .and_then(|mount| kept_locally(mount, mail.kept_rights.clone()))
            .into_iter()
            .collect(),
        extra_addresses: mail.extra_addresses.clone(),
        routing: Routing::for_replies(spec.address, &mail.reply_routes),
        proof: Some(Proof::Active { units: proven }),
        units,
        ..base
    }
}

fn link(at: &str, file: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(at.to_owned(), format!("{LIVE}/{file}"))])
}

/// A balancer cluster's master takes its external addresses: two machines with one address would answer for each other.
fn taken_from_the_world(balancer: &BalancerSpec, role: Role) -> BTreeSet<Ipv4Addr> {
    match role {
        Role::Master => balancer.services.iter().map(|service| *service.external.ip()).collect(),
        Role::Slave => BTreeSet::new(),
    }
}

/// A `local` share without a nas cluster is kept by the node that makes the homes.
fn kept_locally(mount: &MountSpec, rights: Vec<KeptRight>) -> Option<KeptShare> {
    match &mount.source {
        MountSource::Local(path) if mount.keeps_homes => Some(KeptShare {
            share: mount.share.clone(),
            marker: mount.marker.clone(),
            path: path.clone(),
            nfs_clients: BTreeSet::new(),
            rights,
        }),
        _ => None,
    }
}

impl Routing {
    /// Replies from each address go through its balancer, but for the machine's own network.
    pub fn for_replies(main: InternalNet, replies: &BTreeMap<Ipv4Addr, Ipv4Addr>) -> Self {
        let gateways: BTreeSet<Ipv4Addr> = replies.values().copied().collect();
        let tables: BTreeMap<u32, Ipv4Addr> = (Self::TABLE_FIRST..=Self::TABLE_LAST).zip(gateways).collect();
        let rules = replies.iter().flat_map(|(from, gateway)| {
            let table = tables.iter().find(|(_, via)| *via == gateway).map(|(table, _)| *table);
            let direct = RouteRule::direct(*from, InternalNet { ip: main.network(), ..main });
            std::iter::once(direct).chain(table.map(|table| RouteRule::through(*from, table)))
        });
        Self { rules: rules.collect(), tables }
    }
}
