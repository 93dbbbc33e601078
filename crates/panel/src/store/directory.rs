//! Accounts and sites: the large part, in tables. Each change also goes into the change-log of the clusters it concerns.

use super::write::{expect_version, json};
use super::{Kind, Meta, Result, Store, StoreError, Write};
use phalanx_model::{
    Account, AccountState, DirectoryChange, HostName, Limits, LogicalServer, Name, Refusal, Row, RowKey, Rule, Site,
    Uid,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, Row as _};

pub(super) const ACCOUNT_COLUMNS: &str = "name, uid, logical_server, owner, cpu_percent, memory_mib, processes, io_weight, php, state, \
     version, created_at";

pub(super) const SITE_COLUMNS: &str = "site.name, site.account, site.owner, site.document_root, site.version, site.created_at, \
     (SELECT json_group_array(host) FROM (SELECT host FROM host_name WHERE site = site.name AND place > 0 ORDER BY place)) AS aliases";

/// An account as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// The account.
    pub account: Account,
    /// What it has beside its value.
    pub meta: Meta,
}

/// A site as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRow {
    /// The site.
    pub site: Site,
    /// What it has beside its value.
    pub meta: Meta,
}

/// What reading a row gives.
pub(super) type Decoded<T> = std::result::Result<T, sqlx::Error>;

pub(super) fn parsed<T: std::str::FromStr>(row: &SqliteRow, column: &str) -> Decoded<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let decode = |e| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(e) };
    row.try_get::<&str, _>(column)?.parse().map_err(decode)
}

pub(super) fn meta(row: &SqliteRow) -> Decoded<Meta> {
    Ok(Meta {
        owner: parsed(row, "owner")?,
        version: row.try_get::<i64, _>("version")? as u64,
        created_at: row.try_get("created_at")?,
    })
}

impl FromRow<'_, SqliteRow> for AccountRow {
    fn from_row(row: &SqliteRow) -> Decoded<Self> {
        let decode = |e| sqlx::Error::ColumnDecode { index: "uid".to_owned(), source: Box::new(e) };
        let limits = Limits {
            cpu_percent: row.try_get("cpu_percent")?,
            memory_mib: row.try_get("memory_mib")?,
            processes: row.try_get("processes")?,
            io_weight: row.try_get("io_weight")?,
        };
        let meta = meta(row)?;
        let account = Account {
            name: parsed(row, "name")?,
            uid: Uid::try_from(row.try_get::<u32, _>("uid")?).map_err(decode)?,
            logical_server: parsed(row, "logical_server")?,
            owner: meta.owner.clone(),
            limits,
            php: parsed(row, "php")?,
            state: match row.try_get("state")? {
                "suspended" => AccountState::Suspended,
                _ => AccountState::Active,
            },
        };
        Ok(Self { account, meta })
    }
}

impl FromRow<'_, SqliteRow> for SiteRow {
    fn from_row(row: &SqliteRow) -> Decoded<Self> {
        let decode = |e| sqlx::Error::ColumnDecode { index: "aliases".to_owned(), source: Box::new(e) };
        let aliases = serde_json::from_str(row.try_get("aliases")?).map_err(decode)?;
        let (name, account, document_root) =
            (parsed(row, "name")?, parsed(row, "account")?, parsed(row, "document_root")?);
        Ok(Self { site: Site { name, aliases, account, document_root }, meta: meta(row)? })
    }
}

fn state_text(state: AccountState) -> &'static str {
    match state {
        AccountState::Active => "active",
        AccountState::Suspended => "suspended",
    }
}

impl Store {
    /// An account.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the database fails.
    pub async fn account(&self, name: &str) -> Result<AccountRow> {
        let sql = format!("SELECT {ACCOUNT_COLUMNS} FROM account WHERE name = ?");
        let found = sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_optional(&self.pool).await?;
        found.ok_or_else(|| StoreError::Unknown { kind: Kind::Account, name: name.to_owned() })
    }

    /// Accounts by name after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accounts(&self, logical_server: Option<&str>, after: &str, limit: u32) -> Result<Vec<AccountRow>> {
        let sql = format!(
            "SELECT {ACCOUNT_COLUMNS} FROM account WHERE (?1 IS NULL OR logical_server = ?1) AND name > ?2 ORDER BY name LIMIT ?3"
        );
        Ok(sqlx::query_as(AssertSqlSafe(sql))
            .bind(logical_server)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
    }

