//! The directory on a node: accounts and sites, and mail, in a local SQLite file that daemons read while the agent writes.
//!
//! Invariants: a batch and the position that it leads to are committed together; a snapshot replaces everything in one
//! transaction, so that a reader sees the old whole or the new whole; what changed is marked dirty in the same transaction, so that
//! a crash never loses the work of deriving files from it.
//!
//! The file is in WAL mode. Read-only readers need its `-wal` and `-shm` files, which vanish when the last writer closes cleanly:
//! the launcher, which outlives the agent, keeps the file open ([`keep_open`]).
//!
//! Deliberately absent: what the rows mean. This module finds and keeps them.

mod mail;
mod reader;
mod writer;

pub use mail::MailDirty;
pub use reader::{HostEntry, Reader};
pub use writer::{ChangesRead, Dirty, SnapshotReader, Writer};

use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a node keeps its directory.
pub const PATH: &str = "/var/lib/phalanx/directory/directory.sqlite";

/// How long a statement waits for another writer before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// SQLite's own words.
    #[error("the directory {path} can't be used")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A row is not what this version expects.
    #[error("a row of the directory {path} is not readable: {what}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row, and what is wrong with it.
        what: String,
    },
    /// A batch does not fit onto what is there.
    #[error("a batch onto {after} does not fit the directory at {at}")]
    Gap {
        /// Where the batch begins.
        after: phalanx_model::Position,
        /// Where the directory is.
        at: phalanx_model::Position,
    },
}

/// Opens the directory for nothing but to keep its `-wal` and `-shm` files alive; the file is made where it is missing.
///
/// # Errors
/// The file can't be opened or made.
pub fn keep_open(path: &Path) -> Result<Writer, DirectoryError> {
    Writer::open(path)
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation INTEGER NOT NULL, term INTEGER NOT NULL,
  revision INTEGER NOT NULL, log_from INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, uid INTEGER NOT NULL UNIQUE, share TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS site (name TEXT PRIMARY KEY, account TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS site_account ON site (account);
CREATE TABLE IF NOT EXISTS host (name TEXT PRIMARY KEY, site TEXT NOT NULL, account TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS host_site ON host (site);
CREATE TABLE IF NOT EXISTS change_log (upto INTEGER NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (upto, number)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dirty (account TEXT PRIMARY KEY, uid INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO position VALUES (1, 0, 0, 0, 0);
";

#[cfg(test)]
mod tests;
