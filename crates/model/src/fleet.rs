//! The fleet: the small part of the world, whole, with the rules that every change keeps.
//!
//! [`Fleet::apply`] is the only way to change it. It either keeps every rule or changes nothing and names the rule.

use crate::address::{ExternalAddress, LogicalServer};
use crate::cluster::{Cluster, ClusterKind, NodeSettings, Role};
use crate::grant::Proof;
use crate::mail::MailProtocol;
use crate::server::{BootId, host_address};
use crate::share::SharePath;
use crate::{Name, Refusal, Right, Rule, Server, Share};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;

mod grants;
mod shares;

/// Servers, clusters, shares, external addresses and logical servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Physical servers by name.
    pub servers: BTreeMap<Name, Server>,
    /// Clusters by name.
    pub clusters: BTreeMap<Name, Cluster>,
    /// Shares by name.
    pub shares: BTreeMap<Name, Share>,
    /// External addresses by address and port.
    pub addresses: BTreeMap<SocketAddrV4, ExternalAddress>,
    /// Logical servers by name.
    pub logical_servers: BTreeMap<Name, LogicalServer>,
}

/// One change of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum FleetChange {
    /// A new physical server.
    AddServer {
        /// The server.
        server: Server,
    },
    /// A server's internal address or the way it is fenced changes.
    ChangeServer {
        /// The server with its new values; kind and name stay.
        server: Server,
    },
    /// A server leaves the fleet.
    RemoveServer {
        /// Its name.
        name: Name,
    },
    /// A new cluster of one: its master.
    AddCluster {
        /// The cluster, without slaves.
        cluster: Cluster,
    },
    /// A cluster's share or directives change; kind, master and slaves stay.
    ChangeCluster {
        /// The cluster with its new values.
        cluster: Cluster,
    },
    /// A cluster is dissolved: its master is unmarked.
    RemoveCluster {
        /// Its name.
        name: Name,
    },
    /// A server becomes a slave.
    AddSlave {
        /// The cluster.
        cluster: Name,
        /// The server.
        server: Name,
        /// What an administrator sets for it.
        settings: NodeSettings,
    },
    /// A slave leaves its cluster.
    RemoveSlave {
        /// The cluster.
        cluster: Name,
        /// The slave.
        server: Name,
    },
    /// A node's weight or drain changes.
    SetNode {
        /// The cluster.
        cluster: Name,
        /// The node.
        server: Name,
        /// The new settings.
        settings: NodeSettings,
    },
    /// A grant shall move as soon as its holder is at an end with it; asked for the holder itself, it stays.
    AskGrant {
        /// The cluster.
        cluster: Name,
        /// What it is about.
        right: Right,
        /// Who shall have it.
        to: Name,
    },
    /// A grant moves: its holder was seen to be at an end with it.
    PassGrant {
        /// The cluster.
        cluster: Name,
        /// What it is about.
        right: Right,
        /// The holder's number.
        number: u64,
        /// Why it is at an end.
        proof: Proof,
    },
    /// A server's fence is begun: nobody may use what it had.
    BeginFence {
        /// The server.
        server: Name,
        /// The last boot of its machine that was heard of.
        boot: Option<BootId>,
    },
    /// A fence that was begun has come to its end: the server was seen to be off.
    Fence {
        /// The server.
        server: Name,
    },
    /// A server takes part again: its machine was started anew, or its fence was begun and failed.
    Unfence {
        /// The server.
        server: Name,
    },
    /// A new share.
    AddShare {
        /// The share.
        share: Share,
    },
    /// A share that no cluster mounts lies elsewhere from now on; its content is not moved.
    MoveShare {
        /// Its name.
        name: Name,
        /// The nas cluster that keeps it.
        nas: Option<Name>,
        /// Where it lies there.
        path: SharePath,
    },
    /// A share is no longer known; its content stays where it is.
    RemoveShare {
        /// Its name.
        name: Name,
    },
    /// A new external address.
    AddAddress {
        /// The address.
        address: ExternalAddress,
    },
    /// An external address gets other internal ones; its key, balancer and cluster stay.
    ChangeAddress {
        /// The address with its new values.
        address: ExternalAddress,
    },
    /// An external address is given back.
    RemoveAddress {
        /// Address and port.
        external: SocketAddrV4,
    },
    /// A new logical server, on the master that `server` names.
    AddLogicalServer {
        /// Its name.
        name: Name,
        /// The master that it is created on.
        server: Name,
    },
    /// A logical server is removed; the panel has checked that no account is on it.
    RemoveLogicalServer {
        /// Its name.
        name: Name,
        /// How many accounts are placed on it.
        accounts: u64,
    },
}

