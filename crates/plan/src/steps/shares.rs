//! Shares: made where they are kept, mounted where they are used.
//!
//! A mount point of ours is a directory below [`MOUNTS`]. Beneath the share lies an empty read-only file system, so that nobody
//! writes into the directory of a share that is not mounted. What is mounted is told from `/proc/self/mountinfo` alone: a path on
//! a share is never touched, since its server may hang.

use super::observed::{SeenMount, SeenShare};
use super::{Desired, Marks, Observed, Plan, Step};
use crate::rights::{self, Comparison, DIRECTORY, KeptRight, queue_directory};
use crate::spec::{KeptShare, MountSource, MountSpec, queue_mount_point};
use phalanx_model::Right;
use std::collections::BTreeSet;

/// The directory that holds all our mount points.
pub const MOUNTS: &str = "/srv/phalanx/";
/// The source that our seals are mounted from, which tells them from other file systems.
pub const SEAL: &str = "phalanx-seal";

/// Plans the making, mounting and unmounting of shares.
pub(super) fn plan_shares(desired: &Desired, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    for share in &desired.kept_shares {
        plan_kept(share, observed, marks, plan);
    }
    let bound: BTreeSet<String> = desired.kept_shares.iter().flat_map(exported_queues).collect();
    for directory in bound.iter().filter(|at| !observed.mounts.iter().any(|seen| seen.mount_point == **at)) {
        plan.step(Step::BindQueue { directory: directory.clone() });
    }
    for left in observed.mounts.iter().map(|seen| &seen.mount_point).filter(|at| is_queue(at) && !bound.contains(*at)) {
        plan.step(Step::RemoveMount { mount_point: left.clone() });
    }
    for mount in &desired.mounts {
        plan_mount(mount, observed, plan);
    }
    let wanted: BTreeSet<String> = desired.mounts.iter().map(MountSpec::mount_point).collect();
    for left in observed.queue_users.iter().filter(|server| !wanted.contains(&queue_mount_point(server))) {
        plan.waiting.push(format!(
            "a process still works in the queue of {left}, which this node shall not run: see `lsof +D {}`, and leave that directory",
            queue_mount_point(left)
        ));
    }
    let mut ours: Vec<&str> =
        observed.mounts.iter().map(|m| m.mount_point.as_str()).filter(|p| p.starts_with(MOUNTS)).collect();
    ours.sort_unstable();
    ours.dedup();
    for left in ours.into_iter().filter(|at| !wanted.contains(*at)) {
        // A mount that vanishes under its users hides them: whether a queue is free is seen by them.
        if !observed.queue_users.iter().any(|server| queue_mount_point(server) == left) {
            plan.step(Step::RemoveMount { mount_point: left.to_owned() });
        }
    }
}

fn plan_kept(share: &KeptShare, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    let KeptShare { share: name, marker, path, nfs_clients: _, rights } = share;
    let path = path.as_str();
    match observed.kept_shares.get(name) {
        Some(SeenShare::Marked(seen)) if seen == marker.as_str() => {
            if !marks.shares_made.contains(marker.as_str()) {
                plan.step(Step::KeepShare(share.clone()));
            }
            plan_rights(share, observed, plan);
        }
        Some(SeenShare::Marked(_)) => plan.waiting.push(format!(
            "the directory {path} for share {name} holds another share's marker; mount the right disk there or give the share another path"
        )),
        Some(SeenShare::Unmarked) if marks.shares_made.contains(marker.as_str()) => plan.waiting.push(format!(
            "share {name} was made at {path}, but its marker is gone: is its disk mounted? It is not made anew, since that would hide the loss"
        )),
        Some(SeenShare::Unmarked) => {
            plan.step(Step::KeepShare(share.clone()));
            if !rights.is_empty() {
                plan.step(Step::TellRights { path: share.path.clone(), rights: rights.clone() });
            }
        }
        Some(SeenShare::Unknown(why)) => plan.waiting.push(format!("share {name} at {path} can't be looked at: {why}")),
        None => plan.waiting.push(format!("share {name} at {path} was not looked at yet")),
    }
}