    /// A site, by its name (not by an alias).
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the database fails.
    pub async fn site(&self, name: &str) -> Result<SiteRow> {
        let sql = format!("SELECT {SITE_COLUMNS} FROM site WHERE name = ?");
        let found = sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_optional(&self.pool).await?;
        found.ok_or_else(|| StoreError::Unknown { kind: Kind::Site, name: name.to_owned() })
    }

    /// Sites by name after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sites(&self, account: Option<&str>, after: &str, limit: u32) -> Result<Vec<SiteRow>> {
        let sql = match account {
            Some(_) => {
                format!("SELECT {SITE_COLUMNS} FROM site WHERE account = ?1 AND name > ?2 ORDER BY name LIMIT ?3")
            }
            None => format!("SELECT {SITE_COLUMNS} FROM site WHERE name > ?2 ORDER BY name LIMIT ?3"),
        };
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(account).bind(after).bind(limit).fetch_all(&self.pool).await?)
    }

    /// How many accounts and sites there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn counts(&self) -> Result<(u64, u64)> {
        let sql = "SELECT (SELECT count(*) FROM account), (SELECT count(*) FROM site)";
        let (accounts, sites): (i64, i64) = sqlx::query_as(sql).fetch_one(&self.pool).await?;
        Ok((accounts as u64, sites as u64))
    }
}

