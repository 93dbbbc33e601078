//! Slaves that leave: removed when no connection is left or their time is up.
//!
//! One loop over all removals that the store knows: an event wakes it, the whole state decides. So it needs nothing to go on after the
//! panel was started anew. A removal is taken back by undraining the slave.

use crate::Panel;
use crate::live::{Live, Seen};
use crate::store::{Removal, RemovalState, Store, StoreError, World};
use phalanx_model::{FleetChange, Name, Role};
use phalanx_plan::report::{BackendReport, BackendState};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;

/// How often deadlines are looked at while a slave leaves.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The wait after the store failed.
const RETRY: Duration = Duration::from_secs(2);

/// A slave that leaves, as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Leaving {
    /// The task's number.
    pub task: u64,
    /// Since when: RFC 3339.
    pub since: String,
    /// How long its connections still may take to end, in seconds.
    pub left_s: u64,
    /// Its established connections, as counted since it was drained; null until the balancers have counted.
    pub flows: Option<u32>,
}

/// How far a removal is.
pub fn progress(world: &World, seen: &BTreeMap<Name, Seen>, removal: &Removal) -> Leaving {
    Leaving {
        task: removal.id,
        since: crate::clock::rfc3339(removal.begun_at),
        left_s: removal.left_s(),
        flows: flows_left(world, seen, removal),
    }
}

/// Removes slaves whose time has come, until the panel stops.
pub async fn run(panel: Panel) {
    let (mut world, mut reports) = (panel.store.watch(), panel.live.watch_reports());
    let mut stopping = panel.stopping.clone();
    loop {
        let now = world.borrow_and_update().clone();
        reports.mark_unchanged();
        for removal in now.removals.values() {
            if let Err(error) = look(&panel.store, &panel.live, &now, removal).await {
                tracing::error!(server = %removal.server, "removing a slave failed: {error}; it is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
        let busy = !now.removals.is_empty();
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            changed = reports.changed(), if busy => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY), if busy => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// Looks whether this slave may go now, and lets it.
async fn look(store: &Store, live: &Live, world: &World, removal: &Removal) -> Result<(), StoreError> {
    let server = &removal.server;
    let detail = match flows_left(world, &live.all_seen(), removal) {
        Some(0) => format!("{server} has left cluster {}; no connection was cut", removal.cluster),
        _ if removal.left_s() > 0 => return Ok(()),
        Some(1) => format!("{server} has left cluster {}; its time was up, 1 connection was cut", removal.cluster),
        Some(flows) => {
            format!("{server} has left cluster {}; its time was up, {flows} connections were cut", removal.cluster)
        }
        None => format!(
            "{server} has left cluster {}; its time was up, and no balancer had said how many connections it had",
            removal.cluster
        ),
    };
    let mut write = store.write(&removal.actor).await?;
    // It may have been taken back while this waited for its turn.
    if write.removal(server) != Some(removal) {
        return Ok(());
    }
    let is_slave = (write.fleet().membership(server))
        .is_some_and(|(cluster, role)| cluster.name == removal.cluster && role == Role::Slave);
    let change = FleetChange::RemoveSlave { cluster: removal.cluster.clone(), server: server.clone() };
    let (state, detail) = match is_slave.then(|| write.apply(change)) {
        None | Some(Ok(())) => (RemovalState::Done, detail),
        Some(Err(StoreError::Refused(refusal))) => {
            (RemovalState::Failed, format!("{server} stays in cluster {}: {}", removal.cluster, refusal.detail))
        }
        Some(Err(error)) => return Err(error),
    };
    write.end_removal(server, state, &detail).await?;
    write.commit().await?;
    Ok(())
}

/// The connections that a drained slave has, over all services of its cluster; None where that is not known of each.
///
/// Only the word of a balancer that has adopted the spec with the drain counts, and only "drained": "down" may be the word of a
/// moment before, when a node that has just joined was not checked yet. Balancers say nothing of a number counted before the drain.
fn flows_left(world: &World, seen: &BTreeMap<Name, Seen>, removal: &Removal) -> Option<u32> {
    let services = world.fleet.addresses.values().filter(|address| address.cluster == removal.cluster);
    let mut left = 0_u32;
    for service in services {
        let stream = world.streams.get(&service.balancer)?;
        let balancer = world.fleet.clusters.get(&service.balancer)?;
        for (node, role, _) in balancer.nodes() {
            let report = seen.get(node).filter(|seen| seen.is_fresh()).map(|seen| &seen.report);
            // A second balancer that is silent has no traffic; the first one must speak.
            let Some(report) = report else {
                if role == Role::Master {
                    return None;
                }
                continue;
            };
            let is_this =
                |backend: &&BackendReport| backend.service == service.external && backend.server == removal.server;
            let backend =
                report.backends.iter().find(is_this).filter(|_| report.spec >= world.position(stream.spec_revision));
            left = left.saturating_add(backend.filter(|backend| backend.state == BackendState::Drained)?.flows?);
        }
    }
    Some(left)
}
