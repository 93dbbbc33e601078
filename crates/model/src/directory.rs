//! The directory: the large part of the desired state, as rows: accounts and sites, mail domains, mailboxes and aliases.
//!
//! Rows travel from the panel to masters, from masters to slaves, and into a local SQLite file on every node, each batch in one
//! transaction with the revision it brings.

use crate::mail::DkimKey;
use crate::{Account, AliasSource, HostName, LocalAddress, MailAlias, MailDomain, Mailbox, Name, Site, Uid};
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
    /// A mail domain, with what its nodes need to know of its account.
    MailDomain {
        /// The domain.
        domain: MailDomain,
        /// The account's uid, which owns the files of its mailboxes.
        uid: Uid,
        /// The share that its mail lies on.
        share: Name,
        /// What its mail is signed with, for those who sign.
        dkim: Option<DkimKey>,
    },
    /// A mailbox.
    Mailbox(Mailbox),
    /// An alias.
    MailAlias(MailAlias),
}

/// What names a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKey {
    /// An account by its name.
    Account(Name),
    /// A site by its main host name.
    Site(HostName),
    /// A mail domain.
    MailDomain(HostName),
    /// A mailbox by its address.
    Mailbox(LocalAddress),
    /// An alias by whose mail it redirects.
    MailAlias(AliasSource),
}

impl Row {
    /// What names this row.
    pub fn key(&self) -> RowKey {
        match self {
            Row::Account { account, .. } => RowKey::Account(account.name.clone()),
            Row::Site(site) => RowKey::Site(site.name.clone()),
            Row::MailDomain { domain, .. } => RowKey::MailDomain(domain.name.clone()),
            Row::Mailbox(mailbox) => RowKey::Mailbox(mailbox.address.clone()),
            Row::MailAlias(alias) => RowKey::MailAlias(alias.source.clone()),
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
