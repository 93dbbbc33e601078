//! What is particular to clusters with grants: mail and web clusters, so far.

use super::{Fleet, exists, not_in_cluster};
use crate::cluster::{Cluster, ClusterKind};
use crate::grant::Proof;
use crate::server::{BootId, Fenced};
use crate::{Grant, Name, Refusal, Right, Rule, Server};
use std::collections::BTreeMap;

impl Fleet {
    pub(super) fn ask_grant(&mut self, cluster: &Name, right: &Right, to: Name) -> Result<(), Refusal> {
        let found = exists(&self.clusters, "cluster", cluster)?;
        if found.role_of(&to).is_none() {
            return Err(not_in_cluster(cluster, &to));
        }
        let grant = grant(found, right)?;
        if *right == Right::Logs {
            let detail = format!("the logs of cluster {cluster} are merged by {}, its master", grant.holder);
            return Err(Refusal::new(
                Rule::GrantMovesByProof,
                detail,
                "there is nothing to do: they move with the mastership",
            ));
        }
        if grant.holder != to && self.servers[&to].fenced.is_some() {
            return Err(Refusal::new(
                Rule::GrantMovesByProof,
                format!("server {to} is fenced and takes part in nothing until its machine is started anew"),
                "start its machine, or name another node",
            ));
        }
        let asked = grant.ask(to);
        self.set_grant(cluster, right, asked);
        Ok(())
    }

    pub(super) fn begin_fence(&mut self, server: &Name, boot: Option<BootId>) -> Result<(), Refusal> {
        exists(&self.servers, "server", server)?;
        let server = self.servers.get_mut(server).expect("looked up above");
        if !server.is_fenced() {
            server.fenced = Some(Fenced { boot, is_seen: false });
        }
        Ok(())
    }

    pub(super) fn fence(&mut self, server: &Name) -> Result<(), Refusal> {
        exists(&self.servers, "server", server)?;
        let Some(fenced) = &mut self.servers.get_mut(server).expect("looked up above").fenced else {
            return Err(Refusal::new(
                Rule::GrantMovesByProof,
                format!("the fence of server {server} was not begun, or was taken back"),
                format!("begin it: phalanx server fence {server}"),
            ));
        };
        fenced.is_seen = true;
        Ok(())
    }

    /// What it still has it may use again. What only this server filled comes home with it: its queue, if another node has adopted that.
    pub(super) fn unfence(&mut self, server: &Name) -> Result<(), Refusal> {
        exists(&self.servers, "server", server)?;
        if self.servers.get_mut(server).expect("looked up above").fenced.take().is_none() {
            return Ok(());
        }
        let own = Right::Queue(server.clone());
        for cluster in self.clusters.values_mut() {
            let is_here = cluster.role_of(server).is_some();
            for (right, grant) in &mut cluster.grants {
                if grant.holder == *server {
                    *grant = grant.renew();
                } else if *right == own && is_here {
                    *grant = grant.ask(server.clone());
                }
            }
        }
        Ok(())
    }

    pub(super) fn pass_grant(
        &mut self,
        cluster: &Name,
        right: &Right,
        number: u64,
        proof: Proof,
    ) -> Result<(), Refusal> {
        let grant = grant(exists(&self.clusters, "cluster", cluster)?, right)?;
        let is_fenced = self.servers.get(&grant.holder).is_some_and(Server::is_fenced);
        if proof == Proof::Fenced && !is_fenced {
            return Err(Refusal::new(
                Rule::GrantMovesByProof,
                format!("server {}, which has {right} of cluster {cluster}, is not fenced", grant.holder),
                format!("see to it that it does no more harm: phalanx server fence {}", grant.holder),
            ));
        }
        let Some(passed) = grant.pass(number, proof) else {
            let detail = match &grant.moving_to {
                None => format!("{right} of cluster {cluster} stay with {}; nobody asked for a move", grant.holder),
                Some(_) => format!("the proof is for number {number}, the holder has number {}", grant.number),
            };
            let hint = format!("see who has it: phalanx cluster show {cluster}");
            return Err(Refusal::new(Rule::GrantMovesByProof, detail, hint));
        };
        self.set_grant(cluster, right, passed);
        Ok(())
    }

