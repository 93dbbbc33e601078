//! The directory: the large part of the desired state, as rows.
//!
//! Rows travel from the panel to masters, from masters to slaves, and into a local SQLite file on every node, each batch in one
//! transaction with the revision it brings.

use crate::{Account, HostName, Name, Site};
use serde::{Deserialize, Serialize};

/// One row of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// An account, with the share that its home lies on.
    Account {
        /// The account.
        account: Account,
        /// The share of its cluster.
        share: Name,
    },
    /// A site.
    Site(Site),
}

/// What names a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKey {
    /// An account by its name.
    Account(Name),
    /// A site by its main host name.
    Site(HostName),
}

impl Row {
    /// What names this row.
    pub fn key(&self) -> RowKey {
        match self {
            Row::Account { account, .. } => RowKey::Account(account.name.clone()),
            Row::Site(site) => RowKey::Site(site.name.clone()),
        }
    }
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectoryChange {
    /// The row is new or has new content.
    Put(Box<Row>),
    /// The row is gone.
    Remove(RowKey),
}
