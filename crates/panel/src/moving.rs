//! Grants that move: each goes to its next holder when the present one is at an end with it.
//!
//! One loop over all grants of the fleet: an event wakes it, the whole state decides. So it needs nothing to go on after the panel was
//! started anew. A holder is at an end when its own agent has said so under the very spec that tells it to stop, or when it is fenced
//! ([`crate::fencing`]); a sign of life that is missing says nothing.

use crate::Panel;
use crate::live::{Live, Seen};
use crate::store::{Actor, Store, StoreError, World};
use phalanx_model::grant::Proof;
use phalanx_model::{Cluster, FleetChange, Grant, Name, Right, Server};
use phalanx_plan::report::Severity;
use std::collections::BTreeMap;
use std::time::Duration;

/// The wait after the store failed.
const RETRY: Duration = Duration::from_secs(2);

/// Moves what can be moved, until the panel stops.
pub async fn run(panel: Panel) {
    let (mut world, mut reports) = (panel.store.watch(), panel.live.watch_reports());
    let mut stopping = panel.stopping.clone();
    loop {
        let now = world.borrow_and_update().clone();
        reports.mark_unchanged();
        let waits = moving(&now).next().is_some();
        if let Err(error) = pass_all(&panel.store, &panel.live, &now).await {
            tracing::error!("moving a grant failed: {error}; it is tried again");
            tokio::time::sleep(RETRY).await;
        }
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            changed = reports.changed(), if waits => if changed.is_err() { return },
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// All grants that shall move.
fn moving(world: &World) -> impl Iterator<Item = (&Cluster, &Right, &Grant)> {
    let grants =
        world.fleet.clusters.values().flat_map(|c| c.grants.iter().map(move |(right, grant)| (c, right, grant)));
    grants.filter(|(_, _, grant)| grant.moving_to.is_some())
}

async fn pass_all(store: &Store, live: &Live, world: &World) -> Result<(), StoreError> {
    let seen = live.all_seen();
    for (cluster, right, grant) in moving(world) {
        let Some(to) = &grant.moving_to else { continue };
        let Some(proof) = proof(world, &seen, cluster, right, grant) else { continue };
        let mut write = store.write(&Actor::panel()).await?;
        let change =
            FleetChange::PassGrant { cluster: cluster.name.clone(), right: right.clone(), number: grant.number, proof };
        match write.apply(change) {
            Ok(()) => {}
            // It was taken back, or passed, while this waited for its turn.
            Err(StoreError::Refused(_)) => continue,
            Err(error) => return Err(error),
        }
        let text = format!(
            "{right} of cluster {} have moved from {} to {to}, number {}",
            cluster.name,
            grant.holder,
            grant.number + 1
        );
        write.note(to, Severity::Info, "grant", text).await?;
        write.commit().await?;
    }
    Ok(())
}

/// What shows that the holder is at an end; none while it may still use the right.
fn proof(world: &World, seen: &BTreeMap<Name, Seen>, cluster: &Cluster, right: &Right, grant: &Grant) -> Option<Proof> {
    let is_fenced = world.fleet.servers.get(&grant.holder).is_some_and(Server::is_fenced);
    match is_fenced {
        true => Some(Proof::Fenced),
        false => is_released(world, seen, cluster, right, grant).then_some(Proof::Released),
    }
}

/// Whether the holder's agent has said, under the spec that tells it to stop, that it is at an end.
fn is_released(world: &World, seen: &BTreeMap<Name, Seen>, cluster: &Cluster, right: &Right, grant: &Grant) -> bool {
    let Some(stream) = world.streams.get(&cluster.name) else { return false };
    let said = seen.get(&grant.holder).and_then(|seen| seen.report.released.get(right));
    said.is_some_and(|under| *under >= world.position(stream.spec_revision))
}
