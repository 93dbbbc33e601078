//! Slaves that leave: a removal is a row, made in the transaction that drains the slave, so that a panel which is started anew goes on
//! with it. Those that run are part of the [`World`](super::World).
//!
//! Deliberately absent: deciding when a slave may go (that is [`crate::leaving`]).

use super::{Actor, Result, Role, Store, StoreError, Write};
use crate::clock;
use phalanx_model::{FleetChange, Name};
use phalanx_plan::report::Severity;
use sqlx::{FromRow, SqliteConnection};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Removals that have ended and are kept for who asks how.
const ENDED_KEPT_MAX: i64 = 1_000;

/// A slave that drains and will be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its number among the tasks.
    pub id: u64,
    /// The cluster that the slave leaves.
    pub cluster: Name,
    /// The slave.
    pub server: Name,
    /// Who wants it.
    pub actor: Actor,
    /// Seconds since 1970, for display.
    pub begun_at: i64,
    /// How long its connections may take to end, in seconds.
    pub time_max_s: u64,
    /// When that time is up, in seconds since this machine was started ([`clock::boot_s`]).
    pub until_boot_s: u64,
}

impl Removal {
    /// How long its connections still may take, in seconds.
    pub fn left_s(&self) -> u64 {
        self.until_boot_s.saturating_sub(clock::boot_s())
    }
}

/// Where a removal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = TaskState)]
pub enum RemovalState {
    /// The slave drains.
    Running,
    /// It has left.
    Done,
    /// It was taken back: the slave stays.
    Cancelled,
    /// It stays, since a rule stands against its removal now.
    Failed,
}

impl RemovalState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Done, Self::Cancelled, Self::Failed].into_iter().find(|state| state.as_str() == text)
    }
}

/// A removal as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovalRecord {
    /// Its number among the tasks.
    pub id: u64,
    /// The cluster.
    pub cluster: String,
    /// The slave.
    pub server: String,
    /// Where it stands.
    pub state: RemovalState,
    /// What came of it, in words; empty while it runs.
    pub detail: String,
}

#[derive(FromRow)]
struct Row {
    id: i64,
    cluster: String,
    server: String,
    actor: String,
    owner: String,
    begun_at: i64,
    time_max_s: i64,
    boot_id: String,
    until_boot_s: i64,
}

/// Reads the removals that run. The seconds of another boot say nothing about this one: there the time counts anew.
pub(super) async fn running(tx: &mut SqliteConnection) -> Result<BTreeMap<Name, Removal>> {
    let sql = "SELECT id, cluster, server, actor, owner, begun_at, time_max_s, boot_id, until_boot_s FROM removal WHERE state = 'running'";
    let rows: Vec<Row> = sqlx::query_as(sql).fetch_all(&mut *tx).await?;
    let (boot_id, now_s) = (clock::boot_id(), clock::boot_s());
    let mut all = BTreeMap::new();
    for row in rows {
        let name = |text: &str| text.parse::<Name>().map_err(|e| StoreError::corrupt(format!("removal {}", row.id), e));
        let until_boot_s = if !boot_id.is_empty() && row.boot_id == boot_id {
            row.until_boot_s as u64
        } else {
            now_s + row.time_max_s as u64
        };
        let removal = Removal {
            id: row.id as u64,
            cluster: name(&row.cluster)?,
            server: name(&row.server)?,
            actor: Actor { token: row.actor.clone(), role: Role::Admin, owner: name(&row.owner)? },
            begun_at: row.begun_at,
            time_max_s: row.time_max_s as u64,
            until_boot_s,
        };
        all.insert(removal.server.clone(), removal);
    }
    Ok(all)
}

impl Store {
    /// A removal by its number; None where none of that number is remembered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn removal(&self, id: u64) -> Result<Option<RemovalRecord>> {
        let Ok(id) = i64::try_from(id) else { return Ok(None) };
        let found: Option<(String, String, String, String)> =
            sqlx::query_as("SELECT cluster, server, state, detail FROM removal WHERE id = ?")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(found.map(|(cluster, server, state, detail)| RemovalRecord {
            id: id as u64,
            cluster,
            server,
            state: RemovalState::parse(&state).unwrap_or(RemovalState::Failed),
            detail,
        }))
    }

    pub(super) async fn trim_removals(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        sqlx::query("DELETE FROM removal WHERE state <> 'running' AND id <= (SELECT max(id) FROM removal) - ?")
            .bind(ENDED_KEPT_MAX)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

impl Write {
    /// The removal of this server, while it runs.
    pub fn removal(&self, server: &Name) -> Option<&Removal> {
        self.world.removals.get(server)
    }

    /// Drains a slave and notes that it shall be removed when its connections have ended, or after `time_max_s`.
    ///
    /// # Errors
    /// The rule that stands against it, or the database fails.
    pub async fn begin_removal(&mut self, cluster: &Name, server: &Name, time_max_s: u64) -> Result<Removal> {
        let removal = FleetChange::RemoveSlave { cluster: cluster.clone(), server: server.clone() };
        // Rules first, on a copy: what can't be removed is not drained either.
        self.fleet().clone().apply(removal)?;
        let slave = self.fleet().clusters.get(cluster).and_then(|found| found.slaves.get(server)).copied();
        let mut settings = slave.unwrap_or_default();
        settings.drained = true;
        self.apply(FleetChange::SetNode { cluster: cluster.clone(), server: server.clone(), settings })?;
        let (begun_at, until_boot_s) = (clock::unix_s(), clock::boot_s() + time_max_s);
        let sql = "INSERT INTO removal (cluster, server, actor, owner, begun_at, time_max_s, boot_id, until_boot_s, state, detail) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running', '') RETURNING id";
        let id: i64 = sqlx::query_scalar(sql)
            .bind(cluster.as_str())
            .bind(server.as_str())
            .bind(&self.actor.token)
            .bind(self.actor.owner.as_str())
            .bind(begun_at)
            .bind(time_max_s as i64)
            .bind(clock::boot_id())
            .bind(until_boot_s as i64)
            .fetch_one(&mut *self.tx)
            .await?;
        let removal = Removal {
            id: id as u64,
            cluster: cluster.clone(),
            server: server.clone(),
            actor: self.actor.clone(),
            begun_at,
            time_max_s,
            until_boot_s,
        };
        Arc::make_mut(&mut self.world.removals).insert(server.clone(), removal.clone());
        let text = format!(
            "{server} is leaving cluster {cluster}: it takes no new connections, and goes when those it has have ended, after \
             {time_max_s} s at the latest"
        );
        self.note(server, Severity::Info, "cluster", text).await?;
        Ok(removal)
    }

    /// Ends the removal of a server, if one runs. What it comes to (the slave leaves or stays) is changed beside, in the same write.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_removal(&mut self, server: &Name, state: RemovalState, detail: &str) -> Result<()> {
        let Some(removal) = Arc::make_mut(&mut self.world.removals).remove(server) else { return Ok(()) };
        sqlx::query("UPDATE removal SET state = ?, detail = ? WHERE id = ?")
            .bind(state.as_str())
            .bind(detail)
            .bind(removal.id as i64)
            .execute(&mut *self.tx)
            .await?;
        let severity = if state == RemovalState::Failed { Severity::Error } else { Severity::Info };
        self.note(server, severity, "cluster", detail.to_owned()).await
    }
}
