//! Accounts and sites.

use super::list::{created, cursor_of, limit_of, one, page, view};
use super::problem::Reply;
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::Panel;
use crate::store::{AccountRow, Actor, SiteRow};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use phalanx_model::{Account, AccountState, Fleet, HostName, Limits, Name, PhpVersion, RelativePath, Site};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// A new account. Its uid is chosen by the panel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// The logical server that it is placed on.
    #[schema(value_type = String)]
    logical_server: Name,
    /// Who may manage it; who adds it, where nothing is said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    owner: Option<Name>,
    /// What it may use on each node: cpu_percent, memory_mib, processes, io_weight.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, u32>>)]
    limits: Limits,
    /// The version of PHP, as Debian names it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    php: PhpVersion,
}

/// A change of an account. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountPatch {
    /// All limits; who is not named gets its default.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, u32>>)]
    limits: Option<Limits>,
    /// The version of PHP.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    php: Option<PhpVersion>,
    /// active or suspended.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    state: Option<AccountState>,
}

/// A new site.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSite {
    /// Its main host name.
    #[schema(value_type = String)]
    name: HostName,
    /// The account that it belongs to.
    #[schema(value_type = String)]
    account: Name,
    /// Other host names that it answers under.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    aliases: Vec<HostName>,
    /// The document root, relative to the account's home; sites/NAME where nothing is said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    document_root: Option<RelativePath>,
}

/// A change of a site. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SitePatch {
    /// All aliases.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    aliases: Option<Vec<HostName>>,
    /// The document root.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    document_root: Option<RelativePath>,
}

/// Which accounts are listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountsQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    logical_server: Option<String>,
}

/// Which sites are listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SitesQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    account: Option<String>,
}

/// How an account is removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveAccountQuery {
    #[serde(default)]
    sites: bool,
}

fn account_view(row: &AccountRow) -> Value {
    view(&row.account, &row.meta)
}

fn site_view(row: &SiteRow) -> Value {
    view(&row.site, &row.meta)
}

pub(super) async fn list_accounts(State(panel): State<Panel>, Ask(query): Ask<AccountsQuery>) -> Reply {
    let limit = limit_of(query.limit)?;
    let after = cursor_of(query.cursor.as_deref())?;
    let rows = panel.store.accounts(query.logical_server.as_deref(), &after, limit + 1).await?;
    Ok(page(rows, limit, |row| row.account.name.to_string(), |row| account_view(&row)))
}

pub(super) async fn add_account(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewAccount>,
) -> Reply {
    let NewAccount { name, logical_server, owner, limits, php } = new;
    let mut write = panel.store.write(&actor).await?;
    php.is_on_all(&php_installed(&panel, write.fleet(), &logical_server))?;
    let row = write.add_account(name, logical_server, owner, limits, php).await?;
    write.commit().await?;
    Ok(created("/accounts", &row.account.name, row.meta.version, account_view(&row)))
}

pub(super) async fn get_account(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let row = panel.store.account(&name).await?;
    Ok(one(StatusCode::OK, row.meta.version, account_view(&row)))
}

pub(super) async fn change_account(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(AccountPatch { limits, php, state }): JsonBody<AccountPatch>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let old = write.account(&named("account", &name)?, version).await?;
    let present = old.account.clone();
    let new = Account {
        limits: limits.unwrap_or(present.limits),
        php: php.unwrap_or(present.php),
        state: state.unwrap_or(present.state),
        ..present
    };
    if new.php != old.account.php {
        new.php.is_on_all(&php_installed(&panel, write.fleet(), &new.logical_server))?;
    }
    let row = write.change_account(old, new).await?;
    write.commit().await?;
    Ok(one(StatusCode::OK, row.meta.version, account_view(&row)))
}

/// Which versions of PHP the nodes behind a logical server have, as far as they have said since the panel was started.
fn php_installed(panel: &Panel, fleet: &Fleet, logical_server: &Name) -> BTreeMap<Name, BTreeSet<PhpVersion>> {
    let logical = fleet.logical_servers.get(logical_server);
    let cluster = logical.and_then(|logical| fleet.clusters.get(&logical.cluster));
    let nodes = cluster.into_iter().flat_map(|cluster| cluster.nodes());
    nodes.filter_map(|(node, _, _)| Some((node.clone(), panel.live.seen(node)?.report.php?))).collect()
}

pub(super) async fn remove_account(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    Ask(RemoveAccountQuery { sites }): Ask<RemoveAccountQuery>,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    let row = write.account(&named("account", &name)?, version).await?;
    write.remove_account(&row, sites).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list_sites(State(panel): State<Panel>, Ask(query): Ask<SitesQuery>) -> Reply {
    let limit = limit_of(query.limit)?;
    let after = cursor_of(query.cursor.as_deref())?;
    let rows = panel.store.sites(query.account.as_deref(), &after, limit + 1).await?;
    Ok(page(rows, limit, |row| row.site.name.to_string(), |row| site_view(&row)))
}

pub(super) async fn add_site(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewSite>,
) -> Reply {
    let NewSite { name, account, aliases, document_root } = new;
    let document_root = document_root.unwrap_or_else(|| Site::document_root_default(&name));
    let mut write = panel.store.write(&actor).await?;
    let row = write.add_site(Site { name, aliases, account, document_root }).await?;
    write.commit().await?;
    Ok(created("/sites", &row.site.name, row.meta.version, site_view(&row)))
}

pub(super) async fn get_site(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let name: HostName = named("site", &name)?;
    let row = panel.store.site(name.as_str()).await?;
    Ok(one(StatusCode::OK, row.meta.version, site_view(&row)))
}

pub(super) async fn change_site(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(SitePatch { aliases, document_root }): JsonBody<SitePatch>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let old = write.site(&named("site", &name)?, version).await?;
    let present = old.site.clone();
    let new = Site {
        aliases: aliases.unwrap_or(present.aliases),
        document_root: document_root.unwrap_or(present.document_root),
        ..present
    };
    let row = write.change_site(old, new).await?;
    write.commit().await?;
    Ok(one(StatusCode::OK, row.meta.version, site_view(&row)))
}

pub(super) async fn remove_site(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    let row = write.site(&named("site", &name)?, version).await?;
    write.remove_site(&row).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