/// The directories of the queues that nodes mount over NFS.
fn exported_queues(share: &KeptShare) -> impl Iterator<Item = String> {
    let root = share.path.as_str();
    let directory = move |kept: &KeptRight| match (&kept.held.right, kept.address) {
        (Right::Queue(server), Some(_)) => Some(format!("{root}/{}", queue_directory(server))),
        _ => None,
    };
    share.rights.iter().filter_map(directory)
}

/// Whether this is a queue's directory where its share is kept.
fn is_queue(mount_point: &str) -> bool {
    mount_point.rsplit_once('/').is_some_and(|(parent, _)| parent.ends_with(&format!("/{DIRECTORY}/queues")))
}

/// What the share tells of rights is written before any node uses one; numbers there only grow.
fn plan_rights(share: &KeptShare, observed: &Observed, plan: &mut Plan) {
    let seen = observed.rights.get(&share.share);
    let mut older = Vec::new();
    for kept in &share.rights {
        let told = seen.and_then(|seen| seen.iter().find(|told| told.file() == kept.held.file()));
        match rights::compare(&kept.held, told) {
            Comparison::Same => {}
            Comparison::Older => older.push(kept.clone()),
            Comparison::Other(why) => plan.waiting.push(why),
        }
    }
    if !older.is_empty() {
        plan.step(Step::TellRights { path: share.path.clone(), rights: older });
    }
}

fn plan_mount(mount: &MountSpec, observed: &Observed, plan: &mut Plan) {
    let at = mount.mount_point();
    let stack: Vec<&SeenMount> = observed.mounts.iter().filter(|seen| seen.mount_point == at).collect();
    let is_sealed = stack.first().is_some_and(|lowest| is_seal(lowest));
    let is_right = |seen: &SeenMount| is_source(&mount.source, seen, &observed.mounts);
    if is_sealed && stack.len() == 2 && is_right(stack[1]) {
        return;
    }
    let keep = usize::from(is_sealed);
    for _ in keep..stack.len() {
        plan.step(Step::Unmount { mount_point: at.clone() });
    }
    if !is_sealed {
        plan.step(Step::SealMountPoint { mount_point: at.clone() });
    }
    plan.step(Step::Mount(mount.clone()));
    let source = source_text(&mount.source);
    let found: String =
        stack.iter().skip(keep).map(|seen| format!("+{} on {at} ({})\n", seen.source, seen.fs_type)).collect();
    let what = match &mount.queue_of {
        None => format!("share {}", mount.share),
        Some(server) => format!("the queue of {server}"),
    };
    plan.drifted(format!("the mount of {what} was taken away or replaced"), format!("-{source} on {at}\n{found}"));
}

fn is_seal(seen: &SeenMount) -> bool {
    seen.fs_type == "tmpfs" && seen.source == SEAL && seen.read_only
}

/// The source as mount(8) shows it.
pub fn source_text(source: &MountSource) -> String {
    match source {
        MountSource::Local(path) => path.as_str().to_owned(),
        MountSource::Nfs { server, path } => format!("{server}:{}", path.as_str()),
    }
}

/// Whether `seen` shows `source`. A bind mount is told by the device and the part of the file system that the source's path
/// lies in.
fn is_source(source: &MountSource, seen: &SeenMount, mounts: &[SeenMount]) -> bool {
    match source {
        MountSource::Nfs { .. } => seen.fs_type == "nfs4" && seen.source == source_text(source),
        MountSource::Local(path) => {
            let path = path.as_str();
            let holder = (mounts.iter().filter(|m| !m.mount_point.starts_with(MOUNTS)))
                .filter_map(|m| Some((m, below(path, &m.mount_point)?)))
                .enumerate()
                .max_by_key(|(order, (m, _))| (m.mount_point.len(), *order));
            holder.is_some_and(|(_, (m, rest))| {
                let root = format!("{}{rest}", m.root.trim_end_matches('/'));
                seen.device == m.device && seen.root.trim_end_matches('/') == root.trim_end_matches('/')
            })
        }
    }
}

/// What of `path` lies below `mount_point`, with its leading slash; empty for the mount point itself.
fn below<'p>(path: &'p str, mount_point: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(mount_point.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}
