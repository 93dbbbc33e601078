//! Shares: who keeps them, and where.

use super::{Fleet, exists, not_in_use, unused};
use crate::cluster::ClusterKind;
use crate::share::SharePath;
use crate::{Name, Refusal, Rule, Share};

impl Fleet {
    pub(super) fn add_share(&mut self, share: Share) -> Result<(), Refusal> {
        unused(self.shares.contains_key(&share.name), "share", &share.name)?;
        self.share_is_kept(&share)?;
        self.shares.insert(share.name.clone(), share);
        Ok(())
    }

    pub(super) fn move_share(&mut self, name: &Name, nas: Option<Name>, path: SharePath) -> Result<(), Refusal> {
        let share = exists(&self.shares, "share", name)?;
        if let Some(user) = self.clusters.values().find(|c| c.share.as_ref() == Some(name)) {
            return Err(Refusal::new(
                Rule::InUseIsNotRemoved,
                format!("share {name} is mounted by cluster {} and stays where it is", user.name),
                format!("take it away from the cluster first: phalanx cluster change {} --no-share", user.name),
            ));
        }
        let moved = Share { nas, path, ..share.clone() };
        self.share_is_kept(&moved)?;
        self.shares.insert(name.clone(), moved);
        Ok(())
    }

    /// Whether somebody keeps the share, at a place where no other one lies and that has room for paths below it.
    fn share_is_kept(&self, share: &Share) -> Result<(), Refusal> {
        let path_len = share.path.as_str().len();
        if path_len > SharePath::LEN_MAX - SharePath::ROOM {
            return Err(Refusal::new(
                Rule::ValueInRange,
                format!("the path of share {} has {path_len} characters", share.name),
                format!("use one of at most {}", SharePath::LEN_MAX - SharePath::ROOM),
            ));
        }
        if share.kind == crate::ShareKind::NfsManaged && share.nas.is_none() {
            return Err(Refusal::new(
                Rule::ReferenceExists,
                format!("share {} is of kind nfs-managed and names no nas cluster", share.name),
                "name the nas cluster that exports it",
            ));
        }
        if let Some(nas) = &share.nas {
            let nas = exists(&self.clusters, "cluster", nas)?;
            if nas.kind != ClusterKind::Nas {
                return Err(Refusal::new(
                    Rule::KindsFit,
                    format!("cluster {} is of kind {}, a share needs one of kind nas", nas.name, nas.kind),
                    "name a nas cluster",
                ));
            }
        }
        let lies_there =
            |other: &&Share| other.name != share.name && other.nas == share.nas && other.path == share.path;
        if let Some(other) = self.shares.values().find(lies_there) {
            return Err(Refusal::new(
                Rule::NameIsUnique,
                format!("share {} lies at {} on the same nas", other.name, share.path),
                "choose another path",
            ));
        }
        Ok(())
    }

    pub(super) fn remove_share(&mut self, name: &Name) -> Result<(), Refusal> {
        exists(&self.shares, "share", name)?;
        let users: Vec<String> = (self.clusters.values().filter(|c| c.share.as_ref() == Some(name)))
            .map(|c| format!("cluster {}", c.name))
            .collect();
        not_in_use("share", name, &users)?;
        self.shares.remove(name);
        Ok(())
    }
}
