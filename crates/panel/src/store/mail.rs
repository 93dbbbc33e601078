//! Mail domains, mailboxes and aliases: in tables, as accounts and sites are. Each change also goes into the change-log of the mail
//! cluster that the domain is placed on, and of its nas.
//!
//! Invariants: a mailbox' number is given once; neither a password's hash nor the private half of a DKIM key is in an audit record, nor in
//! what [`MailboxRow::shown`] and [`MailDomainRow::shown`] give, which is all that leaves the panel but for the way to the nodes.
//!
//! Deliberately absent: making keys and hashes, which takes long and is done before the turn to write is taken.

mod boxes;
mod domains;

use super::directory::{Decoded, meta, parsed};
use super::write::json;
use super::{Kind, Meta, Result, Store, StoreError};
use phalanx_model::mail::{DkimKey, MailState, MailboxId, QuotaMib};
use phalanx_model::{AliasSource, LocalAddress, MailAlias, MailDomain, Mailbox, Uid};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, Row as _};

pub(super) const DOMAIN_COLUMNS: &str = "mail_domain.name, mail_domain.account, mail_domain.logical_server, mail_domain.owner, \
     mail_domain.state, mail_domain.dkim, mail_domain.version, mail_domain.created_at, \
     (SELECT uid FROM account WHERE account.name = mail_domain.account) AS uid";

pub(super) const MAILBOX_COLUMNS: &str = "mailbox.address, mailbox.id, mailbox.password, mailbox.quota_mib, mailbox.state, mailbox.owner, \
     mailbox.version, mailbox.created_at";

pub(super) const ALIAS_COLUMNS: &str =
    "mail_alias.source, mail_alias.targets, mail_alias.owner, mail_alias.version, mail_alias.created_at";

/// A mail domain as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailDomainRow {
    /// The domain.
    pub domain: MailDomain,
    /// The key that signs its mail.
    pub dkim: DkimKey,
    /// The uid of its account.
    pub uid: Uid,
    /// What it has beside its value.
    pub meta: Meta,
}

impl MailDomainRow {
    /// What everybody may see: the public half of its key only.
    pub fn shown(&self) -> Value {
        let DkimKey { selector, private_pem: _, public_base64 } = &self.dkim;
        let mut shown = json(&self.domain);
        shown["dkim"] = json!({ "selector": selector, "public_base64": public_base64 });
        shown
    }
}

/// A mailbox as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxRow {
    /// The mailbox.
    pub mailbox: Mailbox,
    /// What it has beside its value.
    pub meta: Meta,
}

impl MailboxRow {
    /// What everybody may see: nothing of its password.
    pub fn shown(&self) -> Value {
        let Mailbox { address, id, password: _, quota_mib, state } = &self.mailbox;
        json!({ "address": address, "id": id, "quota_mib": quota_mib, "state": state })
    }
}

/// An alias as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailAliasRow {
    /// The alias.
    pub alias: MailAlias,
    /// What it has beside its value.
    pub meta: Meta,
}

/// What stands between a row and its value.
fn decoded<T, E: std::error::Error + Send + Sync + 'static>(
    column: &str,
    value: std::result::Result<T, E>,
) -> Decoded<T> {
    value.map_err(|e| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(e) })
}

fn state(row: &SqliteRow) -> Decoded<MailState> {
    Ok(match row.try_get("state")? {
        "suspended" => MailState::Suspended,
        _ => MailState::Active,
    })
}

fn state_text(state: MailState) -> &'static str {
    match state {
        MailState::Active => "active",
        MailState::Suspended => "suspended",
    }
}

impl FromRow<'_, SqliteRow> for MailDomainRow {
    fn from_row(row: &SqliteRow) -> Decoded<Self> {
        let domain = MailDomain {
            name: parsed(row, "name")?,
            account: parsed(row, "account")?,
            logical_server: parsed(row, "logical_server")?,
            state: state(row)?,
        };
        let dkim = decoded("dkim", serde_json::from_str(row.try_get("dkim")?))?;
        let uid = decoded("uid", Uid::try_from(row.try_get::<u32, _>("uid")?))?;
        Ok(Self { domain, dkim, uid, meta: meta(row)? })
    }
}

