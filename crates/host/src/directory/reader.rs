//! What daemons look up.

use super::DirectoryError;
use phalanx_model::{Account, AccountState, HostName, Name, Site, Uid};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::{Path, PathBuf};

/// A read-only view. A row is seen by the first look-up after its commit.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    path: PathBuf,
}

/// Who answers for a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The site's main name.
    pub site: HostName,
    /// Its account.
    pub account: Name,
    /// The account's uid, from which its loopback address follows.
    pub uid: Uid,
    /// Whether the account is served.
    pub state: AccountState,
}

impl Reader {
    /// Opens the directory at `path` for reading.
    ///
    /// # Errors
    /// The file, or its `-wal` beside it, is missing or unreadable.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let connection = super::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|source| DirectoryError::Sqlite { path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Who answers for `host`, which must be in lower case and without a port.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn host(&self, host: &str) -> Result<Option<HostEntry>, DirectoryError> {
        const FIND: &str = "SELECT host.site, host.account, account.uid, account.body ->> '$.state'
             FROM host JOIN account ON account.name = host.account WHERE host.name = ?1";
        let found: Option<(String, String, u32, Option<String>)> = (self.connection.prepare_cached(FIND))
            .and_then(|mut find| {
                find.query_row(params![host], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).optional()
            })
            .map_err(|source| self.failed(source))?;
        let Some((site, account, uid, state)) = found else { return Ok(None) };
        let bad = |what: &dyn std::fmt::Display| self.bad_row(host, what);
        Ok(Some(HostEntry {
            site: site.parse().map_err(|e| bad(&e))?,
            account: account.parse().map_err(|e| bad(&e))?,
            uid: uid.try_into().map_err(|e| bad(&e))?,
            state: if state.as_deref() == Some("suspended") { AccountState::Suspended } else { AccountState::Active },
        }))
    }

    /// Whether the directory was ever filled. One that was not knows nothing, which is not the same as that there is nothing.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn is_filled(&self) -> Result<bool, DirectoryError> {
        self.connection
            .query_row("SELECT incarnation > 0 FROM position", [], |row| row.get(0))
            .map_err(|source| self.failed(source))
    }

    /// The account with this uid, and the share that its home lies on.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn account(&self, uid: Uid) -> Result<Option<(Account, Name)>, DirectoryError> {
        self.account_where("SELECT body, share FROM account WHERE uid = ?1", params![uid.get()])
    }

    /// The account of this name, and the share that its home lies on.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn account_named(&self, name: &Name) -> Result<Option<(Account, Name)>, DirectoryError> {
        self.account_where("SELECT body, share FROM account WHERE name = ?1", params![name.as_str()])
    }

    /// The sites of an account, by name.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn sites(&self, account: &Name) -> Result<Vec<Site>, DirectoryError> {
        let bodies: Vec<String> =
            (self.connection.prepare_cached("SELECT body FROM site WHERE account = ?1 ORDER BY name"))
                .and_then(|mut find| find.query_map(params![account.as_str()], |row| row.get(0))?.collect())
                .map_err(|source| self.failed(source))?;
        bodies.iter().map(|body| self.parse(body)).collect()
    }

    /// Up to `limit` accounts by name, beginning after `after`.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn accounts(&self, after: Option<&Name>, limit: usize) -> Result<Vec<(Account, Name)>, DirectoryError> {
        const PAGE: &str = "SELECT body, share FROM account WHERE name > ?1 ORDER BY name LIMIT ?2";
        let after = after.map_or("", Name::as_str);
        let rows: Vec<(String, String)> = (self.connection.prepare_cached(PAGE))
            .and_then(|mut page| {
                page.query_map(params![after, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
            .map_err(|source| self.failed(source))?;
        rows.into_iter().map(|(body, share)| self.account_row(&body, &share)).collect()
    }

    /// A number that changes with every commit of another connection (`PRAGMA data_version`).
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn data_version(&self) -> Result<i64, DirectoryError> {
        (self.connection.prepare_cached("PRAGMA data_version"))
            .and_then(|mut version| version.query_row([], |row| row.get(0)))
            .map_err(|source| self.failed(source))
    }

    fn account_where(&self, find: &str, key: impl rusqlite::Params) -> Result<Option<(Account, Name)>, DirectoryError> {
        let found: Option<(String, String)> = (self.connection.prepare_cached(find))
            .and_then(|mut find| find.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(|source| self.failed(source))?;
        found.map(|(body, share)| self.account_row(&body, &share)).transpose()
    }

    fn account_row(&self, body: &str, share: &str) -> Result<(Account, Name), DirectoryError> {
        Ok((self.parse(body)?, share.parse().map_err(|e| self.bad_row(share, &e))?))
    }

    pub(super) fn parse<T: serde::de::DeserializeOwned>(&self, body: &str) -> Result<T, DirectoryError> {
        serde_json::from_str(body).map_err(|e| self.bad_row(body, &e))
    }

    pub(super) fn failed(&self, source: rusqlite::Error) -> DirectoryError {
        DirectoryError::Sqlite { path: self.path.clone(), source }
    }

    fn bad_row(&self, row: &str, why: &dyn std::fmt::Display) -> DirectoryError {
        DirectoryError::Row { path: self.path.clone(), what: format!("{row:?}: {why}") }
    }
}
