//! Each cluster's stream of states: the spec's position, and the change-log of its part of the directory.
//!
//! Revisions are numbered over the whole panel, so each stream has gaps; a change that concerns two clusters has the same revision
//! in both. A stream begins (its floor) when its cluster is made; a follower below the floor gets a snapshot, so that a server
//! which comes from another cluster never keeps that one's rows.

use super::directory::{ACCOUNT_COLUMNS, AccountRow, SITE_COLUMNS, SiteRow};
use super::mail::{ALIAS_COLUMNS, DOMAIN_COLUMNS, MAILBOX_COLUMNS, MailAliasRow, MailDomainRow, MailboxRow};
use super::{Kind, Meta, Object, Result, Store, StoreError, World};
use phalanx_model::{ClusterKind, DirectoryChange, Fleet, Name, Position, Row};
use phalanx_plan::session::Snapshot;
use phalanx_plan::session::upstream::BATCH_LEN_MAX;
use phalanx_plan::spec::{ClusterSpec, cluster_spec, directory_audience, row_for};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, SqlitePool, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Changes kept for followers that were away; who is further behind gets a snapshot.
pub(super) const CHANGES_KEPT_MAX: u64 = 200_000;

/// Where a cluster's stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The revision at which the spec became what it is.
    pub spec_revision: u64,
    /// The spec.
    pub spec: Arc<ClusterSpec>,
    /// The change-log reaches back to here.
    pub floor: u64,
    /// The last change of the directory.
    pub head: u64,
}

/// What a follower's read of changes found.
#[derive(Debug)]
pub enum ChangesRead {
    /// These changes lead to this revision.
    Changes {
        /// The revision of the last one.
        upto: u64,
        /// In order.
        changes: Vec<DirectoryChange>,
    },
    /// The log begins later: only a snapshot helps.
    TooShort,
}

pub(super) fn digest(spec: &ClusterSpec) -> Vec<u8> {
    crate::secret::sha256(serde_json::to_vec(spec).expect("a spec is plain data with text keys")).to_vec()
}

/// Reads the world. A spec that comes out otherwise than when the panel ran last (it was upgraded) gets a new revision.
pub(super) async fn load(pool: &SqlitePool) -> Result<World> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    let (incarnation, mut revision, fleet_revision): (i64, i64, i64) =
        sqlx::query_as("SELECT incarnation, revision, fleet_revision FROM meta").fetch_one(&mut *tx).await?;
    let mut meta = BTreeMap::new();
    let fleet = Fleet {
        servers: objects(&mut tx, &mut meta, |s: &phalanx_model::Server| s.name.clone()).await?,
        clusters: objects(&mut tx, &mut meta, |c: &phalanx_model::Cluster| c.name.clone()).await?,
        shares: objects(&mut tx, &mut meta, |s: &phalanx_model::Share| s.name.clone()).await?,
        addresses: objects(&mut tx, &mut meta, |a: &phalanx_model::ExternalAddress| a.external).await?,
        logical_servers: objects(&mut tx, &mut meta, |l: &phalanx_model::LogicalServer| l.name.clone()).await?,
    };
    let rows: Vec<(String, i64, Vec<u8>, i64, i64)> =
        sqlx::query_as("SELECT cluster, spec_revision, spec_digest, floor, head FROM stream")
            .fetch_all(&mut *tx)
            .await?;
    let certificates = super::records::certificates(&mut tx).await?;
    let secrets = super::secrets::load(&mut tx).await?;
    let bare = super::secrets::bare(&secrets);
    let mut streams = BTreeMap::new();
    for (cluster, mut spec_revision, known, floor, head) in rows {
        let cluster: Name = cluster.parse().map_err(|e| StoreError::corrupt("a stream's cluster", e))?;
        let Some(spec) = cluster_spec(&fleet, &certificates, &bare, &cluster) else { continue };
        let now = digest(&spec);
        if now != known {
            revision += 1;
            spec_revision = revision;
            sqlx::query("UPDATE stream SET spec_revision = ?, spec_digest = ? WHERE cluster = ?")
                .bind(revision)
                .bind(now)
                .bind(cluster.as_str())
                .execute(&mut *tx)
                .await?;
        }
        let stream = Stream {
            spec_revision: spec_revision as u64,
            spec: Arc::new(spec),
            floor: floor as u64,
            head: head as u64,
        };
        streams.insert(cluster, stream);
    }
    sqlx::query("UPDATE meta SET revision = ?").bind(revision).execute(&mut *tx).await?;
    let removals = super::removal::running(&mut tx).await?;
    tx.commit().await?;
    Ok(World {
        incarnation: incarnation as u64,
        revision: revision as u64,
        fleet_revision: fleet_revision as u64,
        fleet: Arc::new(fleet),
        meta: Arc::new(meta),
        certificates: Arc::new(certificates),
        mail_secrets: Arc::new(secrets),
        streams,
        removals: Arc::new(removals),
    })
}

