//! Changes of mail domains.

use super::{DOMAIN_COLUMNS, MailDomainRow, state_text};
use crate::store::write::{expect_version, json};
use crate::store::{Kind, Meta, Result, StoreError, Write};
use phalanx_model::mail::DkimKey;
use phalanx_model::{Account, ClusterKind, DirectoryChange, HostName, MailDomain, Name, Refusal, Row, RowKey, Rule};
use sqlx::AssertSqlSafe;

impl Write {
    /// A mail domain as this change sees it, at the version that the asker names, if it names one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Stale`], or when the database fails.
    pub async fn mail_domain(&mut self, name: &HostName, version: Option<u64>) -> Result<MailDomainRow> {
        let found = self.mail_domain_if_any(name).await?;
        let row = found.ok_or_else(|| StoreError::Unknown { kind: Kind::MailDomain, name: name.to_string() })?;
        expect_version(Kind::MailDomain, name.as_str(), row.meta.version, version)?;
        Ok(row)
    }

    pub(super) async fn mail_domain_if_any(&mut self, name: &HostName) -> Result<Option<MailDomainRow>> {
        let sql = format!("SELECT {DOMAIN_COLUMNS} FROM mail_domain WHERE name = ?");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).fetch_optional(&mut *self.tx).await?)
    }

    /// Whether a new mail domain keeps the rules; the account that it is to belong to.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn new_mail_domain_fits(&mut self, domain: &MailDomain) -> Result<Account> {
        let name = &domain.name;
        if self.mail_domain_if_any(name).await?.is_some() {
            let detail = format!("there is a mail domain {name} already");
            let hint = format!("see whose it is: phalanx mail-domain show {name}");
            return Err(Refusal::new(Rule::NameIsUnique, detail, hint).into());
        }
        if let Some(cluster) =
            self.fleet().clusters.values().find(|c| c.mail.as_ref().is_some_and(|m| m.host_name == *name))
        {
            let detail =
                format!("{name} is the name of mail cluster {}, whose own mail comes from there", cluster.name);
            return Err(Refusal::new(Rule::NameIsUnique, detail, "choose another domain").into());
        }
        let account = self.account_of_new(&domain.account).await?;
        self.takes_mail(&domain.logical_server)?;
        Ok(account.account)
    }

    /// Makes sure that nobody has the name of a mail cluster as a mail domain: who had it would get what the world answers to the cluster.
    ///
    /// # Errors
    /// A refusal where somebody has, or when the database fails.
    pub async fn mail_name_is_free(&mut self, host_name: &HostName) -> Result<()> {
        let Some(row) = self.mail_domain_if_any(host_name).await? else { return Ok(()) };
        let detail = format!("{host_name} is a mail domain of account {}", row.domain.account);
        Err(Refusal::new(Rule::NameIsUnique, detail, "choose another name for the mail cluster").into())
    }

    /// A new mail domain, which gets this key to sign its mail.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn add_mail_domain(&mut self, domain: MailDomain, dkim: DkimKey) -> Result<MailDomainRow> {
        let Account { uid, owner, .. } = self.new_mail_domain_fits(&domain).await?;
        let meta = Meta { owner, version: 1, created_at: crate::clock::unix_s() };
        let row = MailDomainRow { domain, dkim, uid, meta };
        self.put_mail_domain(&row).await?;
        self.audit(Kind::MailDomain, &row.domain.name, None, Some(row.shown()));
        Ok(row)
    }

    fn takes_mail(&self, logical_server: &Name) -> Result<()> {
        let kind = self.logical_server(logical_server)?.kind;
        if kind == ClusterKind::Mail {
            return Ok(());
        }
        let detail = format!("logical server {logical_server} is of kind {kind} and takes no mail");
        let hint = "choose one of kind mail: phalanx logical-server list";
        Err(Refusal::new(Rule::KindsFit, detail, hint).into())
    }

    /// Gives a mail domain another state; name, account, place and key stay. It does nothing where nothing changes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn change_mail_domain(&mut self, old: MailDomainRow, new: MailDomain) -> Result<MailDomainRow> {
        if old.domain == new {
            return Ok(old);
        }
        let before = old.shown();
        let row = MailDomainRow { domain: new, meta: Meta { version: old.meta.version + 1, ..old.meta }, ..old };
        self.put_mail_domain(&row).await?;
        self.audit(Kind::MailDomain, &row.domain.name, Some(before), Some(row.shown()));
        Ok(row)
    }

    async fn put_mail_domain(&mut self, row: &MailDomainRow) -> Result<()> {
        let MailDomainRow { domain, dkim, uid, meta } = row;
        let MailDomain { name, account, logical_server, state } = domain;
        sqlx::query(
            "INSERT INTO mail_domain VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (name) DO UPDATE SET state = ?5, version = ?7",
        )
        .bind(name.as_str())
        .bind(account.as_str())
        .bind(logical_server.as_str())
        .bind(meta.owner.as_str())
        .bind(state_text(*state))
        .bind(json(dkim).to_string())
        .bind(meta.version as i64)
        .bind(meta.created_at)
        .execute(&mut *self.tx)
        .await?;
        let share = self.share_of(logical_server)?;
        let put = Row::MailDomain { domain: domain.clone(), uid: *uid, share, dkim: Some(dkim.clone()) };
        self.log(logical_server, DirectoryChange::Put(Box::new(put)));
        Ok(())
    }

    /// Removes a mail domain; with its mailboxes and aliases where `with_mailboxes`, else it must have none. What its mailboxes hold stays.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn remove_mail_domain(&mut self, row: &MailDomainRow, with_mailboxes: bool) -> Result<()> {
        let name = &row.domain.name;
        let (mailboxes, aliases) = (self.mailboxes_of(name).await?, self.aliases_of(name).await?);
        let is_in_use = !mailboxes.is_empty() || !aliases.is_empty();
        if is_in_use && !with_mailboxes {
            let (boxes, others) = (counted(mailboxes.len(), "mailbox"), counted(aliases.len(), "alias"));
            let detail = format!("mail domain {name} has {boxes} and {others}");
            let hint = "remove these first, or with it: ?mailboxes=true";
            return Err(Refusal::new(Rule::InUseIsNotRemoved, detail, hint).into());
        }
        for alias in &aliases {
            self.remove_alias_of(&row.domain, alias).await?;
        }
        for mailbox in &mailboxes {
            self.remove_mailbox_of(&row.domain, mailbox).await?;
        }
        sqlx::query("DELETE FROM mail_domain WHERE name = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
        self.log(&row.domain.logical_server, DirectoryChange::Remove(RowKey::MailDomain(name.clone())));
        self.audit(Kind::MailDomain, name, Some(row.shown()), None);
        Ok(())
    }

    /// Makes sure that an account has no mail domain, so that it may go.
    pub(in crate::store) async fn has_no_mail(&mut self, account: &Name) -> Result<()> {
        let domains = self.mail_domains_where("account", account).await?;
        if domains.is_empty() {
            return Ok(());
        }
        let detail = format!("account {account} has the mail domains {}", some_of(&domains));
        let hint = "remove its mail domains first: phalanx mail-domain remove NAME";
        Err(Refusal::new(Rule::InUseIsNotRemoved, detail, hint).into())
    }

    /// Makes sure that no mail domain is placed on a logical server, so that it may go.
    ///
    /// # Errors
    /// A refusal where one is, or when the database fails.
    pub async fn places_no_mail(&mut self, logical_server: &Name) -> Result<()> {
        let domains = self.mail_domains_where("logical_server", logical_server).await?;
        if domains.is_empty() {
            return Ok(());
        }
        let detail = format!("logical server {logical_server} has the mail domains {}", some_of(&domains));
        let hint = "remove these mail domains first: phalanx mail-domain remove NAME";
        Err(Refusal::new(Rule::InUseIsNotRemoved, detail, hint).into())
    }

    /// The first few names; the column is a constant.
    async fn mail_domains_where(&mut self, column: &'static str, value: &Name) -> Result<Vec<String>> {
        let sql = format!("SELECT name FROM mail_domain WHERE {column} = ? ORDER BY name LIMIT 4");
        let names = sqlx::query_scalar(AssertSqlSafe(sql)).bind(value.as_str());
        Ok(names.fetch_all(&mut *self.tx).await?)
    }
}

/// Up to three names, and a sign where there are more.
fn some_of(names: &[String]) -> String {
    let more = if names.len() > 3 { ", …" } else { "" };
    names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

/// A number of mailboxes or aliases in words.
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "es" })
}
