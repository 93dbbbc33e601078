//! Mail domains, mailboxes and aliases.
//!
//! Invariant: a password goes in and never comes out, neither itself nor its hash.

mod dns;

pub(super) use dns::Record;

use super::list::{created, cursor_of, limit_of, one, page, view};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::store::{Actor, MailAliasRow, MailDomainRow, MailboxRow, World};
use crate::{Panel, dkim, password};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use password::Password;
use phalanx_model::mail::{MailState, PasswordHash, QuotaMib};
use phalanx_model::{AliasSource, HostName, LocalAddress, MailAddress, MailAlias, MailDomain, Mailbox, Name};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

// ---- domains

/// A new mail domain. The key that signs its mail is made by the panel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMailDomain {
    /// The domain.
    #[schema(value_type = String)]
    name: HostName,
    /// The account that it belongs to.
    #[schema(value_type = String)]
    account: Name,
    /// The logical server, of kind mail, that it is placed on.
    #[schema(value_type = String)]
    logical_server: Name,
}

/// A change of a mail domain. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MailDomainPatch {
    /// active or suspended.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    state: Option<MailState>,
}

/// Which mail domains are listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailDomainsQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    account: Option<String>,
    logical_server: Option<String>,
}

/// How a mail domain is removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveMailDomainQuery {
    #[serde(default)]
    mailboxes: bool,
}

fn domain_view(row: &MailDomainRow) -> Value {
    view(&row.shown(), &row.meta)
}

/// A domain with what its owner has to put into the DNS.
fn domain_in_full(world: &World, row: &MailDomainRow) -> Value {
    let fleet = &world.fleet;
    let logical = fleet.logical_servers.get(&row.domain.logical_server);
    let service = logical.and_then(|l| fleet.clusters.get(&l.cluster)).and_then(|cluster| cluster.mail.as_ref());
    let records = service.map(|mail| dns::records(&row.domain.name, &mail.host_name, &row.dkim)).unwrap_or_default();
    let mut shown = domain_view(row);
    shown["dns"] = json!(records);
    shown
}

pub(super) async fn list_domains(State(panel): State<Panel>, Ask(query): Ask<MailDomainsQuery>) -> Reply {
    let MailDomainsQuery { limit, cursor, account, logical_server } = query;
    let (limit, after) = (limit_of(limit)?, cursor_of(cursor.as_deref())?);
    let rows = panel.store.mail_domains(account.as_deref(), logical_server.as_deref(), &after, limit + 1).await?;
    Ok(page(rows, limit, |row| row.domain.name.to_string(), |row| domain_view(&row)))
}

pub(super) async fn add_domain(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(NewMailDomain { name, account, logical_server }): JsonBody<NewMailDomain>,
) -> Reply {
    let domain = MailDomain { name, account, logical_server, state: MailState::default() };
    // What is refused is refused before a key is made for it; the turn to write is not held meanwhile.
    panel.store.write(&actor).await?.new_mail_domain_fits(&domain).await?;
    let key = dkim::generate().await.map_err(|error| no_key(&error))?;
    let mut write = panel.store.write(&actor).await?;
    let row = write.add_mail_domain(domain, key).await?;
    let world = write.commit().await?;
    Ok(created("/mail-domains", &row.domain.name, row.meta.version, domain_in_full(&world, &row)))
}

fn no_key(error: &anyhow::Error) -> Problem {
    tracing::error!("no DKIM key could be made: {error:#}");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no-dkim-key",
        "No DKIM key could be made",
        format!("the key that signs the domain's mail could not be made: {error:#}"),
        "see that openssl is installed on the panel's machine, and try again",
    )
}

pub(super) async fn get_domain(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let name: HostName = named("mail domain", &name)?;
    let row = panel.store.mail_domain(name.as_str()).await?;
    Ok(one(StatusCode::OK, row.meta.version, domain_in_full(&panel.store.world(), &row)))
}

pub(super) async fn change_domain(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(MailDomainPatch { state }): JsonBody<MailDomainPatch>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let old = write.mail_domain(&named("mail domain", &name)?, version).await?;
    let present = old.domain.clone();
    let new = MailDomain { state: state.unwrap_or(present.state), ..present };
    let row = write.change_mail_domain(old, new).await?;
    let world = write.commit().await?;
    Ok(one(StatusCode::OK, row.meta.version, domain_in_full(&world, &row)))
}

pub(super) async fn remove_domain(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    Ask(RemoveMailDomainQuery { mailboxes }): Ask<RemoveMailDomainQuery>,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    let row = write.mail_domain(&named("mail domain", &name)?, version).await?;
    write.remove_mail_domain(&row, mailboxes).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

// ---- mailboxes

/// A new mailbox, with its password or the hash of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMailbox {
    /// Its address, in a domain that exists.
    #[schema(value_type = String)]
    address: LocalAddress,
    /// Its password: 8 to 200 characters. It is hashed at once and never shown.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password: Option<Password>,
    /// The hash of its password, where it comes from elsewhere: {ARGON2ID}, {BLF-CRYPT} or {SHA512-CRYPT}, then the hash.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password_hash: Option<PasswordHash>,
    /// The most that it may hold, in MiB: 1 to 1,048,576; 1,024 where nothing is said.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    quota_mib: QuotaMib,
}

/// A change of a mailbox. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxPatch {
    /// Its new password.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password: Option<Password>,
    /// The hash of its new password.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password_hash: Option<PasswordHash>,
    /// The most that it may hold, in MiB.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    quota_mib: Option<QuotaMib>,
    /// active or suspended.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    state: Option<MailState>,
}