async fn objects<K: Ord, T: Object>(
    tx: &mut SqliteConnection,
    meta: &mut BTreeMap<(Kind, String), Meta>,
    key: impl Fn(&T) -> K,
) -> Result<BTreeMap<K, T>> {
    let rows: Vec<(String, String, i64, i64, String)> =
        sqlx::query_as("SELECT name, owner, version, created_at, body FROM object WHERE kind = ?")
            .bind(T::KIND.as_str())
            .fetch_all(tx)
            .await?;
    let mut all = BTreeMap::new();
    for (name, owner, version, created_at, body) in rows {
        let what = || format!("a {} {name}", T::KIND.as_str());
        let value: T = serde_json::from_str(&body).map_err(|e| StoreError::corrupt(what(), e))?;
        let owner = owner.parse().map_err(|e| StoreError::corrupt(what(), e))?;
        meta.insert((T::KIND, name), Meta { owner, version: version as u64, created_at });
        all.insert(key(&value), value);
    }
    Ok(all)
}

impl Store {
    /// Up to [`BATCH_LEN_MAX`] changes of a cluster's directory after a revision.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn changes(&self, cluster: &Name, after: u64) -> Result<ChangesRead> {
        let mut tx = self.pool.begin().await?;
        let floor: Option<i64> = sqlx::query_scalar("SELECT floor FROM stream WHERE cluster = ?")
            .bind(cluster.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if floor.is_none_or(|floor| after < floor as u64) {
            return Ok(ChangesRead::TooShort);
        }
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT revision, body FROM change WHERE cluster = ? AND revision > ? ORDER BY revision LIMIT ?",
        )
        .bind(cluster.as_str())
        .bind(after as i64)
        .bind(BATCH_LEN_MAX as i64)
        .fetch_all(&mut *tx)
        .await?;
        let upto = rows.last().map_or(after, |(revision, _)| *revision as u64);
        let parse = |(revision, body): (i64, String)| {
            serde_json::from_str(&body).map_err(|e| StoreError::corrupt(format!("a change, number {revision},"), e))
        };
        Ok(ChangesRead::Changes { upto, changes: rows.into_iter().map(parse).collect::<Result<_>>()? })
    }

    /// Begins to read a cluster's whole directory as it is now.
    ///
    /// # Errors
    /// When the cluster is gone, as many snapshots as are allowed are being read, or the database fails.
    pub async fn snapshot(&self, cluster: &Name) -> Result<SnapshotReader> {
        let permit = Arc::clone(&self.snapshots).try_acquire_owned();
        let permit =
            permit.map_err(|_| StoreError::Busy("other masters are getting snapshots; this one comes later"))?;
        let mut tx = self.pool.begin().await?;
        // The first read fixes what this transaction sees.
        let head: Option<i64> = sqlx::query_scalar("SELECT head FROM stream WHERE cluster = ?")
            .bind(cluster.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let head = head.ok_or_else(|| StoreError::Unknown { kind: Kind::Cluster, name: cluster.to_string() })?;
        let world = self.world();
        let shares = placements(&world.fleet, cluster);
        let kind = world.fleet.clusters.get(cluster).map(|cluster| cluster.kind);
        let kind = kind.ok_or_else(|| StoreError::Unknown { kind: Kind::Cluster, name: cluster.to_string() })?;
        Ok(SnapshotReader {
            kind,
            tx,
            _permit: permit,
            at: world.position(head as u64),
            shares,
            piece: 0,
            part: Part::Accounts,
            after: String::new(),
        })
    }

    /// Removes all but the newest `kept` revisions from the change-log.
    pub(super) async fn trim_changes(&self, kept: u64) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut world = (*self.world()).clone();
        let upto = world.revision.saturating_sub(kept);
        for (cluster, stream) in &mut world.streams {
            // The head may stand below: then nothing was trimmed that a follower at the head would need.
            let floor = stream.floor.max(upto.min(stream.head));
            if floor == stream.floor {
                continue;
            }
            stream.floor = floor;
            sqlx::query("DELETE FROM change WHERE cluster = ? AND revision <= ?")
                .bind(cluster.as_str())
                .bind(floor as i64)
                .execute(&mut *tx)
                .await?;
            sqlx::query("UPDATE stream SET floor = ? WHERE cluster = ?")
                .bind(floor as i64)
                .bind(cluster.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        self.world.send_replace(Arc::new(world));
        Ok(())
    }
}

/// The logical servers whose accounts and mail belong to `cluster`'s directory, each with the share that these lie on.
fn placements(fleet: &Fleet, cluster: &Name) -> BTreeMap<String, Name> {
    let concerns =
        |logical: &&phalanx_model::LogicalServer| directory_audience(fleet, &logical.cluster).contains(cluster);
    let placed = fleet.logical_servers.values().filter(concerns);
    placed.filter_map(|l| Some((l.name.to_string(), fleet.clusters.get(&l.cluster)?.share.clone()?))).collect()
}

/// Reads a cluster's whole directory, all of one position, in pieces. It holds a transaction open: drop it when the follower is gone.
#[derive(Debug)]
pub struct SnapshotReader {
    tx: Transaction<'static, Sqlite>,
    _permit: OwnedSemaphorePermit,
    at: Position,
    /// Whose directory it is.
    kind: ClusterKind,
    shares: BTreeMap<String, Name>,
    piece: u64,
    part: Part,
    /// The part is read up to this key.
    after: String,
}

/// The parts of a snapshot, in order: what refers to something comes after it.
#[derive(Debug, Clone, Copy)]
enum Part {
    Accounts,
    Sites,
    MailDomains,
    Mailboxes,
    MailAliases,
}

impl Part {
    fn next(self) -> Option<Self> {
        match self {
            Self::Accounts => Some(Self::Sites),
            Self::Sites => Some(Self::MailDomains),
            Self::MailDomains => Some(Self::Mailboxes),
            Self::Mailboxes => Some(Self::MailAliases),
            Self::MailAliases => None,
        }
    }
}

/// A table of what lies in mail domains, with the domain of each row. The index has all that is asked of a domain; the domain's own row, with
/// its key, is ten times as much to read, a million times.
macro_rules! in_placed_domain {
    ($table:literal) => {
        concat!(
            $table,
            " CROSS JOIN mail_domain INDEXED BY mail_domain_by_logical_server ON mail_domain.name = ",
            $table,
            ".domain"
        )
    };
}

/// Some rows of one part, and the key of the last one.
type Read = (Vec<Row>, Option<String>);

impl SnapshotReader {
    /// The next piece: rows of one part. Only the last may have none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_piece(&mut self) -> Result<Snapshot> {
        loop {
            let (rows, last_key) = self.read().await?;
            let is_whole_part = rows.len() < BATCH_LEN_MAX;
            let next = if is_whole_part { self.part.next() } else { Some(self.part) };
            self.after = last_key.filter(|_| !is_whole_part).unwrap_or_default();
            self.part = next.unwrap_or(self.part);
            let rows: Vec<Row> = rows.iter().filter_map(|row| row_for(self.kind, row)).collect();
            if !rows.is_empty() || next.is_none() {
                return Ok(self.piece(rows, next.is_none()));
            }
        }
    }

    async fn read(&mut self) -> Result<Read> {
        match self.part {
            Part::Accounts => self.accounts().await,
            Part::Sites => {
                let from = "site CROSS JOIN account ON account.name = site.account";
                let found: Vec<SiteRow> = self.page(SITE_COLUMNS, from, "+account.logical_server", "site.name").await?;
                let last = found.last().map(|row| row.site.name.to_string());
                Ok((found.into_iter().map(|row| Row::Site(row.site)).collect(), last))
            }
            Part::MailDomains => self.mail_domains().await,
            Part::Mailboxes => {
                let from = in_placed_domain!("mailbox");
                let place = "mail_domain.logical_server";
                let found: Vec<MailboxRow> = self.page(MAILBOX_COLUMNS, from, place, "mailbox.address").await?;
                let last = found.last().map(|row| row.mailbox.address.to_string());
                Ok((found.into_iter().map(|row| Row::Mailbox(row.mailbox)).collect(), last))
            }
            Part::MailAliases => {
                let from = in_placed_domain!("mail_alias");
                let place = "mail_domain.logical_server";
                let found: Vec<MailAliasRow> = self.page(ALIAS_COLUMNS, from, place, "mail_alias.source").await?;
                let last = found.last().map(|row| row.alias.source.to_string());
                Ok((found.into_iter().map(|row| Row::MailAlias(row.alias)).collect(), last))
            }
        }
    }

    async fn accounts(&mut self) -> Result<Read> {
        let found: Vec<AccountRow> = self.page(ACCOUNT_COLUMNS, "account", "+logical_server", "name").await?;
        let last = found.last().map(|row| row.account.name.to_string());
        let row = |AccountRow { account, .. }: AccountRow| {
            let share = self.share_of(&account.logical_server);
            Row::Account { account, share }
        };
        Ok((found.into_iter().map(row).collect(), last))
    }

    async fn mail_domains(&mut self) -> Result<Read> {
        let found: Vec<MailDomainRow> = self.page(DOMAIN_COLUMNS, "mail_domain", "+logical_server", "name").await?;
        let last = found.last().map(|row| row.domain.name.to_string());
        let row = |MailDomainRow { domain, dkim, uid, .. }: MailDomainRow| {
            let share = self.share_of(&domain.logical_server);
            Row::MailDomain { domain, uid, share, dkim: Some(dkim) }
        };
        Ok((found.into_iter().map(row).collect(), last))
    }

    fn share_of(&self, logical_server: &Name) -> Name {
        self.shares.get(logical_server.as_str()).expect("rows are read by these logical servers").clone()
    }

    /// The next rows of a part: those whose logical server concerns the cluster, by key. All texts are constants.
    ///
    /// CROSS JOIN, and the sign before the logical server where no index is named, keep SQLite to walking along the key, so that all pages together read each row
    /// once; by an index of places it would find and sort all that remain, page after page.
    async fn page<T>(&mut self, columns: &str, from: &str, logical_server: &str, key: &str) -> Result<Vec<T>>
    where
        T: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> + Send + Unpin,
    {
        let sql = format!(
            "SELECT {columns} FROM {from} WHERE {logical_server} IN (SELECT value FROM json_each(?)) AND {key} > ? ORDER BY {key} LIMIT ?"
        );
        let logical = serde_json::to_string(&self.shares.keys().collect::<Vec<_>>()).expect("a list of texts");
        let query =
            sqlx::query_as(AssertSqlSafe(sql)).bind(logical).bind(self.after.as_str()).bind(BATCH_LEN_MAX as i64);
        Ok(query.fetch_all(&mut *self.tx).await?)
    }

    fn piece(&mut self, rows: Vec<Row>, last: bool) -> Snapshot {
        let piece = self.piece;
        self.piece += 1;
        Snapshot { at: self.at, piece, rows, last }
    }
}