impl Fleet {
    /// Makes one change.
    ///
    /// # Errors
    /// The rule that the change would break; the fleet is then as it was.
    pub fn apply(&mut self, change: FleetChange) -> Result<(), Refusal> {
        match change {
            FleetChange::AddServer { server } => self.add_server(server),
            FleetChange::ChangeServer { server } => self.change_server(server),
            FleetChange::RemoveServer { name } => self.remove_server(&name),
            FleetChange::AddCluster { cluster } => self.add_cluster(cluster),
            FleetChange::ChangeCluster { cluster } => self.change_cluster(cluster),
            FleetChange::RemoveCluster { name } => self.remove_cluster(&name),
            FleetChange::AddSlave { cluster, server, settings } => self.add_slave(&cluster, server, settings),
            FleetChange::RemoveSlave { cluster, server } => self.remove_slave(&cluster, &server),
            FleetChange::SetNode { cluster, server, settings } => self.set_node(&cluster, &server, settings),
            FleetChange::AskGrant { cluster, right, to } => self.ask_grant(&cluster, &right, to),
            FleetChange::PassGrant { cluster, right, number, proof } => {
                self.pass_grant(&cluster, &right, number, proof)
            }
            FleetChange::BeginFence { server, boot } => self.begin_fence(&server, boot),
            FleetChange::Fence { server } => self.fence(&server),
            FleetChange::Unfence { server } => self.unfence(&server),
            FleetChange::AddShare { share } => self.add_share(share),
            FleetChange::MoveShare { name, nas, path } => self.move_share(&name, nas, path),
            FleetChange::RemoveShare { name } => self.remove_share(&name),
            FleetChange::AddAddress { address } => self.add_address(address),
            FleetChange::ChangeAddress { address } => self.change_address(address),
            FleetChange::RemoveAddress { external } => self.remove_address(external),
            FleetChange::AddLogicalServer { name, server } => self.add_logical_server(name, &server),
            FleetChange::RemoveLogicalServer { name, accounts } => self.remove_logical_server(&name, accounts),
        }
    }

    /// The cluster that a server belongs to and its part in it.
    pub fn membership(&self, server: &Name) -> Option<(&Cluster, Role)> {
        self.clusters.values().find_map(|cluster| cluster.role_of(server).map(|role| (cluster, role)))
    }

    fn add_server(&mut self, server: Server) -> Result<(), Refusal> {
        unused(self.servers.contains_key(&server.name), "server", &server.name)?;
        self.internal_address_is_free(&server)?;
        let server = Server { fenced: None, ..server };
        self.servers.insert(server.name.clone(), server);
        Ok(())
    }

    fn change_server(&mut self, server: Server) -> Result<(), Refusal> {
        let old = exists(&self.servers, "server", &server.name)?;
        if old.kind != server.kind {
            return Err(Refusal::new(
                Rule::KindsFit,
                format!("server {} is of kind {} and can't become {}", server.name, old.kind, server.kind),
                "remove the server and add it again with the other kind",
            ));
        }
        self.internal_address_is_free(&server)?;
        let server = Server { fenced: old.fenced.clone(), ..server };
        self.servers.insert(server.name.clone(), server);
        Ok(())
    }