/// Which mailboxes or aliases are listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfDomainQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    domain: Option<String>,
}

fn mailbox_view(row: &MailboxRow) -> Value {
    view(&row.shown(), &row.meta)
}

/// The hash of the password that a request brings; none where it brings none.
async fn hash_of(password: Option<Password>, hash: Option<PasswordHash>) -> Reply<Option<PasswordHash>> {
    match (password, hash) {
        (Some(_), Some(_)) => Err(Problem::invalid("password_hash", "give password or password_hash, not both")),
        (Some(password), None) => {
            let hash = password::hash(password).await.map_err(|error| Problem::internal(error.as_ref()))?;
            Ok(Some(hash))
        }
        (None, hash) => Ok(hash),
    }
}

pub(super) async fn list_mailboxes(State(panel): State<Panel>, Ask(query): Ask<OfDomainQuery>) -> Reply {
    let OfDomainQuery { limit, cursor, domain } = query;
    let (limit, after) = (limit_of(limit)?, cursor_of(cursor.as_deref())?);
    let rows = panel.store.mailboxes(domain.as_deref(), &after, limit + 1).await?;
    Ok(page(rows, limit, |row| row.mailbox.address.to_string(), |row| mailbox_view(&row)))
}

pub(super) async fn add_mailbox(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(NewMailbox { address, password, password_hash, quota_mib }): JsonBody<NewMailbox>,
) -> Reply {
    let hash = hash_of(password, password_hash).await?;
    let hash = hash.ok_or_else(|| Problem::invalid("password", "a mailbox needs a password, or a password_hash"))?;
    let mut write = panel.store.write(&actor).await?;
    let row = write.add_mailbox(address, hash, quota_mib).await?;
    write.commit().await?;
    Ok(created("/mailboxes", &row.mailbox.address, row.meta.version, mailbox_view(&row)))
}

pub(super) async fn get_mailbox(State(panel): State<Panel>, At(address): At<String>) -> Reply {
    let row = panel.store.mailbox(&named("mailbox", &address)?).await?;
    Ok(one(StatusCode::OK, row.meta.version, mailbox_view(&row)))
}

pub(super) async fn change_mailbox(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(address): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(MailboxPatch { password, password_hash, quota_mib, state }): JsonBody<MailboxPatch>,
) -> Reply {
    let address = named("mailbox", &address)?;
    let hash = hash_of(password, password_hash).await?;
    let mut write = panel.store.write(&actor).await?;
    let old = write.mailbox(&address, version).await?;
    let present = old.mailbox.clone();
    let new = Mailbox {
        password: hash.unwrap_or(present.password),
        quota_mib: quota_mib.unwrap_or(present.quota_mib),
        state: state.unwrap_or(present.state),
        ..present
    };
    let row = write.change_mailbox(old, new).await?;
    write.commit().await?;
    Ok(one(StatusCode::OK, row.meta.version, mailbox_view(&row)))
}

pub(super) async fn remove_mailbox(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(address): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    let row = write.mailbox(&named("mailbox", &address)?, version).await?;
    write.remove_mailbox(&row).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

// ---- aliases

/// A new alias.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMailAlias {
    /// Whose mail: an address, or @DOMAIN for every address of a domain that is nothing else.
    #[schema(value_type = String)]
    source: AliasSource,
    /// Where it goes: 1 to 100 addresses, here or elsewhere.
    #[schema(value_type = Vec<String>)]
    targets: Vec<MailAddress>,
}

/// A change of an alias. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MailAliasPatch {
    /// All targets.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    targets: Option<Vec<MailAddress>>,
}

fn alias_view(row: &MailAliasRow) -> Value {
    view(&row.alias, &row.meta)
}

pub(super) async fn list_aliases(State(panel): State<Panel>, Ask(query): Ask<OfDomainQuery>) -> Reply {
    let OfDomainQuery { limit, cursor, domain } = query;
    let (limit, after) = (limit_of(limit)?, cursor_of(cursor.as_deref())?);
    let rows = panel.store.mail_aliases(domain.as_deref(), &after, limit + 1).await?;
    Ok(page(rows, limit, |row| row.alias.source.to_string(), |row| alias_view(&row)))
}

pub(super) async fn add_alias(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(NewMailAlias { source, targets }): JsonBody<NewMailAlias>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let row = write.add_mail_alias(MailAlias { source, targets }).await?;
    write.commit().await?;
    Ok(created("/aliases", &row.alias.source, row.meta.version, alias_view(&row)))
}

pub(super) async fn get_alias(State(panel): State<Panel>, At(source): At<String>) -> Reply {
    let row = panel.store.mail_alias(&named("alias", &source)?).await?;
    Ok(one(StatusCode::OK, row.meta.version, alias_view(&row)))
}

pub(super) async fn change_alias(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(source): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(MailAliasPatch { targets }): JsonBody<MailAliasPatch>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let old = write.mail_alias(&named("alias", &source)?, version).await?;
    let present = old.alias.clone();
    let new = MailAlias { targets: targets.unwrap_or(present.targets), ..present };
    let row = write.change_mail_alias(old, new).await?;
    write.commit().await?;
    Ok(one(StatusCode::OK, row.meta.version, alias_view(&row)))
}

pub(super) async fn remove_alias(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(source): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    let row = write.mail_alias(&named("alias", &source)?, version).await?;
    write.remove_mail_alias(&row).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
