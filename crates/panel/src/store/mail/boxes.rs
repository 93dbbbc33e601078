//! Changes of mailboxes and aliases.

use super::{ALIAS_COLUMNS, MAILBOX_COLUMNS, MailAliasRow, MailDomainRow, MailboxRow, state_text};
use crate::store::write::{expect_version, json};
use crate::store::{Kind, Meta, Result, StoreError, Write};
use phalanx_model::mail::{MailboxId, PasswordHash, QuotaMib};
use phalanx_model::{
    AliasSource, DirectoryChange, HostName, LocalAddress, MailAlias, MailDomain, Mailbox, Refusal, Row, RowKey, Rule,
};
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;

impl Write {
    /// A mailbox as this change sees it, at the version that the asker names, if it names one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Stale`], or when the database fails.
    pub async fn mailbox(&mut self, address: &LocalAddress, version: Option<u64>) -> Result<MailboxRow> {
        let found = self.mailbox_if_any(address).await?;
        let row = found.ok_or_else(|| StoreError::Unknown { kind: Kind::Mailbox, name: address.to_string() })?;
        expect_version(Kind::Mailbox, address.as_str(), row.meta.version, version)?;
        Ok(row)
    }

    async fn mailbox_if_any(&mut self, address: &LocalAddress) -> Result<Option<MailboxRow>> {
        let sql = format!("SELECT {MAILBOX_COLUMNS} FROM mailbox WHERE address = ?");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(address.as_str()).fetch_optional(&mut *self.tx).await?)
    }

    pub(super) async fn mailboxes_of(&mut self, domain: &HostName) -> Result<Vec<MailboxRow>> {
        let sql = format!("SELECT {MAILBOX_COLUMNS} FROM mailbox WHERE domain = ? ORDER BY address");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(domain.as_str()).fetch_all(&mut *self.tx).await?)
    }

    /// The domain that a new address lies in.
    async fn domain_of_new(&mut self, domain: &str) -> Result<MailDomainRow> {
        let name: HostName = domain.parse().expect("an address that exists has a valid domain");
        self.mail_domain_if_any(&name).await?.ok_or_else(|| {
            let detail = format!("there is no mail domain {name}");
            Refusal::new(Rule::ReferenceExists, detail, "list what exists: phalanx mail-domain list").into()
        })
    }

    /// A new mailbox. Its number is one that no mailbox ever had, so that nobody gets the mail of who had the address before.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn add_mailbox(
        &mut self,
        address: LocalAddress,
        password: PasswordHash,
        quota_mib: QuotaMib,
    ) -> Result<MailboxRow> {
        let domain = self.domain_of_new(address.domain()).await?;
        if self.mailbox_if_any(&address).await?.is_some() {
            let detail = format!("there is a mailbox {address} already");
            return Err(Refusal::new(Rule::NameIsUnique, detail, "choose another address").into());
        }
        let id: i64 = sqlx::query_scalar("UPDATE meta SET mailbox_next = mailbox_next + 1 RETURNING mailbox_next - 1")
            .fetch_one(&mut *self.tx)
            .await?;
        let mailbox = Mailbox { address, id: MailboxId(id as u64), password, quota_mib, state: Default::default() };
        let meta = Meta { owner: domain.meta.owner, version: 1, created_at: crate::clock::unix_s() };
        let row = MailboxRow { mailbox, meta };
        self.put_mailbox(&row, &domain.domain).await?;
        self.audit(Kind::Mailbox, &row.mailbox.address, None, Some(row.shown()));
        Ok(row)
    }

    /// Gives a mailbox another password, quota or state; address and number stay. It does nothing where nothing changes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn change_mailbox(&mut self, old: MailboxRow, new: Mailbox) -> Result<MailboxRow> {
        if old.mailbox == new {
            return Ok(old);
        }
        let before = old.shown();
        let has_new_password = old.mailbox.password != new.password;
        let domain = self.domain_of_new(new.address.domain()).await?;
        let row = MailboxRow { mailbox: new, meta: Meta { version: old.meta.version + 1, ..old.meta } };
        self.put_mailbox(&row, &domain.domain).await?;
        let mut after = row.shown();
        if has_new_password {
            after["password_changed"] = true.into();
        }
        self.audit(Kind::Mailbox, &row.mailbox.address, Some(before), Some(after));
        Ok(row)
    }

    async fn put_mailbox(&mut self, row: &MailboxRow, domain: &MailDomain) -> Result<()> {
        let MailboxRow { mailbox, meta } = row;
        let Mailbox { address, id, password, quota_mib, state } = mailbox;
        sqlx::query(
            "INSERT INTO mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (address) DO UPDATE SET \
             password = ?4, quota_mib = ?5, state = ?6, version = ?8",
        )
        .bind(address.as_str())
        .bind(domain.name.as_str())
        .bind(id.0 as i64)
        .bind(password.as_str())
        .bind(quota_mib.get())
        .bind(state_text(*state))
        .bind(meta.owner.as_str())
        .bind(meta.version as i64)
        .bind(meta.created_at)
        .execute(&mut *self.tx)
        .await?;
        self.log(&domain.logical_server, DirectoryChange::Put(Box::new(Row::Mailbox(mailbox.clone()))));
        Ok(())
    }

    /// Removes a mailbox; the mail in it stays, and no other mailbox will ever have it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_mailbox(&mut self, row: &MailboxRow) -> Result<()> {
        let domain = self.domain_of_new(row.mailbox.address.domain()).await?;
        self.remove_mailbox_of(&domain.domain, row).await
    }

    pub(super) async fn remove_mailbox_of(&mut self, domain: &MailDomain, row: &MailboxRow) -> Result<()> {
        let address = &row.mailbox.address;
        sqlx::query("DELETE FROM mailbox WHERE address = ?").bind(address.as_str()).execute(&mut *self.tx).await?;
        self.log(&domain.logical_server, DirectoryChange::Remove(RowKey::Mailbox(address.clone())));
        self.audit(Kind::Mailbox, address, Some(row.shown()), None);
        Ok(())
    }

    /// An alias as this change sees it, at the version that the asker names, if it names one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Stale`], or when the database fails.
    pub async fn mail_alias(&mut self, source: &AliasSource, version: Option<u64>) -> Result<MailAliasRow> {
        let found = self.mail_alias_if_any(source).await?;
        let row = found.ok_or_else(|| StoreError::Unknown { kind: Kind::MailAlias, name: source.to_string() })?;
        expect_version(Kind::MailAlias, source.as_str(), row.meta.version, version)?;
        Ok(row)
    }

    async fn mail_alias_if_any(&mut self, source: &AliasSource) -> Result<Option<MailAliasRow>> {
        let sql = format!("SELECT {ALIAS_COLUMNS} FROM mail_alias WHERE source = ?");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(source.as_str()).fetch_optional(&mut *self.tx).await?)
    }

    pub(super) async fn aliases_of(&mut self, domain: &HostName) -> Result<Vec<MailAliasRow>> {
        let sql = format!("SELECT {ALIAS_COLUMNS} FROM mail_alias WHERE domain = ? ORDER BY source");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(domain.as_str()).fetch_all(&mut *self.tx).await?)
    }

    /// A new alias. Where there is a mailbox of the same address, its mail goes where the alias says.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn add_mail_alias(&mut self, alias: MailAlias) -> Result<MailAliasRow> {
        targets_are_few_and_once(&alias)?;
        let domain = self.domain_of_new(alias.source.domain()).await?;
        if self.mail_alias_if_any(&alias.source).await?.is_some() {
            let detail = format!("there is an alias {} already", alias.source);
            let hint = format!("give it more targets: phalanx alias change {} --add-to ADDRESS", alias.source);
            return Err(Refusal::new(Rule::NameIsUnique, detail, hint).into());
        }
        let meta = Meta { owner: domain.meta.owner, version: 1, created_at: crate::clock::unix_s() };
        let row = MailAliasRow { alias, meta };
        self.put_mail_alias(&row, &domain.domain).await?;
        self.audit(Kind::MailAlias, &row.alias.source, None, Some(json(&row.alias)));
        Ok(row)
    }

    /// Gives an alias other targets; its source stays. It does nothing where nothing changes.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], or when the database fails.
    pub async fn change_mail_alias(&mut self, old: MailAliasRow, new: MailAlias) -> Result<MailAliasRow> {
        if old.alias == new {
            return Ok(old);
        }
        targets_are_few_and_once(&new)?;
        let domain = self.domain_of_new(new.source.domain()).await?;
        let row = MailAliasRow { alias: new, meta: Meta { version: old.meta.version + 1, ..old.meta } };
        self.put_mail_alias(&row, &domain.domain).await?;
        self.audit(Kind::MailAlias, &row.alias.source, Some(json(&old.alias)), Some(json(&row.alias)));
        Ok(row)
    }

    async fn put_mail_alias(&mut self, row: &MailAliasRow, domain: &MailDomain) -> Result<()> {
        let MailAliasRow { alias, meta } = row;
        sqlx::query(
            "INSERT INTO mail_alias VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (source) DO UPDATE SET targets = ?3, version = ?5",
        )
        .bind(alias.source.as_str())
        .bind(domain.name.as_str())
        .bind(json(&alias.targets).to_string())
        .bind(meta.owner.as_str())
        .bind(meta.version as i64)
        .bind(meta.created_at)
        .execute(&mut *self.tx)
        .await?;
        self.log(&domain.logical_server, DirectoryChange::Put(Box::new(Row::MailAlias(alias.clone()))));
        Ok(())
    }

    /// Removes an alias.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_mail_alias(&mut self, row: &MailAliasRow) -> Result<()> {
        let domain = self.domain_of_new(row.alias.source.domain()).await?;
        self.remove_alias_of(&domain.domain, row).await
    }

    pub(super) async fn remove_alias_of(&mut self, domain: &MailDomain, row: &MailAliasRow) -> Result<()> {
        let source = &row.alias.source;
        sqlx::query("DELETE FROM mail_alias WHERE source = ?").bind(source.as_str()).execute(&mut *self.tx).await?;
        self.log(&domain.logical_server, DirectoryChange::Remove(RowKey::MailAlias(source.clone())));
        self.audit(Kind::MailAlias, source, Some(json(&row.alias)), None);
        Ok(())
    }
}

fn targets_are_few_and_once(alias: &MailAlias) -> Result<()> {
    let refuse = |why: String| Err(StoreError::Invalid { field: "targets", why });
    let (count, most) = (alias.targets.len(), MailAlias::TARGETS_MAX);
    if count == 0 || count > most {
        return refuse(format!("an alias has 1 to {most} targets, not {count}"));
    }
    let mut seen = BTreeSet::new();
    match alias.targets.iter().find(|target| !seen.insert(*target)) {
        Some(twice) => refuse(format!("{twice} is given twice")),
        None => Ok(()),
    }
}