    fn remove_server(&mut self, name: &Name) -> Result<(), Refusal> {
        exists(&self.servers, "server", name)?;
        match self.membership(name) {
            Some((cluster, Role::Master)) if !cluster.slaves.is_empty() => Err(master_with_slaves(cluster, "deleted")),
            Some((cluster, _)) => Err(Refusal::new(
                Rule::InUseIsNotRemoved,
                format!("server {name} belongs to cluster {}", cluster.name),
                format!("take it out of cluster {} first", cluster.name),
            )),
            None => {
                self.servers.remove(name);
                Ok(())
            }
        }
    }

    fn add_cluster(&mut self, cluster: Cluster) -> Result<(), Refusal> {
        unused(self.clusters.contains_key(&cluster.name), "cluster", &cluster.name)?;
        if !cluster.slaves.is_empty() {
            return Err(Refusal::new(
                Rule::ValueInRange,
                format!("cluster {} can't be made with slaves in it", cluster.name),
                "add the cluster with its master, then add its slaves one by one",
            ));
        }
        let master = exists(&self.servers, "server", &cluster.master)?;
        self.is_free(&cluster.master)?;
        if master.kind != cluster.kind {
            return Err(Refusal::new(
                Rule::KindsFit,
                format!("server {} is of kind {}, the cluster of kind {}", master.name, master.kind, cluster.kind),
                format!("choose a server of kind {} as master", cluster.kind),
            ));
        }
        self.share_fits(&cluster)?;
        grants::mail_fits(&cluster)?;
        let cluster = Cluster { grants: grants::first(&cluster), ..cluster };
        self.clusters.insert(cluster.name.clone(), cluster);
        Ok(())
    }

    fn change_cluster(&mut self, cluster: Cluster) -> Result<(), Refusal> {
        let old = exists(&self.clusters, "cluster", &cluster.name)?;
        if (old.kind, &old.master, &old.slaves) != (cluster.kind, &cluster.master, &cluster.slaves) {
            return Err(Refusal::new(
                Rule::KindsFit,
                format!("kind, master and slaves of cluster {} can't be changed this way", cluster.name),
                "use the commands that add and remove slaves",
            ));
        }
        if old.share.is_some()
            && old.share != cluster.share
            && self.logical_servers.values().any(|l| l.cluster == cluster.name)
        {
            return Err(Refusal::new(
                Rule::InUseIsNotRemoved,
                format!("cluster {} has logical servers whose content lies on its share", cluster.name),
                "move or remove the logical servers first",
            ));
        }
        self.share_fits(&cluster)?;
        grants::mail_fits(&cluster)?;
        let cluster = Cluster { grants: old.grants.clone(), ..cluster };
        self.clusters.insert(cluster.name.clone(), cluster);
        Ok(())
    }

    fn remove_cluster(&mut self, name: &Name) -> Result<(), Refusal> {
        let cluster = exists(&self.clusters, "cluster", name)?;
        if !cluster.slaves.is_empty() {
            return Err(master_with_slaves(cluster, "unmarked"));
        }
        let users: Vec<String> = (self.logical_servers.values().filter(|l| l.cluster == *name))
            .map(|l| format!("logical server {}", l.name))
            .chain(
                self.addresses
                    .values()
                    .filter(|a| a.cluster == *name || a.balancer == *name)
                    .map(|a| format!("address {}", a.external)),
            )
            .chain(self.shares.values().filter(|s| s.nas.as_ref() == Some(name)).map(|s| format!("share {}", s.name)))
            .collect();
        not_in_use("cluster", name, &users)?;
        self.clusters.remove(name);
        Ok(())
    }

    fn add_slave(&mut self, cluster: &Name, server: Name, settings: NodeSettings) -> Result<(), Refusal> {
        let kind = exists(&self.clusters, "cluster", cluster)?.kind;
        let slave = exists(&self.servers, "server", &server)?;
        self.is_free(&server)?;
        if slave.kind != kind {
            return Err(Refusal::new(
                Rule::SlaveSharesMastersKind,
                format!("server {server} is of kind {}, cluster {cluster} of kind {kind}", slave.kind),
                format!("choose a server of kind {kind}"),
            ));
        }
        weight_in_range(settings)?;
        let cluster = self.clusters.get_mut(cluster).expect("looked up above");
        grants::welcome(cluster, &server);
        cluster.slaves.insert(server, settings);
        Ok(())
    }