impl Write {
    /// How many accounts are placed on a logical server.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accounts_on(&mut self, logical_server: &Name) -> Result<u64> {
        let sql = "SELECT count(*) FROM account WHERE logical_server = ?";
        let count: i64 = sqlx::query_scalar(sql).bind(logical_server.as_str()).fetch_one(&mut *self.tx).await?;
        Ok(count as u64)
    }

    /// An account as this change sees it, at the version that the asker names, if it names one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Stale`], or when the database fails.
    pub async fn account(&mut self, name: &Name, version: Option<u64>) -> Result<AccountRow> {
        let sql = format!("SELECT {ACCOUNT_COLUMNS} FROM account WHERE name = ?");
        let found: Option<AccountRow> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).fetch_optional(&mut *self.tx).await?;
        let row = found.ok_or_else(|| StoreError::Unknown { kind: Kind::Account, name: name.to_string() })?;
        expect_version(Kind::Account, name.as_str(), row.meta.version, version)?;
        Ok(row)
    }

    /// The account that a new thing is to belong to.
    pub(super) async fn account_of_new(&mut self, name: &Name) -> Result<AccountRow> {
        match self.account(name, None).await {
            Err(StoreError::Unknown { name, .. }) => {
                let detail = format!("there is no account {name}");
                Err(Refusal::new(Rule::ReferenceExists, detail, "list what exists: phalanx account list").into())
            }
            other => other,
        }
    }

    /// The logical server that a new thing is to be placed on.
    pub(super) fn logical_server(&self, name: &Name) -> Result<&LogicalServer> {
        self.fleet().logical_servers.get(name).ok_or_else(|| {
            let detail = format!("there is no logical server {name}");
            Refusal::new(Rule::ReferenceExists, detail, "list what exists: phalanx logical-server list").into()
        })
    }

    /// A new account. Its uid is one that no account ever had, so that files left on a share never get another owner.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn add_account(
        &mut self,
        name: Name,
        logical_server: Name,
        owner: Option<Name>,
        limits: Limits,
        php: phalanx_model::PhpVersion,
    ) -> Result<AccountRow> {
        match self.account(&name, None).await {
            Err(StoreError::Unknown { .. }) => {}
            Err(other) => return Err(other),
            Ok(_) => {
                let detail = format!("there is an account {name} already");
                return Err(Refusal::new(Rule::NameIsUnique, detail, "choose another name").into());
            }
        }
        self.logical_server(&logical_server)?;
        let uid: i64 = sqlx::query_scalar("UPDATE meta SET uid_next = uid_next + 1 RETURNING uid_next - 1")
            .fetch_one(&mut *self.tx)
            .await?;
        let uid = u32::try_from(uid).ok().and_then(|uid| Uid::try_from(uid).ok());
        let uid = uid.ok_or_else(|| {
            Refusal::new(
                Rule::ValueInRange,
                "all uids of accounts have been given out",
                "use a second panel for further accounts",
            )
        })?;
        let owner = owner.unwrap_or_else(|| self.actor.owner.clone());
        let account =
            Account { name, uid, logical_server, owner: owner.clone(), limits, php, state: AccountState::default() };
        let row = AccountRow { account, meta: Meta { owner, version: 1, created_at: crate::clock::unix_s() } };
        self.put_account(&row).await?;
        self.audit(Kind::Account, &row.account.name, None, Some(json(&row.account)));
        Ok(row)
    }

    /// Gives an account new limits, PHP or state; name, uid and place stay. It does nothing where nothing changes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn change_account(&mut self, old: AccountRow, new: Account) -> Result<AccountRow> {
        if old.account == new {
            return Ok(old);
        }
        let row = AccountRow { account: new, meta: Meta { version: old.meta.version + 1, ..old.meta } };
        self.put_account(&row).await?;
        self.audit(Kind::Account, &row.account.name, Some(json(&old.account)), Some(json(&row.account)));
        Ok(row)
    }

    async fn put_account(&mut self, row: &AccountRow) -> Result<()> {
        let AccountRow { account, meta } = row;
        let Account { name, uid, logical_server, owner, limits, php, state } = account;
        let Limits { cpu_percent, memory_mib, processes, io_weight } = *limits;
        sqlx::query(
            "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT (name) DO UPDATE SET \
             cpu_percent = ?5, memory_mib = ?6, processes = ?7, io_weight = ?8, php = ?9, state = ?10, version = ?11",
        )
        .bind(name.as_str())
        .bind(uid.get())
        .bind(logical_server.as_str())
        .bind(owner.as_str())
        .bind(cpu_percent)
        .bind(memory_mib)
        .bind(processes)
        .bind(io_weight)
        .bind(php.as_str())
        .bind(state_text(*state))
        .bind(meta.version as i64)
        .bind(meta.created_at)
        .execute(&mut *self.tx)
        .await?;
        let share = self.share_of(logical_server)?;
        let logical_server = logical_server.clone();
        self.log(&logical_server, DirectoryChange::Put(Box::new(Row::Account { account: account.clone(), share })));
        Ok(())
    }

    pub(super) fn share_of(&self, logical_server: &Name) -> Result<Name> {
        let fleet = self.fleet();
        let cluster =
            fleet.logical_servers.get(logical_server).and_then(|logical| fleet.clusters.get(&logical.cluster));
        cluster.and_then(|cluster| cluster.share.clone()).ok_or_else(|| {
            let detail = format!("the cluster of logical server {logical_server} has no share");
            Refusal::new(Rule::ReferenceExists, detail, "set one: phalanx cluster change CLUSTER --share NAME").into()
        })
    }

    /// Removes an account; with its sites where `with_sites`, else it must have none, and no mail domain anyway. What lies in its home
    /// stays.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn remove_account(&mut self, row: &AccountRow, with_sites: bool) -> Result<()> {
        let name = &row.account.name;
        self.has_no_mail(name).await?;
        let sql = format!("SELECT {SITE_COLUMNS} FROM site WHERE account = ? ORDER BY name");
        let sites: Vec<SiteRow> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).fetch_all(&mut *self.tx).await?;
        if !sites.is_empty() && !with_sites {
            let some = sites.iter().take(3).map(|row| row.site.name.as_str()).collect::<Vec<_>>().join(", ");
            let (noun, more) =
                (if sites.len() == 1 { "site" } else { "sites" }, if sites.len() > 3 { ", …" } else { "" });
            let detail = format!("account {name} has {} {noun}: {some}{more}", sites.len());
            return Err(Refusal::new(
                Rule::InUseIsNotRemoved,
                detail,
                "remove its sites first, or with it: ?sites=true",
            )
            .into());
        }
        for site in &sites {
            self.remove_site(site).await?;
        }
        sqlx::query("DELETE FROM account WHERE name = ?").bind(name.as_str()).execute(&mut *self.tx).await?;
        self.log(&row.account.logical_server, DirectoryChange::Remove(RowKey::Account(name.clone())));
        self.audit(Kind::Account, name, Some(json(&row.account)), None);
        Ok(())
    }

    /// A site as this change sees it, at the version that the asker names, if it names one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Stale`], or when the database fails.
    pub async fn site(&mut self, name: &HostName, version: Option<u64>) -> Result<SiteRow> {
        let sql = format!("SELECT {SITE_COLUMNS} FROM site WHERE name = ?");
        let found: Option<SiteRow> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).fetch_optional(&mut *self.tx).await?;
        let row = found.ok_or_else(|| StoreError::Unknown { kind: Kind::Site, name: name.to_string() })?;
        expect_version(Kind::Site, name.as_str(), row.meta.version, version)?;
        Ok(row)
    }

    /// A new site.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn add_site(&mut self, site: Site) -> Result<SiteRow> {
        let account = self.account_of_new(&site.account).await?;
        self.host_names_are_free(&site, None).await?;
        let row = SiteRow {
            site,
            meta: Meta { owner: account.account.owner.clone(), version: 1, created_at: crate::clock::unix_s() },
        };
        self.put_site(&row, &account.account.logical_server).await?;
        self.audit(Kind::Site, &row.site.name, None, Some(json(&row.site)));
        Ok(row)
    }

    /// Gives a site other aliases or another document root; name and account stay. It does nothing where nothing changes.
    ///
    /// # Errors
    /// A rule that stands against it, or the database fails.
    pub async fn change_site(&mut self, old: SiteRow, new: Site) -> Result<SiteRow> {
        if old.site == new {
            return Ok(old);
        }
        self.host_names_are_free(&new, Some(&old.site.name)).await?;
        let account = self.account(&new.account, None).await?;
        let row = SiteRow { site: new, meta: Meta { version: old.meta.version + 1, ..old.meta } };
        self.put_site(&row, &account.account.logical_server).await?;
        self.audit(Kind::Site, &row.site.name, Some(json(&old.site)), Some(json(&row.site)));
        Ok(row)
    }

    async fn put_site(&mut self, row: &SiteRow, logical_server: &Name) -> Result<()> {
        let SiteRow { site, meta } = row;
        sqlx::query(
            "INSERT INTO site VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO UPDATE SET document_root = ?4, version = ?5",
        )
        .bind(site.name.as_str())
        .bind(site.account.as_str())
        .bind(meta.owner.as_str())
        .bind(site.document_root.as_str())
        .bind(meta.version as i64)
        .bind(meta.created_at)
        .execute(&mut *self.tx)
        .await?;
        sqlx::query("DELETE FROM host_name WHERE site = ?").bind(site.name.as_str()).execute(&mut *self.tx).await?;
        for (place, host) in site.host_names().enumerate() {
            sqlx::query("INSERT INTO host_name VALUES (?, ?, ?)")
                .bind(host.as_str())
                .bind(site.name.as_str())
                .bind(place as i64)
                .execute(&mut *self.tx)
                .await?;
        }
        self.log(logical_server, DirectoryChange::Put(Box::new(Row::Site(site.clone()))));
        Ok(())
    }

    /// Removes a site; its files stay.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_site(&mut self, row: &SiteRow) -> Result<()> {
        let account = self.account(&row.site.account, None).await?;
        sqlx::query("DELETE FROM site WHERE name = ?").bind(row.site.name.as_str()).execute(&mut *self.tx).await?;
        self.log(&account.account.logical_server, DirectoryChange::Remove(RowKey::Site(row.site.name.clone())));
        self.audit(Kind::Site, &row.site.name, Some(json(&row.site)), None);
        Ok(())
    }

    /// A host name belongs to one site of the whole panel, as its name or as an alias; `present` is the site that may have it already.
    async fn host_names_are_free(&mut self, site: &Site, present: Option<&HostName>) -> Result<()> {
        if site.aliases.len() > Site::ALIASES_MAX {
            let why = format!("a site has at most {} aliases, not {}", Site::ALIASES_MAX, site.aliases.len());
            return Err(StoreError::Invalid { field: "aliases", why });
        }
        let mut seen = std::collections::BTreeSet::new();
        for host in site.host_names() {
            if !seen.insert(host) {
                return Err(StoreError::Invalid { field: "aliases", why: format!("{host} is given twice") });
            }
            let holder: Option<String> = sqlx::query_scalar("SELECT site FROM host_name WHERE host = ?")
                .bind(host.as_str())
                .fetch_optional(&mut *self.tx)
                .await?;
            if let Some(holder) = holder.filter(|holder| present.is_none_or(|present| holder != present.as_str())) {
                let detail = format!("host name {host} belongs to site {holder}");
                return Err(Refusal::new(
                    Rule::NameIsUnique,
                    detail,
                    "choose another host name, or remove it there first",
                )
                .into());
            }
        }
        Ok(())
    }
}