    fn set_grant(&mut self, cluster: &Name, right: &Right, grant: Grant) {
        let cluster = self.clusters.get_mut(cluster).expect("looked up by the caller");
        cluster.grants.insert(right.clone(), grant);
    }
}

fn grant<'c>(cluster: &'c Cluster, right: &Right) -> Result<&'c Grant, Refusal> {
    cluster.grants.get(right).ok_or_else(|| {
        let known: Vec<String> = cluster.grants.keys().map(Right::to_string).collect();
        let hint = match known.is_empty() {
            true => "mail and web clusters have grants".to_owned(),
            false => format!("there are {}", known.join(", ")),
        };
        Refusal::new(Rule::ReferenceExists, format!("cluster {} has no grant {right}", cluster.name), hint)
    })
}

/// The grants of a cluster that begins with its master alone.
pub(super) fn first(cluster: &Cluster) -> BTreeMap<Right, Grant> {
    let master = &cluster.master;
    let rights = match cluster.kind {
        ClusterKind::Mail => vec![Right::Mailboxes, Right::Queue(master.clone()), Right::Logs],
        ClusterKind::Web => vec![Right::Logs],
        ClusterKind::Nas | ClusterKind::Balancer => vec![],
    };
    rights.into_iter().map(|right| (right, Grant::first(master.clone()))).collect()
}

/// A new slave gets its own queue. One that was here before gets back what it left, from the node that has it.
pub(super) fn welcome(cluster: &mut Cluster, server: &Name) {
    if cluster.kind != ClusterKind::Mail {
        return;
    }
    let own = Right::Queue(server.clone());
    let grant = match cluster.grants.get(&own) {
        Some(left) => left.ask(server.clone()),
        None => Grant::first(server.clone()),
    };
    cluster.grants.insert(own, grant);
}

/// Whether a slave may go: it neither has nor gets what only one may have. Its queue, too, may hold mail that was answered with 250.
pub(super) fn is_free(cluster: &Cluster, server: &Name) -> Result<(), Refusal> {
    let concerns = |grant: &&Grant| grant.holder == *server || grant.moving_to.as_ref() == Some(server);
    let Some((right, grant)) = cluster.grants.iter().find(|(_, grant)| concerns(grant)) else { return Ok(()) };
    let detail = match &grant.moving_to {
        Some(to) => format!("{right} of cluster {} goes from {} to {to}", cluster.name, grant.holder),
        None => format!("server {server} holds {right} of cluster {}", cluster.name),
    };
    let hint = match right {
        Right::Mailboxes | Right::Logs => {
            format!("move it to another node: phalanx cluster move-grant {} {right} --to NODE", cluster.name)
        }
        Right::Queue(of) => format!("let another node have it: phalanx queue adopt {of} --to NODE"),
    };
    Err(Refusal::new(Rule::InUseIsNotRemoved, detail, hint))
}

/// Whether what only mail clusters have is there, and only there.
pub(super) fn mail_fits(cluster: &Cluster) -> Result<(), Refusal> {
    match (cluster.kind, &cluster.mail) {
        (ClusterKind::Mail, None) => Err(Refusal::new(
            Rule::KindsFit,
            format!("mail cluster {} has no name in the DNS", cluster.name),
            "say under which name the world knows it: --mail-name mail.example.org",
        )),
        (ClusterKind::Web | ClusterKind::Nas | ClusterKind::Balancer, Some(_)) => Err(Refusal::new(
            Rule::KindsFit,
            format!("cluster {} is of kind {} and serves no mail", cluster.name, cluster.kind),
            "set a mail name on mail clusters",
        )),
        _ => Ok(()),
    }
}