    fn remove_slave(&mut self, cluster: &Name, server: &Name) -> Result<(), Refusal> {
        match exists(&self.clusters, "cluster", cluster)?.role_of(server) {
            Some(Role::Slave) => {}
            Some(Role::Master) => {
                return Err(Refusal::new(
                    Rule::MasterWithSlavesStays,
                    format!("server {server} is the master of cluster {cluster}, not a slave"),
                    "remove the cluster to unmark its master, after its slaves are gone",
                ));
            }
            None => return Err(not_in_cluster(cluster, server)),
        }
        grants::is_free(&self.clusters[cluster], server)?;
        for address in self.addresses.values_mut().filter(|a| a.cluster == *cluster) {
            address.internal.remove(server);
        }
        self.clusters.get_mut(cluster).expect("looked up above").slaves.remove(server);
        Ok(())
    }

    fn set_node(&mut self, cluster: &Name, server: &Name, settings: NodeSettings) -> Result<(), Refusal> {
        exists(&self.clusters, "cluster", cluster)?;
        weight_in_range(settings)?;
        let found = self.clusters.get_mut(cluster).expect("looked up above");
        if found.master == *server {
            found.master_settings = settings;
        } else if let Some(slot) = found.slaves.get_mut(server) {
            *slot = settings;
        } else {
            return Err(not_in_cluster(cluster, server));
        }
        Ok(())
    }

    fn add_address(&mut self, address: ExternalAddress) -> Result<(), Refusal> {
        if let Some(user) = self.addresses.get(&address.external) {
            return Err(Refusal::new(
                Rule::ExternalAddressHasOneUser,
                format!("{} is used by cluster {}", address.external, user.cluster),
                "choose another address or port, or remove the present user",
            ));
        }
        self.address_fits(&address)?;
        self.addresses.insert(address.external, address);
        Ok(())
    }

    fn change_address(&mut self, address: ExternalAddress) -> Result<(), Refusal> {
        let Some(old) = self.addresses.get(&address.external) else {
            return Err(unknown("address", &address.external));
        };
        if (&old.balancer, &old.cluster) != (&address.balancer, &address.cluster) {
            return Err(Refusal::new(
                Rule::ExternalAddressHasOneUser,
                format!("{} belongs to balancer {} and cluster {}", address.external, old.balancer, old.cluster),
                "remove the address and add it again for another user",
            ));
        }
        self.address_fits(&address)?;
        self.addresses.insert(address.external, address);
        Ok(())
    }

    fn remove_address(&mut self, external: SocketAddrV4) -> Result<(), Refusal> {
        self.addresses.remove(&external).map(|_| ()).ok_or_else(|| unknown("address", &external))
    }

    fn add_logical_server(&mut self, name: Name, server: &Name) -> Result<(), Refusal> {
        unused(self.logical_servers.contains_key(&name), "logical server", &name)?;
        exists(&self.servers, "server", server)?;
        let Some((cluster, role)) = self.membership(server) else {
            return Err(Refusal::new(
                Rule::ReferenceExists,
                format!("server {server} belongs to no cluster"),
                "make it the master of a cluster first",
            ));
        };
        if role == Role::Slave {
            return Err(Refusal::new(
                Rule::SlaveHoldsNoLogicalServer,
                format!("server {server} is a slave of cluster {}", cluster.name),
                format!("create it on the master, {}", cluster.master),
            ));
        }
        if !cluster.kind.holds_logical_servers() {
            return Err(Refusal::new(
                Rule::KindsFit,
                format!("cluster {} is of kind {}", cluster.name, cluster.kind),
                "create logical servers on web or mail clusters",
            ));
        }
        if cluster.share.is_none() {
            return Err(Refusal::new(
                Rule::ReferenceExists,
                format!("cluster {} has no share to keep content on", cluster.name),
                format!("add a share and set it: phalanx cluster change {} --share NAME", cluster.name),
            ));
        }
        let logical = LogicalServer { name: name.clone(), kind: cluster.kind, cluster: cluster.name.clone() };
        self.logical_servers.insert(name, logical);
        Ok(())
    }

