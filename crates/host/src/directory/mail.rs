//! Mail in the directory: domains, mailboxes and aliases as whole rows, and which of them the look-up files do not show yet.
//!
//! Nobody looks mail up here: daemons read the look-up files ([`crate::mail_lookup`]), which follow the directory.

use super::{DirectoryError, Reader, Writer};
use phalanx_model::{Position, Row, RowKey};
use rusqlite::{OptionalExtension, Transaction, params};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS mail (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mail_dirty (key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// In `mail_dirty`: everything. No key of a row reads so.
const ALL: &str = "*";

/// What the look-up files may not show yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailDirty {
    /// All of it: the directory was replaced.
    All,
    /// These rows, which were put or removed.
    Rows(Vec<RowKey>),
}

fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("rows are plain data with text keys")
}

pub(super) fn put(tx: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let key = text(&row.key());
    tx.prepare_cached("INSERT OR REPLACE INTO mail VALUES (?1, ?2)")?.execute(params![key, text(row)])?;
    mark_dirty(tx, &key)
}

pub(super) fn remove(tx: &Transaction<'_>, key: &RowKey) -> rusqlite::Result<()> {
    let key = text(key);
    tx.prepare_cached("DELETE FROM mail WHERE key = ?1")?.execute(params![key])?;
    mark_dirty(tx, &key)
}

/// Where everything is marked, a million rows need no marks of their own.
fn mark_dirty(tx: &Transaction<'_>, key: &str) -> rusqlite::Result<()> {
    const MARK: &str =
        "INSERT OR IGNORE INTO mail_dirty SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM mail_dirty WHERE key = ?2)";
    tx.prepare_cached(MARK)?.execute(params![key, ALL]).map(drop)
}

/// Empties it, before a snapshot takes its place.
pub(super) fn clear(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM mail", [])?;
    tx.execute("DELETE FROM mail_dirty", [])?;
    tx.execute("INSERT OR IGNORE INTO mail_dirty VALUES (?1)", params![ALL]).map(drop)
}

impl Writer {
    /// Rows of mail that the look-up files may not show yet, up to `limit`.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn mail_dirty(&self, limit: usize) -> Result<MailDirty, DirectoryError> {
        let find = "SELECT key FROM mail_dirty ORDER BY key <> '*', key LIMIT ?1";
        let keys: Vec<String> = (self.connection.prepare_cached(find))
            .and_then(|mut find| find.query_map(params![limit as i64], |row| row.get(0))?.collect())
            .map_err(|source| self.failed(source))?;
        if keys.first().is_some_and(|key| key == ALL) {
            return Ok(MailDirty::All);
        }
        let parse = |key: &String| {
            let what = |e| DirectoryError::Row { path: self.path.clone(), what: format!("{key:?}: {e}") };
            serde_json::from_str(key).map_err(what)
        };
        keys.iter().map(parse).collect::<Result<_, _>>().map(MailDirty::Rows)
    }

    /// The look-up files show these rows as the directory was at `seen`. Nothing is cleared when it has moved on since: they are then
    /// derived once more.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn clear_mail_dirty(&mut self, done: &MailDirty, seen: Position) -> Result<(), DirectoryError> {
        if self.position()? != seen {
            return Ok(());
        }
        self.transaction(|tx| match done {
            MailDirty::All => tx.execute("DELETE FROM mail_dirty", []).map(drop),
            MailDirty::Rows(keys) => keys.iter().try_for_each(|key| {
                tx.prepare_cached("DELETE FROM mail_dirty WHERE key = ?1")?.execute(params![text(key)]).map(drop)
            }),
        })
    }

    /// Has all look-up files derived anew.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn mark_all_mail_dirty(&mut self) -> Result<(), DirectoryError> {
        self.transaction(|tx| tx.execute("INSERT OR IGNORE INTO mail_dirty VALUES (?1)", params![ALL]).map(drop))
    }
}

impl Reader {
    /// A row of mail.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn mail_row(&self, key: &RowKey) -> Result<Option<Row>, DirectoryError> {
        let body: Option<String> = (self.connection.prepare_cached("SELECT body FROM mail WHERE key = ?1"))
            .and_then(|mut find| find.query_row(params![text(key)], |row| row.get(0)).optional())
            .map_err(|source| self.failed(source))?;
        body.map(|body| self.parse(&body)).transpose()
    }

    /// Calls `each` with every row of mail.
    ///
    /// # Errors
    /// The directory can't be read, or what `each` says.
    pub fn each_mail_row<E: From<DirectoryError>>(&self, mut each: impl FnMut(Row) -> Result<(), E>) -> Result<(), E> {
        let failed = |source| E::from(self.failed(source));
        let mut find = self.connection.prepare_cached("SELECT body FROM mail").map_err(failed)?;
        let mut rows = find.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let body: String = row.get(0).map_err(failed)?;
            each(self.parse(&body)?)?;
        }
        Ok(())
    }
}
