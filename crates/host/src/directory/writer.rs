//! What the agent writes, and what a master reads out for its slaves.

use super::{DirectoryError, mail};
use phalanx_model::{DirectoryChange, Name, Position, Row, RowKey, Uid};
use phalanx_plan::session::{Batch, Snapshot, upstream::BATCH_LEN_MAX};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};

/// How many revisions of changes are kept for slaves that were away; who is further behind gets a snapshot.
const LOG_REVISIONS_KEPT: u64 = 20_000;

/// The one writer of a node's directory.
#[derive(Debug)]
pub struct Writer {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

/// An account whose derived files may be out of date. It may be gone from the directory by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// Its name.
    pub account: Name,
    /// The uid that it has or had.
    pub uid: Uid,
}

/// The answer to [`Writer::changes_after`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangesRead {
    /// The changes, perhaps not all: ask again from where they lead to.
    Batch(Batch),
    /// The log does not reach back so far.
    TooShort,
}

impl Writer {
    /// Opens the directory at `path`, making it where it is missing.
    ///
    /// # Errors
    /// The file can't be opened or made, or is no directory.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = super::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let known: bool = connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'mail_dirty')",
                [],
                |row| row.get(0),
            )?;
            if !known {
                connection.execute_batch(&format!("BEGIN IMMEDIATE; {} {} COMMIT;", super::SCHEMA, mail::SCHEMA))?;
            }
            // A read makes sure that -wal and -shm exist from now on.
            connection.query_row("SELECT revision FROM position", [], |row| row.get::<_, i64>(0))?;
            Ok(connection)
        };
        let connection = open().map_err(|source| DirectoryError::Sqlite { path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// What is committed.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn position(&self) -> Result<Position, DirectoryError> {
        position(&self.connection).map_err(|source| self.failed(source))
    }

    /// Commits a batch with the position that it leads to.
    ///
    /// # Errors
    /// The batch does not begin where the directory is, or the file can't be written; nothing is changed then.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), DirectoryError> {
        let at = self.position()?;
        if (at.incarnation, at.revision) != (batch.after.incarnation, batch.after.revision) {
            return Err(DirectoryError::Gap { after: batch.after, at });
        }
        self.transaction(|tx| {
            for (number, change) in batch.changes.iter().enumerate() {
                match change {
                    DirectoryChange::Put(row) => put(tx, row)?,
                    DirectoryChange::Remove(key) => remove(tx, key)?,
                }
                let body = json(change);
                tx.prepare_cached("INSERT OR REPLACE INTO change_log VALUES (?1, ?2, ?3)")?.execute(params![
                    batch.upto.revision as i64,
                    number as i64,
                    body
                ])?;
            }
            set_position(tx, batch.upto)?;
            let log_from = batch.upto.revision.saturating_sub(LOG_REVISIONS_KEPT) as i64;
            tx.execute("DELETE FROM change_log WHERE upto <= ?1", params![log_from])?;
            tx.execute("UPDATE position SET log_from = max(log_from, ?1)", params![log_from])?;
            Ok(())
        })
    }

    /// Takes a piece of a snapshot. Pieces are kept aside; the last one replaces the whole directory in one transaction.
    ///
    /// # Errors
    /// The file can't be written; the directory is then as it was.
    pub fn collect(&mut self, piece: &Snapshot) -> Result<(), DirectoryError> {
        self.transaction(|tx| {
            tx.execute_batch("CREATE TEMP TABLE IF NOT EXISTS incoming (body TEXT NOT NULL) STRICT")?;
            if piece.piece == 0 {
                tx.execute("DELETE FROM incoming", [])?;
            }
            for row in &piece.rows {
                tx.prepare_cached("INSERT INTO incoming VALUES (?1)")?.execute(params![json(row)])?;
            }
            Ok(())
        })?;
        if !piece.last {
            return Ok(());
        }
        self.transaction(|tx| {
            tx.execute_batch(
                "INSERT OR IGNORE INTO dirty SELECT name, uid FROM account;
                 DELETE FROM account; DELETE FROM site; DELETE FROM host; DELETE FROM change_log;",
            )?;
            mail::clear(tx)?;
            let mut incoming = tx.prepare("SELECT body FROM incoming ORDER BY rowid")?;
            let mut rows = incoming.query([])?;
            while let Some(row) = rows.next()? {
                let body: String = row.get(0)?;
                let row = serde_json::from_str(&body).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
                put(tx, &row)?;
            }
            set_position(tx, piece.at)?;
            tx.execute("UPDATE position SET log_from = revision", [])?;
            tx.execute("DELETE FROM incoming", [])?;
            Ok(())
        })
    }

    /// Changes after a position, for a slave: whole batches, as they were applied here, until there are about
    /// [`BATCH_LEN_MAX`] changes. Rows are put and removed whole, so that seeing a change again does no harm.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn changes_after(&self, after: Position) -> Result<ChangesRead, DirectoryError> {
        let read = || -> rusqlite::Result<ChangesRead> {
            let tx = self.connection.unchecked_transaction()?;
            let at = position(&tx)?;
            let log_from: i64 = tx.query_row("SELECT log_from FROM position", [], |row| row.get(0))?;
            if after.incarnation != at.incarnation || (after.revision as i64) < log_from {
                return Ok(ChangesRead::TooShort);
            }
            let mut find =
                tx.prepare_cached("SELECT upto, body FROM change_log WHERE upto > ?1 ORDER BY upto, number")?;
            let mut rows = find.query(params![after.revision as i64])?;
            let (mut changes, mut upto) = (Vec::new(), after.revision);
            while let Some(row) = rows.next()? {
                let revision = row.get::<_, i64>(0)? as u64;
                if revision != upto && changes.len() >= BATCH_LEN_MAX {
                    let upto = Position { revision: upto, ..at };
                    return Ok(ChangesRead::Batch(Batch { after, upto, changes }));
                }
                upto = revision;
                let body: String = row.get(1)?;
                changes
                    .push(serde_json::from_str(&body).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?);
            }
            Ok(ChangesRead::Batch(Batch { after, upto: at, changes }))
        };
        read().map_err(|source| self.failed(source))
    }

    /// Accounts whose derived files may be out of date, up to `limit`.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn dirty(&self, limit: usize) -> Result<Vec<Dirty>, DirectoryError> {
        let rows: Vec<(String, u32)> = (self.connection.prepare_cached("SELECT account, uid FROM dirty LIMIT ?1"))
            .and_then(|mut find| find.query_map(params![limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(|source| self.failed(source))?;
        let parse = |(account, uid): (String, u32)| {
            let bad = |e: &dyn std::fmt::Display| DirectoryError::Row {
                path: self.path.clone(),
                what: format!("{account:?}: {e}"),
            };
            Ok(Dirty { account: account.parse().map_err(|e| bad(&e))?, uid: uid.try_into().map_err(|e| bad(&e))? })
        };
        rows.into_iter().map(parse).collect()
    }

    /// The derived files of these accounts are as the directory was at `seen`. Nothing is cleared when the directory has moved on
    /// since: the accounts are then derived once more.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn clear_dirty(&mut self, done: &[Dirty], seen: Position) -> Result<(), DirectoryError> {
        if self.position()? != seen {
            return Ok(());
        }
        self.transaction(|tx| {
            for Dirty { account, .. } in done {
                tx.prepare_cached("DELETE FROM dirty WHERE account = ?1")?.execute(params![account.as_str()])?;
            }
            Ok(())
        })
    }

    /// Marks every account dirty, to derive all files anew.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn mark_all_dirty(&mut self) -> Result<(), DirectoryError> {
        self.transaction(|tx| tx.execute("INSERT OR IGNORE INTO dirty SELECT name, uid FROM account", []).map(|_| ()))
    }

    pub(super) fn transaction(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), DirectoryError> {
        let run = |connection: &mut Connection| -> rusqlite::Result<()> {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(&tx)?;
            tx.commit()
        };
        run(&mut self.connection).map_err(|source| DirectoryError::Sqlite { path: self.path.clone(), source })
    }

    pub(super) fn failed(&self, source: rusqlite::Error) -> DirectoryError {
        DirectoryError::Sqlite { path: self.path.clone(), source }
    }
}

