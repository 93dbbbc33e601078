//! The removal of a slave: drained first, removed when no flow is left or the deadline has come.
//!
//! Tasks live in memory. When the panel stops in between, the slave stays in its cluster, drained; removing it again goes on.

use crate::Panel;
use crate::live::{Live, backends_of};
use crate::store::{Actor, Store};
use phalanx_model::{FleetChange, Name};
use phalanx_plan::report::BackendState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use utoipa::ToSchema;

/// Tasks that are remembered, running or ended.
const TASKS_MAX: usize = 200;

/// A task as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Task {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub what: String,
    /// Where it stands.
    pub state: TaskState,
    /// More for a person: what it waits for, or what came of it.
    pub detail: String,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// At work.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
}

/// All tasks that are remembered.
#[derive(Debug, Default)]
pub struct Tasks {
    inner: Mutex<(u64, BTreeMap<u64, Task>)>,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Task>)> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A task by its number.
    pub fn get(&self, id: u64) -> Option<Task> {
        self.lock().1.get(&id).cloned()
    }

    /// The running task that does this, if there is one.
    pub fn running(&self, what: &str) -> Option<Task> {
        self.lock().1.values().find(|task| task.what == what && task.state == TaskState::Running).cloned()
    }

    fn begin(&self, what: String, detail: String) -> Option<Task> {
        let mut inner = self.lock();
        if inner.1.len() >= TASKS_MAX {
            let ended = inner.1.values().find(|task| task.state != TaskState::Running)?.id;
            inner.1.remove(&ended);
        }
        inner.0 += 1;
        let task = Task { id: inner.0, what, state: TaskState::Running, detail };
        inner.1.insert(task.id, task.clone());
        Some(task)
    }

    fn set(&self, id: u64, state: TaskState, detail: String) {
        if let Some(task) = self.lock().1.get_mut(&id) {
            (task.state, task.detail) = (state, detail);
        }
    }
}

/// What a removal is called.
pub fn removal(cluster: &Name, server: &Name) -> String {
    format!("remove {server} from cluster {cluster}")
}

/// Begins to wait for the drained slave's flows to end, then removes it. None where too many tasks run.
pub fn remove_when_drained(
    panel: &Panel,
    actor: Actor,
    cluster: Name,
    server: Name,
    time_max: Duration,
) -> Option<Task> {
    let detail = format!("drained; waiting at most {} s for its connections to end", time_max.as_secs());
    let task = panel.tasks.begin(removal(&cluster, &server), detail)?;
    let (panel, id) = (panel.clone(), task.id);
    tokio::spawn(async move {
        let mut stopping = panel.stopping.clone();
        let drained = tokio::select! {
            drained = wait_until_drained(&panel.live, &panel.store, &cluster, &server, time_max) => drained,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let removed = remove(&panel.store, &actor, cluster, server.clone()).await;
        let (state, detail) = match (removed, drained) {
            (Ok(()), true) => (TaskState::Done, format!("{server} is removed; no connection was cut")),
            (Ok(()), false) => {
                (TaskState::Done, format!("{server} is removed; the deadline came before its last connection ended"))
            }
            (Err(error), _) => (TaskState::Failed, error.to_string()),
        };
        panel.tasks.set(id, state, detail);
    });
    Some(task)
}

async fn remove(store: &Store, actor: &Actor, cluster: Name, server: Name) -> crate::store::Result<()> {
    let mut write = store.write(actor).await?;
    write.apply(FleetChange::RemoveSlave { cluster, server })?;
    write.commit().await?;
    Ok(())
}

/// Whether no flow to the server is left on any balancer before the deadline.
async fn wait_until_drained(live: &Live, store: &Store, cluster: &Name, server: &Name, time_max: Duration) -> bool {
    let mut reports = live.watch_reports();
    let waiting = async {
        while !is_drained(live, store, cluster, server) {
            if reports.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(time_max, waiting).await.is_ok()
}

/// Each service that the cluster stands behind must say that the server is drained and has no flow. "Down" does not do: it may be
/// the word of a moment before the drain, when a node that has just joined was not checked yet.
fn is_drained(live: &Live, store: &Store, cluster: &Name, server: &Name) -> bool {
    let world = store.world();
    let seen = live.all_seen();
    let backends = backends_of(&seen, server);
    world.fleet.addresses.values().filter(|address| address.cluster == *cluster).all(|address| {
        backends
            .iter()
            .filter(|backend| backend.service == address.external)
            .any(|backend| backend.state == BackendState::Drained && backend.flows == Some(0))
    })
}