    fn remove_logical_server(&mut self, name: &Name, accounts: u64) -> Result<(), Refusal> {
        exists(&self.logical_servers, "logical server", name)?;
        if accounts > 0 {
            return Err(Refusal::new(
                Rule::InUseIsNotRemoved,
                format!("logical server {name} has {accounts} accounts"),
                "remove its accounts first",
            ));
        }
        self.logical_servers.remove(name);
        Ok(())
    }

    fn internal_address_is_free(&self, server: &Server) -> Result<(), Refusal> {
        let holder = self.internal_address_holder(server.address.ip);
        match holder {
            Some(holder) if *holder != server.name => Err(Refusal::new(
                Rule::InternalAddressHasOneServer,
                format!("{} belongs to server {holder}", server.address.ip),
                "choose another address",
            )),
            _ => Ok(()),
        }
    }

    fn internal_address_holder(&self, ip: std::net::Ipv4Addr) -> Option<&Name> {
        let mapped = self
            .addresses
            .values()
            .flat_map(|a| a.internal.iter())
            .find(|(_, internal)| **internal == ip)
            .map(|(s, _)| s);
        self.servers.values().find(|s| s.address.ip == ip).map(|s| &s.name).or(mapped)
    }

    fn is_free(&self, server: &Name) -> Result<(), Refusal> {
        match self.membership(server) {
            None => Ok(()),
            Some((cluster, _)) => Err(Refusal::new(
                Rule::ServerBelongsToOneCluster,
                format!("server {server} belongs to cluster {}", cluster.name),
                "choose a server that belongs to no cluster",
            )),
        }
    }

    fn share_fits(&self, cluster: &Cluster) -> Result<(), Refusal> {
        weight_in_range(cluster.master_settings)?;
        if let Some(bad) =
            cluster.httpd_directives.iter().find(|line| line.len() > 1_000 || line.contains(['\n', '\r', '\0']))
        {
            return Err(Refusal::new(
                Rule::ValueInRange,
                format!(
                    "the directive {:?} is longer than 1,000 characters or holds a line break",
                    bad.chars().take(60).collect::<String>()
                ),
                "give one directive a line",
            ));
        }
        let directives_len: usize = cluster.httpd_directives.iter().map(|line| line.len() + 1).sum();
        if directives_len > Cluster::DIRECTIVES_LEN_MAX {
            return Err(Refusal::new(
                Rule::ValueInRange,
                format!("the directives have {directives_len} bytes; {} are allowed", Cluster::DIRECTIVES_LEN_MAX),
                "put what belongs to one site into its .htaccess",
            ));
        }
        let Some(share) = &cluster.share else { return Ok(()) };
        exists(&self.shares, "share", share)?;
        if !cluster.kind.holds_logical_servers() {
            return Err(Refusal::new(
                Rule::KindsFit,
                format!("cluster {} is of kind {} and mounts no share", cluster.name, cluster.kind),
                "set shares on web and mail clusters",
            ));
        }
        Ok(())
    }