/// Reads the whole directory as it is at one position, piece by piece.
#[derive(Debug)]
pub struct SnapshotReader {
    connection: Connection,
    path: PathBuf,
    at: Position,
    after: Option<(&'static str, String)>,
    piece: u64,
}

impl SnapshotReader {
    /// Opens a view of the directory that stays as it is now.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let begin = || -> rusqlite::Result<(Connection, Position)> {
            let connection = super::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.execute_batch("BEGIN")?;
            let at = position(&connection)?;
            Ok((connection, at))
        };
        let (connection, at) = begin().map_err(|source| DirectoryError::Sqlite { path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned(), at, after: Some(("account", String::new())), piece: 0 })
    }

    /// The next piece; after the last one, further calls give empty last pieces.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn next_piece(&mut self) -> Result<Snapshot, DirectoryError> {
        let mut rows = Vec::new();
        while let Some((table, after)) = self.after.clone() {
            let found = self.page(table, &after, BATCH_LEN_MAX - rows.len())?;
            self.after = match found.last() {
                Some((name, _)) => Some((table, name.clone())),
                None if table == "account" => Some(("site", String::new())),
                None if table == "site" => Some(("mail", String::new())),
                None => None,
            };
            rows.extend(found.into_iter().map(|(_, row)| row));
            if rows.len() >= BATCH_LEN_MAX {
                break;
            }
        }
        let piece = Snapshot { at: self.at, piece: self.piece, rows, last: self.after.is_none() };
        self.piece += 1;
        Ok(piece)
    }

    fn page(&self, table: &str, after: &str, limit: usize) -> Result<Vec<(String, Row)>, DirectoryError> {
        let query = match table {
            "account" => "SELECT name, body, share FROM account WHERE name > ?1 ORDER BY name LIMIT ?2",
            "site" => "SELECT name, body, '' FROM site WHERE name > ?1 ORDER BY name LIMIT ?2",
            _ => "SELECT key, body, '' FROM mail WHERE key > ?1 ORDER BY key LIMIT ?2",
        };
        let found: Vec<(String, String, String)> = (self.connection.prepare_cached(query))
            .and_then(|mut page| {
                page.query_map(params![after, limit as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .map_err(|source| DirectoryError::Sqlite { path: self.path.clone(), source })?;
        let bad = |what: String| DirectoryError::Row { path: self.path.clone(), what };
        (found.into_iter())
            .map(|(name, body, share)| {
                let row = match table {
                    "account" => Row::Account {
                        account: serde_json::from_str(&body).map_err(|e| bad(format!("{name:?}: {e}")))?,
                        share: share.parse().map_err(|e| bad(format!("{name:?}: {e}")))?,
                    },
                    "mail" => serde_json::from_str(&body).map_err(|e| bad(format!("{name:?}: {e}")))?,
                    _ => Row::Site(serde_json::from_str(&body).map_err(|e| bad(format!("{name:?}: {e}")))?),
                };
                Ok((name, row))
            })
            .collect()
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("rows are plain data with text keys")
}

fn position(connection: &Connection) -> rusqlite::Result<Position> {
    connection.prepare_cached("SELECT incarnation, term, revision FROM position")?.query_row([], |row| {
        let number = |column| row.get::<_, i64>(column).map(|n| n as u64);
        Ok(Position { incarnation: number(0)?, term: number(1)?, revision: number(2)? })
    })
}

fn set_position(tx: &Transaction<'_>, Position { incarnation, term, revision }: Position) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE position SET incarnation = ?1, term = ?2, revision = ?3",
        params![incarnation as i64, term as i64, revision as i64],
    )?;
    Ok(())
}

fn mark_dirty(tx: &Transaction<'_>, account: &str) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO dirty SELECT name, uid FROM account WHERE name = ?1")?
        .execute(params![account])?;
    Ok(())
}

fn put(tx: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    match row {
        Row::Account { account, share } => {
            mark_dirty(tx, account.name.as_str())?;
            tx.prepare_cached("INSERT OR REPLACE INTO account VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                account.name.as_str(),
                account.uid.get(),
                share.as_str(),
                json(account)
            ])?;
            mark_dirty(tx, account.name.as_str())
        }
        Row::Site(site) => {
            let (name, account) = (site.name.as_str(), site.account.as_str());
            let before: Option<String> = tx
                .prepare_cached("SELECT account FROM site WHERE name = ?1")?
                .query_row(params![name], |r| r.get(0))
                .optional()?;
            if let Some(before) = before.filter(|before| before != account) {
                mark_dirty(tx, &before)?;
            }
            tx.prepare_cached("INSERT OR REPLACE INTO site VALUES (?1, ?2, ?3)")?.execute(params![
                name,
                account,
                json(site)
            ])?;
            tx.prepare_cached("DELETE FROM host WHERE site = ?1")?.execute(params![name])?;
            for host in site.host_names() {
                tx.prepare_cached("INSERT OR REPLACE INTO host VALUES (?1, ?2, ?3)")?.execute(params![
                    host.as_str(),
                    name,
                    account
                ])?;
            }
            mark_dirty(tx, account)
        }
        Row::MailDomain { .. } | Row::Mailbox(_) | Row::MailAlias(_) => mail::put(tx, row),
    }
}

fn remove(tx: &Transaction<'_>, key: &RowKey) -> rusqlite::Result<()> {
    match key {
        RowKey::Account(name) => {
            mark_dirty(tx, name.as_str())?;
            tx.prepare_cached("DELETE FROM account WHERE name = ?1")?.execute(params![name.as_str()])?;
        }
        RowKey::Site(name) => {
            let account: Option<String> = tx
                .prepare_cached("SELECT account FROM site WHERE name = ?1")?
                .query_row(params![name.as_str()], |row| row.get(0))
                .optional()?;
            tx.prepare_cached("DELETE FROM site WHERE name = ?1")?.execute(params![name.as_str()])?;
            tx.prepare_cached("DELETE FROM host WHERE site = ?1")?.execute(params![name.as_str()])?;
            if let Some(account) = account {
                mark_dirty(tx, &account)?;
            }
        }
        RowKey::MailDomain(_) | RowKey::Mailbox(_) | RowKey::MailAlias(_) => mail::remove(tx, key)?,
    }
    Ok(())
}
