//! One change of the store: rules, rows, change-log and audit in one transaction.

use super::{Actor, Event, Kind, Meta, Object, Result, Store, StoreError, Stream, World, events, stream};
use phalanx_model::{DirectoryChange, Fleet, FleetChange, Name};
use phalanx_plan::report::Severity;
use phalanx_plan::session::Command;
use phalanx_plan::spec::{CertificateDigest, cluster_spec, directory_audience, row_for};
use serde_json::Value;
use sqlx::{Sqlite, Transaction};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// A change in the making. Dropped without [`Write::commit`] it leaves nothing behind.
#[derive(Debug)]
pub struct Write {
    store: Store,
    _turn: OwnedMutexGuard<()>,
    pub(super) tx: Transaction<'static, Sqlite>,
    pub(super) actor: Actor,
    before: Arc<World>,
    pub(super) world: World,
    fleet: Fleet,
    fleet_changed: bool,
    /// Servers whose newest certificate is another one now.
    joined: Vec<Name>,
    changes: Vec<(u64, Vec<Name>, DirectoryChange)>,
    audit: Vec<Audited>,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Audited {
    action: &'static str,
    kind: Kind,
    name: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl Write {
    pub(super) async fn begin(store: &Store, actor: &Actor) -> Result<Self> {
        let turn = Arc::clone(&store.turn).lock_owned().await;
        let tx = store.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = store.world();
        Ok(Self {
            store: store.clone(),
            _turn: turn,
            tx,
            actor: actor.clone(),
            world: (*before).clone(),
            fleet: (*before.fleet).clone(),
            before,
            fleet_changed: false,
            joined: vec![],
            changes: vec![],
            audit: vec![],
            events: vec![],
        })
    }

    /// The fleet with what this change has done so far.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Makes sure that a thing of the fleet exists and, where the asker says so, is at this version.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] or [`StoreError::Stale`].
    pub fn expect(&self, kind: Kind, name: &dyn Display, version: Option<u64>) -> Result<()> {
        let name = name.to_string();
        match self.world.meta.get(&(kind, name.clone())) {
            None => Err(StoreError::Unknown { kind, name }),
            Some(meta) => expect_version(kind, &name, meta.version, version),
        }
    }

    /// Makes one change of the fleet.
    ///
    /// # Errors
    /// The rule that stands against it.
    pub fn apply(&mut self, change: FleetChange) -> Result<()> {
        self.fleet.apply(change)?;
        self.fleet_changed = true;
        Ok(())
    }

    /// Puts a change of the directory into the log of each cluster that it concerns: that of the logical server, and its nas.
    pub(super) fn log(&mut self, logical_server: &Name, change: DirectoryChange) {
        let Some(logical) = self.fleet.logical_servers.get(logical_server) else { return };
        let audience = directory_audience(&self.fleet, &logical.cluster);
        let revision = self.next_revision();
        self.changes.push((revision, audience, change));
    }

    /// Records a change for the audit; `None` stands for "does not exist".
    pub(super) fn audit(&mut self, kind: Kind, name: impl Display, before: Option<Value>, after: Option<Value>) {
        self.audit.push(Audited { action: action_of(&before, &after), kind, name: name.to_string(), before, after });
    }

    /// Takes a number for a command to a node, greater than all before, and records who ordered what.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn order(&mut self, server: &Name, command: &Command) -> Result<u64> {
        let sql = "UPDATE meta SET command_last = command_last + 1 RETURNING command_last";
        let number: i64 = sqlx::query_scalar(sql).fetch_one(&mut *self.tx).await?;
        let (name, after) = (server.to_string(), Some(json(command)));
        self.audit.push(Audited { action: "order", kind: Kind::Server, name, before: None, after });
        Ok(number as u64)
    }

    /// The server's newest certificate is this one now: its cluster's spec says so from this change on.
    pub(super) fn certified(&mut self, server: &Name, certificate: CertificateDigest) {
        Arc::make_mut(&mut self.world.certificates).insert(server.clone(), certificate);
        self.joined.push(server.clone());
    }

    /// Keeps an event of the panel's own with this change.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(&mut self, server: &Name, severity: Severity, topic: &str, text: String) -> Result<()> {
        let kept = events::insert(&mut self.tx, server, &events::of_panel(severity, topic, text)).await?;
        self.events.push(kept);
        Ok(())
    }