impl FromRow<'_, SqliteRow> for MailboxRow {
    fn from_row(row: &SqliteRow) -> Decoded<Self> {
        let mailbox = Mailbox {
            address: parsed(row, "address")?,
            id: MailboxId(row.try_get::<i64, _>("id")? as u64),
            password: parsed(row, "password")?,
            quota_mib: decoded("quota_mib", QuotaMib::try_from(row.try_get::<u32, _>("quota_mib")?))?,
            state: state(row)?,
        };
        Ok(Self { mailbox, meta: meta(row)? })
    }
}

impl FromRow<'_, SqliteRow> for MailAliasRow {
    fn from_row(row: &SqliteRow) -> Decoded<Self> {
        let targets = decoded("targets", serde_json::from_str(row.try_get("targets")?))?;
        Ok(Self { alias: MailAlias { source: parsed(row, "source")?, targets }, meta: meta(row)? })
    }
}

impl Store {
    /// A mail domain.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the database fails.
    pub async fn mail_domain(&self, name: &str) -> Result<MailDomainRow> {
        let sql = format!("SELECT {DOMAIN_COLUMNS} FROM mail_domain WHERE name = ?");
        self.one(Kind::MailDomain, sql, name).await
    }

    /// Mail domains by name after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mail_domains(
        &self,
        account: Option<&str>,
        logical_server: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<MailDomainRow>> {
        let of_account = if account.is_some() { "account = ?3 AND" } else { "" };
        let placed = if logical_server.is_some() { "logical_server = ?4 AND" } else { "" };
        let sql = format!(
            "SELECT {DOMAIN_COLUMNS} FROM mail_domain WHERE {of_account} {placed} name > ?1 ORDER BY name LIMIT ?2"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(after).bind(limit).bind(account).bind(logical_server);
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// A mailbox.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the database fails.
    pub async fn mailbox(&self, address: &LocalAddress) -> Result<MailboxRow> {
        let sql = format!("SELECT {MAILBOX_COLUMNS} FROM mailbox WHERE address = ?");
        self.one(Kind::Mailbox, sql, address.as_str()).await
    }

    /// Mailboxes by address after `after`, at most `limit`; those of a domain where one is named.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mailboxes(&self, domain: Option<&str>, after: &str, limit: u32) -> Result<Vec<MailboxRow>> {
        let of_domain = if domain.is_some() { "domain = ?3 AND" } else { "" };
        let sql =
            format!("SELECT {MAILBOX_COLUMNS} FROM mailbox WHERE {of_domain} address > ?1 ORDER BY address LIMIT ?2");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(after).bind(limit).bind(domain);
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// An alias.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the database fails.
    pub async fn mail_alias(&self, source: &AliasSource) -> Result<MailAliasRow> {
        let sql = format!("SELECT {ALIAS_COLUMNS} FROM mail_alias WHERE source = ?");
        self.one(Kind::MailAlias, sql, source.as_str()).await
    }

    /// Aliases by source after `after`, at most `limit`; those of a domain where one is named.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mail_aliases(&self, domain: Option<&str>, after: &str, limit: u32) -> Result<Vec<MailAliasRow>> {
        let of_domain = if domain.is_some() { "domain = ?3 AND" } else { "" };
        let sql =
            format!("SELECT {ALIAS_COLUMNS} FROM mail_alias WHERE {of_domain} source > ?1 ORDER BY source LIMIT ?2");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(after).bind(limit).bind(domain);
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// The thing that a query made of constants finds by its name.
    async fn one<T>(&self, kind: Kind, sql: String, name: &str) -> Result<T>
    where
        T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let found = sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_optional(&self.pool).await?;
        found.ok_or_else(|| StoreError::Unknown { kind, name: name.to_owned() })
    }
}
