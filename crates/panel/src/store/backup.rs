//! A store that was put back from a backup becomes the present one.
//!
//! The machines have followed the store that was lost further than the backup knows: it would give revisions, uids and numbers of commands a
//! second time, for other things, and a node takes nothing whose position lies below its own. So the store begins a new life: a later
//! incarnation, in which nodes take everything anew, and numbers that lie beyond what can have been given since.

use super::{Result, StoreError};
use phalanx_model::Uid;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions};
use std::path::Path;
use std::time::Duration;

/// Uids that are passed over: more accounts than are made between two backups.
pub const UIDS_SKIPPED: i64 = 10_000;
/// Numbers of mailboxes that are passed over: of these there are more than of accounts, and enough.
const MAILBOXES_SKIPPED: i64 = 1_000_000;
/// Numbers of commands that are passed over: a node answers a number that it knows with what it did then.
const COMMANDS_SKIPPED: i64 = 10_000;

/// What was done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Adopted {
    /// The life of the store that the backup is of.
    pub incarnation_before: i64,
    /// Its life from now on.
    pub incarnation: i64,
    /// The uid that the next account would have had.
    pub uid_next_before: i64,
    /// The one that it will have.
    pub uid_next: i64,
    /// Join tokens of the backup that are void: they may have been used since.
    pub join_tokens_voided: u64,
}

/// Makes the store at `path` the present one.
///
/// # Errors
/// [`StoreError::Busy`] while a panel runs on it; when it is missing or damaged.
pub async fn adopt(path: &Path) -> Result<Adopted> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .locking_mode(SqliteLockingMode::Exclusive)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(1));
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(5));
    let pool = pool.connect_with(options).await.map_err(in_use)?;
    let adopted = begin_anew(&pool).await;
    pool.close().await;
    adopted
}

async fn begin_anew(pool: &SqlitePool) -> Result<Adopted> {
    // The backup may be of an older version.
    sqlx::migrate!().run(pool).await?;
    let mut tx = pool.begin_with("BEGIN EXCLUSIVE").await.map_err(in_use)?;
    let (incarnation_before, uid_next_before): (i64, i64) =
        sqlx::query_as("SELECT incarnation, uid_next FROM meta").fetch_one(&mut *tx).await?;
    let incarnation = crate::clock::unix_s().max(incarnation_before + 1);
    // One beyond the last stands for "none is left".
    let uid_next = (uid_next_before + UIDS_SKIPPED).min(i64::from(Uid::LAST.get()) + 1).max(uid_next_before);
    sqlx::query("UPDATE meta SET incarnation = ?, uid_next = ?, mailbox_next = mailbox_next + ?, command_last = command_last + ?")
        .bind(incarnation)
        .bind(uid_next)
        .bind(MAILBOXES_SKIPPED)
        .bind(COMMANDS_SKIPPED)
        .execute(&mut *tx)
        .await?;
    let voided = sqlx::query("DELETE FROM join_token").execute(&mut *tx).await?;
    let state = |incarnation, uid_next| serde_json::json!({ "incarnation": incarnation, "uid_next": uid_next });
    sqlx::query(
        "INSERT INTO audit (at, actor, action, kind, name, revision, before, after) \
         SELECT ?, 'panel', 'change', 'store', 'panel', revision, ?, ? FROM meta",
    )
    .bind(crate::clock::unix_s())
    .bind(state(incarnation_before, uid_next_before).to_string())
    .bind(state(incarnation, uid_next).to_string())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    let join_tokens_voided = voided.rows_affected();
    Ok(Adopted { incarnation_before, incarnation, uid_next_before, uid_next, join_tokens_voided })
}

/// SQLITE_BUSY (5), whose extended codes have it in their last byte, means that somebody has the file open.
fn in_use(error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    match code {
        Some(code) if code & 0xff == 5 => {
            StoreError::Busy("a panel runs on this store; stop it first: systemctl stop phalanx-panel")
        }
        _ => error.into(),
    }
}
