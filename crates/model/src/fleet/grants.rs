//! What is particular to clusters with grants: mail and web clusters, so far.

use super::{Fleet, exists, not_in_cluster};
use crate::cluster::{Cluster, ClusterKind};
use crate::grant::Proof;
use crate::{Grant, Name, Refusal, Right, Rule};
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
        let asked = grant.ask(to);
        self.set_grant(cluster, right, asked);
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
        ClusterKind::Mail => vec![Right::Mailboxes, Right::Queue(master.clone())],
        ClusterKind::Web => vec![Right::Logs],
        ClusterKind::Nas | ClusterKind::Balancer => vec![],
    };
    rights.into_iter().map(|right| (right, Grant::first(master.clone()))).collect()
}

/// A new slave gets its own queue. One that was here before has had it under lower numbers.
pub(super) fn welcome(cluster: &mut Cluster, server: &Name) {
    if cluster.kind != ClusterKind::Mail {
        return;
    }
    let number = cluster.grants.get(&Right::Queue(server.clone())).map_or(1, |before| before.number + 1);
    let grant = Grant { number, ..Grant::first(server.clone()) };
    cluster.grants.insert(Right::Queue(server.clone()), grant);
}

/// Whether a slave may go: it neither has nor gets what only one may have, but for its own queue.
pub(super) fn is_free(cluster: &Cluster, server: &Name) -> Result<(), Refusal> {
    let concerns = |grant: &Grant| grant.holder == *server || grant.moving_to.as_ref() == Some(server);
    let own = Right::Queue(server.clone());
    for (right, grant) in cluster.grants.iter().filter(|(_, grant)| concerns(grant)) {
        let stays_its_own = *right == own && grant.is_usable_by(server);
        if !stays_its_own {
            let detail = match &grant.moving_to {
                Some(to) => format!("{right} of cluster {} are moving from {} to {to}", cluster.name, grant.holder),
                None => format!("server {server} holds {right} of cluster {}", cluster.name),
            };
            let hint =
                format!("move it to another node: phalanx cluster move-grant {} {right} --to NODE", cluster.name);
            return Err(Refusal::new(Rule::InUseIsNotRemoved, detail, hint));
        }
    }
    Ok(())
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
