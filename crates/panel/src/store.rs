//! What lasts: the fleet, the directory, their change-log, audit, tokens, events. SQLite through sqlx.
//!
//! The fleet is small: it is read whole at the start and held as one value in [`World`]. Accounts, sites and mail are many: they stay in
//! tables. Every change goes through a [`Write`], of which there is one at a time; it is one transaction, and [`World`] is replaced
//! when that is committed, which wakes the links.
//!
//! Deliberately absent: HTTP, and any rule of the fleet (those are in `model`).

mod backup;
mod directory;
mod error;
mod events;
mod mail;
mod records;
mod removal;
mod secrets;
mod stream;
mod traffic;
mod write;

pub use backup::{Adopted, UIDS_SKIPPED, adopt};
pub use directory::{AccountRow, SiteRow};
pub use error::{Result, StoreError};
pub use events::{EVENTS_KEPT_MAX, Event};
pub use mail::{MailAliasRow, MailDomainRow, MailboxRow};
pub use records::{Actor, AuditRecord, Earlier, JoinToken, Role, Token};
pub use removal::{Removal, RemovalRecord, RemovalState};
pub use stream::{ChangesRead, SnapshotReader, Stream};
pub use traffic::{TrafficFilter, TrafficRow};
pub use write::Write;

use phalanx_model::{Account, Cluster, ExternalAddress, Fleet, LogicalServer, Name, Position, Server, Share, Site};
use phalanx_plan::spec::CertificateDigest;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, broadcast, watch};

/// The number of the mastership grant: there is no promotion yet, so each cluster has its first master.
const TERM: u64 = 1;

/// The most snapshots that are read at once; each holds a connection to the database.
const SNAPSHOTS_MAX: usize = 8;

/// Events that a follower of the event stream may be behind before it has to read them from the database again.
const EVENTS_BEHIND_MAX: usize = 256;

/// The kinds of things in the store, with what each is as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the thing of this name in the model")]
pub enum Kind {
    Server,
    Cluster,
    Share,
    Address,
    LogicalServer,
    Account,
    Site,
    MailDomain,
    Mailbox,
    MailAlias,
    Token,
    JoinToken,
    Certificate,
}

impl Kind {
    /// The kind in words, as in "there is no logical server www".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Cluster => "cluster",
            Self::Share => "share",
            Self::Address => "address",
            Self::LogicalServer => "logical server",
            Self::Account => "account",
            Self::Site => "site",
            Self::MailDomain => "mail domain",
            Self::Mailbox => "mailbox",
            Self::MailAlias => "alias",
            Self::Token => "token",
            Self::JoinToken => "join token",
            Self::Certificate => "certificate",
        }
    }
}

/// What every stored thing has beside its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Who may manage it.
    pub owner: Name,
    /// 1 when it is made, one more at each change: its ETag.
    pub version: u64,
    /// Seconds since 1970.
    pub created_at: i64,
}

/// The small part of the desired state, whole, as it was committed last.
#[derive(Debug, Clone)]
pub struct World {
    /// Which life of the store this is.
    pub incarnation: u64,
    /// The last revision that was given.
    pub revision: u64,
    /// The revision of the last change of the fleet.
    pub fleet_revision: u64,
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// What the things in the fleet have beside their values.
    pub meta: Arc<BTreeMap<(Kind, String), Meta>>,
    /// The newest certificate of each server that has joined; only this one is accepted, here and by its master.
    pub certificates: Arc<BTreeMap<Name, CertificateDigest>>,
    /// What only the nodes of each mail cluster know.
    pub mail_secrets: Arc<secrets::MailSecretsByCluster>,
    /// A stream of states for each cluster.
    pub streams: BTreeMap<Name, Stream>,
    /// Slaves that leave.
    pub removals: Arc<BTreeMap<Name, Removal>>,
}

impl World {
    /// A revision as a position.
    pub fn position(&self, revision: u64) -> Position {
        Position { incarnation: self.incarnation, term: TERM, revision }
    }
}

/// The store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    world: watch::Sender<Arc<World>>,
    turn: Arc<Mutex<()>>,
    snapshots: Arc<Semaphore>,
    events: broadcast::Sender<Event>,
}

impl Store {
    /// Opens the database at `path`, bringing its tables up to date; `create` makes a new one.
    ///
    /// # Errors
    /// When the file is missing (without `create`), unreadable or from a later version, or what is in it is not valid.
    pub async fn open(path: &Path, create: bool) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(SNAPSHOTS_MAX as u32 + 8)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await?;
        sqlx::migrate!().run(&pool).await?;
        // The clock makes a store's life later than that of every store which the same machines followed before.
        let insert = "INSERT INTO meta VALUES (1, ?, 0, 0, ?, 0, 1) ON CONFLICT DO NOTHING";
        let insert = sqlx::query(insert).bind(crate::clock::unix_s().max(1));
        insert.bind(i64::from(phalanx_model::Uid::FIRST.get())).execute(&pool).await?;
        // Requests that the panel was stopped in: whether they were done shows in the store itself.
        sqlx::query("DELETE FROM idempotency WHERE status = 0").execute(&pool).await?;
        let world = stream::load(&pool).await?;
        Ok(Self {
            pool,
            world: watch::Sender::new(Arc::new(world)),
            turn: Arc::default(),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            events: broadcast::Sender::new(EVENTS_BEHIND_MAX),
        })
    }

    /// The world as it was committed last.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// Wakes whoever waits for it at each commit.
    pub fn watch(&self) -> watch::Receiver<Arc<World>> {
        self.world.subscribe()
    }

    /// Waits for its turn and begins a change.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn write(&self, actor: &Actor) -> Result<Write> {
        Write::begin(self, actor).await
    }

    /// Ends the connections to the database, after what is on its way.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Removes what is past its bound: old changes, events, audit records, answers to old requests.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tidy(&self) -> Result<()> {
        self.trim_changes(stream::CHANGES_KEPT_MAX).await?;
        self.trim_events(EVENTS_KEPT_MAX).await?;
        self.trim_removals().await?;
        self.trim_records().await
    }
}

/// A value of the fleet that is kept as an object: its kind and what names it.
trait Object: PartialEq + serde::Serialize + serde::de::DeserializeOwned {
    const KIND: Kind;
    fn key(&self) -> String;
}

macro_rules! object {
    ($type:ty, $kind:ident, $field:ident) => {
        impl Object for $type {
            const KIND: Kind = Kind::$kind;
            fn key(&self) -> String {
                self.$field.to_string()
            }
        }
    };
}
object!(Server, Server, name);
object!(Cluster, Cluster, name);
object!(Share, Share, name);
object!(ExternalAddress, Address, external);
object!(LogicalServer, LogicalServer, name);
object!(Account, Account, name);
object!(Site, Site, name);