    fn address_fits(&self, address: &ExternalAddress) -> Result<(), Refusal> {
        let refuse = |rule, detail: String, hint: &str| Err(Refusal::new(rule, detail, hint));
        if let Err(invalid) = host_address(&address.external.to_string(), *address.external.ip()) {
            return refuse(Rule::ValueInRange, invalid.to_string(), "give the address that the world connects to");
        }
        if address.external.port() == 0 || address.port == 0 {
            return refuse(Rule::ValueInRange, "port 0 can't be served".into(), "use ports 1 to 65535");
        }
        let balancer = exists(&self.clusters, "cluster", &address.balancer)?;
        if balancer.kind != ClusterKind::Balancer {
            let detail = format!("cluster {} is of kind {}, not balancer", balancer.name, balancer.kind);
            return refuse(Rule::KindsFit, detail, "name a balancer cluster");
        }
        let cluster = exists(&self.clusters, "cluster", &address.cluster)?;
        if !cluster.kind.holds_logical_servers() {
            let detail = format!("cluster {} is of kind {} and serves no customers", cluster.name, cluster.kind);
            return refuse(Rule::KindsFit, detail, "name a web or mail cluster");
        }
        if cluster.kind == ClusterKind::Mail && MailProtocol::of_port(address.port).is_none() {
            let ports: Vec<String> = MailProtocol::ALL.iter().map(|protocol| protocol.port().to_string()).collect();
            let detail = format!("mail nodes do not listen on port {}", address.port);
            return refuse(Rule::KindsFit, detail, &format!("map it to one of {}", ports.join(", ")));
        }
        for (server, ip) in &address.internal {
            if cluster.role_of(server).is_none() {
                return Err(not_in_cluster(&cluster.name, server));
            }
            if let Err(invalid) = host_address(&ip.to_string(), *ip) {
                return refuse(Rule::ValueInRange, invalid.to_string(), "give an address of the internal network");
            }
            if let Some(holder) = self.internal_address_holder(*ip).filter(|holder| *holder != server) {
                let detail = format!("{ip} belongs to server {holder}");
                return refuse(Rule::InternalAddressHasOneServer, detail, "choose another internal address");
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = address.internal.values().find(|ip| !seen.insert(**ip)) {
            return refuse(
                Rule::InternalAddressHasOneServer,
                format!("{twice} is given to two servers"),
                "give each node its own",
            );
        }
        Ok(())
    }
}

fn unknown(what: &str, name: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(
        Rule::ReferenceExists,
        format!("there is no {what} {name}"),
        format!("list what exists: phalanx {} list", what.replace(' ', "-")),
    )
}

fn exists<'a, T>(things: &'a BTreeMap<Name, T>, what: &str, name: &Name) -> Result<&'a T, Refusal> {
    things.get(name).ok_or_else(|| unknown(what, name))
}

fn unused(taken: bool, what: &str, name: &Name) -> Result<(), Refusal> {
    if taken {
        return Err(Refusal::new(
            Rule::NameIsUnique,
            format!("there is a {what} {name} already"),
            "choose another name",
        ));
    }
    Ok(())
}

fn not_in_use(what: &str, name: &Name, users: &[String]) -> Result<(), Refusal> {
    if users.is_empty() {
        return Ok(());
    }
    let detail = format!("{what} {name} is used by {}", users.join(", "));
    Err(Refusal::new(Rule::InUseIsNotRemoved, detail, "remove these first"))
}

fn not_in_cluster(cluster: &Name, server: &Name) -> Refusal {
    let hint = format!("see its nodes: phalanx cluster show {cluster}");
    Refusal::new(Rule::ReferenceExists, format!("server {server} is no node of cluster {cluster}"), hint)
}

fn weight_in_range(settings: NodeSettings) -> Result<(), Refusal> {
    if (1..=100).contains(&settings.weight) {
        return Ok(());
    }
    let detail = format!("weight {} is not between 1 and 100", settings.weight);
    Err(Refusal::new(Rule::ValueInRange, detail, "to take a node out of service, drain it"))
}

fn master_with_slaves(cluster: &Cluster, done: &str) -> Refusal {
    let slaves: Vec<&str> = cluster.slaves.keys().map(Name::as_str).collect();
    Refusal::new(
        Rule::MasterWithSlavesStays,
        format!(
            "server {}, the master of cluster {}, has the slaves {} and can't be {done}",
            cluster.master,
            cluster.name,
            slaves.join(", ")
        ),
        format!("remove the slaves from cluster {} first", cluster.name),
    )
}

#[cfg(test)]
mod tests;