    fn next_revision(&mut self) -> u64 {
        self.world.revision += 1;
        self.world.revision
    }

    /// Commits the change and wakes the links.
    ///
    /// Once begun it ends, also when nobody waits for it any more: else the world in memory could fall behind the database.
    ///
    /// # Errors
    /// When the database fails; then nothing is changed.
    pub async fn commit(self) -> Result<Arc<World>> {
        let ended = tokio::spawn(self.commit_whole()).await;
        ended.unwrap_or(Err(StoreError::Busy("the panel is stopping, or failed; see its log")))
    }

    async fn commit_whole(mut self) -> Result<Arc<World>> {
        if self.fleet_changed {
            self.write_fleet().await?;
        }
        self.write_joined().await?;
        self.write_changes().await?;
        self.write_audit().await?;
        sqlx::query("UPDATE meta SET revision = ?, fleet_revision = ?")
            .bind(self.world.revision as i64)
            .bind(self.world.fleet_revision as i64)
            .execute(&mut *self.tx)
            .await?;
        let Self { store, tx, world, events, _turn, .. } = self;
        tx.commit().await?;
        let world = Arc::new(world);
        store.world.send_replace(Arc::clone(&world));
        store.announce(events);
        Ok(world)
    }

    async fn write_fleet(&mut self) -> Result<()> {
        self.world.fleet_revision = self.next_revision();
        let before = Arc::clone(&self.before.fleet);
        let after = std::mem::take(&mut self.fleet);
        self.write_objects(&before.servers, &after.servers).await?;
        self.write_objects(&before.clusters, &after.clusters).await?;
        self.write_objects(&before.shares, &after.shares).await?;
        self.write_objects(&before.addresses, &after.addresses).await?;
        self.write_objects(&before.logical_servers, &after.logical_servers).await?;
        for name in before.servers.keys().filter(|name| !after.servers.contains_key(*name)) {
            // A server that left is a stranger: certificate and token are void, its event numbers may begin anew.
            sqlx::query("DELETE FROM node_certificate WHERE server = ?")
                .bind(name.as_str())
                .execute(&mut *self.tx)
                .await?;
            Arc::make_mut(&mut self.world.certificates).remove(name);
            sqlx::query("DELETE FROM join_token WHERE server = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
            sqlx::query("DELETE FROM event_mark WHERE server = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
        }
        for name in before.clusters.keys().filter(|name| !after.clusters.contains_key(*name)) {
            self.world.streams.remove(name);
            sqlx::query("DELETE FROM stream WHERE cluster = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
            sqlx::query("DELETE FROM change WHERE cluster = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
        }
        self.write_secrets(&after).await?;
        for name in after.clusters.keys() {
            self.write_spec(&after, name, self.world.fleet_revision).await?;
        }
        self.world.fleet = Arc::new(after);
        Ok(())
    }

    /// Gives the specs of the clusters that machines have joined in the newest certificates.
    async fn write_joined(&mut self) -> Result<()> {
        let fleet = Arc::clone(&self.world.fleet);
        for server in std::mem::take(&mut self.joined) {
            let Some((cluster, _)) = fleet.membership(&server) else { continue };
            let revision = self.next_revision();
            self.write_spec(&fleet, &cluster.name, revision).await?;
        }
        Ok(())
    }

    /// Gives a cluster's spec this revision, if it is new or other than before.
    async fn write_spec(&mut self, fleet: &Fleet, cluster: &Name, revision: u64) -> Result<()> {
        let secrets = super::secrets::bare(&self.world.mail_secrets);
        let Some(spec) = cluster_spec(fleet, &self.world.certificates, &secrets, cluster) else { return Ok(()) };
        let known = self.world.streams.get(cluster);
        if known.is_some_and(|stream| *stream.spec == spec) {
            return Ok(());
        }
        let (floor, head) = known.map_or((revision, revision), |stream| (stream.floor, stream.head));
        sqlx::query("INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?)")
            .bind(cluster.as_str())
            .bind(revision as i64)
            .bind(stream::digest(&spec))
            .bind(floor as i64)
            .bind(head as i64)
            .execute(&mut *self.tx)
            .await?;
        self.world
            .streams
            .insert(cluster.clone(), Stream { spec_revision: revision, spec: Arc::new(spec), floor, head });
        Ok(())
    }

    async fn write_objects<K: Ord, T: Object>(
        &mut self,
        before: &BTreeMap<K, T>,
        after: &BTreeMap<K, T>,
    ) -> Result<()> {
        for gone in before.iter().filter(|(key, _)| !after.contains_key(key)).map(|(_, value)| value) {
            let name = gone.key();
            sqlx::query("DELETE FROM object WHERE kind = ? AND name = ?")
                .bind(T::KIND.as_str())
                .bind(&name)
                .execute(&mut *self.tx)
                .await?;
            Arc::make_mut(&mut self.world.meta).remove(&(T::KIND, name.clone()));
            self.audit(T::KIND, name, Some(json(gone)), None);
        }
        for (key, value) in after {
            let old = before.get(key);
            if old == Some(value) {
                continue;
            }
            let name = value.key();
            let body = json(value);
            let fresh = || Meta { owner: self.actor.owner.clone(), version: 0, created_at: crate::clock::unix_s() };
            let meta = Arc::make_mut(&mut self.world.meta);
            let entry = meta.entry((T::KIND, name.clone())).or_insert_with(fresh);
            entry.version += 1;
            sqlx::query("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?)")
                .bind(T::KIND.as_str())
                .bind(&name)
                .bind(entry.owner.as_str())
                .bind(entry.version as i64)
                .bind(entry.created_at)
                .bind(body.to_string())
                .execute(&mut *self.tx)
                .await?;
            self.audit(T::KIND, name, old.map(json), Some(body));
        }
        Ok(())
    }

    async fn write_changes(&mut self) -> Result<()> {
        for (revision, audience, change) in std::mem::take(&mut self.changes) {
            for cluster in audience {
                let Some(kind) = self.world.fleet.clusters.get(&cluster).map(|cluster| cluster.kind) else { continue };
                let change = match &change {
                    DirectoryChange::Put(row) => row_for(kind, row).map(|row| DirectoryChange::Put(Box::new(row))),
                    DirectoryChange::Remove(key) => Some(DirectoryChange::Remove(key.clone())),
                };
                let Some(body) = change.map(|change| json(&change).to_string()) else { continue };
                sqlx::query("INSERT INTO change VALUES (?, ?, ?)")
                    .bind(cluster.as_str())
                    .bind(revision as i64)
                    .bind(&body)
                    .execute(&mut *self.tx)
                    .await?;
                sqlx::query("UPDATE stream SET head = ? WHERE cluster = ?")
                    .bind(revision as i64)
                    .bind(cluster.as_str())
                    .execute(&mut *self.tx)
                    .await?;
                if let Some(stream) = self.world.streams.get_mut(&cluster) {
                    stream.head = revision;
                }
            }
        }
        Ok(())
    }

    async fn write_audit(&mut self) -> Result<()> {
        let now = crate::clock::unix_s();
        for Audited { action, kind, name, before, after } in std::mem::take(&mut self.audit) {
            sqlx::query("INSERT INTO audit (at, actor, action, kind, name, revision, before, after) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(now)
                .bind(&self.actor.token)
                .bind(action)
                .bind(kind.as_str())
                .bind(name)
                .bind(self.world.revision as i64)
                .bind(before.map(|value| value.to_string()))
                .bind(after.map(|value| value.to_string()))
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}

/// What was done to a thing that was so before and is so after.
fn action_of(before: &Option<Value>, after: &Option<Value>) -> &'static str {
    match (before, after) {
        (None, _) => "add",
        (Some(_), Some(_)) => "change",
        (Some(_), None) => "remove",
    }
}

/// Refuses with [`StoreError::Stale`] where the asker named another version.
pub(super) fn expect_version(kind: Kind, name: &str, version: u64, expected: Option<u64>) -> Result<()> {
    match expected {
        Some(expected) if expected != version => Err(StoreError::Stale { kind, name: name.to_owned(), version }),
        _ => Ok(()),
    }
}

/// A plain value as JSON.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("the model's values are plain data with text keys")
}
